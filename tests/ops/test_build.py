"""The CUDA extension: what setup.py says and builds, and which builds are refused."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loopcoder import backends
from tests.ops.kernel_names import kernels_of_library, kernels_of_sources, short

REPOSITORY = Path(__file__).parents[2]


def setup(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py where there is no nvcc."""
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)],
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_HOME": "/nowhere"} | environment,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.compile
def test_without_nvcc_it_says_that_nothing_was_built(tmp_path: Path) -> None:
    done = setup(tmp_path)
    assert done.returncode == 0
    assert "the CUDA kernels are not built: no nvcc was found" in done.stderr
    done = setup(tmp_path, LOOPCODER_BUILD_KERNELS="1")
    assert done.returncode != 0
    assert "LOOPCODER_BUILD_KERNELS=1, but no nvcc was found" in done.stderr
    done = setup(tmp_path, LOOPCODER_BUILD_KERNELS="0")
    assert (done.returncode, "kernels" in done.stderr) == (0, False)


def test_a_build_for_another_torch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    library = tmp_path / "_kernels.so"
    monkeypatch.setattr(backends, "KERNELS", library)
    assert backends.kernels_fault() == "not built"
    library.write_bytes(b"")
    assert "nothing says which torch" in (backends.kernels_fault() or "")
    about = library.with_suffix(".json")
    about.write_text("{}")
    assert "nothing says which torch" in (backends.kernels_fault() or "")
    about.write_text(json.dumps({"torch": "2.1.0+cu118"}))
    fault = backends.kernels_fault()
    assert fault == f"built for torch 2.1.0+cu118, this is torch {torch.__version__}"
    about.write_text(json.dumps({"torch": torch.__version__}))
    assert backends.kernels_fault() is None


def test_a_build_of_older_sources_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an update the library still lies there: changed, added and renamed files are seen."""
    import torch

    library, kernels = tmp_path / "loopcoder" / "_kernels.so", tmp_path / "kernels"
    library.parent.mkdir()
    library.write_bytes(b"")
    monkeypatch.setattr(backends, "KERNELS", library)
    shutil.copytree(REPOSITORY / "kernels", kernels)
    about = {"torch": torch.__version__, "sources": backends.sources_digest(kernels)}
    library.with_suffix(".json").write_text(json.dumps(about))
    assert backends.kernels_fault() is None
    (kernels / "notes.txt").write_text("not compiled")
    assert backends.kernels_fault() is None
    source = kernels / "loop_input.cu"
    before = source.read_text()
    source.write_text(before + "\n")
    assert backends.kernels_fault() == f"not built from the sources in {kernels}"
    source.write_text(before)
    (kernels / "new.cuh").write_text("")
    assert backends.kernels_fault() is not None
    (kernels / "new.cuh").unlink()
    source.rename(kernels / "renamed.cu")
    assert backends.kernels_fault() is not None
    shutil.rmtree(kernels)  # as where the package is installed
    assert backends.kernels_fault() is None
    library.with_suffix(".json").write_text(json.dumps({"torch": torch.__version__}))
    shutil.copytree(REPOSITORY / "kernels", kernels)
    assert backends.kernels_fault() is not None  # built before sources were recorded


@pytest.mark.compile
def test_a_toolkit_of_conda_is_enough_and_half_a_toolkit_is_named(tmp_path: Path) -> None:
    """conda has libcudart under targets/; where it is nowhere, that was an IndexError."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    wanted = {"LOOPCODER_BUILD_KERNELS": "1", "CUDA_HOME": str(tmp_path)}
    done = setup(tmp_path, **wanted)
    assert done.returncode != 0
    assert f"no libcudart.so was found in {tmp_path}" in done.stderr
    library = tmp_path / "targets" / "x86_64-linux" / "lib" / "libcudart.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    done = setup(tmp_path, **wanted)
    assert done.returncode == 0, done.stderr


def test_a_source_is_a_line_and_what_the_compiler_says_stays(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOOPCODER_BUILD_KERNELS", "0")
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    in_brief = runpy.run_path(str(REPOSITORY / "setup.py"))["ninja_in_brief"]
    command = (
        "/cuda/bin/nvcc -MF build/a.o.d -I/x -c -c /src/kernels/gate_logits.cu -o build/a.o -O3"
    )
    failed = "FAILED: [code=2] build/a.o\n/src/kernels/gate_logits.cu(7): error: expected a ;\n"
    with pytest.raises(RuntimeError), in_brief():
        os.write(1, f"[1/2] {command}\n[2/2] c++ -c a/ops.cpp -o b\n{failed}".encode())
        raise RuntimeError
    os.write(1, b"after it\n")
    assert capfd.readouterr().out == f"[1/2] gate_logits.cu\n[2/2] ops.cpp\n{failed}after it\n"


@pytest.mark.compile
def test_it_compiles_and_registers_its_operators(tmp_path: Path) -> None:
    """In a copy, with the CUDA toolkit of this machine or nvcc from wheels; no GPU is needed.

    Linked as by compilers that have libstdc++ as an archive only."""
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("loopcoder", "launch", "data_pipeline", "conf", "kernels"):
        ignore = shutil.ignore_patterns("__pycache__", "_kernels.*")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*install, "--target", str(site), str(source)],
        env=os.environ | {"LOOPCODER_BUILD_KERNELS": "1", "LDFLAGS": "-static-libstdc++"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    about = json.loads((site / "loopcoder/_kernels.json").read_text())
    assert {"sm_80", "sm_90a"} <= set(about["architectures"])
    assert about["sources"] == backends.sources_digest(REPOSITORY / "kernels")
    names = {short(name) for name in kernels_of_library(site / "loopcoder/_kernels.so")}
    assert names == set(kernels_of_sources())  # which are unique
    code = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from loopcoder.ops import kernels
kernels.load()
with FakeTensorMode():
    q, k = (torch.empty(96, 2, n, 64, device="cuda", dtype=torch.bfloat16) for n in (4, 2))
    gate = torch.empty(96, 2, 4, device="cuda", dtype=torch.bfloat16)
    out, lse = torch.ops.loopcoder.gated_window_forward(q, k, k, gate, q, None, 64, 0.125)
    assert out.shape == q.shape and lse.shape == (2, 4, 96), (out.shape, lse.shape)
    x, w = (torch.empty(n, 64, device="cuda", dtype=torch.bfloat16) for n in (9, 8))
keys = torch._C.DispatchKey
on_gpu, python = map(torch._C.DispatchKeySet, (keys.CUDA, keys.Python))
with torch._C._ExcludeDispatchKeyGuard(python):
    linear = torch.ops.loopcoder.decode_linear.default
    try:
        linear.redispatch(on_gpu, x, w, None, 0.0, False, None, False)
    except RuntimeError as e:
        assert "x has 9 rows, the kernel takes 1 to 8" in str(e), e
    else:
        raise AssertionError("9 rows were not refused")
print(kernels.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
