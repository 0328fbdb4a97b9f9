"""What this machine has: GPUs and optional packages, resolved once into a frozen record.

Nothing is imported to find out: torch takes seconds, and the data pipeline's processes must not
have it. What only some inputs and settings need is imported by `require` where it is used.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from loopcoder.errors import InputError, Problem

PACKAGES = {
    "torch": ("torch",),
    "megatron-core": ("megatron-core",),
    "transformer_engine": (
        "transformer-engine",
        "transformer-engine-cu13",
        "transformer-engine-cu12",
    ),
    "apex": ("apex",),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard",),
    "matplotlib": ("matplotlib",),
    "rich": ("rich",),
}
"""Package: the distributions it may have come from."""

KERNELS = Path(__file__).parent / "_kernels.so"
"""The CUDA extension; setup.py builds it, and writes beside it what it was built for."""

NOT_BUILT = "not built"

KERNELS_WERE_RUN_ON = ((9, 0),)
"""Compute capabilities on which the extension's tests were run: `model.kernels=auto` takes it
there."""

_MODULES = {"megatron-core": "megatron.core"}
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, cuda.h


@dataclass(frozen=True)
class Backends:
    """GPUs and packages that a run may use."""

    gpu_count: int = 0
    """GPUs this process may use (CUDA_VISIBLE_DEVICES applies)."""
    gpu_name: str | None = None
    """Name of the first GPU."""
    compute_capability: tuple[int, int] | None = None
    """Compute capability of the first GPU, for instance (9, 0)."""
    versions: dict[str, str] = field(default_factory=dict)
    """Version of each package that is installed; "unknown" where it was not installed by pip."""
    kernels_fault: str | None = NOT_BUILT
    """Why the CUDA extension cannot be used; None: it can."""
    gpu_memory_bytes: int | None = None
    """Memory of the first GPU."""
    unused_gpu: str | None = None
    """A GPU that the machine has and the installed torch cannot use."""

    @property
    def has_gpu(self) -> bool:
        return self.gpu_count > 0

    @property
    def has_te(self) -> bool:
        return self.has("transformer_engine")

    @property
    def kernels_were_run(self) -> bool:
        """Whether the CUDA extension was tested on GPUs of this compute capability."""
        return self.compute_capability in KERNELS_WERE_RUN_ON

    def has(self, package: str) -> bool:
        """Say whether a package of `PACKAGES` is installed."""
        return package in self.versions

    def rows(self) -> list[tuple[str, str]]:
        """Return the record as a table of names and values."""
        if self.has_gpu and self.compute_capability is not None:
            major, minor = self.compute_capability
            gpu = f"{self.gpu_count} x {self.gpu_name}, compute capability {major}.{minor}"
            if self.gpu_memory_bytes:
                gpu += f", {self.gpu_memory_bytes / 2**30:.1f} GiB"
        else:
            gpu = "none"
            if self.unused_gpu:
                gpu += (
                    f" that this torch, a build without CUDA, can use: there is {self.unused_gpu}"
                )
        kernels = self.kernels_fault or "built for this torch"
        if self.has_gpu and self.kernels_fault is None and not self.kernels_were_run:
            kernels += "; not taken by model.kernels=auto, since nobody has run them on this GPU"
        return [
            ("gpu", gpu),
            ("cuda kernels", kernels),
            ("weight gradients", self._weight_gradients()),
            *((name, self.versions.get(name, "-")) for name in PACKAGES),
        ]

    def _weight_gradients(self) -> str:
        if not (self.has_gpu and self.has_te):
            return "added up by autograd, for want of Transformer Engine on a GPU"
        by = "apex" if _importable("fused_weight_gradient_mlp_cuda") else "Transformer Engine"
        return f"added in fp32 within their GEMM, the head's by {by}"

    def table(self) -> str:
        """Return the record as lines of text."""
        width = max(len(name) for name, _ in self.rows())
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows())


def detect() -> Backends:
    """Look at this machine. Never raises: what cannot be found is not there."""
    count, name, capability, memory = _cuda_devices()
    unused = None
    if count and _is_cpu_build():
        count, name, capability, memory, unused = 0, None, None, None, f"{count} x {name}"
    versions = {p: v for p, dists in PACKAGES.items() if (v := _version(p, dists)) is not None}
    return Backends(count, name, capability, versions, kernels_fault(), memory, unused)


def refuse_missing() -> None:
    """Raise InputError with everything that training imports and this Python does not have."""
    whys = {
        "torch": "training is written in PyTorch",
        "megatron.core": "training is built on Megatron-core",
        "triton": "Megatron-core imports it, and a build of torch without CUDA does not bring it",
    }
    fixes = {"megatron.core": "megatron-core"}
    problems = [
        Problem(f"{module} is not installed", why, f"pip install {fixes.get(module, module)}")
        for module, why in whys.items()
        if not _importable(module)
    ]
    if problems:
        raise InputError(problems)


def require(module: str, fact: str, why: str, fix: str = "pip install '.[data]'") -> Any:
    """Import a module and return it; raise InputError with what asks for it if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise InputError.of(fact, why, fix) from e


