"""Kernels that run on the CPU: their sources, translated for g++ over `emulated.h`.

It shows what a kernel computes and which barriers it lacks, where there is no GPU; not its speed,
and nothing of the caches. Assembler statements become calls of functions with the instruction's
name, shared memory becomes static.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

from tests.ops.kernel_names import KERNELS

HERE = Path(__file__).parent
_ASM = re.compile(r"\basm(?: volatile)?\s*\((.*?)\);", re.DOTALL)
_PARENTHESES = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"  # three deep
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def build(name: str, entries: str, folder: Path) -> ctypes.CDLL:
    """Compile kernels together with C++ that calls them, and load the library.

    Args:
        name: A source in kernels/.
        entries: C++ after it, with functions in extern "C".
        folder: To write to.
    """
    source, library = folder / "emulated.cpp", folder / "emulated.so"
    source.write_text(f'#include "emulated.h"\n{_with_headers(name, folder)}\n{entries}')
    command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{folder}", f"-I{HERE}"]
    command += [str(source), "-o", str(library)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(library))


def _with_headers(name: str, folder: Path) -> str:
    """Return a translated source, and write the translated headers that it includes."""
    source = translate((KERNELS / name).read_text())
    for header in re.findall(r'#include "(.+)"', source):
        own = "" if header == "launch.cuh" else _with_headers(header, folder)
        (folder / header).write_text(own)
    return source


def translate(source: str) -> str:
    """Return CUDA as C++ over `emulated.h`."""
    source = re.sub(r"#define LOOPCODER_MMA.*?\n\n", "", source, flags=re.DOTALL)
    source = re.sub(
        r'LOOPCODER_MMA\("(\w+)"\);',
        r"ptx_mma_\1(c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b0, b1);",
        source,
    )
    # no kernel that runs here is for fp16
    source = re.sub(r"template <>\nstruct Half<__half> \{.*?\n\};", "", source, flags=re.DOTALL)
    source = re.sub(
        r"extern __shared__ __align__\(1024\) unsigned char (\w+)\[\];",
        r"unsigned char* const \1 = emulated::dynamic();",
        source,
    )
    source = re.sub(r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)", "", source)
    source = re.sub(r"#include <cuda_\w+.h>", "", source)
    return _ASM.sub(_call, source).replace("__shared__", "static")


def _call(statement: re.Match[str]) -> str:
    text, *operands = _sections(statement[1])
    instruction = re.sub(r"[^\w.:]", "", text.split()[0]).replace("::", "_")
    arguments = [
        expression.strip()
        for section in operands[:2]
        for expression in re.findall(rf'"[^"]+"\s*({_PARENTHESES})', section)
    ]
    return f"ptx_{instruction.replace('.', '_')}({', '.join(arguments)});"


def _sections(statement: str) -> list[str]:
    """Split an assembler statement at its colons that are not inside strings."""
    strings: list[str] = []

    def put_away(match: re.Match[str]) -> str:
        strings.append(match[0])
        return f"\0{len(strings) - 1}\0"

    parts = _STRING.sub(put_away, statement).replace("::", ": :").split(":")
    back = [re.sub("\0(\\d+)\0", lambda m: strings[int(m[1])], part) for part in parts]
    back[0] = " ".join(_STRING.findall(back[0]))
    return back
