"""How our figures look, and what every plot of metrics.jsonl needs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcoder.errors import InputError
from loopcoder.storage.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = tuple[list[float], list[float]]

# Okabe and Ito's palette, told apart with every common kind of colour blindness; markers repeat it.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
INK, GRID, FAINT = "#333333", "#e6e6e6", "#9db4c4"


def require_matplotlib() -> None:
    """Raise InputError where matplotlib cannot be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError.of(
            f"matplotlib cannot be imported ({error})",
            "it draws the curves",
            "pip install matplotlib, or logging.plots=false",
        ) from error


def draw(path: Path, draw_on: Any, width: float = 8.0, height: float = 4.8) -> Path:
    """Draw one figure into a PNG, or into an SVG by the path's suffix; return the path.

    Args:
        path: The file.
        draw_on: Takes the empty figure.
        width: In inches, as `height`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    is_svg = path.suffix == ".svg"
    with _svg_with_text(path.name) if is_svg else nullcontext():
        # Figures without pyplot: no global state, no window system.
        fig = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
        FigureCanvasAgg(fig)
        draw_on(fig)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            if is_svg:
                fig.savefig(file, format="svg", metadata={"Date": None})
            else:
                fig.savefig(file, format="png")
    return path


@contextmanager
def _svg_with_text(name: str) -> Iterator[None]:
    """Keep text as text in an SVG, and names with dollars as they are; the same figure gives the
    same bytes.

    Text is laid out in DejaVu Sans, wider than what takes its place where that is missing, so it
    fits in there too. A letter that DejaVu lacks comes from the fonts of who looks at it.
    """
    import matplotlib as mpl

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans", "Verdana"],
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def style(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Set title, labels, grid and frame."""
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=3)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#999999")


def color_of(i: int) -> str:
    """Return the color of the curve with index `i`."""
    return COLORS[i % len(COLORS)]


def lengths(records: list[dict[str, Any]]) -> list[int]:
    """Return the lengths of eval.lengths at which there are evaluations (`val/loss/len<n>`)."""
    keys = {key for record in records for key in record}
    return sorted(int(m[1]) for key in keys if (m := re.fullmatch(r"val/loss/len(\d+)", key)))


def series(records: list[dict[str, Any]], key: str) -> Series:
    """Return the steps that have `key`, and its values."""
    points = [(r["step"], float(r[key])) for r in records if r.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]
