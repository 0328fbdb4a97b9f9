"""metrics.jsonl, events.jsonl and samples.jsonl: the truth about a run; every other sink is a copy.

One line of metrics.jsonl is one JSON object with the fields of `FIELDS`, one of samples.jsonl with
those of `SAMPLE_FIELDS`. Numbers survive the round
trip bit for bit: a float is written with `repr`, the shortest text that reads back as the same
double, and a float32 is exact as a double. JSON has no word for what is not finite, so those are
the strings "nan", "inf" and "-inf", which `read_metrics` turns back into floats (the sign and
payload of a NaN are lost).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcoder.errors import InputError
from loopcoder.metrics.lines import (
    EVENTS_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    LineFile,
    Record,
    disk_full_is_an_error,
    numbers_in_words,
    parse_for,
    set_aside_damaged,
)
from loopcoder.storage.files import whole_file
from loopcoder.storage.secrets import masked

if TYPE_CHECKING:
    from loopcoder.metrics.sinks import Sink

FIELDS = {
    "step": "optimizer steps done, this one included",
    "loss": "mean over the valid tokens of the global batch, with the head on the last loop that "
    "the step ran, nats per token",
    "loss/<domain>": "the same over one domain's tokens",
    "loss/language/<name>": "the same over the tokens of one language, where the corpus keeps what "
    "its documents are (`other`: those beyond logging.max_labels)",
    "loss/source/<name>": "the same over the tokens of one source",
    "loss/corpus/<name>/<domain>": "the same over one corpus (data.corpora); loss/<domain> is over "
    "all of them, in validation by their weights",
    "loss/loop<r>": "the training loss with the head on the output of loop r (logging.loop_losses, "
    "or where it is a part of the objective); here and below r is from 0, where `loopcoder "
    "diagnose` counts from 1",
    "objective": "what the step minimised, where that is not the last loop's loss alone, nats per "
    "token",
    "exit/loop<r>": "mean probability of the exit distribution for loop r (objective.exit)",
    "exit/entropy": "mean entropy of the exit distribution, nats",
    "loops": "loops that the step ran, where they are drawn (objective.loop_count)",
    "grad_norm": "global L2 norm of the gradient before clipping",
    "grad_norm/loop<r>": "L2 norm of the gradient at the input of loop r (logging.loop_gradients)",
    "loops/<measure>/loop<r>": "step_size, alignment, offset_cost, output_entropy and output_shift "
    "of loop r (from 0) in 32 tokens of every sequence, states after the final norm, and gate, the "
    "mean over all tokens, heads and layers (logging.diagnostics_interval; docs/diagnostics.md)",
    "lr": "learning rate of this step",
    "tokens": "tokens trained since step 0",
    "tokens_per_s": "over all ranks",
    "tokens_per_s_per_rank": "tokens_per_s / ranks",
    "mfu_causal": "share of peak FLOP/s, attention counted under its causal mask (throughput.py)",
    "mfu_full": "share of peak FLOP/s, attention counted as if unmasked",
    "samples": "sequences trained since step 0",
    "stage": "index of the data stage, from 0",
    "batch_size": "sequences of the step's global batch",
    "step_time_s": "wall time per step",
    "data_wait_s": "part of step_time_s spent waiting for the batch",
    "compute_s": "part of step_time_s in a rank's own forward and backward passes, median over "
    "ranks",
    "compute_s/slowest": "the same of the rank that is slowest beside the others of its pipeline "
    "stage",
    "compute_s/slowest_rank": "which rank that is",
    "goodput": "share of the wall time since the run's first start that went into steps that count "
    "(goodput.py)",
    "time": "when it was written, UTC (ISO 8601)",
    "memory_bytes": "peak memory of the rank with most of it: on the GPU, or of its process",
    "val/loss": "sum over domains of their share of the data stage's mixture, by tokens, times "
    "val/loss/<domain>",
    "val/weighting": "what weighs the domains in val/loss: mixture; lines of runs before 2026-12 "
    "lack it, and their val/loss is the mean over the held-out tokens of all domains",
    "val/loss/<domain>": "mean over the held-out tokens of one domain, nats per token",
    "val/loss/language/<name>": "mean over the held-out tokens of one language of all domains",
    "val/loss/source/<name>": "the same of one source",
    "val/bpb/<domain>": "bits per byte of UTF-8: val/loss/<domain> * tokens / bytes / ln 2",
    "val/loss/corpus/<name>/<domain>": "the same of one corpus (data.corpora), as val/bpb/...",
    "val/loss/loop<r>": "val/loss with the head on the output of loop r (logit lens), r from 0",
    "val/loss/<domain>/loop<r>": "the same over one domain",
    "val/loss/len<n>": "val/loss with sequences of n tokens (eval.lengths); its /<domain>, "
    "/loop<r> and val/bpb/len<n>/<domain> are as above",
    "val/<name>/loss": "mean over the held-out tokens of the set <name> of eval.corpora; its "
    "/<domain>, /loop<r>, /len<n> and val/<name>/bpb/<domain> are as above",
    "val/unigram_entropy": "cross-entropy of the corpus' held-out tokens under the frequencies of "
    "its training tokens, domains weighted as in val/loss, nats per token",
}
"""Meaning and unit of every field of a line; `<domain>`, `<name>`, `<r>` and `<n>` are
placeholders."""

SAMPLE_FIELDS = {
    "step": "optimizer steps done",
    "tokens": "tokens trained since step 0",
    "loops": "loops that the model ran",
    "sample": "number of the continuation in its evaluation, from 0",
    "domain": "of the held-out document that is continued; null: the text was given",
    "prompt": "text that is continued",
    "continuation": "what the model wrote",
    "finish": "why that ended: `stop`, the document is at its end, or `length`, it has "
    "eval.sample_tokens",
    "reference": "how the held-out document goes on",
}
"""Meaning of every field of a line of samples.jsonl, which has one for each continuation of an
evaluation (`eval.samples`)."""

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

_log = logging.getLogger(__name__)


class MetricsWriter:
    """Write the records and events of a run, then hand them to the sinks. One rank only creates it.

    A line is one write to a file opened for appending, so a killed process leaves at most one torn
    last line. A sink that fails is dropped with one warning and an event; training goes on.

    Lines that are no records, as a power cut may leave them, are moved to <name>.damaged.jsonl
    first, with a warning and the event `lines_set_aside`.

    With `resume_step` s, lines of later steps (and a torn one) are removed first, so that the file
    is the curve of one uninterrupted run; the event `metrics_resumed` says what went. So log the
    line of step s before saving the checkpoint of step s, and call `sync` before the checkpoint
    counts as complete. With None, a metrics.jsonl that is already there is moved to the first free
    metrics.<n>.jsonl. The same is done with samples.jsonl, which is made with its first line.

    Raises LoopcoderError when the disk is full.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        sinks: Sequence[Sink] = (),
        resume_step: int | None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        run_dir.mkdir(parents=True, exist_ok=True)
        self._sinks = list(sinks)
        self._now = now
        metrics, events = run_dir / METRICS_FILE, run_dir / EVENTS_FILE
        self._samples: LineFile | None = None
        self._samples_path = run_dir / SAMPLES_FILE
        of_steps = metrics, self._samples_path
        aside = [(path, set_aside_damaged(path)) for path in (*of_steps, events)]
        cuts: dict[Path, Cut] = {}
        moved: dict[Path, Path | None] = {}
        for path in of_steps:
            if resume_step is None:
                moved[path] = _move_aside(path)
            elif path.exists():
                cuts[path] = truncate_after(path, resume_step)
        self._events = LineFile(events)
        self._metrics = LineFile(metrics)
        for path, (numbers, to) in aside:
            if numbers:
                _log.warning("%s: %s; put aside in %s", path, numbers_in_words(numbers), to.name)
                self.event("lines_set_aside", file=path.name, lines=numbers, to=to.name)
        for path, moved_to in moved.items():
            if moved_to is not None:
                self.event(f"{path.stem}_moved", to=moved_to.name)
        if resume_step is not None:
            self.event("metrics_resumed", step=resume_step, **vars(cuts.get(metrics, Cut())))

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record to metrics.jsonl and pass it to the sinks.

        Values are numbers, strings, booleans, None, or scalars with `.item()` (numpy, and torch:
        which waits for the device). Raises ValueError without an integer `step`.
        """
        plain = {key: _plain(value) for key, value in record.items()}
        if type(plain.get("step")) is not int:
            raise ValueError(f"a record needs an integer step, got {plain.get('step')!r}")
        self._metrics.append(plain)
        self._to_sinks(lambda sink: sink.log(plain))

    def samples(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append the continuations of one evaluation to samples.jsonl and pass them to the sinks,
        before the record of its step."""
        if not records:
            return
        plain = [{key: _plain(value) for key, value in record.items()} for record in records]
        if self._samples is None:
            self._samples = LineFile(self._samples_path)
        for record in plain:
            self._samples.append(record)
        self._to_sinks(lambda sink: sink.samples(plain))

    def event(self, kind: str, **fields: Any) -> None:
        """Append {"time": UTC (ISO 8601), "kind": kind, **fields} to events.jsonl and the sinks."""
        plain = {key: _masked(_plain(value)) for key, value in fields.items()}
        time = self._now().isoformat(timespec="milliseconds")
        self._events.append({"time": time, "kind": kind, **plain})
        self._to_sinks(lambda sink: sink.event(kind, **plain))

    def sync(self) -> None:
        """Wait until all files are on the disk: what was logged so far survives a power cut."""
        self._metrics.sync()
        self._events.sync()
        if self._samples is not None:
            self._samples.sync()

    def close(self) -> None:
        """Close the sinks, then the files. A second call does nothing."""
        while self._sinks:
            # Taken out first: a closed sink must not get the event of another one's failure.
            sink = self._sinks.pop(0)
            try:
                sink.close()
            except Exception as error:
                self._report_failure(sink, error)
        self._metrics.close()
        self._events.close()
        if self._samples is not None:
            self._samples.close()

    def _to_sinks(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                # A copy of the truth must not stop the training.
                self._sinks.remove(sink)
                with contextlib.suppress(Exception):
                    sink.close()
                self._report_failure(sink, error)

    def _report_failure(self, sink: Sink, error: Exception) -> None:
        """Warn, and tell the remaining sinks; `sink` is no longer one of them."""
        name, reason = type(sink).__name__, f"{type(error).__name__}: {error}"
        _log.warning("%s is off from here on (%s); %s goes on", name, reason, METRICS_FILE)
        self.event("sink_failed", sink=name, error=reason)


@dataclass(frozen=True)
class Cut:
    """What `truncate_after` kept and removed."""

    kept_lines: int = 0
    last_kept_step: int | None = None
    discarded_lines: int = 0
    """Whole lines of later steps."""
    first_discarded_step: int | None = None
    last_discarded_step: int | None = None
    unreadable_lines: int = 0
    """Lines that are no record, such as the torn last one of a killed process."""


def append_event(run_dir: Path, kind: str, **fields: Any) -> None:
    """Append an event to a run's events.jsonl, beside its writer: a line is one write.

    Raises:
        OSError: it cannot be written.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": time, "kind": kind, **_masked(fields)}).encode() + b"\n"
    with open(run_dir / EVENTS_FILE, "ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        is_torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
        file.write(b"\n" * is_torn + line)


def truncate_after(path: Path, step: int) -> Cut:
    """Remove the lines of steps > `step`, and unreadable ones, from a metrics.jsonl.

    Atomic, and durable on return. Raises LoopcoderError when the disk has no room for the copy; the
    file is then as it was.
    """
    kept = unreadable = 0
    last_kept: int | None = None
    discarded: list[int] = []
    with disk_full_is_an_error(path), path.open("rb") as old, whole_file(path) as new:
        for line in old:
            record = parse_for(path.name, line)
            if record is None:
                unreadable += 1
            elif record["step"] > step:
                discarded.append(record["step"])
            else:
                new.write(line if line.endswith(b"\n") else line + b"\n")
                kept, last_kept = kept + 1, record["step"]
    return Cut(
        kept_lines=kept,
        last_kept_step=last_kept,
        discarded_lines=len(discarded),
        first_discarded_step=min(discarded, default=None),
        last_discarded_step=max(discarded, default=None),
        unreadable_lines=unreadable,
    )


def read_metrics(path: Path) -> list[Record]:
    """Read a metrics.jsonl or events.jsonl, line by line as written; a torn last line is left out.

    Safe while a run is writing. Other lines that are no records are left out with one warning; the
    next start of the run sets them aside. Raises InputError when the file is missing.
    """
    if not path.exists():
        raise InputError.of(
            f"{path} does not exist",
            "the curves of a run are read from there",
            "name the run's folder (run_dir=DIR of the training command)",
        )
    records: list[Record] = []
    bad: list[int] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            record = parse_for(path.name, line)
            if record is not None:
                records.append(
                    {
                        key: _NON_FINITE.get(value, value) if isinstance(value, str) else value
                        for key, value in record.items()
                    }
                )
            elif line.endswith(b"\n"):
                bad.append(number)
    if bad:
        _warn_once(f"{path}: {numbers_in_words(bad)}, and left out")
    return records


@cache
def _warn_once(text: str) -> None:
    """A table and a plot of one sweep read the same files."""
    _log.warning("%s", text)


def merge_by_step(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Join the records of each step, in order of step: an evaluation may have a line of its own."""
    merged: dict[int, Record] = {}
    for record in records:
        merged.setdefault(record["step"], {}).update(record)
    return [merged[step] for step in sorted(merged)]


def _move_aside(path: Path) -> Path | None:
    """Rename `path` to the first free metrics.<n>.jsonl; None when there is nothing to keep."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    n = 1
    while (target := path.with_name(f"{path.stem}.{n}{path.suffix}")).exists():
        n += 1
    path.rename(target)
    return target


def _masked(value: Any) -> Any:
    """Return what an event says without secrets: it may quote a URL, or a server's words."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: _masked(item) for key, item in value.items()}
    return [_masked(item) for item in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """Return `value` as JSON can hold it; raises TypeError for what it cannot."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        # float() strips subclasses (numpy.float64), whose repr is not a JSON number.
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        return _plain(value.item())
    raise TypeError(f"cannot log {value!r} of type {type(value).__name__}")
