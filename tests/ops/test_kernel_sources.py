"""What the CUDA sources assume, and what a profile can tell apart."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ops.kernel_names import KERNELS, kernels_of_sources

SUBJECTS = ("window_", "gate_", "loop_", "decode_")


def test_names_of_kernels_are_unique_and_say_the_subject() -> None:
    """A profile shows namespaces and template arguments too, but is sorted and searched by name."""
    names = kernels_of_sources()
    assert len(names) >= 11
    assert {name: files for name, files in names.items() if len(files) > 1} == {}
    assert [name for name in names if not name.startswith(SUBJECTS)] == []


def test_every_kernel_that_assumes_the_alignment_checks_it() -> None:
    """`shared_start` is the only way from the declaration to an address of a tile."""
    for path in KERNELS.glob("*.cu"):
        source = path.read_text()
        declared = re.findall(r"extern __shared__ (.*?)unsigned char (\w+)\[\];", source)
        assert all(alignment == "__align__(1024) " for alignment, _ in declared), path.name
        checked = len(re.findall(r"shared_start\((?:shared|memory)\)", source))
        checked += len(re.findall(r"Block<T, D> all\(p, .*, memory\);", source))
        assert checked == len(declared), path.name
    assert "keys(shared_start(memory))" in (KERNELS / "query_block.cuh").read_text()


@pytest.fixture(scope="module")
def nvcc() -> list[str]:
    """The compiler and flags of setup.py, up to PTX, which takes no time of ptxas."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOPCODER_BUILD_KERNELS", "0")
        patch.setattr("setuptools.setup", lambda **_: None)
        missing = runpy.run_path(str(KERNELS.parent / "setup.py"))["find_toolkit"]()
    if missing is not None:
        pytest.skip(missing)
    from torch.utils import cpp_extension

    compiler = str(Path(str(cpp_extension.CUDA_HOME)) / "bin" / "nvcc")
    return [compiler, "-std=c++17", "-O3", "-arch=sm_90a", "-ptx", "-o"]


def compiled(nvcc: list[str], source: Path) -> subprocess.CompletedProcess[str]:
    command = [*nvcc, str(source.with_suffix(".ptx")), str(source)]
    return subprocess.run(command, env=os.environ, check=False, capture_output=True, text=True)


@pytest.mark.compile
@pytest.mark.parametrize(
    ("changed", "before", "after", "compiled_file", "says"),
    [
        (
            "gated_window_backward_sm90.cu",
            "KEY_TILES = 3",
            "KEY_TILES = 4",
            None,
            "the ring does not fit",
        ),
        (
            "gated_window_backward_sm90.cu",
            "STAGES = 2;",
            "STAGES = 3;",
            None,
            "the ring does not fit",
        ),
        (
            "decode_gemv.cu",
            "STAGES = 8;",
            "STAGES = 12;",
            None,
            "a block of the next kernel has no",
        ),
        ("decode_attention.cu", "STAGES = 3,", "STAGES = 6,", None, "the stages do not fit"),
        ("gate_logits.cu", "? 4 : 3;", "? 4 : 4;", None, "the stages do not fit"),
        ("gate_logits.cu", "STAGES = 4,", "STAGES = 8,", None, "the stages do not fit"),
        (
            "gated_window_backward.cu",
            "PIECE = 64;",
            "PIECE = 192;",
            None,
            "the pieces do not fit",
        ),
        (
            "gated_window_forward.cu",
            "WARPS = 5,",
            "WARPS = 14,",
            None,
            "one pass does not fit anywhere",
        ),
        (
            "gated_window.h",
            "MAX_WINDOW = 256",
            "MAX_WINDOW = 512",
            "gated_window_forward.cu",
            "the widest window does not fit",
        ),
    ],
)
def test_what_does_not_fit_into_shared_memory_does_not_compile(
    tmp_path: Path,
    nvcc: list[str],
    changed: str,
    before: str,
    after: str,
    compiled_file: str | None,
    says: str,
) -> None:
    shutil.copytree(KERNELS, tmp_path, dirs_exist_ok=True)
    source = (tmp_path / changed).read_text()
    assert source.count(before) == 1
    (tmp_path / changed).write_text(source.replace(before, after))
    done = compiled(nvcc, tmp_path / (compiled_file or changed))
    assert done.returncode != 0
    assert re.search(rf"static assertion failed with \"{says}", done.stderr), done.stderr


@pytest.mark.compile
@pytest.mark.parametrize(
    "name",
    [
        "decode_attention.cu",
        "decode_gemv.cu",
        "gate_logits.cu",
        "gated_window_backward.cu",
        "gated_window_backward_sm90.cu",
        "gated_window_forward.cu",
    ],
)
def test_the_compiler_leaves_the_check_of_the_alignment_in(
    tmp_path: Path, nvcc: list[str], name: str
) -> None:
    """It knows the declaration, and left a plain `address % 1024` out of every kernel."""
    shutil.copytree(KERNELS, tmp_path, dirs_exist_ok=True)
    done = compiled(nvcc, tmp_path / name)
    assert done.returncode == 0, done.stderr
    ptx = (tmp_path / name).with_suffix(".ptx").read_text()
    shared = re.findall(r"\.extern \.shared \.align (\d+) \.b8 (\w+)\[\]", ptx)
    assert shared and {alignment for alignment, _ in shared} == {"1024"}
    entries = ptx.split(".entry ")[1:]
    using = [entry for entry in entries if any(symbol in entry for _, symbol in shared)]
    assert len(using) >= 1
    for entry in using:
        assert "trap;" in entry, entry[:200]
