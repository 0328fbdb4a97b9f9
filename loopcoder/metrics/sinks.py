"""Copies of the metrics: the progress line, Weights & Biases, TensorBoard.

Each imports its package when it is built, so that a bare image trains without them. What a sink
raises ends that sink only (see MetricsWriter).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any, Literal, Protocol

from loopcoder.backends import Backends
from loopcoder.config.schema import LoggingConfig
from loopcoder.errors import InputError
from loopcoder.metrics.lines import METRICS_FILE
from loopcoder.metrics.progress import ProgressSink
from loopcoder.metrics.tail import newest_values
from loopcoder.metrics.words import Record, run_title

_log = getLogger(__name__)


class Sink(Protocol):
    """Something that shows or keeps a copy of the metrics."""

    def log(self, record: Record) -> None:
        """Take one record of metrics.jsonl."""

    def event(self, kind: str, **fields: Any) -> None:
        """Take one event."""

    def samples(self, records: Sequence[Record]) -> None:
        """Take the lines of samples.jsonl of an evaluation; the record of its step comes next."""

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


class WandbSink:
    """Weights & Biases: its files under run_dir/wandb, the run's id in run_dir/wandb_id.

    Offline touches no network; `wandb sync` uploads later, one folder of run_dir/wandb after the
    other, for it may upload several in any order. wandb's own step is the step of the record. A
    resumed run keeps its id. Where it has logged steps that are done again, it is rewound: wandb
    takes them back on its server, at once or at the sync. Where that is refused at the start, the
    rest is another run of the same group, so that no curve has a step twice.
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
        name = run_dir.resolve().name
        start = partial(
            wandb.init,
            project=project,
            group=name,
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
        self._resume_step = resume_step
        self._made_up: dict[str, Any] = {}
        """What is shown with the next record."""
        run_id = _wandb_id(run_dir, fresh=resume_step is None)
        if resume_step is None or not _goes_back(run_dir, resume_step):
            self._run = start(name=name, id=run_id, resume="allow")
            return
        try:
            self._run = start(name=name, resume_from=f"{run_id}?_step={resume_step}")
        except wandb.errors.Error as error:
            _log.warning(
                "wandb does not take back the steps after %d of run %s (%s): the rest is another "
                "run of the group %s", resume_step, run_id, error, name,
            )  # fmt: skip
            new = _wandb_id(run_dir, fresh=True)
            self._run = start(name=f"{name} from step {resume_step}", id=new, resume="allow")

    def log(self, record: Record) -> None:
        fields = {k: v for k, v in record.items() if k != "time"}
        if record["step"] == self._resume_step:
            # an evaluation that is made up: wandb has the record of its step, and takes no second
            self._made_up |= {k: v for k, v in fields.items() if k != "step"}
            return
        self._run.log(self._made_up | fields, step=record["step"], commit=True)
        self._made_up = {}

    def event(self, kind: str, **fields: Any) -> None:
        """Events are in events.jsonl only."""

    def samples(self, records: Sequence[Record]) -> None:
        import wandb

        rows = [list(record.values()) for record in records]
        self._made_up |= {"samples": wandb.Table(columns=[*records[0]], data=rows)}

    def close(self) -> None:
        if self._made_up and self._resume_step is not None:
            self._run.log(self._made_up, step=self._resume_step + 1, commit=True)
            self._made_up = {}
        self._run.finish()


def _goes_back(run_dir: Path, step: int) -> bool:
    """Say whether later steps than this were logged; their lines are cut after the sinks are
    built."""
    newest = newest_values(run_dir / METRICS_FILE, ["step"])
    return newest.get("step", 0) > step


def _wandb_id(run_dir: Path, *, fresh: bool) -> str:
    """Return the id kept in run_dir/wandb_id; a fresh run gets a new one."""
    path = run_dir / "wandb_id"
    if not fresh and path.exists() and (known := path.read_text().strip()):
        return known
    new = secrets.token_hex(4)
    path.write_text(new + "\n")
    return new


def _as_code(text: str) -> str:
    """Return a text as Markdown that shows it as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


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

    def samples(self, records: Sequence[Record]) -> None:
        for record in records:
            texts = record["prompt"], record["continuation"]
            text = "\n\ncontinued:\n\n".join(map(_as_code, texts))
            self._writer.add_text(f"samples/{record['sample']}", text, record["step"])

    def close(self) -> None:
        self._writer.close()
