"""What is found of a machine without importing it: a torch without CUDA, missing packages."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from loopcoder import backends
from loopcoder.backends import detect
from loopcoder.cli import main as cli

HERE = (2, "NVIDIA H100", (9, 0), 80 * 2**30)
CUDA = "__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"
CPU = "__version__ = '2.11.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"


@pytest.mark.parametrize(("build", "count"), [(CUDA, 2), (CPU, 0)])
def test_a_gpu_counts_where_torch_can_use_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: str, count: int
) -> None:
    (tmp_path / "version.py").write_text(build)
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        if name != "torch":
            return real(name, package)
        return ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(backends, "_cuda_devices", lambda: HERE)
    found = detect()
    assert (found.gpu_count, found.has_gpu) == (count, count > 0)
    assert (found.unused_gpu is None) == (count > 0)
    row = dict(found.rows())["gpu"]
    assert "2 x NVIDIA H100" in row and ("without CUDA" in row) == (count == 0)
    monkeypatch.setattr(backends, "_cuda_devices", lambda: (0, None, None, None))
    assert dict(detect().rows())["gpu"] == "none"


VERBS = ("train", "train -m seed=1,2", "doctor", "evaluate checkpoint=run")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("missing", [("triton",), ("torch", "triton"), ("megatron.core",)])
def test_what_is_not_installed_is_said_before_anything_long(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    missing: tuple[str, ...],
    verb: str,
) -> None:
    """A build of torch without CUDA has no triton, which megatron-core imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    real = backends._importable
    monkeypatch.setattr(backends, "_importable", lambda name: name not in missing and real(name))
    assert cli.main(verb.split()) == 3
    error = capsys.readouterr().err
    for module in missing:
        assert f"{module} is not installed" in error
        assert f"fix: pip install {module.replace('.', '-')}" in error
    assert not list(tmp_path.iterdir())
