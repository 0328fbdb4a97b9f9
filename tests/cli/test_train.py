"""From overrides to the train loop, under every launcher; mistakes of a config end it before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.sweep.processes import FIRST_VARIABLE
from launch.torchrun import CONFIG_VARIABLE
from loopcoder.backends import Backends
from loopcoder.cli import main as cli
from loopcoder.config.compose import compose, load_config, save_config
from loopcoder.data.corpus import opening
from loopcoder.metrics.summary import next_command
from loopcoder.storage.signals import ASKS, name_of
from loopcoder.train.provenance import Launch
from tests.cli.conftest import Loop

REPOSITORY = Path(__file__).resolve().parents[2]


def test_train_runs_the_loop_in_this_process(
    loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "run_dir=~/a run", "train.max_steps=3"]) == 0
    config, corpus, backends, run_dir, launch = loop.called_with
    assert launch == Launch(("run_dir=~/a run", "train.max_steps=3"), is_point=False)
    assert (config.precision.name, config.model.layer_spec) == ("fp32", "torch")
    assert config.train.max_steps == 3
    assert (str(corpus.dir), backends, run_dir) == (
        "/the/corpus",
        Backends(),
        Path.home() / "a run",
    )
    assert (loop.environ["RANK"], loop.environ["WORLD_SIZE"]) == ("0", "1")
    assert int(loop.environ["MASTER_PORT"]) > 0
    out = capsys.readouterr().out
    assert "3 of " in out and len(out.splitlines()) < 40


MISTAKES = {
    "unknown key": (["model.nm_loops=2"], ["model.nm_loops=2", "fix: model.num_loops=2"]),
    "no loop": (["model.num_loops=0"], ["model.num_loops=0", "fix: model.num_loops=1"]),
    "heads": (["parallel.tp=3", "parallel.nproc_per_node=3"], ["num_attention_heads", "tp"]),
    "fp8": (["precision=fp8_tensorwise"], ["fp8", "precision=bf16"]),
    "sequence": (["data.seq_length=1000000"], ["positions", "fix: data.seq_length="]),
    "not built": (["parallel.cp=2"], ["not built yet", "fix: parallel.cp=1"]),
    "old name": (["data.fim.rate=0"], ["now data.build.fim.rate", "fix: data.build.fim.rate=0"]),
    "a path for a group": (["checkpoint=/r/checkpoints"], ["fix: checkpoint.init_from=/r/check"]),
    "a sweep": (
        ["experiment=loop_sweep", "seed=1"],
        ["a sweep over variant", "-m run_dir=", "experiment=loop_sweep seed=1", "variant=loops_1"],
    ),
    "a store": (
        ["data=corpus", "path=memory://no/corpus", "data.reader=megatron"],
        ["memory://no/corpus data.reader=megatron", "fix: data.reader=shuffled", "is not there"],
    ),
    "a store in the background": (
        ["data=corpus", "path=memory://no/corpus", "data.reader=packed", "data.verify=background"],
        ["data.verify=background", "fix: data.verify=hash"],
    ),
    "several": (
        ["model.num_loops=0", "seed=-1", "optim.lr=fast"],
        ["3 problems", "model.num_loops=0", "seed=-1", "optim.lr=fast"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(
    loop: Loop, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, expected = MISTAKES[name]
    assert cli.main(["train", f"run_dir={tmp_path / 'run'}", *overrides]) == 3
    output = capsys.readouterr().err
    assert "Traceback" not in output
    assert "fix:" in output and "why:" in output
    for text in expected:
        assert text in output
    assert loop.called_with == () and not loop.verified
    assert not (tmp_path / "run").exists()


def test_one_rank_hashes_the_corpus(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["train"]) == 0
    assert loop.verified == opening(compose([]).data) != "size"
    assert cli.main(["train", "data.reader=megatron"]) == 0
    assert loop.verified == "hash"
    assert cli.main(["train", "data.verify=size"]) == 0
    assert loop.verified == "size"
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "train.micro_batch_size=2"]) == 0
    assert loop.verified == "size"


@pytest.mark.parametrize("verb", ["train", "data"])
@pytest.mark.parametrize("number", ASKS)
def test_a_signal_before_the_first_step_is_a_retry(
    loop: Loop,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    driver = sys.modules["data_pipeline.driver"]
    monkeypatch.setattr(driver, "prepare", lambda data, **_: signal.raise_signal(number))
    assert cli.main([verb]) == 75
    assert loop.called_with == ()
    (line,) = capsys.readouterr().err.splitlines()
    assert (name_of(number) in line or verb == "data") and "the same command continues" in line


def test_nohup_is_heeded_before_the_first_step(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    driver, corpus = sys.modules["data_pipeline.driver"], loop.prepare(None, None, "")

    def prepare(data: Any, **_: Any) -> Any:
        signal.raise_signal(signal.SIGHUP)
        return corpus

    monkeypatch.setattr(driver, "prepare", prepare)
    assert cli.main(["train"]) == 0


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
        "STEP_NUM_TASKS": "4",
        "STEP_TASKS_PER_NODE": "2(x2)",
        "NODEID": "1",
        "LOCALID": "1",
        "STEP_NODELIST": "n[07-08]",
        "JOB_ID": "11",
    }
    monkeypatch.setattr("launch.slurm_env._resolves", lambda host: True)
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cli.main(["train", "train.micro_batch_size=1"]) == 0
    assert loop.environ == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n07",
        "MASTER_PORT": "21408", "LOCAL_WORLD_SIZE": "2",
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


def test_print_config_prints_a_config(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--print-config", "seed=5"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "c.yaml").seed == 5
    assert loop.called_with == ()


def test_print_config_of_a_sweep_prints_every_point(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["train", "-m", "model.num_loops=1,3", "seed=5", f"run_dir={tmp_path / 'sweep'}"]
    assert cli.main([*asked, "--print-config"]) == 0
    first, second, rest = capsys.readouterr().out.split("---\n")
    assert first.startswith("# model.num_loops=1\n") and rest == ""
    (tmp_path / "c.yaml").write_text(second)
    config = load_config(tmp_path / "c.yaml")
    assert (config.model.num_loops, config.seed) == (3, 5)
    assert str(config.run_dir) == str(tmp_path / "sweep" / "01_num_loops=3")
    for mistake in ("optim.min_lr=1", "train.micro_batch_size=3", "model=plt_7b"):
        assert cli.main([*asked, "--print-config", mistake]) == 3
        assert "why:" in capsys.readouterr().err
    assert loop.called_with == () and not (tmp_path / "sweep").exists()


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
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 40


@pytest.mark.parametrize("resume", ["never", "require"])
def test_what_is_to_be_resumed_is_looked_at_before_the_corpus(
    loop: Loop, resume: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if resume == "never":
        (tmp_path / "run/checkpoints/step_00000007").mkdir(parents=True)
        (tmp_path / "run/checkpoints/step_00000007/manifest.json").touch()
    assert cli.main(["train", "run_dir=run", f"checkpoint.resume={resume}"]) == 3
    assert f"checkpoint.resume={resume}, but run/checkpoints has" in capsys.readouterr().err
    assert loop.verified == "" and loop.called_with == ()


def test_a_run_of_own_presets_remembers_their_folder(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my presets" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\nseed: 5\n")
    assert cli.main(["train", "experiment=mine", "--config-dir=my presets"]) == 0
    launch = loop.called_with[-1]
    assert launch.overrides == ("--config-dir", "my presets", "experiment=mine")
    assert "asked for  --config-dir 'my presets' experiment=mine\n" in capsys.readouterr().out
    again = next_command(loop.called_with[0], launch.overrides)
    assert again.startswith(
        "loopcoder train -m --config-dir 'my presets' experiment=mine model.num"
    )


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        ([], "loopcoder train -m model.num_loops=2,3"),
        (["seed=7", "run_dir=x"], "loopcoder train -m seed=7 model.num_loops=2,3"),
        (["checkpoint.keep=2"], "loopcoder train -m checkpoint.keep=2 model.num_loops=2,3"),
        (["model.num_loops=3"], "loopcoder train -m model.num_loops=3,4"),
        (
            ["data.mixture={text: 1,code: 3}"],
            "loopcoder train -m 'data.mixture={text: 1,code: 3}' model.num_loops=2,3",
        ),
    ],
)
def test_what_to_try_next_has_the_overrides(
    loop: Loop,
    overrides: list[str],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", *overrides]) == 0
    config, *_, launch = loop.called_with
    assert not launch.is_point
    assert next_command(config, launch.overrides).startswith(f"{command}   (what")
    for name in ("RANK", "WORLD_SIZE"):  # set where one process trains
        monkeypatch.delenv(name)
    monkeypatch.setenv(FIRST_VARIABLE, "/runs/first")
    assert cli.main(["train", *overrides]) == 0
    assert loop.called_with[-1].is_point


@pytest.mark.parametrize(
    "once",
    [
        "checkpoint.step=9",
        "checkpoint.resume=require",
        "checkpoint.init_from=x",
        "data.rebuild=true",
        "name=x",
    ],
)
def test_what_to_try_next_leaves_out_what_belongs_to_one_start(once: str) -> None:
    config = compose([])
    assert next_command(config, ["seed=7", once]) == next_command(config, ["seed=7"])


@pytest.mark.parametrize(
    "mistake",
    [
        ["train.global_batch_size=6", "train.micro_batch_size=4"],
        ["optim.min_lr=1"],
        ["profile.memory_steps=[3]"],
        ["checkpoint.init_from=/not/there"],
    ],
)
def test_the_config_that_is_shown_is_checked(
    loop: Loop, mistake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--print-config", *mistake]) == 3
    shown = capsys.readouterr()
    assert "why:" in shown.err and shown.out == ""
    assert loop.called_with == () and not loop.verified


def test_the_help_says_how_to_go_on_from_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for part in (
        "name=first",
        "train.max_steps=4000",
        "checkpoint.init_from=DIR run_dir=ANOTHER",
        "checkpoint.init_position=true",
        "optim.schedule.decay_steps=200",
    ):
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 100
    assert "\\\n" in text and "\\\\" not in text
