"""A run on an S3 server ends as if nothing had been killed: neither the run nor the server."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loopcoder.data.corpus import Corpus
from loopcoder.metrics.writer import read_metrics
from tests.data.stores import Server, needs_server, server, written

pytestmark = [pytest.mark.chaos, needs_server]

KILLS = 4 if "LOOPCODER_TEST_PART" in os.environ else 20
"""Of a run; fewer where CI runs parts."""
REPOSITORY = Path(__file__).parents[2]
READS = """
import sys, torch, numpy as np
from data_pipeline.driver import prepare
from loopcoder.config.compose import compose
from loopcoder.data.blend import Blend, reader_of
config = compose(sys.argv[2:])
corpus = prepare(config.data, report=lambda _: None, verify="small")
print("opened", flush=True)
sys.stdin.read()  # until whoever started it lets it go on
blend = Blend(corpus, config.stages[0], 0, 7, reader_of(config.data))
torch.save([blend.rows(np.arange(i, i + 50))[0] for i in range(0, 4000, 50)], sys.argv[1])
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Shards of 30 MB, so that a killed process was fetching."""
    rng = np.random.default_rng()
    return written(tmp_path_factory.mktemp("corpus"), rng, tokens=15_000_000, shards=3)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("s3") / "server") as started:
        yield started


@pytest.fixture(scope="module")
def url(running: Server, local: Corpus) -> str:
    return running.upload(local.dir, "corpora")


def given(path: str, tmp_path: Path, *more: str) -> list[str]:
    return [
        *("data=corpus", f"path={path}", "data.reader=shuffled", "data.seq_length=1024"),
        *(f"data.cache.dir={tmp_path / 'cache'}", *more),
    ]


def read(running: Server, output: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READS, str(output), *overrides],
        cwd=REPOSITORY,
        env={**os.environ, **running.environment(), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ends(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="module")
def wanted(local: Corpus, running: Server, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("wanted") / "rows"
    ends(read(running, output, *given(str(local.dir), output.parent)))
    return output.read_bytes()


def cached(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "cache" / "blocks").iterdir())


def test_readers_that_are_killed(
    running: Server, url: str, wanted: bytes, tmp_path: Path, seed: int
) -> None:
    """Two at once, with a cache that does not hold the corpus."""
    rng, output = random.Random(seed), tmp_path / "rows"
    overrides = given(url, tmp_path, "data.cache.bytes=70000000")
    for _ in range(KILLS // 2):
        two = [read(running, tmp_path / f"killed{i}", *overrides) for i in range(2)]
        for one in two:
            assert one.stdout is not None and one.stdin is not None
            one.stdout.readline()
            one.stdin.close()
        time.sleep(rng.uniform(0, 0.6))
        for one in two:
            with one:
                one.send_signal(signal.SIGKILL)
        assert cached(tmp_path) <= 70_100_000
    ends(read(running, output, *overrides))
    assert output.read_bytes() == wanted
    assert cached(tmp_path) <= 70_100_000


def test_a_server_that_is_killed_while_it_is_read_and_comes_back(
    local: Corpus, wanted: bytes, tmp_path: Path
) -> None:
    """It is gone when the first row is asked for, and needs some 20 seconds to come back."""
    with server(tmp_path / "server") as own:
        url, output = own.upload(local.dir, "corpora"), tmp_path / "rows"
        reading = read(own, output, *given(url, tmp_path))
        assert reading.stdout is not None
        reading.stdout.readline()
        own.kill()
        back = threading.Timer(2, own.start)
        back.start()
        assert "once more in" in ends(reading)
        back.join()
    assert output.read_bytes() == wanted


def train(running: Server, run_dir: Path, *overrides: str) -> subprocess.Popen[str]:
    small = [
        *("model.num_layers=2", "model.hidden_size=64", "model.ffn_hidden_size=128"),
        *("model.num_attention_heads=4", "model.num_kv_heads=2", "model.head_dim=16"),
        *("train.global_batch_size=4", "train.micro_batch_size=2", "train.max_steps=60"),
        *("eval.sequences_per_domain=4", "eval.interval=1000"),
        *("logging.interval=1", "checkpoint.interval=5", "logging.wandb=off"),
        *("logging.tensorboard=off", "logging.plots=false", "parallel.nproc_per_node=1"),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "loopcoder", "train", f"run_dir={run_dir}", *small, *overrides],
        cwd=REPOSITORY,
        env={**os.environ, **running.environment(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_run_that_is_killed(
    running: Server, local: Corpus, url: str, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    ends(train(running, tmp_path / "whole", *given(str(local.dir), tmp_path)[:-1]))
    overrides = given(url, tmp_path, "data.cache.bytes=70000000")
    killed = 0
    for _ in range(KILLS):
        one = train(running, tmp_path / "run", *overrides)
        time.sleep(rng.uniform(4, 14))
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)
            killed += 1
        one.communicate()
    ends(train(running, tmp_path / "run", *overrides))
    assert killed > 0
    metrics = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "whole")]
    losses = [[(line["step"], line["loss"]) for line in lines] for lines in metrics]
    assert losses[0] == losses[1]
