"""Runs of the command line on a small corpus of generated text and code."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import fresh_seed

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "model.num_layers=2",
    "model.hidden_size=64",
    "model.ffn_hidden_size=128",
    "model.num_attention_heads=4",
    "model.num_kv_heads=2",
    "model.head_dim=16",
    "data=files",
    "data.seq_length=64",
    "data.build.tokenizer_vocab_size=600",
    # generated words are no prose that cleaning would let pass
    "data.build.filters.enabled=false",
    "data.build.near_dedup.enabled=false",
    "data.build.fim.rate=0",
    "train.global_batch_size=4",
    "train.micro_batch_size=2",
    "eval.sequences_per_domain=4",
    "logging.interval=1",
    "checkpoint.interval=100",
    "eval.interval=100",
    "logging.wandb=off",
    "logging.tensorboard=off",
    "logging.plots=false",
    "parallel.nproc_per_node=1",
]

if torch.cuda.is_available():  # there alone sums have no fixed order by themselves
    SMALL += ["train.deterministic=true", "precision=fp32"]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated prose and programs, with some structure to learn.

    Its name, which every run prints, has the seed: LOOPCODER_TEST_SEED repeats it.
    """
    seed = fresh_seed()
    folder = tmp_path_factory.mktemp(f"documents_of_seed_{seed}_")
    generator = random.Random(seed)
    words = ["loop", "model", "token", "layer", "window", "gate", "shared", "value", "key", "reads"]
    for i in range(60):
        prose = " ".join(generator.choice(words) for _ in range(300))
        (folder / f"text{i}.txt").write_text(f"Chapter {i}. {prose}.\n")
        lines = [
            f"def {generator.choice(words)}_{j}({generator.choice(words)}):\n"
            f"    return {generator.randrange(99)}\n"
            for j in range(40)
        ]
        (folder / f"code{i}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user who has just cloned the repository; all tests of a session share
    the cache."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {k: v for k, v in os.environ.items() if k not in launcher} | {
        "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        "LOOPCODER_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="session")
def start(
    documents: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Start:
    """Start `loopcoder train` on the small corpus, in a folder that is not the repository."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(run_dir: Path, *overrides: str, new_session: bool = False) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "loopcoder", "train", *SMALL, f"path={documents}"]
        return subprocess.Popen(
            [*command, f"run_dir={run_dir}", *overrides],
            cwd=elsewhere,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=new_session,
        )

    return run


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a run and return what it printed; it must end with `code`."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output
