"""Turn Slurm's variables into the ones that torch.distributed reads."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, MutableMapping

from loopcoder.errors import InputError

_FIRST_PORT, _PORTS = 20000, 12000
"""Ports below Linux's ephemeral range (32768), so that no outgoing connection holds one."""


def adopt_slurm(environ: MutableMapping[str, str]) -> bool:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of a task that srun started.

    Variables that are set already stay. Returns whether this is such a task (the script of an
    sbatch
    is not: it has no step); raises InputError when Slurm's list of hosts cannot be read.
    """
    if "RANK" in environ or "SLURM_PROCID" not in environ or "SLURM_STEP_ID" not in environ:
        return False
    if int(environ.get("SLURM_NTASKS", "1")) < 2:
        return False
    environ["RANK"] = environ["SLURM_PROCID"]
    environ.setdefault("WORLD_SIZE", environ["SLURM_NTASKS"])
    environ.setdefault("LOCAL_RANK", environ.get("SLURM_LOCALID", "0"))
    if "MASTER_ADDR" not in environ:
        environ["MASTER_ADDR"] = expand_hostlist(environ.get("SLURM_JOB_NODELIST", ""))[0]
    job_id = int(environ.get("SLURM_JOB_ID", "0"))
    environ.setdefault("MASTER_PORT", str(_FIRST_PORT + job_id % _PORTS))
    return True


def expand_hostlist(text: str) -> list[str]:
    """Expand Slurm's notation: `gpu[01-03,07],login` is gpu01, gpu02, gpu03, gpu07, login."""
    hosts = [host for part in _split(text) for host in _expand(part)]
    if not hosts or not all(hosts):
        raise InputError.of(
            f"SLURM_JOB_NODELIST={text!r}",
            "the first of these hosts is where the processes meet, and it cannot be read",
            "export MASTER_ADDR=HOST before srun",
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
