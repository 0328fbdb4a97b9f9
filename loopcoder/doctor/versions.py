"""What is installed, beside what this program is tested with."""

from __future__ import annotations

import json
import platform
import re
from importlib import metadata
from pathlib import Path

from loopcoder import __version__
from loopcoder.backends import KERNELS, NOT_BUILT, Backends, detect
from loopcoder.doctor.findings import Seen
from loopcoder.origin import commit_of

LOCK = Path(__file__).parents[2] / "requirements.lock"
"""Of a checkout; an installed package has none."""
_COMPARED = ("torch", "megatron-core", "triton", "numpy", "hydra-core")
_PYTHON = (3, 12)


def check_versions(lock: str = str(LOCK)) -> Seen:
    """Compare what is installed with the versions in a file of constraints, and the kernels with
    the GPU."""
    seen, backends = Seen(), detect()
    seen.values |= backends.versions
    seen.values |= {"python": platform.python_version(), "loopcoder": __version__}
    if (commit := commit_of()) is not None:
        seen.values["commit"] = commit
    _python(seen)
    _packages(seen, Path(lock))
    _kernels(seen, backends)
    if backends.has_gpu and not backends.has_te:
        why = "layers of plain PyTorch are slower, and the FP8 presets need it"
        seen.add("transformer engine", "note", "not installed", why, "pip install '.[te]'")
    if backends.unused_gpu:
        why = "it is a build without CUDA; training would run on the CPU"
        fact = f"this torch cannot use {backends.unused_gpu}"
        seen.add("torch", "error", fact, why, "pip install torch, of a build with CUDA")
    return seen


def _python(seen: Seen) -> None:
    here = platform.python_version()
    if tuple(map(int, here.split(".")[:2])) == _PYTHON:
        seen.ok("python", here)
        return
    why, fix = (
        "the versions in requirements.lock were tested with 3.12",
        "make install PY=python3.12",
    )
    seen.add("python", "note", here, why, fix)


def _packages(seen: Seen, lock: Path) -> None:
    try:
        pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))
    except OSError:
        return
    others = {}
    for name in _COMPARED:
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # `refuse_missing` says what training cannot do without
        if name in pinned and here.partition("+")[0] != pinned[name]:
            others[name] = here
    for name, here in others.items():
        level = "warning" if name == "megatron-core" else "note"
        why = f"this program is tested with {pinned[name]}"
        if level == "warning":
            why += "; it replaces parts of Megatron-core, which change between versions"
        fix = f"pip install {name}=={pinned[name]}"
        seen.add("versions", level, f"{name} {here}", why, fix)  # type: ignore[arg-type]
    if not others:
        seen.ok("versions", "those of requirements.lock")


def _kernels(seen: Seen, backends: Backends) -> None:
    if not backends.has_gpu or backends.compute_capability is None:
        return
    fault, (major, minor) = backends.kernels_fault, backends.compute_capability
    why = "training is right without them, and slower"
    if fault is not None:
        level = "note" if fault == NOT_BUILT else "warning"
        seen.add("cuda kernels", level, fault, why, "make kernels")  # type: ignore[arg-type]
        return
    built = json.loads(KERNELS.with_suffix(".json").read_text()).get("architectures", [])
    numbers = sorted(int(n) for a in built for n in re.findall(r"\d+", a))
    # code of one generation runs on its later members; newer GPUs compile the PTX of 9.0
    if numbers and not any(n // 10 == major and n % 10 <= minor for n in numbers) and major < 9:
        fact = f"built for {', '.join(built)}; this GPU is {major}.{minor}"
        seen.add("cuda kernels", "warning", fact, why, "model.kernels=stock")
    else:
        seen.ok("cuda kernels", f"built for {', '.join(built) or 'this torch'}")
