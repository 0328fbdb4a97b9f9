"""Copies of the metrics: the progress line, Weights & Biases, TensorBoard.

Each imports its package when it is built, so that a bare image trains without them. What a sink
raises ends that sink only (see MetricsWriter).
"""

from __future__ import annotations

import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from loopcoder.backends import Backends
from loopcoder.config.schema import LoggingConfig
from loopcoder.errors import InputError

Record = Mapping[str, Any]

VAL_DOMAIN = re.compile(r"val/loss/(?!(?:loop|len)\d+$)([^/]+)")
"""The name of a domain's validation loss."""
OWN_SET = re.compile(r"val/(?!loss/)([^/]+)/loss")
"""The name of the loss on a validation set of one's own (`eval.corpora`)."""

_log = getLogger(__name__)


class Sink(Protocol):
    """Something that shows or keeps a copy of the metrics."""

    def log(self, record: Record) -> None:
        """Take one record of metrics.jsonl."""

    def event(self, kind: str, **fields: Any) -> None:
        """Take one event."""

    def close(self) -> None:
        """Flush and release everything; the last call."""


def build_sinks(
    logging: LoggingConfig,
    backends: Backends,
    *,
    run_dir: Path,
    config: Mapping[str, Any],
    max_steps: int,
    resume_step: int | None,
) -> list[Sink]:
    """Build the sinks that `logging` asks for; one rank only calls this.

    `auto` is on where the package is installed, and left out with a warning when it cannot start;
    what was asked for by name and cannot start is an error (that its package is there, `check` has
    seen to). `config` is the resolved config as a plain dict.
    """
    builders: dict[str, Callable[[], Sink]] = {
        "wandb": lambda: WandbSink(
            mode="online" if logging.wandb == "online" else "offline",
            project=logging.wandb_project,
            run_dir=run_dir,
            config=config,
            resume_step=resume_step,
        ),
        "tensorboard": lambda: TensorBoardSink(run_dir, resume_step=resume_step),
    }
    sinks: list[Sink] = []
    for name, builder in builders.items():
        setting = getattr(logging, name)
        if setting == "off" or (setting == "auto" and not backends.has(name)):
            continue
        try:
            sinks.append(builder())
        except Exception as error:
            if setting != "auto":
                raise InputError.of(
                    f"logging.{name}={setting}, but it did not start: {error}",
                    "what was asked for by name is not left out silently",
                    f"mend that, or logging.{name}=off",
                ) from error
            _log.warning("%s is left out, it did not start: %s", name, error)
    if logging.progress:
        # Last: an error above should not meet a bar that is already on the screen.
        sinks.append(
            ProgressSink(
                max_steps,
                start_step=resume_step or 0,
                title=run_title(config),
                rich_installed=backends.has("rich"),
            )
        )
    return sinks


def run_title(config: Mapping[str, Any]) -> str:
    """Return "<model> R=<loops>" for headings; "run" where the config does not say."""
    model = config.get("model") or {}
    loops = model.get("num_loops")
    return " ".join([str(model.get("name", "run")), *([f"R={loops}"] if loops is not None else [])])


