"""Figures of measures by loop and layer: gate, attention, heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loopcoder.diagnose.definitions import VARIANTS
from loopcoder.diagnose.panels import Drawing, Named, grid, legend, look, panel, rows_of
from loopcoder.diagnose.reading import Points, by_layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES = (
    (
        "gate",
        "",
        "Gate by layer",
        "mean gate",
        "Above one half a layer reads the first loop's keys.",
    ),
    ("attention_entropy", "all", "Attention entropy by layer", "entropy (nats)", ""),
    ("attention_entropy", "no_first", "Attention entropy by layer", "entropy (nats)", ""),
    ("attention_change", "all", "Attention change by layer", "KL (nats)", ""),
    ("attention_change", "no_first", "Attention change by layer", "KL (nats)", ""),
    ("head_rank", "", "Effective rank of heads by layer", "effective rank", ""),
    ("head_cosine", "", "Cosine of heads by layer", "mean cosine", "At 1 all heads look alike."),
)
"""Measure, variant, title, label of the y axis, what to see."""


def layer_figures(shown: Sequence[Named]) -> list[Drawing]:
    """Return the figures that there are values for, a panel for each checkpoint."""
    found = (_figure(shown, *words) for words in _FIGURES)
    return [drawing for drawing in found if drawing is not None]


def _figure(
    shown: Sequence[Named], measure: str, variant: str, heading: str, y_label: str, caption: str
) -> Drawing | None:
    having = [(one, lines) for one in shown if (lines := by_layer(one.diagnosis, measure, variant))]
    if not having:
        return None
    loops = sorted({loop for _, lines in having for loop in lines})

    def draw_on(figure: Figure) -> None:
        axes = grid(figure, len(having), share_y=True)
        columns = min(3, len(having))
        for i, (ax, (one, lines)) in enumerate(zip(axes, having, strict=True)):
            for loop, points in sorted(lines.items()):
                _layers(ax, loop, points)
            if measure == "gate":
                ax.axhline(0.5, color="#999999", linewidth=0.8)
            panel(ax, one.label, "layer", y_label if i % columns == 0 else "")
        legend(figure, [(f"loop {loop}", look(loop - 1)) for loop in loops])

    bands = "Bands are 95% intervals."
    return Drawing(
        "_".join(filter(None, (measure, variant))),
        f"{heading}, {VARIANTS[variant]}" if variant else heading,
        f"{caption} {bands}".strip(),
        draw_on,
        0.3 + 2.2 * rows_of(len(having)) + 0.3,
    )


def _layers(ax: Axes, loop: int, points: Points) -> None:
    """Draw one loop by layer, with a band for the interval."""
    from matplotlib.ticker import MaxNLocator

    layers = sorted(points)
    kind = look(loop - 1)
    few = max(1, len(layers) // 8)
    values = [points[layer].value for layer in layers]
    ax.plot(layers, values, markersize=3.5, markevery=few, linewidth=1.3, **kind)
    bounds = [(p.low, p.high) for p in (points[layer] for layer in layers)]
    if all(low is not None and high is not None for low, high in bounds):
        low, high = zip(*bounds, strict=True)
        ax.fill_between(layers, low, high, color=kind["color"], alpha=0.2, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
