"""What the weights of a run began from, as its events say."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from loopcoder.metrics.lines import EVENTS_FILE, parse


def started_from(run_dir: Path, recorded: str | None) -> str | None:
    """Return the checkpoint that a run's weights began from, as far as its events say.

    Its config is that of the newest command, whose init_from a run with checkpoints of its own does
    not use.

    Args:
        recorded: What that config has.
    """
    starts: list[str | None] = []
    with (
        suppress(OSError, LookupError),
        (run_dir / EVENTS_FILE).open("rb") as file,
    ):
        for line in file:
            event = (parse(line) if b'"run_' in line else None) or {}
            if event.get("kind") == "run_continues":
                del starts[-1]  # what it began from is what the start before had
                break
            if event.get("kind") == "run_started":
                starts.append(None)
            elif event.get("kind") == "run_starts":
                starts[-1] = str(event["path"])
    if not starts:
        return recorded
    origin = starts[-1]
    is_as_written = recorded and origin and Path(recorded).resolve() in _with_parents(origin)
    return recorded if is_as_written else origin


def _with_parents(path: str) -> list[Path]:
    return [Path(path).resolve(), *Path(path).resolve().parents]
