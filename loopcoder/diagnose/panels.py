"""Parts of every figure of a diagnosis: a look for each checkpoint, panels, lines, intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loopcoder.diagnose.reading import Point, Points, labels, trained_loops
from loopcoder.diagnose.results import Diagnosis
from loopcoder.metrics.drawing import COLORS, INK, MARKERS, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0
"""Of a figure, in inches."""
_PALETTE = (*COLORS[:-1], INK)  # black would not turn light on a dark page


@dataclass(frozen=True)
class Named:
    """A checkpoint with its place among those that are compared, which is its look."""

    label: str
    diagnosis: Diagnosis
    index: int

    @property
    def trained(self) -> int:
        return trained_loops(self.diagnosis)

    @property
    def look(self) -> dict[str, Any]:
        return look(self.index)


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn."""

    name: str
    """Of its file, without a suffix."""
    title: str
    caption: str
    """What is to be seen in it."""
    draw_on: Callable[[Figure], None]
    height: float
    """In inches."""


def named(diagnoses: Sequence[Diagnosis]) -> list[Named]:
    """Give every diagnosis its label and look."""
    short = labels(diagnoses, 32)
    return [Named(short[i], diagnosis, i) for i, diagnosis in enumerate(diagnoses)]


def look(i: int) -> dict[str, Any]:
    """Return color, marker and kind of line of the curve with index `i`."""
    return {
        "color": _PALETTE[i % len(_PALETTE)],
        "marker": MARKERS[(i + i // len(_PALETTE)) % len(MARKERS)],
        "linestyle": ("-", "--", ":")[i // len(_PALETTE) % 3],
    }


def rows_of(count: int, columns: int = 3) -> int:
    """Return the rows of a grid of panels."""
    return -(-count // columns)


def grid(figure: Figure, count: int, columns: int = 3, *, share_y: bool = False) -> list[Axes]:
    """Return `count` panels, row by row."""
    columns = min(columns, count)
    made = figure.subplots(rows_of(count, columns), columns, squeeze=False, sharey=share_y)
    axes = list(made.flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    return axes[:count]


def panel(ax: Axes, title: str, x_label: str, y_label: str) -> None:
    """Set the words of one of several panels, smaller than those of a figure on its own."""
    style(ax, title, x_label, y_label)
    ax.set_title(title, loc="left", fontsize=9.5, color=INK)
    ax.xaxis.label.set_fontsize(9)
    ax.yaxis.label.set_fontsize(9)
    ax.tick_params(labelsize=8.5)


def loop_axis(ax: Axes, loops: Sequence[int]) -> None:
    """Make the loops the ticks of the x axis."""
    if loops:
        ax.set_xticks(range(min(loops), max(loops) + 1))
        ax.set_xlim(min(loops) - 0.4, max(loops) + 0.4)


def line(
    ax: Axes, points: Points, look: dict[str, Any], *, trained: int, aside: float = 0.0
) -> None:
    """Draw a value by loop with bars for its intervals; behind `trained` loops the markers are
    hollow. `aside` moves it to the right, so that the bars of several lines stand side by side."""

    def places(loops: Sequence[int]) -> list[float]:
        return [loop + aside for loop in loops]

    loops, color = sorted(points), look["color"]
    values = [points[loop].value for loop in loops]
    ax.plot(places(loops), values, linestyle=look["linestyle"], color=color, linewidth=1.5)
    for some, inside in (
        ([loop for loop in loops if loop <= trained], color),
        ([loop for loop in loops if loop > trained], "white"),
    ):
        if some:
            ax.errorbar(
                places(some),
                [points[loop].value for loop in some],
                yerr=bars([points[loop] for loop in some]),
                color=color,
                marker=look["marker"],
                markersize=5,
                markerfacecolor=inside,
                capsize=2.5,
                elinewidth=1,
                linestyle="none",
            )


def bars(points: Sequence[Point]) -> list[list[float]]:
    """Return the lower and the upper lengths of error bars; 0 where there is no interval."""
    low = [max(p.value - p.low, 0.0) if p.low is not None else 0.0 for p in points]
    high = [max(p.high - p.value, 0.0) if p.high is not None else 0.0 for p in points]
    return [low, high]


def aside(index: int, count: int, width: float = 0.3) -> float:
    """Return how far right of its loop the line with this index is drawn."""
    return (index - (count - 1) / 2) * min(0.06, width / max(count, 1))


def legend(figure: Figure, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Put the meaning of the looks below the panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], markersize=5, label=_as_text(name), **look) for name, look in entries]
    if not handles:
        return
    longest = max(len(name) for name, _ in entries)
    columns = max(1, min(len(handles), 120 // (longest + 8)))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def legend_rows(entries: Sequence[str]) -> float:
    """Return the height of that legend, in inches."""
    columns = max(1, min(len(entries), 120 // (max(map(len, entries), default=0) + 8)))
    return 0.2 * rows_of(len(entries), columns) + 0.15


def _as_text(name: str) -> str:
    """Return a label that a legend shows: it leaves out those that begin with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name
