"""Names of the CUDA kernels: in the sources, and as a profile shows those of a built library."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "kernels"


def kernels_of_sources() -> dict[str, list[str]]:
    """Return the files that define a kernel of each name, each once."""
    out: dict[str, list[str]] = {}
    for path in sorted(KERNELS.glob("*.cu*")):
        for before in path.read_text().split("__global__")[1:]:
            signature = re.sub(r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)", "", before)
            found = re.match(r"\s*void\s+(\w+)\(", signature)
            assert found, f"{path.name}: {before[:80]}"
            files = out.setdefault(found[1], [])
            if path.name not in files:  # a kernel for one architecture, and its stand-in
                files.append(path.name)
    return out


def kernels_of_library(library: Path) -> set[str]:
    """Return the names that a built library registers with CUDA, as a profiler writes them."""
    mangled = re.findall(rb"_ZN9loopcoder\w+", library.read_bytes())
    names = {_demangled(name) for name in set(mangled)}
    return {name for name in names if name.startswith("void loopcoder::(anonymous namespace)::")}


def short(name: str) -> str:
    """Return `gate_finish` of `void loopcoder::(anonymous namespace)::gate_finish<...>(...)`."""
    found = re.match(r"void [\w:]+\(anonymous namespace\)::(?:\w+::)*(\w+)<", name)
    assert found, name
    return found[1]


def _demangled(name: bytes) -> str:
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_void_p
    demangle.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]
    status = ctypes.c_int()
    pointer = demangle(name, None, None, ctypes.byref(status))
    return ctypes.string_at(pointer).decode() if pointer else ""
