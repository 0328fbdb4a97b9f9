"""Figures of measures by loop: the gain and the cost, signatures, the logit lens, more loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loopcoder.diagnose.definitions import title
from loopcoder.diagnose.panels import (
    Drawing,
    Named,
    aside,
    grid,
    legend,
    legend_rows,
    line,
    loop_axis,
    panel,
    rows_of,
)
from loopcoder.diagnose.reading import Points, by_loop, reads_every_loop
from loopcoder.metrics.drawing import COLORS, INK, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measure = tuple[str, str]
"""Measure and variant."""
_Y_LABELS = {
    "loss": "nats / token",
    "output_entropy": "nats",
    "attention_entropy": "nats",
    "alignment": "cosine",
    "step_size": "L2 norm",
    "offset_cost": "L2 norm",
    "fixed_point_gap": "L2 norm",
    "gate": "weight",
    "rank": "rank, log scale",
    "top1": "share of tokens",
    "effective_rank": "dimensions",
}
_GAIN, _COST = (
    {"color": COLORS[0], "marker": MARKERS[0], "linestyle": "-"},
    {"color": COLORS[1], "marker": MARKERS[1], "linestyle": "--"},
)


def loop_figures(shown: Sequence[Named]) -> list[Drawing]:
    """Return the figures that there are values for."""
    found = [
        *(gain_cost(shown, variant) for variant in ("raw", "normed")),
        _by_loop(
            shown,
            "signatures",
            "Signature of every loop",
            "Bars are 95% intervals; hollow markers are loops beyond those of training.",
            [
                ("step_size", "raw"),
                ("alignment", "raw"),
                ("effective_rank", "normed"),
                ("fixed_point_gap", "raw"),
                ("attention_entropy", "all"),
                ("gate", ""),
            ],
        ),
        _by_loop(
            shown,
            "signatures_normed",
            "Signature of every loop, after the final norm",
            "As above, of the states that the next loop reads where norm_per_loop is on.",
            [
                ("step_size", "normed"),
                ("alignment", "normed"),
                ("offset_cost", "normed"),
                ("fixed_point_gap", "normed"),
            ],
        ),
        _by_loop(
            shown,
            "logit_lens",
            "Logit lens: the head reads every loop",
            "The loss of training was taken on earlier loops as well."
            if all(reads_every_loop(one.diagnosis) for one in shown)
            else "Where the loss of training was that of the last loop alone, only that is trained "
            "to be read, so earlier ones do worse than a model that was trained for that many.",
            [("loss", ""), ("rank", ""), ("output_entropy", ""), ("top1", "")],
        ),
        _test_time(shown),
    ]
    return [drawing for drawing in found if drawing is not None]


def gain_cost(shown: Sequence[Named], variant: str) -> Drawing | None:
    """Return output shift (left, log) against offset cost (right) by loop, a panel for each
    checkpoint."""
    having = [
        (one, gain, by_loop(one.diagnosis, "offset_cost", variant))
        for one in shown
        if (gain := by_loop(one.diagnosis, "output_shift"))
    ]
    having = [(one, gain, cost) for one, gain, cost in having if cost]
    if not having:
        return None
    names = ("output shift (gain, left axis)", "offset cost Ω (right axis)")

    def draw_on(figure: Figure) -> None:
        axes = grid(figure, len(having))
        columns = min(3, len(having))
        rights = [ax.twinx() for ax in axes]
        for i, (ax, right) in enumerate(zip(axes, rights, strict=True)):
            one, gain, cost = having[i]
            line(ax, gain, _GAIN, trained=one.trained, aside=-0.04)
            line(right, cost, _COST, trained=one.trained, aside=0.04)
            is_last = i % columns == columns - 1 or i == len(axes) - 1
            panel(ax, one.label, "loop", "" if i % columns else "output shift (nats, log)")
            panel(right, "", "", "Ω (L2 norm)" if is_last else "")
            right.grid(visible=False)
            right.spines["right"].set_visible(True)
            right.spines["right"].set_color("#999999")
            loop_axis(ax, [*gain, *cost])
            _log_scale(ax, [gain for _, gain, _ in having])
        lowest, highest = zip(*(right.get_ylim() for right in rights), strict=True)
        for right in rights:
            right.set_ylim(min(lowest), max(highest))
        legend(figure, [(names[0], _GAIN), (names[1], _COST)])

    where = "residual stream" if variant == "raw" else "after the final norm"
    return Drawing(
        "gain_cost" if variant == "raw" else f"gain_cost_{variant}",
        f"Gain and cost of every loop, Ω of the {where}"
        if variant == "raw"
        else f"Gain and cost of every loop, Ω {where}",
        "A loop that shifts the prediction less than the one before it, at an offset that is as "
        "large or larger, pays less.",
        draw_on,
        0.4 + 2.3 * rows_of(len(having)) + 0.3,
    )


def _by_loop(
    shown: Sequence[Named], name: str, heading: str, caption: str, measures: Sequence[Measure]
) -> Drawing | None:
    """Return small multiples of measures, one line for each checkpoint."""
    values = {
        measure: [(one, by_loop(one.diagnosis, *measure)) for one in shown] for measure in measures
    }
    values = {m: found for m, found in values.items() if any(points for _, points in found)}
    if not values:
        return None
    columns = 2 if len(values) in (2, 4) else 3

    def draw_on(figure: Figure) -> None:
        for ax, ((measure, variant), found) in zip(
            grid(figure, len(values), columns), values.items(), strict=True
        ):
            for one, points in found:
                shift = aside(one.index, len(shown))
                line(ax, points, one.look, trained=one.trained, aside=shift)
            words = title(measure, variant if measure == "attention_entropy" else "")
            panel(ax, words, "loop", _Y_LABELS.get(measure, ""))
            loop_axis(ax, [loop for _, points in found for loop in points])
            if measure in ("alignment", "gate"):
                ax.axhline(0.0 if measure == "alignment" else 0.5, color="#999999", linewidth=0.8)
            if measure == "rank":
                _log_scale(ax, [points for _, points in found])
        legend(figure, [(one.label, one.look) for one in shown])

    height = 2.5 * rows_of(len(values), columns) + legend_rows([one.label for one in shown])
    return Drawing(name, heading, caption, draw_on, height)


def _test_time(shown: Sequence[Named]) -> Drawing | None:
    """Return the loss by loop beyond training, less that of the last loop of training."""
    having = [
        (one, points)
        for one in shown
        if one.trained in (points := by_loop(one.diagnosis, "loss")) and max(points) > one.trained
    ]
    if not having:
        return None

    def draw_on(figure: Figure) -> None:
        ax = figure.subplots()
        for one, points in having:
            shift = aside(one.index, len(shown))
            from_trained = {loop: p for loop, p in points.items() if loop >= one.trained}
            line(ax, from_trained, one.look, trained=one.trained, aside=shift)
            ax.annotate(
                f"trained R = {one.trained}",
                (one.trained + shift, points[one.trained].value),
                (-8, 8 if one.index % 2 else -14),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=INK,
            )
        panel(ax, "Loss at and beyond the loops of training", "loop", "loss (nats / token)")
        every = [loop for one, points in having for loop in points if loop >= one.trained]
        loop_axis(ax, every)
        ax.margins(y=0.2)
        legend(figure, [(one.label, one.look) for one, _ in having])

    return Drawing(
        "test_time_loops",
        "More loops than in training",
        "Filled markers are the R of training; hollow ones are further loops at test time, from "
        "the same weights.",
        draw_on,
        3.4 + legend_rows([one.label for one, _ in having]),
    )


def _log_scale(ax: Axes, lines: Sequence[Points]) -> None:
    """Make the y axis logarithmic with plain numbers, where all values are above 0."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    every = [point for points in lines for point in points.values()]
    if not every or any(point.value <= 0 for point in every):
        return
    # an interval that reaches zero has no end on such an axis
    lowest = min(p.low if p.low is not None and p.low > 0 else p.value for p in every)
    highest = max(p.high if p.high is not None else p.value for p in every)
    ax.set_yscale("log")
    ax.set_ylim(lowest / 1.2, highest * 1.2)
    is_narrow = highest < 8 * lowest
    ax.yaxis.set_major_locator(MaxNLocator(5) if is_narrow else LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    ax.yaxis.set_minor_locator(NullLocator())
