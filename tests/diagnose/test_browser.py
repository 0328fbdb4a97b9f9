"""The report in a real browser: light, dark, printed, without JavaScript of its own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from loopcoder.diagnose.report import write_report
from tests import browser
from tests.diagnose.made_up import compared

pytestmark = pytest.mark.browser

BOXES = """[...document.querySelectorAll('figure')].map(figure => {
  const box = figure.querySelector('svg').getBoundingClientRect();
  const text = [...figure.querySelectorAll('svg text')].map(t => t.getBoundingClientRect());
  return {name: figure.id, width: box.width, height: box.height, page: innerWidth,
    texts: text.filter(t => t.width > 0 && t.left >= box.left - 1 && t.right <= box.right + 1
      && t.top >= box.top - 1 && t.bottom <= box.bottom + 1).length, all: text.length}
})"""
COLORS = """[getComputedStyle(document.body).backgroundColor,
  ...[...document.querySelectorAll('svg text')].map(t => getComputedStyle(t).fill)]"""
PROBLEMS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")


def brightness(color: str) -> float:
    red, green, blue = (float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3])
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def test_every_figure_is_seen_light_dark_and_printed(rng: random.Random, tmp_path: Path) -> None:
    browser.find()
    path = write_report(compared(rng), tmp_path / "report")
    figures = sorted(p.stem for p in (path.parent / "figures").iterdir())
    with browser.page(tmp_path / "profile") as page:
        for media, scheme in (("screen", "light"), ("screen", "dark"), ("print", "dark")):
            page.emulate(media, scheme)
            page.open(path)
            boxes = page.evaluate(BOXES)
            assert sorted(box["name"].removeprefix("figure-") for box in boxes) == figures
            for box in boxes:
                assert box["width"] > 600, box
                assert box["width"] <= box["page"], box
                assert box["height"] > 100, box
                assert box["texts"] == box["all"] > 5, box  # none is cut off
            background, *inks = page.evaluate(COLORS)
            is_dark = (media, scheme) == ("screen", "dark")
            # white on print, where the body has no more than the paper's color
            assert (brightness(background) < 0.3) == is_dark
            readable = [abs(brightness(ink) - brightness(background)) > 0.5 for ink in inks]
            assert sum(readable) > 0.95 * len(inks)  # but for numbers on colored bars
            assert page.events_of(*PROBLEMS) == []
            asked = [e["request"]["url"] for e in page.events_of("Network.requestWillBeSent")]
            assert asked == [path.resolve().as_uri()]
        pdf = page.pdf()
    assert pdf.startswith(b"%PDF-")
    assert len(pdf) > 100_000


def test_wide_tables_do_not_widen_the_page(rng: random.Random, tmp_path: Path) -> None:
    browser.find()
    path = write_report(compared(rng)[3:6], tmp_path / "report")
    with browser.page(tmp_path / "profile", width=600) as page:
        page.open(path)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
