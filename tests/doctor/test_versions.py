"""What is installed beside what was tested."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import pytest

from loopcoder.backends import NOT_BUILT, Backends
from loopcoder.doctor import versions
from loopcoder.doctor.findings import Finding
from loopcoder.doctor.node import cuda_of_torch


def found(check: str, lock: Path = versions.LOCK) -> list[Finding]:
    return [f for f in versions.check_versions(str(lock)).findings if f.check == check]


def test_the_lock_is_what_is_installed_here() -> None:
    assert [f.level for f in found("versions")] == ["ok"]
    values = versions.check_versions().values
    assert values["torch"] and values["python"] == platform.python_version()


@pytest.mark.parametrize(("name", "level"), [("torch", "note"), ("megatron-core", "warning")])
def test_another_version(name: str, level: str, tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"{name}==0.0.1\n")
    (finding,) = found("versions", lock)
    assert (finding.level, finding.fact) == (level, f"{name} {metadata.version(name)}")
    assert finding.fix == f"pip install {name}==0.0.1"
    assert found("versions", tmp_path / "none") == []


def test_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.13.1")
    assert [f.level for f in found("python")] == ["note"]


@pytest.mark.parametrize(
    ("fault", "capability", "level"),
    [
        (NOT_BUILT, (9, 0), "note"),
        ("built for torch 1, this is torch 2", (9, 0), "warning"),
        (None, (9, 0), "ok"),
        (None, (8, 6), "ok"),
        (None, (12, 0), "ok"),
        (None, (7, 5), "warning"),
    ],
)
def test_kernels(
    fault: str | None,
    capability: tuple[int, int],
    level: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    about = tmp_path / "_kernels.json"
    about.write_text(json.dumps({"architectures": ["sm_80", "sm_90a"]}))
    monkeypatch.setattr(versions, "KERNELS", tmp_path / "_kernels.so")
    gpu = Backends(1, "a GPU", capability, {}, fault)
    monkeypatch.setattr(versions, "detect", lambda: gpu)
    assert [f.level for f in found("cuda kernels")] == [level]
    assert [f.level for f in found("transformer engine")] == ["note"]


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "detect", lambda: Backends(unused_gpu="2 x NVIDIA H200"))
    assert [f.level for f in found("torch")] == ["error"]


def test_cuda_of_torch_is_read_without_importing_it() -> None:
    torch = pytest.importorskip("torch")
    assert cuda_of_torch() == torch.version.cuda
