"""`python -m tests.chaos.fork_server`: forks ranks of `loopcoder train`, having imported it once.

A rank that starts by itself spends ten seconds on imports, and a test that kills runs starts
hundreds. What is forked from here is the same command in the same state: this process has one
thread, and has joined no world. See `tests.chaos.worlds`, which talks to it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopcoder.storage.process import exit_with_parent

IMPORTED = (
    "loopcoder.cli.main",
    "loopcoder.cli.train",
    "loopcoder.train.world",
    "data_pipeline.driver",
    "megatron.core.dist_checkpointing.serialization",
    "megatron.core.dist_checkpointing.strategies.async_utils",
    "megatron.core.dist_checkpointing.strategies.filesystem_async",
    "megatron.core.dist_checkpointing.strategies.torch",
)
WATCHED = {
    "open",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "shutil.copyfile",
    "shutil.rmtree",
}
"""Audit events that are told, each before its operation."""


def main() -> None:
    """Answer the requests of a test, line by line, until it ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    exit_with_parent()
    gc.collect()
    gc.freeze()
    _answer({"threads": len(list(Path("/proc/self/task").iterdir()))})
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            _answer({"code": os.waitstatus_to_exitcode(status)})
        else:
            _answer(_start(**request))


def _answer(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


def _start(ranks: int, launcher: bool, environ: dict[str, str], **work: Any) -> dict[str, Any]:
    """Fork the ranks of a world, and what keeps its store if rank 0 does not; return their ids."""
    pids = {}
    if launcher:
        read, write = os.pipe()
        pids["launcher"] = _forked(_keep_store, write)
        environ |= {"MASTER_PORT": os.read(read, 16).decode()}
        environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        os.close(read)
        os.close(write)
    for rank in range(ranks):
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        pids[str(rank)] = _forked(_rank, rank, environ | mine, **work)
    return pids


def _forked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    pid = os.fork()
    if pid == 0:
        exit_with_parent()
        sys.exit(function(*args, **kwargs))
    return pid


def _keep_store(port_to: int) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(port_to, str(store.port).encode())
    while True:
        signal.pause()


def _rank(
    rank: int,
    environ: dict[str, str],
    *,
    cwd: str,
    output: str,
    told: str,
    folder: str,
    stops: dict[str, list[Any]],
    prelude: str,
) -> int:
    """Be a rank.

    Args:
        output: File for what it prints; `.RANK` is appended.
        told: A pipe with a name, for what it does below `folder`.
        stops: By rank: an operation, before which the process stops the n-th time that it comes.
        prelude: Python that runs first.
    """
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    descriptor = os.open(f"{output}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.addaudithook(_Tell(rank, os.open(told, os.O_WRONLY), folder, stops.get(str(rank))))
    exec(prelude, {"rank": rank})
    from loopcoder.cli.main import main

    return main(["train"])


class _Tell:
    """Tells of every operation on a file below a folder, of processes that are forked later too."""

    def __init__(self, rank: int, to: int, folder: str, stop: list[Any] | None):
        self._rank, self._to, self._folder = rank, to, folder.encode()
        self._stop = (str(stop[0]).encode(), stop[1]) if stop else None

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in WATCHED or isinstance(args[0], int):
            return
        path = os.fsencode(args[0])
        if not path.startswith(self._folder):
            return
        name = path[len(self._folder) + 1 :]
        operation = event.removeprefix("os.").encode()
        if event == "open":
            writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            operation = b"write" if writes else b"read"
        operation += b" " + name
        stopped = False
        if self._stop is not None and self._stop[0] == operation:
            self._stop = (operation, self._stop[1] - 1)
            stopped = self._stop[1] == 0
        word = b"stopped" if stopped else b"at"
        os.write(self._to, b"%d %d %s %s\n" % (self._rank, os.getpid(), word, operation))
        if stopped:
            os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    main()
