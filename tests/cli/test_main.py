"""Verbs, what reaches the user, and exit codes."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import loopcoder
from launch.torchrun import EXIT_VARIABLE
from loopcoder.cli import main as cli
from loopcoder.errors import InputError, Preempted, Rewound, TrainingDiverged
from tests.cli.conftest import Loop

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (75, 75),
        (InputError.of("a", "b", "c"), 3),
        (Preempted("saved"), 75),
        (Rewound("goes back"), 75),
        (TrainingDiverged("nan"), 76),
        (KeyboardInterrupt(), 75),
        (ZeroDivisionError(), 1),
    ],
)
def test_exit_codes(
    loop: Loop, outcome: Any, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(EXIT_VARIABLE, str(tmp_path / "codes"))
    loop.outcome = outcome
    assert cli.main(["train"]) == code
    assert (tmp_path / "codes.0").read_text() == f"{code}\n"
    assert ("Traceback" in capsys.readouterr().err) == (code == 1)


def test_a_file_that_may_not_grow_is_named(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.outcome = OSError(errno.EFBIG, os.strerror(errno.EFBIG), "/runs/a/weights")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, limits[1]))
    try:
        assert cli.main(["train"]) == 76
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert "/runs/a/weights has reached the 1,073,741,824 bytes" in said
    assert "fix: ulimit -f unlimited" in said and "Traceback" not in said


def test_only_rank_0_explains_an_error(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ["train", "model.num_loops=0", "seed=-1"]
    assert cli.main(bad) == 3
    everything = capsys.readouterr().err
    assert "2 problems" in everything and "fix: model.num_loops=1" in everything
    monkeypatch.setenv("RANK", "1")
    assert cli.main(bad) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "loopcoder train"),
        (["train", "--config-dir=/not/there"], "no such folder"),
        (["doctor", "precision=fp8_delayed"], "Transformer Engine"),
        (["data", "validate"], "loopcoder data validate CORPUS"),
        (["data", "data.shares=published"], "fix: data.build.shares=published"),
    ],
)
def test_bad_input_is_3(
    loop: Loop, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 3
    assert says in capsys.readouterr().err
    assert loop.called_with == ()


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_its_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([option]) == 0
    assert capsys.readouterr().out == f"loopcoder {loopcoder.__version__}\n"
    metadata = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert loopcoder.__version__ == metadata["version"]


@pytest.mark.parametrize("asked", ["help", "help train", "train --help", "--help train"])
def test_the_help_lists_presets_of_the_user(
    loop: Loop, asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for preset in ("mine/experiment/wide", "mine/model/mini", "mine/model/_part"):
        (tmp_path / preset).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{preset}.yaml").touch()
    assert cli.main([*asked.split(), "--config-dir", "mine"]) == 0
    ours, own = capsys.readouterr().out.split("your own, of mine:\n")
    assert "plt_tiny" in ours and "mini" not in ours
    first, second, *_ = own.splitlines()
    assert first.split() == ["experiment", "wide"] and second.split() == ["model", "mini"]
    assert "plt_tiny" not in own.split("-m, --multirun")[0]


def test_every_verb_has_its_help(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["help"], ["--help"], ["help", "train"], ["train", "--help"]):
        assert cli.main(arguments) == 0
        assert "key=value" in capsys.readouterr().out
    assert cli.main(["help"]) == 0
    overview = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"\n  {verb} " in overview
        assert cli.main(["help", verb]) == 0
        assert f"usage: loopcoder {verb if verb != 'help' else 'VERB'}" in capsys.readouterr().out
    assert loop.called_with == ()


def copy_to(source: Path) -> dict[str, str]:
    """Copy what is installed, so that setuptools leaves no build/ in the repository; return the
    environment of an installation."""
    for name in ("loopcoder", "launch", "data_pipeline", "conf"):
        ignore = shutil.ignore_patterns("__pycache__", "_kernels.*")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source)
    return os.environ | {"LOOPCODER_BUILD_KERNELS": "0"}


def test_a_clone_beside_the_working_directory_hides_no_editable_installation(
    tmp_path: Path,
) -> None:
    clone, site = tmp_path / "loopcoder", tmp_path / "site"
    environment = copy_to(clone)
    build = "import sys; from setuptools.build_meta import build_editable; "
    subprocess.run(
        [sys.executable, "-c", f"{build}build_editable(sys.argv[1])", str(tmp_path)],
        cwd=clone, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, site, "zip")
    look = f"import site; site.addsitedir({str(site)!r}); import loopcoder, launch, data_pipeline; "
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"{look}print(loopcoder.__file__)"],
        cwd=tmp_path, env={}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(clone / "loopcoder" / "__init__.py")


def test_a_plain_installation_works_from_any_folder(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    environment = copy_to(source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--target", str(site), str(source)],
        env=environment,
        check=True,
        capture_output=True,
    )

    command = [sys.executable, "-m", "loopcoder", "train", "--print-config", "model=plt_7b"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        command, cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(site)}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hidden_size: 5120" in done.stdout
    assert (site / "loopcoder/conf/config.yaml").exists()
    templates = REPOSITORY / "loopcoder/chat/templates"
    assert all((site / "loopcoder/chat/templates" / t.name).exists() for t in templates.iterdir())
    assert not [p.name for p in site.iterdir() if p.name in ("conf", "tests")]
    assert list(elsewhere.iterdir()) == []
