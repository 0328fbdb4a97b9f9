"""Figures of diagnoses: what is in them, and their form in files and in a page."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from loopcoder.diagnose.figures import drawings, inlined, save
from loopcoder.diagnose.loop_figures import loop_figures
from loopcoder.diagnose.panels import Drawing, named
from loopcoder.diagnose.results import Diagnosis
from tests.diagnose.made_up import HARD_NAME, compared, diagnosis

Figure = pytest.importorskip("matplotlib.figure").Figure
to_rgba = pytest.importorskip("matplotlib.colors").to_rgba

EVERY = [
    *("gain_cost", "gain_cost_normed", "signatures", "signatures_normed", "logit_lens"),
    *("test_time_loops", "gate", "attention_entropy_all", "attention_entropy_no_first"),
    *("attention_change_all", "attention_change_no_first", "head_rank", "head_cosine"),
    *("concentration", "loss_gain_by_group", "exits"),
]


def by_name(diagnoses: list[Diagnosis]) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in drawings(diagnoses)}


def drawn(diagnoses: list[Diagnosis], name: str) -> Any:
    figure = Figure()
    by_name(diagnoses)[name].draw_on(figure)
    return figure


def small(rng: random.Random, name: str = "a", trained: int = 2, **settings: Any) -> Diagnosis:
    return diagnosis(rng, name, trained, layers=3, languages=("c++",), **settings)


def test_every_figure_that_there_are_values_for(rng: random.Random) -> None:
    assert list(by_name(compared(rng))) == EVERY
    assert list(by_name([small(rng, trained=1)])) == [
        *("signatures", "signatures_normed", "logit_lens"),
        *("attention_entropy_all", "attention_entropy_no_first", "head_rank", "head_cosine"),
    ]
    without = set(by_name([small(rng, gates=False)]))
    assert without == set(EVERY) - {"gate", "test_time_loops", "concentration"}


def test_gain_on_a_log_axis_against_cost(rng: random.Random) -> None:
    shown = [
        small(
            rng,
            "three",
            3,
            output_shift=[None, 1.75, 0.5],
            offset_cost_raw=[None, 54, 60],
            width=0.4,
        ),
        small(rng, "one", 1),
        small(rng, "two", 2, offset_cost_raw=[None, 90]),
    ]
    figure = drawn(shown, "gain_cost")
    left, right = figure.axes[:2], figure.axes[2:]
    assert [ax.get_title(loc="left") for ax in left] == ["three", "two"]
    assert {ax.get_yscale() for ax in left} == {"log"}
    assert {ax.get_yscale() for ax in right} == {"linear"}
    assert list(left[0].lines[0].get_ydata()) == [1.75, 0.5]
    assert left[0].get_ylim()[0] < 0.3  # the interval of 0.5 is to be seen
    assert list(right[0].lines[0].get_ydata()) == [54, 60]
    assert right[0].get_ylim() == right[1].get_ylim()
    assert left[0].get_ylim() == left[1].get_ylim()


def test_intervals_are_bars_and_loops_beyond_training_hollow(rng: random.Random) -> None:
    loss = [2.9, 2.4, 2.5]
    figure = drawn([small(rng, loops=3, loss=loss, width=0.1)], "test_time_loops")
    (ax,) = figure.axes
    inside, beyond = ax.containers
    assert [list(c.lines[0].get_ydata()) for c in (inside, beyond)] == [[2.4], [2.5]]
    assert to_rgba(beyond.lines[0].get_markerfacecolor()) == to_rgba("white")
    assert to_rgba(inside.lines[0].get_markerfacecolor()) != to_rgba("white")
    (bar,) = inside.lines[2][0].get_segments()
    assert list(bar[:, 1]) == pytest.approx([2.16, 2.64])
    assert [text.get_text() for text in ax.texts] == ["trained R = 2"]


def test_a_line_for_each_loop_by_layer(rng: random.Random) -> None:
    found = small(rng, trained=3)
    gates = next(s for s in found.series if (s.measure, s.group) == ("gate", "all") and s.layers)
    (ax,) = drawn([found], "gate").axes
    curves = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert [list(curve.get_ydata()) for curve in curves] == gates.values[1:]
    assert len(ax.collections) == 2  # the bands
    (ax,) = drawn([small(rng, width=0.0)], "gate").axes
    assert len(ax.collections) == 0


def test_shares_are_stacked(rng: random.Random) -> None:
    figure = drawn(
        [small(rng, trained=3, concentration_largest_shift=[None, 0.7, 0.3])], "concentration"
    )
    _, _, largest = figure.axes
    assert [bar.get_x() for bar in largest.patches] == [0, 0.7]
    assert [bar.get_width() for bar in largest.patches] == pytest.approx([0.7, 0.3])
    assert [text.get_text() for text in largest.texts] == ["70%", "30%"]
    of_two = drawn([small(rng, "two", 2), small(rng, "three", 3)], "concentration")
    rows = [label.get_text() for label in of_two.axes[0].get_yticklabels()]
    assert rows == ["three"]  # a second loop without a third has all of it


def test_gains_by_language_are_paired_where_that_was_measured(rng: random.Random) -> None:
    def half_of_all(is_paired: bool) -> float:
        found = small(rng, loss=[2.6, 2.5], is_paired=is_paired)
        (ax,) = drawn([found], "loss_gain_by_group").axes
        rows = [label.get_text() for label in ax.get_yticklabels()]
        assert sorted(rows) == ["all", "domain/code", "domain/text", "language/c++"]
        bar = ax.containers[0].lines[2][0].get_segments()[0]
        assert (bar[0, 0] + bar[1, 0]) / 2 == pytest.approx(0.1)
        return float(bar[1, 0] - bar[0, 0]) / 2

    assert half_of_all(True) == pytest.approx(0.001)
    assert half_of_all(False) == pytest.approx(0.01 * (2.6**2 + 2.5**2) ** 0.5)


def test_a_file_has_text_and_the_same_bytes_again(rng: random.Random, tmp_path: Path) -> None:
    name = "_" + HARD_NAME[:19] + " 名"
    drawing = by_name([small(rng, name), small(rng, "$x$ <&>")])["exits"]
    svg = save(drawing, tmp_path / "a")
    assert svg.read_bytes() == save(drawing, tmp_path / "b").read_bytes()
    texts = ["".join(node.itertext()) for node in ET.parse(svg).iter() if "text" in str(node.tag)]
    assert "$x$ <&>" in texts
    assert any(text.lstrip("\u200b") == name for text in texts)
    assert "sans-serif" in svg.read_text()


def test_in_a_page_colors_are_those_of_the_page_and_ids_its_own(
    rng: random.Random, tmp_path: Path
) -> None:
    by = by_name([small(rng), small(rng, "b", 3)])
    svg = save(by["gate"], tmp_path).read_text()
    found = inlined(svg, "gate-", 'a "label" <b>')
    root = ET.fromstring(found)
    ids = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
    assert ids
    assert all(name.startswith("gate-") for name in ids)
    used = re.findall(r'href="#([^"]*)"', found) + re.findall(r"url\(#([^)]*)\)", found)
    assert len(used) > 10
    assert set(used) <= set(ids)
    assert root.attrib["aria-label"] == 'a "label" <b>'
    assert root.attrib["role"] == "img"
    assert "width" not in root.attrib
    for wrong in ("<style", "metadata", "#ffffff", "#333333", "xlink"):
        assert wrong in svg
        assert wrong not in found
    assert {"var(--ink)", "var(--page)", "var(--line)"} <= set(re.findall(r"var\([^)]*\)", found))


def test_of_many_languages_the_largest_are_shown(rng: random.Random) -> None:
    names = [f"l{i}" for i in range(30)]
    found = diagnosis(rng, layers=1, languages=names)
    sizes = {s.group: s.counts[-1] for s in found.series if s.measure == "loss"}
    (ax,) = drawn([found], "loss_gain_by_group").axes
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows[0] == "all"
    assert set(rows[1:3]) == {"domain/code", "domain/text"}
    largest = sorted((f"language/{n}" for n in names), key=lambda g: -sizes[g])
    assert rows[3:] == largest[:21]
    assert "9 more are in the table" in by_name([found])["loss_gain_by_group"].caption


def test_the_logit_lens_says_which_loops_were_trained_to_be_read(rng: random.Random) -> None:
    one = diagnosis(rng, trained=3, layers=1, languages=())

    def caption() -> str:
        return next(d.caption for d in loop_figures(named([one])) if d.name == "logit_lens")

    assert "last loop alone" in caption()
    one.training["objective"]["loop_weights"] = [0.0, 1.0, 1.0]
    assert caption() == "The loss of training was taken on earlier loops as well."
