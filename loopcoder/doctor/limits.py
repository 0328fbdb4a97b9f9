"""Limits of this system: files, memory, mappings, processes, shared memory."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

import psutil

from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Seen
from loopcoder.plan.device import machine_memory


def check_limits(ranks: int = 1, gpus: int = 0, root: str = "/") -> Seen:
    """Look at the limits that a run reaches.

    Args:
        ranks: Processes of the run on this machine.
        gpus: GPUs of this machine.
        root: Where proc, sys and dev are.
    """
    seen, base = Seen(), Path(root)
    _open_files(seen)
    _locked_memory(seen, base)
    _memory_maps(seen, base)
    _tasks(seen, base, ranks)
    _shared_memory(seen, base / "dev/shm", max(ranks, gpus))
    _memory(seen)
    return seen


def _open_files(seen: Seen) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= t.OPEN_FILES:
        seen.ok("open files", _number(soft))
        return
    level = "error" if soft < t.OPEN_FILES_LEAST else "warning"
    enough = hard == resource.RLIM_INFINITY or hard >= t.OPEN_FILES_ASKED
    fix = f"ulimit -n {t.OPEN_FILES_ASKED}"
    if not enough:
        more = (
            "`nofile` in /etc/security/limits.conf, LimitNOFILE= of the service that starts the "
            f"job (slurmd, docker), or docker run --ulimit nofile={t.OPEN_FILES_ASKED}"
        )
        most = f"ulimit -n {hard}, which is the most that this user may; more by "
        fix = (most if hard > soft else "") + more
    why = "a rank keeps sockets to all others and the files of its corpora and of a save open"
    seen.add("open files", level, f"{soft} at most (ulimit -n)", why, fix)  # type: ignore[arg-type]


def _locked_memory(seen: Seen, base: Path) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with_rdma = any((base / "sys/class/infiniband").glob("*"))
    if soft == resource.RLIM_INFINITY or soft >= t.LOCKED_BYTES or not with_rdma:
        fact = "no limit" if soft == resource.RLIM_INFINITY else f"{soft / 2**20:.0f} MiB"
        seen.ok("locked memory", fact + ("" if with_rdma else "; no RDMA cards here"))
        return
    seen.add(
        "locked memory",
        "warning",
        f"{soft / 2**20:.0f} MiB at most (ulimit -l), and there are RDMA cards",
        "NCCL registers its buffers with them, which locks some hundred MiB per GPU",
        "ulimit -l unlimited; by LimitMEMLOCK=infinity of the service that starts the job, or "
        "docker run --ulimit memlock=-1",
    )


def _memory_maps(seen: Seen, base: Path) -> None:
    most = _integer(base / "proc/sys/vm/max_map_count")
    if most is None:
        return
    if most >= t.MEMORY_MAPS:
        seen.ok("memory maps", f"vm.max_map_count={most}")
        return
    seen.add(
        "memory maps",
        "warning",
        f"vm.max_map_count={most}",
        "CUDA, the allocator and every file of a corpus take mappings; without one an allocation "
        "fails although there is memory",
        f"sysctl -w vm.max_map_count={t.MEMORY_MAPS_ASKED}",
    )


def _tasks(seen: Seen, base: Path, ranks: int) -> None:
    """Compare how many threads more there may be with what the ranks take."""
    found: list[tuple[int, str, str]] = []
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:  # root is not held to it
        found.append((soft, "ulimit -u", "ulimit -u unlimited"))
    if (most := _integer(base / "proc/sys/kernel/threads-max")) is not None:
        found.append((most, "kernel.threads-max", "sysctl -w kernel.threads-max=1000000"))
    for folder in _groups(base):
        used = _integer(folder / "pids.current") or 0
        if (most := _integer(folder / "pids.max")) is not None:
            fix = "docker run --pids-limit=-1, or TasksMax=infinity of the service"
            found.append((max(0, most - used), f"left of {folder / 'pids.max'}", fix))
    needed = t.TASKS_PER_RANK * ranks
    if not found:
        seen.ok("threads", "no limit")
        return
    least, name, fix = min(found)
    if least >= needed:
        seen.ok("threads", f"{least} ({name})")
        return
    why = f"{ranks} ranks take up to {needed}; without one a process ends in the middle of a start"
    seen.add("threads", "warning", f"{least} ({name})", why, fix)


def _groups(base: Path) -> list[Path]:
    """Return the folders of this process's control group and of those around it that limit
    processes."""
    root = base / "sys/fs/cgroup"
    found = [root, root / "pids"]
    with suppress(OSError):
        for line in (base / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "pids" in controllers.split(","):
                top = root / "pids" if controllers else root
                inner = top / path.lstrip("/")
                found += [f for f in (inner, *inner.parents) if top in f.parents]
    return list(dict.fromkeys(found))


def _shared_memory(seen: Seen, folder: Path, ranks: int) -> None:
    try:
        system = os.statvfs(folder)
    except OSError as error:
        why = "the ranks of a machine, and Python's semaphores, share memory there"
        fix = f"mount -t tmpfs -o size=50% tmpfs {folder}"
        seen.add("shared memory", "error", f"{folder}: {error.strerror}", why, fix)
        return
    size, free = system.f_blocks * system.f_frsize, system.f_bavail * system.f_frsize
    fact = f"{folder} has {size / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB free"
    if free < t.SHM_FREE_BYTES:
        why = "the ranks of a machine, and Python's semaphores, share memory there"
        fix = f"ls -l {folder}, and remove what ended processes have left"
        seen.add("shared memory", "warning", fact, why, fix)
    elif size < t.SHM_BYTES and ranks > 1:
        why = "NCCL ends in `unhandled system error` where it has no room there"
        fix = f"docker run --shm-size=16g (or --ipc=host); mount -o remount,size=16g {folder}"
        seen.add("shared memory", "warning", fact, why, fix)
    else:
        seen.ok("shared memory", fact)


def _memory(seen: Seen) -> None:
    """Say where a container or a scheduler gives less memory than there is."""
    total, free = machine_memory()
    there = psutil.virtual_memory().total
    fact = f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f} GiB"
    if total >= there:
        seen.ok("memory", fact)
        return
    seen.add(
        "memory",
        "note",
        f"{fact}; the machine has {there / 2**30:.1f} GiB",
        "a control group gives this process less, and the kernel ends what takes more",
        "docker run --memory, resources.limits.memory of the pod, or sbatch --mem=0 (all of it)",
    )


def _integer(file: Path) -> int | None:
    """Return the number in a file; None: there is none, or it says `max`."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _number(limit: int) -> str:
    return "no limit" if limit == resource.RLIM_INFINITY else str(limit)
