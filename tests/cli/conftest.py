"""A command line that trains nothing: the pipeline and the train loop are stood in for."""

from __future__ import annotations

import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.torchrun import CONFIG_VARIABLE, EXIT_VARIABLE, HASH_VARIABLE, OVERRIDES_VARIABLE
from loopcoder.backends import Backends
from loopcoder.cli import data, doctor, train
from loopcoder.cli.examination import Examined
from loopcoder.doctor.findings import Node, Seen
from loopcoder.storage.signals import ASKS

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OURS = (CONFIG_VARIABLE, HASH_VARIABLE, EXIT_VARIABLE, OVERRIDES_VARIABLE)
RANKS_SHARE = "TORCHELASTIC_ERROR_FILE"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Start every test outside of any launcher, in a folder and a home of its own; restore signal
    handlers; let the doctor look at no machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOOPCODER_CACHE", raising=False)
    monkeypatch.setattr(doctor, "look_at_node", lambda *_: Node("here", Seen()))
    monkeypatch.setattr(doctor, "measure", lambda _c, _b, _at, node, _began: Examined([node]))
    slurm = (k for k in os.environ if k.startswith("SLURM_"))
    for name in [*LAUNCHER, *OURS, RANKS_SHARE, *slurm]:
        monkeypatch.setenv(name, "")  # so that monkeypatch removes what the test sets
        monkeypatch.delenv(name)
    handlers = {n: signal.signal(n, signal.SIG_DFL) for n in ASKS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Loop:
    """Stands for the data pipeline and the train loop, and remembers what it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.outcome: Any = 0
        self.called_with: tuple[Any, ...] = ()
        self.verified = ""
        self.environ: dict[str, str] = {}
        loop: Any = types.ModuleType("loopcoder.train.world")
        loop.train = self.train
        driver: Any = types.ModuleType("data_pipeline.driver")
        driver.prepare = self.prepare
        driver.check_input = lambda data: None
        monkeypatch.setitem(sys.modules, "loopcoder.train.world", loop)
        monkeypatch.setitem(sys.modules, "data_pipeline.driver", driver)
        for verb in (data, doctor, train):
            monkeypatch.setattr(verb, "detect", Backends)

    def prepare(self, data: Any, report: Any, verify: str, before_build: Any = None) -> Any:
        self.verified = verify
        found = types.SimpleNamespace(
            dir=Path("/the/corpus"), has_digests=True, is_packed=False, url=None
        )
        found.members = (found,)
        return found

    def train(self, *arguments: Any) -> int:
        self.called_with = arguments
        self.environ = {name: os.environ[name] for name in LAUNCHER if name in os.environ}
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return int(self.outcome)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(monkeypatch)
