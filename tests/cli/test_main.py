"""Verbs, what reaches the user, and exit codes."""

import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.torchrun import CONFIG_VARIABLE, EXIT_VARIABLE
from loopcoder.backends import Backends
from loopcoder.cli import main as cli
from loopcoder.config.compose import compose, load_config, save_config
from loopcoder.errors import InputError, Preempted, TrainingDiverged

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", CONFIG_VARIABLE)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start every test outside of any launcher, and restore signal handlers."""
    for name in [*LAUNCHER, EXIT_VARIABLE, *(k for k in os.environ if k.startswith("SLURM_"))]:
        monkeypatch.setenv(name, "")  # so that monkeypatch removes what the test sets
        monkeypatch.delenv(name)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Loop:
    """Stands for the data pipeline and the train loop, and remembers what it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.outcome: Any = 0
        self.called_with: tuple[Any, ...] = ()
        self.environ: dict[str, str] = {}
        loop: Any = types.ModuleType("loopcoder.train.loop")
        loop.train = self.train
        driver: Any = types.ModuleType("data_pipeline.driver")
        driver.prepare = lambda data, report, **_: types.SimpleNamespace(dir=Path("/the/corpus"))
        monkeypatch.setitem(sys.modules, "loopcoder.train.loop", loop)
        monkeypatch.setitem(sys.modules, "data_pipeline.driver", driver)
        monkeypatch.setattr(cli, "detect", Backends)

    def train(self, *arguments: Any) -> int:
        self.called_with = arguments
        self.environ = {name: os.environ[name] for name in LAUNCHER if name in os.environ}
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return int(self.outcome)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(monkeypatch)


def test_train_runs_the_loop_in_this_process(
    loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "run_dir=~/a run", "train.max_steps=3"]) == 0
    config, corpus, backends, run_dir = loop.called_with
    assert (config.precision.name, config.model.layer_spec) == ("fp32", "torch")
    assert config.train.max_steps == 3
    assert (str(corpus.dir), backends, run_dir) == (
        "/the/corpus",
        Backends(),
        Path.home() / "a run",
    )
    assert (loop.environ["RANK"], loop.environ["WORLD_SIZE"]) == ("0", "1")
    assert int(loop.environ["MASTER_PORT"]) > 0
    assert "max_steps: 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (75, 75),
        (InputError.of("a", "b", "c"), 3),
        (Preempted("saved"), 75),
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
    assert (tmp_path / "codes").read_text() == f"{code}\n"
    assert ("Traceback" in capsys.readouterr().err) == (code == 1)


def test_a_signal_before_the_first_step_is_a_retry(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = sys.modules["data_pipeline.driver"]
    monkeypatch.setattr(driver, "prepare", lambda data, **_: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["train"]) == 75
    assert loop.called_with == ()


def test_under_torchrun_the_environment_stays(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "h",
        "MASTER_PORT": "5",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "train.micro_batch_size=2"]) == 0
    assert loop.environ == ours


def test_under_slurm_the_environment_is_derived(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = {
        "PROCID": "3",
        "STEP_ID": "0",
        "NTASKS": "4",
        "LOCALID": "1",
        "JOB_NODELIST": "n[07-08]",
        "JOB_ID": "11",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert cli.main(["train", "train.micro_batch_size=1"]) == 0
    assert loop.environ == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n07",
        "MASTER_PORT": "20011",
    }  # fmt: skip


def test_a_worker_loads_the_config_it_is_handed(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(compose(["seed=77"]), tmp_path / "config.yaml")
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "config.yaml"))
    assert cli.main(["train"]) == 0
    assert loop.called_with[0].seed == 77
    assert cli.main(["train", "seed=78"]) == 3
    assert "no effect" in capsys.readouterr().err


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
        (["train", "--multi"], "the options are"),
        (["train", "--config-dir"], "needs a folder"),
        (["train", "--config-dir=/not/there"], "no such folder"),
        (["train", "parallel.cp=2"], "not built yet"),
        (["doctor", "precision=fp8_delayed"], "Transformer Engine"),
    ],
)
def test_bad_input_is_3(
    loop: Loop, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 3
    assert says in capsys.readouterr().err
    assert loop.called_with == ()


def test_help_and_doctor_and_data(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["help"], ["--help"], ["help", "train"], ["train", "--help"]):
        assert cli.main(arguments) == 0
        assert "key=value" in capsys.readouterr().out
    assert cli.main(["doctor"]) == 0
    assert "plt_tiny" in capsys.readouterr().out
    assert cli.main(["data"]) == 0
    assert capsys.readouterr().out == "/the/corpus\n"


def test_print_config_prints_a_config(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--print-config", "seed=5"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "c.yaml").seed == 5
    assert loop.called_with == ()


def test_torch_comes_after_the_corpus() -> None:
    """The data pipeline starts processes, so nothing on the way to it may import torch."""
    program = """
import sys, types
def prepare(data, **_):
    sys.exit(40 + any(name in sys.modules for name in ("torch", "megatron.core", "wandb")))
sys.modules["data_pipeline.driver"] = types.SimpleNamespace(prepare=prepare)
from loopcoder.cli.main import main
main(["train"])
"""
    command = [sys.executable, "-c", program]
    assert (
        subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode == 40
    )


def test_a_plain_installation_works_from_any_folder(tmp_path: Path) -> None:
    # From a copy, so that setuptools leaves no build/ in the repository.
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("loopcoder", "launch", "data_pipeline", "conf"):
        ignore = shutil.ignore_patterns("__pycache__", "_kernels.*")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"LOOPCODER_BUILD_KERNELS": "0"}
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
    assert not [p.name for p in site.iterdir() if p.name in ("conf", "tests")]
    assert list(elsewhere.iterdir()) == []
