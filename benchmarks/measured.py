"""What several commands of a benchmark measure together: lines of JSON, and a time to end by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
SEVEN_B = (
    *("model=plt_7b", "model.num_loops=2", "model.vocab_size=76800"),
    *("data.build.tokenizer_vocab_size=4096", "data.seq_length=8192"),
)
"""The 7B model with two loops on the sample corpus, with the vocabulary that it has elsewhere."""
QUIET = (
    *("logging.interval=1", "logging.wandb=off", "logging.tensorboard=off"),
    *("logging.plots=false", "logging.progress=false", "eval.interval=null", "eval.at_end=false"),
)
UNSAVED = (
    *QUIET,
    *("checkpoint.interval=null", "checkpoint.save_at_end=false", "checkpoint.resume=never"),
)
EXIT_MORE = 75
"""The time was up before all was measured: the same command goes on."""
Record = dict[str, Any]


class Kept:
    """Records in a file, each with the commit and the hardware it was measured with."""

    def __init__(self, path: Path | None):
        """Args: path: A file of lines of JSON, which may be there; None: nothing is kept."""
        self._path = path
        self.records: list[Record] = [] if path is None else lines(path)

    def find(self, **key: Any) -> Record | None:
        """Return the newest record with these fields; None: there is none."""
        found = [r for r in self.records if key.items() <= r.items()]
        return found[-1] if found else None

    def add(self, record: Record) -> Record:
        """Keep a record; return it as it is kept."""
        record = record | {"commit": commit(), "hardware": hardware()}
        self.records.append(record)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                file.seek(0)
                whole = file.read()
                begin = whole.rfind(b"\n") + 1
                try:
                    file.write(b"\n" if whole[begin:] and json.loads(whole[begin:]) else b"")
                except ValueError:  # a record that was broken off
                    file.truncate(begin)
                file.write(json.dumps(record).encode() + b"\n")
        return record


class Deadline:
    """When a command has to end."""

    def __init__(self, seconds: float):
        self._until = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._until - time.monotonic())


def lines(path: Path) -> list[Record]:
    """Return the whole lines of a file of JSON that may be being written; no file has none."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def kill_family(process: subprocess.Popen[Any]) -> None:
    """Kill a process with all that it has started, in whatever session: nobody is told to save."""
    try:
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in family:  # from the outside in, so that nobody sees a child end and reacts
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family[1:], 60)
    process.wait()


def commit() -> str:
    """Return the commit of this tree, or what LOOPCODER_COMMIT says where there is no git."""
    named = os.environ.get("LOOPCODER_COMMIT")
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude", "*"]
    return named or subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


@cache
def hardware() -> str:
    """Return number and name of the GPUs; asked in another process, since this one would hold
    memory of a GPU from then on."""
    asks = "import torch; n = torch.cuda.device_count(); "
    asks += "print(f'{n} x {torch.cuda.get_device_name()}' if n else 'CPU')"
    return subprocess.run(
        [sys.executable, "-c", asks], capture_output=True, text=True, check=True
    ).stdout.strip()
