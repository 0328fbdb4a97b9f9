"""The page of a report: whole in itself, safe, with every number and figure."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loopcoder.diagnose import report
from loopcoder.diagnose.report import write_report
from loopcoder.diagnose.results import Diagnosis
from loopcoder.errors import InputError
from tests.diagnose.made_up import HARD_NAME, diagnosis

pytest.importorskip("matplotlib")
_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """What is in a page: its elements, and the text of each row of its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, attribute: str) -> list[str]:
        return [a[attribute] or "" for _, a in self.elements if attribute in a]


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw two of the figures, which is what takes the time."""
    whole = report.drawings

    def drawings(diagnoses: Sequence[Diagnosis]) -> list[report.Drawing]:
        return [d for d in whole(diagnoses) if d.name in ("gate", "exits")]

    monkeypatch.setattr(report, "drawings", drawings)


@pytest.fixture
def two(rng: random.Random) -> list[Diagnosis]:
    small = dict(layers=3, languages=("c<d>",))
    return [
        diagnosis(rng, HARD_NAME, 2, loss=[3.25, 2.125], **small),  # type: ignore[arg-type]
        diagnosis(rng, "one <i>loop</i>", 1, loss=[2.5], **small),  # type: ignore[arg-type]
    ]


@pytest.mark.usefixtures("few_figures")
def test_the_page_is_whole_and_safe(two: list[Diagnosis], tmp_path: Path) -> None:
    two[0].notes.append("<script>alert(1)</script>")
    path = write_report(two, tmp_path / "new" / "folder")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert sorted(p.name for p in (path.parent / "figures").iterdir()) == ["exits.svg", "gate.svg"]

    kinds = Counter(tag for tag, _ in page.elements)
    assert kinds["svg"] == kinds["figure"] == 2
    assert kinds["script"] == kinds["link"] == kinds["img"] == kinds["b"] == 0
    assert page.all("src") == []
    assert re.findall(r'https?://(?!www\.w3\.org/2000/svg")', text) == []
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert all(target.removeprefix("#") in ids for target in page.all("href"))
    assert kinds["caption"] == kinds["table"] - len(two)  # settings have a summary
    assert all(a.get("aria-label") for tag, a in page.elements if tag == "svg")
    assert "<script>alert(1)</script>" in page.texts
    assert any("one <i>loop</i>" in t for t in page.texts)
    assert "\x1b" not in text


@pytest.mark.usefixtures("few_figures")
def test_every_number_is_in_a_table(two: list[Diagnosis], tmp_path: Path) -> None:
    page = Page(write_report(two, tmp_path).read_text(encoding="utf-8"))
    of_two = [row for row in page.rows if len(row) > 2 and row[0].startswith("a <b>")]
    assert ["3.250 ± 0.033", "2.125 ± 0.021"] in [row[3:] for row in of_two if row[1] == "all"]
    series = {(s.measure, s.variant, s.group) for s in two[0].series if s.layers is None}
    assert len([row for row in of_two if row[1] in two[0].groups()]) == len(series)
    layered = [s for s in two[0].series if s.layers is not None and s.group == "all"]
    assert len(
        [row for row in of_two if row[1].isdigit() and len(row) == 4 and "R =" not in row[3]]
    ) == 3 * len(layered)
    shown = " ".join(cell for row in page.rows for cell in row)
    for e in two[0].exits:
        assert f"{e.loss:.4g}" in shown
    for value in (two[0].data["place"], two[0].made["commit"], two[1].checkpoint, "12,500,000,000"):
        assert value.replace("\x1b", "\\x1b") in shown


@pytest.mark.usefixtures("few_figures")
def test_what_is_recommended_is_marked_as_a_heuristic(two: list[Diagnosis], tmp_path: Path) -> None:
    alone = Page(write_report(two[1:], tmp_path).read_text(encoding="utf-8"))
    assert any(t.startswith("A heuristic, no proof") for t in alone.texts)
    assert "Trained models beside each other" not in alone.texts
    assert "gate: this model has none" in alone.texts
    both = Page(write_report(two, tmp_path).read_text(encoding="utf-8"))
    assert "Trained models beside each other" in both.texts
    assert "R = 2, of the models trained with R = 1, 2." in both.texts


def test_without_a_diagnosis_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no diagnosis"):
        write_report([], tmp_path)
    assert list(tmp_path.iterdir()) == []
