"""An evaluation that was due when a run was asked to stop: saving comes first, and it is made up.

Schedulers give a process half a minute after SIGTERM, which an evaluation may take alone.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from loopcoder.storage.files import write_json

PUT_OFF = "evaluation_put_off.json"


def put_off(run_dir: Path, step: int, stage: int) -> None:
    """Note that the evaluation after a step of a data stage is to be made up."""
    with suppress(OSError):  # the curve lacks a point then
        write_json(run_dir / PUT_OFF, {"step": step, "stage": stage})


def stage_put_off(run_dir: Path, step: int) -> int | None:
    """Return the data stage whose evaluation after a step is to be made up; None: there is none."""
    try:
        content = json.loads((run_dir / PUT_OFF).read_text(encoding="utf-8"))
        return int(content["stage"]) if content["step"] == step else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def made_up(run_dir: Path) -> None:
    """Note that nothing is to be made up any more."""
    with suppress(OSError):
        (run_dir / PUT_OFF).unlink(missing_ok=True)
