"""The CUDA extension: what setup.py says and builds, and which builds are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loopcoder import backends

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


@pytest.mark.compile
def test_it_compiles_and_registers_its_operators(tmp_path: Path) -> None:
    """In a copy, with the CUDA toolkit of this machine or nvcc from wheels; no GPU is needed."""
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("loopcoder", "launch", "data_pipeline", "conf", "kernels"):
        ignore = shutil.ignore_patterns("__pycache__", "_kernels.*")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*install, "--target", str(site), str(source)],
        env=os.environ | {"LOOPCODER_BUILD_KERNELS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    about = json.loads((site / "loopcoder/_kernels.json").read_text())
    assert {"sm_80", "sm_90a"} <= set(about["architectures"])
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
