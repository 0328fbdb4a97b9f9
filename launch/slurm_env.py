"""Turn Slurm's variables into the ones that torch.distributed reads."""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping

from loopcoder.errors import InputError

_FIRST_PORT, _PORTS = 20000, 12000
"""Ports below Linux's ephemeral range (32768), so that no outgoing connection holds one."""
_PORTS_OF_A_JOB = 128
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Slurm's own steps have numbers from here on: the script of an sbatch, the shell of an salloc."""
_ANSWERS_S = 30
_OF_A_JOB = "; for loopcoder launch slurm: setup='export MASTER_ADDR=...'"


def adopt_slurm(environ: MutableMapping[str, str]) -> bool:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and
    OMP_NUM_THREADS of a task that srun started.

    What belongs to the step is read, not what belongs to the job, which may run several. Variables
    that are set already stay. Returns whether this is one of several such tasks: the script of an
    sbatch and the shell of an salloc are none. Raises InputError when it cannot be found out where
    the tasks meet.
    """
    if "RANK" in environ or not {"SLURM_PROCID", "SLURM_STEP_ID"} <= environ.keys():
        return False
    size, step = int(environ.get("SLURM_STEP_NUM_TASKS", "1")), int(environ["SLURM_STEP_ID"])
    if size < 2 or step >= _FIRST_SPECIAL_STEP:
        return False
    environ["RANK"] = environ["SLURM_PROCID"]
    environ.setdefault("WORLD_SIZE", str(size))
    environ.setdefault("LOCAL_RANK", environ.get("SLURM_LOCALID", "0"))
    on_nodes = tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = int(environ.get("SLURM_NODEID", "0"))
    if node < len(on_nodes):
        environ.setdefault("LOCAL_WORLD_SIZE", str(on_nodes[node]))
    if "MASTER_ADDR" not in environ:
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
        environ["MASTER_ADDR"] = _address(expand_hostlist(nodes)[0])
    number = int(environ.get("SLURM_JOB_ID", "0")) * _PORTS_OF_A_JOB + step
    environ.setdefault("MASTER_PORT", str(_FIRST_PORT + number % _PORTS))
    environ.setdefault("OMP_NUM_THREADS", environ.get("SLURM_CPUS_PER_TASK") or _share(environ))
    return True


def _share(environ: Mapping[str, str]) -> str:
    """Return how many of the processors that this task sees are its own."""
    return str(max(1, len(os.sched_getaffinity(0)) // int(environ.get("LOCAL_WORLD_SIZE", "1"))))


def tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's notation: `2(x3),1` is 2, 2, 2, 1; nothing where it cannot be read."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return []
        found += [int(match[1])] * int(match[2] or 1)
    return found


def _address(node: str) -> str:
    """Return a name or address of a node that can be connected to: Slurm knows an address where the
    name does not resolve."""
    if _resolves(node):
        return node
    command = ["scontrol", "show", "node", node]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_ANSWERS_S
        )
        said = done.stdout + done.stderr
    except (OSError, subprocess.SubprocessError) as error:
        said = str(error)
    found = re.search(r"\bNodeAddr=(\S+)", said)
    if found is None or not _resolves(found[1]):
        raise InputError.of(
            f"the first node of this step is {node}",
            f"the name does not resolve, and {' '.join(command)} says: "
            f"{found[0] if found else said.strip() or 'nothing'}",
            f"export MASTER_ADDR=ADDRESS before srun{_OF_A_JOB}",
        )
    return found[1]


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def expand_hostlist(text: str) -> list[str]:
    """Expand Slurm's notation: `gpu[01-03,07],login` is gpu01, gpu02, gpu03, gpu07, login."""
    hosts = [host for part in _split(text) for host in _expand(part)]
    if not hosts or not all(hosts):
        raise InputError.of(
            f"SLURM_STEP_NODELIST={text!r}",
            "the first of these hosts is where the processes meet, and it cannot be read",
            f"export MASTER_ADDR=HOST before srun{_OF_A_JOB}",
        )
    return hosts


def _split(text: str) -> Iterator[str]:
    """Split at the commas that are not inside brackets."""
    yield from (part for part in re.split(r",(?![^\[]*\])", text) if part)


def _expand(part: str) -> Iterator[str]:
    pieces = re.split(r"\[([^\]]*)\]", part)  # text, range, text, range, ..., text
    if any("[" in text or "]" in text for text in pieces):
        yield ""
        return
    choices = [list(_range(p)) if i % 2 else [p] for i, p in enumerate(pieces)]
    yield from ("".join(combination) for combination in itertools.product(*choices))


def _range(text: str) -> Iterator[str]:
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        if not last:
            yield first
        elif first.isdigit() and last.isdigit():
            yield from (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
