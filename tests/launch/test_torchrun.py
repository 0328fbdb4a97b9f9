"""Exit codes and signals through a real torchrun."""

import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from launch.process import run_forwarding
from launch.torchrun import exit_code, start_workers
from loopcoder.config.compose import compose
from loopcoder.errors import EXIT_VARIABLE, record_exit, recorded_exits

REPOSITORY = Path(__file__).resolve().parents[2]

# Python imports sitecustomize at start-up: the workers get a train loop that waits for a signal.
FAKE_LOOP = """
import os, signal, sys, time, types
from pathlib import Path

def train(config, corpus, backends, run_dir, launch):
    got = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, lambda number, frame: got.append(number))
    rank = os.environ["RANK"]
    (run_dir / f"ready{rank}").touch()
    while not ((run_dir / "ready0").exists() and (run_dir / "ready1").exists()):
        time.sleep(0.01)
    if rank == "0" and config.seed == 75:
        os.kill(int(os.environ["LAUNCHER_PID"]), signal.SIGHUP)
    if config.seed in (0, 1):
        if rank == str(config.seed):
            (run_dir / "peer").open("w")
            os.kill(os.getpid(), signal.SIGKILL)
        (run_dir / "peer").open().read()
        raise RuntimeError("Connection closed by peer")
    if rank == "1" and config.seed == 3:
        from loopcoder.errors import InputError
        raise InputError.of("the corpus", "is too small", "data.seq_length=1")
    if config.seed == 76:
        from loopcoder.errors import TrainingDiverged
        raise TrainingDiverged("stopped after step 7: the loss is nan")
    while not got:
        time.sleep(0.01)
    from loopcoder.errors import Preempted
    raise Preempted("stopped after step 7")

if "RANK" in os.environ:
    sys.modules["loopcoder.train.world"] = types.SimpleNamespace(train=train)
    corpus = types.SimpleNamespace(
        dir=Path("/the/corpus"), has_digests=True, is_packed=False, url=None
    )
    corpus.members = (corpus,)
    prepare = lambda data, **_: corpus
    sys.modules["data_pipeline.driver"] = types.SimpleNamespace(prepare=prepare)
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the workers of `start_workers` run the loop above; TMPDIR has a path of 123
    characters, too long for a socket."""
    temporary = Path(f"{tmp_path}/".ljust(123, "x"))
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (tmp_path / "launch.py").write_text("raise RuntimeError('not ours')")
    (tmp_path / "loopcoder.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(FAKE_LOOP)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    monkeypatch.setenv("LAUNCHER_PID", str(os.getpid()))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.dist
@pytest.mark.parametrize(
    "code",
    [
        75,  # a signal to the launcher reaches every worker, and their 75 comes back
        # one worker fails, torchrun ends the other: the cause comes back
        pytest.param(3, marks=pytest.mark.dist_full),
        pytest.param(76, marks=pytest.mark.dist_full),  # all diverge at the same step
    ],
)
@pytest.mark.chaos
def test_the_workers_exit_code_survives(
    code: int, world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = compose(
        [f"seed={code}", f"run_dir={world}", "precision=fp32", "train.micro_batch_size=2"]
    )
    assert start_workers(config, 2) == code
    output = capfd.readouterr().err
    assert "Traceback" not in output and "FAILED" not in output and "elastic" not in output
    assert output.count("loopcoder: ") == 1, output
    assert ("the corpus" if code == 3 else "stopped after step 7") in output


@pytest.mark.dist
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.dist_full)])
@pytest.mark.chaos
def test_a_killed_worker_is_the_cause(
    rank: int, world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(world / "peer")
    config = compose(
        [f"seed={rank}", f"run_dir={world}", "precision=fp32", "train.micro_batch_size=2"]
    )
    assert start_workers(config, 2) == 137
    assert capfd.readouterr().err == f"loopcoder: rank {rank} was killed (SIGKILL)\n"


def test_signals_are_forwarded_and_handlers_restored() -> None:
    child = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
        "os.kill(os.getppid(), signal.SIGUSR1)\n"
        "signal.pause()"
    )
    before = signal.getsignal(signal.SIGUSR1)
    command = [sys.executable, "-c", child]
    assert run_forwarding(command, dict(os.environ), lambda pid: [psutil.Process(pid)]) == (
        75,
        True,
    )
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_child_without_workers_is_terminated() -> None:
    child = "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\nsignal.pause()"
    code, signalled = run_forwarding([sys.executable, "-c", child], dict(os.environ), lambda _: [])
    assert (code, signalled) == (-signal.SIGTERM, True)


def test_the_first_code_is_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    path = tmp_path / "codes"
    monkeypatch.setenv(EXIT_VARIABLE, str(path))
    assert exit_code(0, path, signalled=False) == 0
    assert exit_code(1, path, signalled=False) == 1
    assert exit_code(-15, path, signalled=True) == 75
    first = rng.randint(0, 3)
    for when, rank in enumerate([first, *({0, 1, 2, 3} - {first})]):
        monkeypatch.setenv("RANK", str(rank))
        record_exit(75 if when else 76)
        os.utime(f"{path}.{rank}", (0, when))
    record_exit(1)  # it has ended before
    assert next(iter(recorded_exits(path))) == first
    assert exit_code(1, path, signalled=False) == 76
    assert exit_code(137, path, signalled=False) == 137