class ProgressSink:
    """Show the run: a live bar on a terminal, else a plain line now and then; every evaluation.

    A log file (torchrun, CI) gets a line at the first and last step and at most every `every_s`
    seconds between.
    """

    def __init__(
        self,
        max_steps: int,
        *,
        start_step: int = 0,
        title: str = "run",
        stream: TextIO | None = None,
        every_s: float = 10.0,
        rich_installed: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._max_steps = max_steps
        self._stream = stream or sys.stdout
        self._every_s = every_s
        self._clock = clock
        self._eta = _Eta(max_steps)
        self._latest: dict[str, Any] = {}
        self._last_print = -math.inf
        live = rich_installed and self._stream.isatty()
        self._bar = _LiveBar(max_steps, start_step, title, self._stream) if live else None

    def log(self, record: Record) -> None:
        now = self._clock()
        self._latest.update(record)
        step = record["step"]
        if "loss" in record:
            self._eta.update(step, now)
            fields = describe(self._latest, self._max_steps, self._eta.seconds)
            if self._bar is not None:
                self._bar.update(step, fields)
            elif now - self._last_print >= self._every_s or step >= self._max_steps:
                self._print("  ".join([f"step {step}/{self._max_steps}", *fields]))
                self._last_print = now
        if "val/loss" in record:
            self._print(describe_evaluation(record))

    def event(self, kind: str, **fields: Any) -> None:
        if kind in _SAID_OTHERWISE:
            return
        if kind == "checkpoint_saved":
            size, took = human(fields["bytes"]), fields["seconds"]
            seconds = duration(took) if took >= 10 else f"{took:.1f} s"
            self._print(f"saved step {fields['step']} ({size}B, {seconds})")
            return
        values = (f"{k}={v}" for k, v in fields.items() if isinstance(v, str | int | float))
        self._print(" ".join([f"[{kind}]", *values]))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.print(line)
        else:
            print(line, file=self._stream, flush=True)


_SAID_OTHERWISE = (
    "run_started",
    "run_starts",
    "run_continues",
    "run_diverged",
    "run_rewound",
    "run_done",
    "note",
    "metrics_resumed",
    "checkpoint_incomplete",
    "checkpoint_deleted",
    "checkpoint_set_aside",
)
"""Events that are for the record, or that the run says in a sentence."""


class _LiveBar:
    """A bar and a line of numbers below it, redrawn in place by rich."""

    def __init__(self, max_steps: int, start_step: int, title: str, stream: TextIO):
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.text import Text

        self._console = Console(file=stream, highlight=False)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task(title, total=max_steps, completed=start_step)
        self._numbers = Text(style="dim")
        self._live = Live(
            Group(self._bar, self._numbers), console=self._console, refresh_per_second=4
        )
        self._live.start()

    def update(self, step: int, fields: list[str]) -> None:
        self._bar.update(self._task, completed=step)
        self._numbers.plain = "  ".join(fields)

    def print(self, line: str) -> None:
        self._console.print(line, markup=False)

    def close(self) -> None:
        self._live.stop()


class _Eta:
    """Seconds left, by the mean pace of this session with its evaluations and checkpoints."""

    def __init__(self, max_steps: int):
        self._max_steps = max_steps
        # The first record starts the clock: the step before it includes compilation and warm-up.
        self._first: tuple[int, float] | None = None
        self.seconds: float | None = None

    def update(self, step: int, now: float) -> None:
        if self._first is None:
            self._first = (step, now)
            return
        first_step, start = self._first
        if step > first_step:
            self.seconds = (now - start) / (step - first_step) * max(0, self._max_steps - step)


def describe(record: Record, max_steps: int, eta_s: float | None) -> list[str]:
    """Return the numbers of a record that are there as short texts, with their units."""
    texts = [
        text.format(record[key])
        for key, text in (
            ("loss", "loss {:.4f}"),
            ("val/loss", "val {:.4f}"),
            ("grad_norm", "grad {:.3g}"),
            ("lr", "lr {:.2e}"),
        )
        if record.get(key) is not None
    ]
    if (rate := record.get("tokens_per_s")) is not None:
        texts.append(f"{human(rate)} tok/s")
    if (causal := record.get("mfu_causal")) is not None:
        full = record.get("mfu_full", math.nan)
        texts.append(f"MFU {causal:.1%} causal, {full:.1%} full")
    if (wait := record.get("data_wait_s")) is not None and record.get("step_time_s"):
        texts.append(f"data wait {wait / record['step_time_s']:.1%}")
    if (memory := record.get("memory_bytes")) is not None:
        texts.append(f"mem {memory / 2**30:.2f} GiB")
    if record.get("skipped"):
        texts.append(f"skipped {record['skipped']}")
    if eta_s is not None and record["step"] < max_steps:
        texts.append(f"ETA {duration(eta_s)}")
    return texts


def describe_evaluation(record: Record) -> str:
    """Return one line with the validation loss, in all, by domain and by loop."""
    texts = [f"eval step {record['step']}: val {record['val/loss']:.4f}"]
    domains, loops, lengths, own_sets = [], [], [], []
    for key, value in record.items():
        if match := re.fullmatch(r"val/loss/loop(\d+)", key):
            loops.append((int(match[1]), value))
        elif match := re.fullmatch(r"val/loss/len(\d+)", key):
            lengths.append((int(match[1]), value))
        elif match := OWN_SET.fullmatch(key):
            own_sets.append(f"{match[1]} {value:.4f}")
        elif match := VAL_DOMAIN.fullmatch(key):
            bpb = record.get(f"val/bpb/{match[1]}")
            domains.append(f"{match[1]} {value:.4f}" + (f" ({bpb:.3f} bits/byte)" if bpb else ""))
    if domains:
        texts.append("  ".join(domains))
    if own_sets:
        texts.append("  ".join(own_sets))
    if len(loops) > 1:
        texts.append("by loop " + " -> ".join(f"{value:.4f}" for _, value in sorted(loops)))
    if lengths:
        texts.append("by length " + "  ".join(f"{n}: {loss:.4f}" for n, loss in sorted(lengths)))
    return "  |  ".join(texts)


def human(number: float) -> str:
    """Return a number with three digits and k, M, B or T: 12345 -> 12.3k."""
    for unit in ("", "k", "M", "B"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def duration(seconds: float) -> str:
    """Return 45s, 3m10s, 2h05m or 4d03h."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"


class WandbSink:
    """Weights & Biases: its files under run_dir/wandb, the run's id in run_dir/wandb_id.

    Offline touches no network; `wandb sync run_dir/wandb/offline-run-*` uploads later. A resumed
    run keeps its id. The steps done again after a resume are there twice (wandb cannot take back a
    point); metrics.jsonl has them once.
    """

    def __init__(
        self,
        *,
        mode: Literal["offline", "online"],
        project: str,
        run_dir: Path,
        config: Mapping[str, Any],
        resume_step: int | None,
    ):
        if mode == "offline":
            # Read from the environment only, at import: crash reports would use the network, and
            # the cache would be in the home folder.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            os.environ.setdefault("WANDB_CACHE_DIR", str(run_dir / "wandb" / "cache"))
        import wandb

        # Without this folder wandb falls back to a temporary one.
        (run_dir / "wandb").mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project,
            name=run_dir.resolve().name,
            id=_wandb_id(run_dir, fresh=resume_step is None),
            resume="allow",
            dir=run_dir,
            config=dict(config),
            settings=wandb.Settings(
                mode=mode,
                silent=mode == "offline",
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_meta=mode == "offline",
                x_disable_stats=mode == "offline",
                x_save_requirements=False,
            ),
        )
        # Steps as an axis of their own: wandb's counter may not go back, a resumed run does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, record: Record) -> None:
        self._run.log({k: v for k, v in record.items() if k != "time"})

    def event(self, kind: str, **fields: Any) -> None:
        """Events are in events.jsonl only."""

    def close(self) -> None:
        self._run.finish()


def _wandb_id(run_dir: Path, *, fresh: bool) -> str:
    """Return the id kept in run_dir/wandb_id; a fresh run gets a new one."""
    path = run_dir / "wandb_id"
    if not fresh and path.exists() and (known := path.read_text().strip()):
        return known
    new = secrets.token_hex(4)
    path.write_text(new + "\n")
    return new


class TensorBoardSink:
    """TensorBoard events under run_dir/tensorboard; what a resumed run repeats is hidden."""

    def __init__(self, run_dir: Path, *, resume_step: int | None):
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops what it has of steps >= purge_step.
        purge_step = 0 if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)

    def log(self, record: Record) -> None:
        step = record["step"]
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(key, value, step)

    def event(self, kind: str, **fields: Any) -> None:
        text = " ".join([kind, *(f"{k}={v}" for k, v in fields.items())])
        self._writer.add_text("events", text, fields.get("step"))

    def close(self) -> None:
        self._writer.close()
