"""What `loopcoder doctor` finds on this machine and, with others, of the nodes of a job."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from launch.probes import run_until, world_of
from launch.process import child_environ
from loopcoder.backends import Backends
from loopcoder.config.schema import Config
from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Finding, Level, Node, Seen, worst
from loopcoder.doctor.node import checks_of_node
from loopcoder.doctor.timed import run_checks
from loopcoder.errors import InputError
from loopcoder.plan.memory import planned_vocabulary
from loopcoder.plan.table import kept_bytes
from loopcoder.storage.remote import is_stored

_WRITES_S = 2.0
"""That is left for the answer itself."""
_RUN_S = 20
"""For what `train` would refuse; cleaning up and printing come after it."""
_LEAST_S = 8.0
"""torch alone takes some seconds to start."""


@dataclass
class Examined:
    """What was found of a machine, or of all nodes of a job."""

    nodes: list[Node]
    job: Seen = field(default_factory=Seen)
    """Of all of them together."""

    @property
    def findings(self) -> list[Finding]:
        return [*self.job.findings, *(f for node in self.nodes for f in node.seen.findings)]

    @property
    def level(self) -> Level:
        return worst(self.findings)


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that a launcher has started."""

    launched: bool
    rank: int
    local_rank: int
    ranks_here: int
    nodes: int


def place(config: Config, size: int) -> Place:
    """Return where this process stands; `size` is the number of processes of the run."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        nodes = config.parallel.nodes
        return Place(False, 0, 0, max(1, size // nodes), nodes)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = max(1, int(os.environ["WORLD_SIZE"]) // here)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return Place(True, int(os.environ["RANK"]), local, here, nodes)


def look_at_node(config: Config, backends: Backends, at: Place) -> Node | None:
    """Return what is found on this machine; None on all ranks of it but one."""
    if at.local_rank != 0:
        return None
    checks = checks_of_node(
        ranks=at.ranks_here,
        nodes=at.nodes,
        gpus=backends.gpu_count,
        run_dir=config.run_dir,
        cache_dir=config.data.build.cache_dir,
        data_path=_folder(config.data.path),
        needed_bytes=_needed_bytes(config),
    )
    return Node(socket.gethostname(), run_checks(checks, child_environ()))


def _folder(path: object) -> str | None:
    """Return a path of this machine's disks; None for URLs, patterns and lists."""
    is_plain = isinstance(path, str) and not is_stored(path) and not set(path) & set("*?[")
    return str(path) if is_plain else None


def _needed_bytes(config: Config) -> int:
    try:
        return kept_bytes(config, planned_vocabulary(config))
    except InputError:  # of its tokenizer, which the checks of the config tell
        return 0


def hangs(node: Node | None) -> bool:
    """Say whether a disk that a run touches does not answer."""
    found = [] if node is None else node.seen.findings
    return any(f.check.startswith("disk of") and f.fact.startswith("hangs") for f in found)


def measure(
    config: Config, backends: Backends, at: Place, node: Node | None, began: float
) -> Examined:
    """Meet the other nodes and compare, and measure what needs torch: GPUs and the network.

    Args:
        node: What was found on this machine.
        began: When the command was started, on the monotonic clock.
    """
    found = Examined([] if node is None else [node])
    if at.nodes == 1 and at.ranks_here == 1 and not backends.has_gpu:
        return found
    until = began + t.TOTAL_S - _WRITES_S
    if until - time.monotonic() < _LEAST_S:
        why, fix = "the checks of this machine have taken the minute", "see to what hangs first"
        found.job.add("measuring", "warning", "nothing was measured", why, fix)
        return found
    try:
        is_first, worlds = _worlds(config, at)
    except InputError as error:
        found.job.add_error("nodes", error)
        return found
    ask = _ask(config, backends, node, until) | {"is_first": is_first}
    with tempfile.TemporaryDirectory(prefix="loopcoder-doctor-") as folder:
        settings = Path(folder, "settings.json")
        settings.write_text(json.dumps(ask), encoding="utf-8")
        result = Path(folder, f"local_{at.local_rank}.json")
        command = [sys.executable, "-m", "loopcoder.doctor.probe", str(settings), folder]
        environs = [{"OMP_NUM_THREADS": "1"} | world for world in worlds]
        fault = run_until(command, environs, until)
        if not result.exists():
            found.job.findings.append(_not_started(fault))
            return found
        told = json.loads(result.read_text(encoding="utf-8"))
    found.nodes = [Node.from_json(one) for one in told["nodes"].values()]
    found.job.join(Seen.from_json(told["job"]))
    if told["stage"] != "end":
        found.job.findings.append(_stuck(told["stage"], fault))
    return found


def _ask(config: Config, backends: Backends, node: Node | None, until: float) -> dict[str, Any]:
    """Return the settings of this machine's probes (doctor.probe.Ask)."""
    run_dir = None if hangs(node) else config.run_dir
    return {
        "node": None if node is None else node.to_json(),
        "token": uuid.uuid4().hex,
        "until": until,
        "run_dir": None if run_dir is None else str(Path(run_dir).expanduser().absolute()),
        "hardware": asdict(config.hardware),
        "fp8": backends.has_te,
    }


def _worlds(config: Config, at: Place) -> tuple[bool, list[dict[str, str]]]:
    """Return whether the first node of the run is this one, as far as it is known, and the
    environment of each probe to start here."""
    if at.launched:  # by a launcher that starts the others
        return at.rank == at.local_rank, [{}]
    is_first, world = world_of(config.parallel, at.ranks_here)
    return is_first, [world | {"LOCAL_RANK": str(n)} for n in range(at.ranks_here)]


def _not_started(fault: str | None) -> Finding:
    why = f"the processes that measure have left nothing ({fault})"
    fix = "loopcoder train on one process (parallel.nproc_per_node=1) shows more"
    return Finding("measuring", "error", "nothing was measured", why, fix)


def _stuck(stage: str, fault: str | None) -> Finding:
    fact = f"{stage}: {fault or 'it ended'}"
    why = "what was to be measured there, and after it, is unknown; a run would hang there as well"
    fix = "NCCL_DEBUG=INFO for the network and GPUs, dmesg | grep -i nvrm for a driver"
    return Finding("measuring", "error", fact, why, fix)


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise InputError where the checks of a run's input take so long that nothing else would be
    told in time. Call it from the main thread."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise InputError.of(
            f"the checks of the run's corpus, folders and store take more than {_RUN_S} s",
            "a disk or a server does not answer",
            "ls on data.path and checkpoint.init_from; checkpoint.store=null",
        )

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_RUN_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