def kernels_fault() -> str | None:
    """Say why the CUDA extension cannot be used here; None: it can."""
    if not KERNELS.exists():
        return NOT_BUILT
    try:
        about = json.loads(KERNELS.with_suffix(".json").read_text())
        built_for = about["torch"]
    except (OSError, ValueError, KeyError):
        return f"nothing says which torch {KERNELS} was built for"
    here = _torch_version()
    if built_for != here:
        return f"built for torch {built_for}, this is torch {here}"
    sources = KERNELS.parents[1] / "kernels"  # beside a checkout; an installed package has none
    if (sources / "ops.cpp").exists() and about.get("sources") != sources_digest(sources):
        return f"not built from the sources in {sources}"
    return None


def sources_digest(folder: Path) -> str:
    """Hash names and contents of the extension's sources; setup.py records it with the build."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".cu", ".cuh", ".cpp", ".h")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _torch_version() -> str | None:
    """Read `torch.__version__`, which has more than the distribution's version, off its file."""
    match = re.search(r"^__version__ = ['\"](.+)['\"]", _torch_version_file(), re.MULTILINE)
    return match[1] if match else None


def _is_cpu_build() -> bool:
    """Say whether torch was built without CUDA, as its file says of itself."""
    text = _torch_version_file()
    return bool(text) and not re.search(r"^(cuda|hip)\b[^=]*= ['\"]", text, re.MULTILINE)


def _torch_version_file() -> str:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return ""
    return Path(found.origin).with_name("version.py").read_text()


def _version(package: str, distributions: Sequence[str]) -> str | None:
    if package == "apex":
        return _apex_version()
    if not _importable(_MODULES.get(package, package)):
        return None
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"  # found on PYTHONPATH, as in images that build Transformer Engine themselves


def _apex_version() -> str | None:
    """Find NVIDIA's apex; the package of that name on PyPI is something else and has no kernels."""
    kernels = ("amp_C", "fused_weight_gradient_mlp_cuda")
    if not _importable("apex") or not any(map(_importable, kernels)):
        return None
    try:
        return metadata.version("apex")
    except metadata.PackageNotFoundError:
        return "unknown"


def _importable(module: str) -> bool:
    # find_spec of a dotted name imports the parent; megatron is a namespace package, so that is
    # free.
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _cuda_devices() -> tuple[int, str | None, tuple[int, int] | None, int | None]:
    """Ask the CUDA driver for the number of GPUs, and name, compute capability and bytes of memory
    of the first."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, None, None, None
    count, device, major, minor = (ctypes.c_int() for _ in range(4))
    name, memory = ctypes.create_string_buffer(128), ctypes.c_size_t()
    calls = (
        (cuda.cuInit, 0),
        (cuda.cuDeviceGetCount, ctypes.byref(count)),
        (cuda.cuDeviceGet, ctypes.byref(device), 0),
        (cuda.cuDeviceGetName, name, len(name), device),
        (cuda.cuDeviceTotalMem_v2, ctypes.byref(memory), device),
        (cuda.cuDeviceGetAttribute, ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device),
        (cuda.cuDeviceGetAttribute, ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device),
    )
    # A driver without a usable device says so by a non-zero result.
    if any(call(*arguments) != 0 for call, *arguments in calls):
        return 0, None, None, None
    return count.value, name.value.decode(), (major.value, minor.value), memory.value
