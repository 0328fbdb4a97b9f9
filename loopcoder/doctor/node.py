"""The checks of one machine."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from loopcoder.doctor.timed import Check

_DEAD_DISK = "a disk whose server is gone holds every process that touches it"


def checks_of_node(
    *,
    ranks: int,
    nodes: int,
    gpus: int,
    run_dir: str | None,
    cache_dir: str | None,
    data_path: str | None = None,
    needed_bytes: int = 0,
) -> list[Check]:
    """Return what is looked at on this machine.

    Args:
        ranks: Processes of the run here.
        nodes: Of the run.
        gpus: That this process may use.
        run_dir: Of the run.
        cache_dir: Where corpora are built.
        data_path: A folder of documents, or a corpus.
        needed_bytes: What the run keeps in `run_dir`.
    """
    here = "loopcoder.doctor"
    resolver = ("no answer of a name server", "look at /etc/resolv.conf and /etc/hosts")
    driver = (
        "a driver that does not answer holds training as well",
        "dmesg | grep -i nvrm; restart the machine",
    )
    wanted = [
        Check("limits", f"{here}.limits:check_limits", {"ranks": ranks, "gpus": gpus}),
        Check("clock", f"{here}.clock:check_clock"),
        Check("versions", f"{here}.versions:check_versions"),
        Check("gpus", f"{here}.gpus:check_gpus", {"torch_cuda": cuda_of_torch()}, driver),
        Check("network", f"{here}.network:check_network", {"nodes": nodes}, resolver),
    ]
    if run_dir is not None:
        arguments = {"setting": "run_dir", "folder": run_dir, "needed_bytes": needed_bytes}
        wanted.append(_disk(arguments))
    if cache_dir is not None:
        arguments = {"setting": "data.build.cache_dir", "folder": cache_dir, "must_write": False}
        wanted.append(_disk(arguments))
    if data_path is not None:
        wanted.append(_disk({"setting": "data.path", "folder": data_path}, "check_readable"))
    return wanted


def _disk(arguments: dict[str, object], function: str = "check_disk") -> Check:
    setting, folder = arguments["setting"], arguments["folder"]
    # absolute, since a child may not find this folder by itself
    arguments |= {"folder": os.path.abspath(os.path.expanduser(str(folder)))}  # noqa: PTH100, PTH111
    fix = f"mount {folder} again (umount -l, mount), or {setting}=ANOTHER"
    hangs = (_DEAD_DISK, fix)
    return Check(f"disk of {setting}", f"loopcoder.doctor.disks:{function}", arguments, hangs)


def cuda_of_torch() -> str | None:
    """Return the version of CUDA that the installed torch was built for, without importing it."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    version = re.search(r"^cuda\b[^=]*= ['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return version[1] if version else None
