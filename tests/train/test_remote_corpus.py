"""Runs on a corpus behind a URL, and on shards that are compared while they are trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from loopcoder.checkpoint import format as checkpoints
from loopcoder.cli import main as cli
from loopcoder.metrics.writer import read_metrics
from tests.train.conftest import Start, finish

STEPS = "train.max_steps=4"


@pytest.fixture(scope="module")
def corpus(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished corpus, and the loss of a run on it."""
    folder = tmp_path_factory.mktemp("first")
    finish(start(folder / "run", STEPS, "data.reader=shuffled"))
    built = Path(checkpoints.find(folder / "run").state().corpus_dir)
    shutil.copytree(built, folder / "corpus")
    return folder / "corpus"


def losses(run_dir: Path) -> list[float]:
    return [float(line["loss"]) for line in read_metrics(run_dir / "metrics.jsonl")]


@pytest.mark.data_full
def test_a_run_on_a_url_goes_on_and_is_evaluated(
    start: Start, corpus: Path, tmp_path: Path
) -> None:
    """By fsspec's own protocol for local files; tests/data has S3."""
    url, run_dir = f"local://{corpus}", tmp_path / "run"
    given = ["data=corpus", f"path={url}", "data.reader=shuffled", f"data.cache.dir={tmp_path}/c"]
    finish(start(run_dir, *given, STEPS, "checkpoint.interval=2"))
    assert losses(run_dir) == losses(corpus.parent / "run")
    assert json.loads((run_dir / "corpus.json").read_text())["dir"] == url
    shutil.rmtree(tmp_path / "c")  # another node
    shutil.rmtree(checkpoints.find(run_dir).path)
    finish(start(run_dir, *given, STEPS))
    assert checkpoints.find(run_dir).state().corpus_dir == url
    assert losses(run_dir) == losses(corpus.parent / "run")
    cache = f"data.build.cache_dir={tmp_path / 'd'}"
    assert cli.main(["evaluate", f"checkpoint={run_dir}", cache]) == 0


@pytest.mark.chaos
def test_a_damaged_shard_ends_a_run_before_its_next_checkpoint(
    start: Start, corpus: Path, tmp_path: Path
) -> None:
    copy, run_dir = tmp_path / "corpus", tmp_path / "run"
    shutil.copytree(corpus, copy)
    shard = sorted(copy.glob("train/code*.bin"))[-1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    given = ["data=corpus", f"path={copy}", "data.verify=background", "checkpoint.interval=1"]
    output = finish(start(run_dir, *given, "train.max_steps=400"), code=3)
    assert f"{shard} " in output and "has other content" in output
    assert "samples are used unverified" in output and "Traceback" not in output
    saved = checkpoints.complete(run_dir / "checkpoints")
    assert len(saved) < 400
