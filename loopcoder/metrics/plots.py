"""The curves of a run as PNG, from metrics.jsonl alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcoder.errors import InputError
from loopcoder.metrics.drawing import (
    COLORS,
    FAINT,
    INK,
    MARKERS,
    color_of,
    draw,
    lengths,
    require_matplotlib,
    series,
    style,
)
from loopcoder.metrics.words import OWN_SET, VAL_DOMAIN, human, run_title
from loopcoder.metrics.writer import METRICS_FILE, Record, merge_by_step, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OLDER_COLOR = "#999999"
_OLDER = "weighted by held-out tokens"
"""Of the validation loss of runs before it was weighted by the mixture."""

_BY_LOOP = {
    "loops": (
        "val/loss",
        "the head on every loop's output, loops from 0",
        "validation loss (nats / token)",
    ),
    "train_loops": (
        "loss",
        "the head on every loop's output, loops from 0",
        "training loss (nats / token)",
    ),
    "loop_gradients": ("grad_norm", "the gradient at every loop's input, loops from 0", "norm"),
}


def plot_run(run_dir: Path) -> list[Path]:
    """Draw what metrics.jsonl holds into run_dir/plots and return the files.

    loss.png always; what was recorded by loop (`_BY_LOOP`) for a looped model, its validation at
    every length of eval.lengths too; throughput.png where the speed was logged. Raises
    InputError without matplotlib, metrics.jsonl or a single record.
    """
    require_matplotlib()
    records = merge_by_step(read_metrics(run_dir / METRICS_FILE))
    if not records:
        raise InputError.of(
            f"{run_dir / METRICS_FILE} has no record",
            "there is no curve to draw",
            "plot a run that has done at least one step",
        )
    title = run_title(_config(run_dir))
    plots = run_dir / "plots"
    files = [draw(plots / "loss.png", lambda fig: _loss(fig, records, title))]
    by_length = {
        f"loops_len{n}": (f"val/loss/len{n}", f"{what}, {n} tokens", label)
        for n in lengths(records)
        for _, what, label in [_BY_LOOP["loops"]]
    }
    for name, (prefix, what, label) in (_BY_LOOP | by_length).items():
        if len(_loops(records, prefix)) > 1:
            drawn = draw(
                plots / f"{name}.png",
                lambda fig, p=prefix, t=f"{title}: {what}", y=label: _by_loop(
                    fig, records, p, t, y
                ),
            )
            files.append(drawn)
    if series(records, "tokens_per_s")[0]:
        files.append(draw(plots / "throughput.png", lambda fig: _throughput(fig, records, title)))
    return files


def _loss(fig: Figure, records: list[Record], title: str) -> None:
    ax = fig.subplots()
    steps, losses = series(records, "loss")
    ax.plot(steps, losses, color=FAINT, linewidth=0.7, alpha=0.7, zorder=1)
    smooth = _smooth(losses)
    last = f": {smooth[-1]:.3f}" if smooth else ""
    ax.plot(steps, smooth, color=COLORS[0], linewidth=1.8, label=f"train, smoothed{last}")
    domains = _domains(records)
    older, newer = _by_weighting(records)
    curves = [(newer, "val/loss", "validation", INK)] if newer else []
    if len(domains) > 1:
        curves += [
            (records, f"val/loss/{d}", f"validation, {d}", color_of(i + 1))
            for i, d in enumerate(domains)
        ]
    curves += [
        (records, f"val/loss/len{n}", f"validation, {n} tokens", color_of(len(curves) + i))
        for i, n in enumerate(lengths(records), 1)
    ]
    keys = sorted({key for record in records for key in record if OWN_SET.fullmatch(key)})
    curves += [
        (records, key, f"validation, {key.split('/')[1]}", color_of(len(curves) + i))
        for i, key in enumerate(keys, 1)
    ]
    if older:
        curves.append((older, "val/loss", f"validation, {_OLDER}", _OLDER_COLOR))
    for i, (evaluations, key, label, color) in enumerate(curves):
        xs, ys = series(evaluations, key)
        ax.plot(
            xs,
            ys,
            color=color,
            marker=MARKERS[i % 7],
            markersize=4,
            linewidth=1.4,
            label=f"{label}: {ys[-1]:.3f}{_bits_per_byte(records, key)}",
        )
    style(ax, title, "optimizer step", "loss (nats / token)")
    _limit_to_curves(ax, [smooth, *(series(found, key)[1] for found, key, _, _ in curves)])
    _unigram_line(ax, records)
    _mark_change_of_weighting(ax, records)
    _token_axis(ax, records)
    ax.legend(frameon=False, fontsize=9)


def _by_loop(fig: Figure, records: list[Record], prefix: str, title: str, y_label: str) -> None:
    ax = fig.subplots()
    for i, loop in enumerate(_loops(records, prefix)):
        xs, ys = series(records, f"{prefix}/loop{loop}")
        every_step = len(xs) > 100  # then one marker per point hides the curve
        ax.plot(
            xs,
            _smooth(ys) if every_step else ys,
            color=color_of(i),
            marker=None if every_step else MARKERS[i % 7],
            markersize=4,
            linewidth=1.6,
            label=f"loop {loop}: {ys[-1]:.3g}",
        )
    if prefix.startswith("val/loss"):
        older, newer = _by_weighting(records)
        _mark_change_of_weighting(ax, records)
        y_label += f",\n{_OLDER}" if older and not newer else ""
    style(ax, title, "optimizer step", y_label)
    _token_axis(ax, records)
    ax.legend(frameon=False, fontsize=9)


def _by_weighting(records: list[Record]) -> tuple[list[Record], list[Record]]:
    """Return the evaluations that weigh domains by their held-out tokens, as runs once did, and
    those that weigh them by the mixture."""
    evaluations = [r for r in records if r.get("val/loss") is not None]
    newer = [r for r in evaluations if r.get("val/weighting") == "mixture"]
    return [r for r in evaluations if r.get("val/weighting") != "mixture"], newer


def _mark_change_of_weighting(ax: Axes, records: list[Record]) -> None:
    """Draw a vertical line between the last evaluation of the one kind and the first of the other:
    a step there is none of the model."""
    older, newer = _by_weighting(records)
    if older and newer:
        change = (older[-1]["step"] + newer[0]["step"]) / 2
        label = "from here on validation is weighted by the mixture"
        ax.axvline(change, color=_OLDER_COLOR, linewidth=1.0, linestyle=":", label=label)


def _unigram_line(ax: Axes, records: list[Record]) -> None:
    """Draw the unigram entropy, where that leaves the curves at least half of the height."""
    steps, entropies = series(records, "val/unigram_entropy")
    if not steps:
        return
    low, high = ax.get_ylim()
    # constant but for another mixture in another data stage
    first = series(records, "loss")[0][:1] or steps[:1]
    label = f"unigram entropy: {entropies[-1]:.3f}"
    ax.plot(
        [*first, *steps],
        [entropies[0], *entropies],
        color=INK,
        linewidth=1.0,
        linestyle="--",
        drawstyle="steps-pre",
        label=label,
    )
    near = [e for e in entropies if 2 * low - high <= e <= 2 * high - low]
    pad = 0.03 * (high - low)
    ax.set_ylim(min([low, *(e - pad for e in near)]), max([high, *(e + pad for e in near)]))


def _throughput(fig: Figure, records: list[Record], title: str) -> None:
    top, bottom = fig.subplots(2, 1, sharex=True)
    steps, rates = series(records, "tokens_per_s")
    top.plot(steps, rates, color=FAINT, linewidth=0.7)
    top.plot(steps, _smooth(rates), color=COLORS[0], linewidth=1.8)
    top.yaxis.set_major_formatter(lambda value, _: human(value))
    top.set_ylim(bottom=0)
    style(top, f"{title}: median {human(_median(rates))} tokens/s", "", "tokens / s, all ranks")
    waits = [
        (r["step"], 100 * r["data_wait_s"] / r["step_time_s"])
        for r in records
        if r.get("step_time_s") and r.get("data_wait_s") is not None
    ]
    shares = {
        "MFU, causal attention": [
            (s, 100 * v) for s, v in zip(*series(records, "mfu_causal"), strict=True)
        ],
        "MFU, full attention": [
            (s, 100 * v) for s, v in zip(*series(records, "mfu_full"), strict=True)
        ],
        "step spent waiting for data": waits,
    }
    for i, (label, points) in enumerate(shares.items()):
        if points:
            xs, ys = zip(*points, strict=True)
            bottom.plot(
                xs,
                _smooth(ys),
                color=color_of(i),
                linewidth=1.6,
                label=f"{label}: median {_median(ys):.1f}%",
            )
    bottom.set_ylim(bottom=0)
    style(bottom, "", "optimizer step", "share (%)")
    if bottom.lines:
        bottom.legend(frameon=False, fontsize=9)


def _limit_to_curves(ax: Axes, curves: Sequence[Sequence[float]]) -> None:
    """Fit the y axis to the smooth curves: a spike of the raw loss must not flatten the rest."""
    values = [v for curve in curves for v in curve if math.isfinite(v)]
    if values:
        low, high = min(values), max(values)
        pad = 0.06 * (high - low) or 0.1
        ax.set_ylim(low - pad, high + pad)


def _token_axis(ax: Axes, records: list[Record]) -> None:
    """Mark the tokens trained along the top; not linear in steps while the batch ramps up."""
    steps, tokens = series(records, "tokens")
    if len(steps) < 2:
        return
    import numpy as np

    low, high = ax.get_xlim()
    ticks = [t for t in ax.get_xticks() if max(low, steps[0]) <= t <= min(high, steps[-1])]
    top = ax.secondary_xaxis("top")
    top.set_xticks(ticks, [human(float(np.interp(t, steps, tokens))) for t in ticks])
    top.set_xlabel("tokens trained", color=INK, fontsize=9)
    top.tick_params(colors=INK, length=3, labelsize=9)
    top.spines["top"].set_visible(False)


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the mean over a centred window of about 4% of the curve; NaN and inf are skipped.

    Centred, so that it does not lag behind a falling loss; the window narrows towards the start,
    where the loss falls fastest.
    """
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(array))
    half = np.minimum(index, max(1, len(array) // 50))
    low, high = index - half, np.minimum(index + half + 1, len(array))
    num = counts[high] - counts[low]
    means = (sums[high] - sums[low]) / np.maximum(num, 1)
    return list(np.where(num > 0, means, np.nan))


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _domains(records: list[Record]) -> list[str]:
    keys = {key for record in records for key in record}
    return sorted(m[1] for key in keys if (m := VAL_DOMAIN.fullmatch(key)))


def _loops(records: list[Record], prefix: str) -> list[int]:
    keys = {key for record in records for key in record}
    return sorted(int(m[1]) for key in keys if (m := re.fullmatch(rf"{prefix}/loop(\d+)", key)))


def _bits_per_byte(records: list[Record], loss_key: str) -> str:
    values = series(records, loss_key.replace("val/loss", "val/bpb"))[1]
    return f" ({values[-1]:.3f} bits/byte)" if values else ""


def _config(run_dir: Path) -> Mapping[str, Any]:
    """Return config.yaml of the run, or an empty mapping: a plot needs it for the title only."""
    import yaml

    path = run_dir / "config.yaml"
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
