"""The memory that a run may use: of a GPU, or of this machine, whose processes share it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from loopcoder.backends import Backends

_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""Version 1 of cgroups writes a number near 2^63 where there is no limit."""


@dataclass(frozen=True)
class DeviceMemory:
    """What there is for the processes that share it."""

    name: str
    total_bytes: int
    free_bytes: int
    """What other programs leave of it; of a GPU, all."""
    processes: int
    """Processes of this run that share it: 1 on a GPU."""


def device_memory(
    backends: Backends, world_size: int, environ: Mapping[str, str] = os.environ
) -> DeviceMemory | None:
    """Return the memory of the device that this process would train on; None: nobody knows."""
    if backends.has_gpu:
        total = backends.gpu_memory_bytes
        return None if not total else DeviceMemory(str(backends.gpu_name), total, total, 1)
    # A launcher that does not say how many of its processes are here may have spread them.
    launched = "RANK" in environ
    here = int(environ.get("LOCAL_WORLD_SIZE", "1")) if launched else world_size
    total, free = machine_memory()
    return DeviceMemory("this machine", total, free, here)


def machine_memory(cgroups: Path = _CGROUPS) -> tuple[int, int]:
    """Return total and free bytes: the machine's with its swap, or less where a container or a
    scheduler gives less. What the kernel caches of files counts as free."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    total, free = memory.total + swap.total, memory.available + swap.free
    for limit, used in _limits(cgroups):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return total, min(free, total)


def _limits(root: Path) -> list[tuple[int, int]]:
    """Return limit and use, without cached files, of the control groups of this process."""
    found = []
    for folder in _groups(root):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                most = int((folder / limit).read_text())
                now = int((folder / used).read_text()) - _statistic(folder, cached)
            except (OSError, ValueError):  # "max": no limit
                continue
            if most < _UNLIMITED:
                found.append((most, now))
    return found


def _groups(root: Path) -> list[Path]:
    """Return the folders of this process's control groups, from the innermost to the root."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        inner = base / path.lstrip("/")
        folders += [f for f in (inner, *inner.parents) if f == base or base in f.parents]
    return list(dict.fromkeys([*folders, root, root / "memory"]))


def _statistic(folder: Path, name: str) -> int:
    for line in (folder / "memory.stat").read_text().splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return 0
