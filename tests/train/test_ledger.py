"""What a run wrote of the tokens that it trained is what its batches held."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from loopcoder.checkpoint import format as checkpoints
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.config.compose import load_config
from loopcoder.data.corpus import load_corpus
from loopcoder.data.ledger import LEDGER_FILE
from loopcoder.metrics.writer import read_metrics
from loopcoder.storage.files import synced_entry, write_json
from tests.data.corpora import trained_labels
from tests.train.conftest import Start, finish
from tests.train.test_resume import wait_for_step

KILLS = 6 if "LOOPCODER_TEST_PART" in os.environ else 20
STAGES = (
    "data.stages=[{until:2000,mixture:{text:1,code:3}},{until:12000,seq_length:48},{seq_length:64}]"
)
STEPS = 60
LONG = [
    f"train.max_steps={STEPS}",
    "train.micro_batch_size=1",
    "train.global_batch_size=8",
    "train.batch_ramp={start:4,increment:4,samples:40}",
    "checkpoint.interval=2",
    "eval.interval=null",
    STAGES,
]


def kill(process: subprocess.Popen[str]) -> None:
    """End a run as a lost machine does, with the processes that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def newest(run_dir: Path) -> Checkpoint | None:
    found = checkpoints.complete(run_dir / "checkpoints")
    return found[-1] if found else None


def check(run_dir: Path) -> dict[str, Any]:
    """Assert that the ledger of a finished run has every label of its batches once; return it."""
    last = newest(run_dir)
    assert last is not None
    state = last.state()
    written = json.loads((run_dir / LEDGER_FILE).read_text())
    assert state.ledger is not None
    assert written == json.loads(json.dumps(state.ledger.as_file(state.position)))
    expected = trained_labels(
        load_config(last.path / checkpoints.CONFIG), load_corpus(state.corpus_dir)
    )
    found = {(e["domain"], e["language"], e["source"]): e["tokens"] for e in written["entries"]}
    assert found == expected
    assert sum(found.values()) == written["tokens"] == state.position.tokens
    assert {label.language for label in expected} >= {"Python", "Text"}
    return written


@pytest.mark.chaos
def test_killed_once(start: Start, tmp_path: Path, seed: int) -> None:
    """Between two checkpoints; its losses by language are those of their tokens."""
    run_dir, steps = tmp_path / "run", ["train.max_steps=6", "checkpoint.interval=2"]
    process = start(run_dir, *steps)
    wait_for_step(process, run_dir, random.Random(seed).choice([3, 5]))
    process.kill()
    process.communicate()
    finish(start(run_dir, *steps))
    written = check(run_dir)
    assert written["since_step"] == 0 and written["step"] == 6
    for line in read_metrics(run_dir / "metrics.jsonl"):
        # of generated documents each domain is one language, and all of one source
        assert line["loss/language/Python"] == pytest.approx(line["loss/code"], rel=1e-6)
        assert line["loss/language/Text"] == pytest.approx(line["loss/text"], rel=1e-6)
        assert not [name for name in line if name.startswith("loss/source")]
    assert line["val/loss/language/Text"] == pytest.approx(line["val/loss/text"], rel=1e-6)


@pytest.mark.dist_full
def test_what_no_checkpoint_has_is_written_and_what_an_earlier_version_trained_is_said(
    start: Start, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    finish(
        start(run_dir, "train.max_steps=3", "checkpoint.interval=2", "checkpoint.save_at_end=false")
    )
    last = newest(run_dir)
    assert last is not None and last.step == 2
    written = json.loads((run_dir / LEDGER_FILE).read_text())
    assert (written["step"], written["tokens"]) == (3, 3 * 4 * 64)
    assert sum(entry["tokens"] for entry in written["entries"]) == 3 * 4 * 64

    state = last.path / checkpoints.STATE
    write_json(state, json.loads(state.read_text()) | {"ledger": None})
    files = checkpoints.files_of(last) | {checkpoints.STATE: synced_entry(state)}
    write_json(last.path / checkpoints.MANIFEST, {"files": files})
    output = finish(start(run_dir, "train.max_steps=4"))
    assert "tokens by language and source count from step 2 on" in output
    written = json.loads((run_dir / LEDGER_FILE).read_text())
    assert (written["since_step"], written["since_tokens"]) == (2, 2 * 4 * 64)
    assert sum(entry["tokens"] for entry in written["entries"]) == 2 * 4 * 64


@pytest.mark.chaos
def test_killed_at_random_moments(start: Start, tmp_path: Path, seed: int) -> None:
    """On one rank or two, through a ramp and three stages, while it starts, trains or saves."""
    rng, run_dir, killed = random.Random(seed), tmp_path / "run", 0
    while killed < KILLS:
        ranks = f"parallel.nproc_per_node={rng.choice([1, 2])}"
        process = start(run_dir, *LONG, ranks, new_session=True)
        reached = newest(run_dir)
        if rng.random() < 0.9:
            step = (reached.step if reached else 0) + rng.randint(1, 3)
            wait_for_step(process, run_dir, min(step, STEPS))
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is None:
            kill(process)
            killed += 1
        else:  # the rest of the kills hit another run
            finish(process)
            check(run_dir)
            run_dir = tmp_path / f"after_{killed}"
    finish(start(run_dir, *LONG))
    check(run_dir)
