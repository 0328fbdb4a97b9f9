"""The figures of diagnoses as SVG: files for print, and the same inside a page of HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from loopcoder.diagnose.layer_figures import layer_figures
from loopcoder.diagnose.loop_figures import loop_figures
from loopcoder.diagnose.panels import WIDTH, Drawing, named
from loopcoder.diagnose.results import Diagnosis
from loopcoder.diagnose.token_figures import token_figures
from loopcoder.metrics.drawing import GRID, INK, draw, require_matplotlib
from loopcoder.page import Html

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_VARIABLES = {INK: "--ink", GRID: "--line", "#999999": "--soft", "#ffffff": "--page"}
"""Colors that follow those of the page, light or dark."""
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def drawings(diagnoses: Sequence[Diagnosis]) -> list[Drawing]:
    """Return the figures that there are values for, in the order of the report.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    shown = named(diagnoses)
    by_loop = loop_figures(shown)
    return [*by_loop, *layer_figures(shown), *token_figures(shown)]


def save(drawing: Drawing, folder: Path) -> Path:
    """Draw a figure into `folder` as an SVG with dark lines on white; return its path."""
    path = folder / f"{drawing.name}.svg"
    return draw(path, drawing.draw_on, width=WIDTH, height=drawing.height)


def inlined(svg: str, prefix: str, label: str) -> Html:
    """Return an SVG of ours for a page of HTML: in the page's colors, its ids beginning with
    `prefix`, `label` for those who do not see it."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for parent in list(root.iter()):
        for sheet in parent.findall(f"{{{_SVG}}}style"):  # it would be that of the whole page
            root.set("style", (sheet.text or "").strip().removeprefix("*{").removesuffix("}"))
            parent.remove(sheet)
        for key, value in list(parent.attrib.items()):
            _rewrite(parent, key, value, prefix)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return Html(ElementTree.tostring(root, encoding="unicode"))


def _rewrite(element: ElementTree.Element, key: str, value: str, prefix: str) -> None:
    if key == "id":
        element.set(key, prefix + value)
    elif key == f"{{{_XLINK}}}href":
        del element.attrib[key]
        element.set("href", f"#{prefix}{value.removeprefix('#')}")
    elif key == "style":
        for color, variable in _VARIABLES.items():
            value = value.replace(color, f"var({variable})")
        element.set(key, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
    elif value.startswith("url(#"):
        element.set(key, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
