"""Bars and columns of the report, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

from loopcoder.page import Html, element, join, text


def small_bar(share: float, kind: str = "a") -> Html:
    """Return a bar for a cell of a table; `share` is 0 to 1."""
    width = 90 * min(max(share, 0.0), 1.0)
    bar = element("rect", width=f"{width:.1f}", height=8, class_=kind)
    return element("svg", bar, width=90, height=8, aria_hidden="true")


def bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], label: str, num_chars: int = 18
) -> Html:
    """Return horizontal bars; a row is a name and its bars: (class, value, text beside it)."""
    left, right, width, thick = num_chars * 7.5, 170, 720, 9
    largest = max((value for _, found in rows for _, value, _ in found), default=0) or 1
    parts: list[Html] = []
    y = 4.0
    for name, found in rows:
        height = thick * len(found)
        short = name if len(name) <= num_chars else name[: num_chars - 1] + "…"
        parts.append(
            element("text", short, x=left - 8, y=f"{y + height / 2 + 4:.1f}", text_anchor="end")
        )
        for i, (kind, value, shown) in enumerate(found):
            length = max(value, 0) / largest * (width - left - right)
            parts.append(
                element(
                    "rect",
                    element("title", f"{name}: {shown}"),
                    x=left,
                    y=f"{y + i * thick:.1f}",
                    width=f"{length:.1f}",
                    height=thick - 1,
                    class_=kind,
                )
            )
            if i == 0:
                x = left + max(v for _, v, _ in found) / largest * (width - left - right) + 6
                middle = f"{y + height / 2 + 4:.1f}"
                parts.append(element("text", shown, x=f"{x:.1f}", y=middle, class_="soft"))
        y += height + 7
    return _svg(width, y, label, parts)


def columns(
    names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], label: str
) -> Html:
    """Return a histogram: names of the bins, and (class, heights) of each series."""
    width, height, bottom, left = 720, 220, 24, 8
    largest = max((value for _, found in series for value in found), default=0) or 1
    step = (width - left) / max(len(names), 1)
    thick = min(step * 0.8 / max(len(series), 1), 24)
    parts: list[Html] = [
        element("line", x1=left, x2=width, y1=height - bottom + 0.5, y2=height - bottom + 0.5)
    ]
    for i, name in enumerate(names):
        middle = left + (i + 0.5) * step
        parts.append(
            element(
                "text", name, x=f"{middle:.1f}", y=height - 8, text_anchor="middle", class_="soft"
            )
        )
        for j, (kind, found) in enumerate(series):
            tall = found[i] / largest * (height - bottom - 20)
            parts.append(
                element(
                    "rect",
                    element("title", f"{name}: {found[i]:,.0f}"),
                    x=f"{middle + (j - len(series) / 2) * thick:.1f}",
                    y=f"{height - bottom - tall:.1f}",
                    width=f"{thick - 1:.1f}",
                    height=f"{tall:.1f}",
                    class_=kind,
                )
            )
    parts.append(element("text", f"highest: {largest:,.0f}", x=left, y=12, class_="soft"))
    return _svg(width, height, label, parts)


def _svg(width: float, height: float, label: str, parts: Sequence[Html]) -> Html:
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{text(label)}">'
    return Html(f"{opening}{join(parts)}</svg>")
