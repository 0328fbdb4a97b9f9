"""Ranks of `loopcoder train` that start in a fraction of a second, and tell where they are.

A `World` is the ranks of one start of a run. What they do to files below the run's folder comes as
a stream of operations, each before it happens, and a rank can be stopped before one of them: what
is killed then is killed there.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.torchrun import CONFIG_VARIABLE, OVERRIDES_VARIABLE
from loopcoder.backends import detect
from loopcoder.config.compose import compose, save_config
from loopcoder.config.resolve import resolve

_LIMIT_S = 120.0
_LAUNCHER, _TOLD = "launcher", "told"


@dataclass(frozen=True)
class Operation:
    """What a process of a rank is about to do to a file or folder."""

    rank: int
    pid: int
    is_stopped: bool
    name: str
    """What, and the path below the run's folder: `write checkpoints/step_00000002/state.json.tmp`,
    `rename`, `remove`, ..."""


@dataclass(frozen=True)
class Stop:
    """Where a rank is to stop."""

    rank: int
    name: str
    """An operation's."""
    count: int = 1
    """The n-th time that it comes."""


class ForkServer:
    """A process that has imported everything and forks the ranks of worlds."""

    def __init__(self, environ: Mapping[str, str]):
        self._environ = dict(environ)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.fork_server"],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == {"threads": 1}, "what has threads cannot be forked"

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the fork server has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(
        self,
        run_dir: Path,
        overrides: Sequence[str],
        ranks: int,
        *,
        stops: Sequence[Stop] = (),
        launcher: bool = True,
        prelude: str = "",
    ) -> World:
        """Start `loopcoder train OVERRIDES` on some ranks, with a config that is composed here, as
        our own launcher does.

        Args:
            run_dir: The run's folder, below which operations are told.
            launcher: A process of its own keeps the store of the world, as torchrun does; else
                rank 0 does, as under Slurm.
            prelude: Python that runs in every rank first; it has `rank`.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        folder = Path(tempfile.mkdtemp(prefix="world-", dir=run_dir.parent))
        cache = f"data.build.cache_dir={self._environ['LOOPCODER_CACHE']}"
        config = resolve(compose([*overrides, cache, f"run_dir={run_dir}"]), detect())
        save_config(config, folder / "config.yaml")
        environ = self._environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            CONFIG_VARIABLE: str(folder / "config.yaml"),
            OVERRIDES_VARIABLE: shlex.join(overrides),
        }
        told = folder / _TOLD
        os.mkfifo(told)
        reading = os.open(told, os.O_RDONLY | os.O_NONBLOCK)
        pids = self.ask(
            ranks=ranks,
            launcher=launcher and ranks > 1,
            environ=environ,
            cwd=str(folder),
            output=str(folder / "output"),
            told=str(told),
            folder=str(run_dir),
            stops={str(stop.rank): [stop.name, stop.count] for stop in stops},
            prelude=prelude,
        )
        return World(self, pids, reading, folder)

    def close(self) -> None:
        """End it, and with it all that it forked."""
        self._process.kill()
        self._process.communicate()


class World:
    """The ranks of one start of a run."""

    def __init__(self, server: ForkServer, pids: dict[str, int], told: int, folder: Path):
        self._server, self._told, self._folder = server, told, folder
        self._launcher = pids.pop(_LAUNCHER, None)
        self.pids = {int(rank): pid for rank, pid in pids.items()}
        self.began = time.monotonic()
        self._codes: dict[int, int] = {}

    def operations(self) -> Iterator[Operation]:
        """Yield operations as they come, until all processes of the ranks are gone."""
        rest, end = b"", time.monotonic() + _LIMIT_S
        opened = False
        while True:
            ready, _, _ = select.select([self._told], [], [], 0.1 if opened else 0.01)
            content = os.read(self._told, 1 << 16) if ready else None
            if content:
                opened = True
                *lines, rest = (rest + content).split(b"\n")
                for line in lines:
                    rank, pid, word, name = line.decode(errors="replace").split(" ", 3)
                    yield Operation(int(rank), int(pid), word == "stopped", name)
            elif content == b"" and (opened or self._are_gone()):
                return
            elif time.monotonic() > end:
                self.kill()
                raise AssertionError(f"a run did not end within {_LIMIT_S:.0f} s: {self.outputs()}")

    def _are_gone(self) -> bool:
        return all(_state(pid) == "Z" for pid in self.pids.values())

    def kill(self, *ranks: int) -> None:
        """End ranks by SIGKILL, all of them where none is named."""
        for rank in ranks or self.pids:
            if rank not in self._codes:
                os.kill(self.pids[rank], signal.SIGKILL)

    def wait(self) -> dict[int, int]:
        """Return the exit codes of all ranks by rank, minus the signal where one ended it."""
        for rank, pid in self.pids.items():
            if rank not in self._codes:
                self._codes[rank] = self._server.ask(wait=pid)["code"]
        if self._launcher is not None:
            os.kill(self._launcher, signal.SIGKILL)
            self._server.ask(wait=self._launcher)
            self._launcher = None
        if self._told >= 0:
            os.close(self._told)
            self._told = -1
            (self._folder / _TOLD).unlink()
        return dict(sorted(self._codes.items()))

    def finish(self) -> dict[int, int]:
        """Let a run go on to its end; return its exit codes."""
        for _ in self.operations():
            pass
        return self.wait()

    def outputs(self) -> str:
        """Return what the ranks have printed."""
        texts = (self._folder / f"output.{rank}" for rank in self.pids)
        return "\n".join(f"[{t.name}]\n{t.read_text(errors='replace')}" for t in texts)


def _state(pid: int) -> str:
    """Return the letter of a process's state (proc(5)): Z of one that is gone, T of one that is
    stopped."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    return "Z"


def resume(pid: int) -> None:
    """Let a process go on that has told that it stops."""
    while _state(pid) not in "TZ":
        time.sleep(0.001)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
