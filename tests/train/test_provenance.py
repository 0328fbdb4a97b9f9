"""What a run records of its command, code and machine."""

from __future__ import annotations

import random
import shlex
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loopcoder import origin
from loopcoder.backends import Backends
from loopcoder.config.data import CorpusConfig, StageConfig
from loopcoder.train.provenance import provenance, same_on_all
from tests.configs import small_config

HERE = Backends(versions={"torch": "2.11.0", "megatron-core": "0.19.2"})


@pytest.mark.parametrize(
    "overrides", [[], ["run_dir=a b", "seed=7"], ["data.mixture={text: 1,code: 3}"]]
)
def test_the_command_can_be_given_again(overrides: list[str]) -> None:
    found = provenance(overrides, HERE, 2)
    assert shlex.split(found["command"]) == ["loopcoder", "train", *overrides]
    assert (found["host"], found["processes"]) == (socket.gethostname(), 2)
    assert (found["torch"], found["megatron_core"]) == ("2.11.0", "0.19.2")
    assert found["python"].startswith("3.") and "gpu" not in found


def test_gpus_and_the_job_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    found = provenance([], Backends(4, "NVIDIA H200", (9, 0)), 4)
    assert (found["gpu"], found["slurm_job_id"]) == ("4 x NVIDIA H200", "77")


def on_node(node: str, weight: float) -> dict[str, str]:
    """Return what a node shows whose disks are mounted at a place of its own."""
    corpora = [CorpusConfig(f"/{node}/code", weight), CorpusConfig(f"/{node}/text")]
    config = small_config()
    config = replace(
        config,
        run_dir=f"/{node}/run",
        data=replace(config.data, corpora=corpora, stages=[StageConfig(corpora=corpora)]),
        eval=replace(config.eval, corpora={"held": f"/{node}/held"}),
        checkpoint=replace(config.checkpoint, init_from=f"/{node}/old"),
    )
    return same_on_all(config, HERE)


def test_nodes_may_have_their_disks_elsewhere(rng: random.Random) -> None:
    weight = rng.uniform(1, 2)
    one, other = on_node("one", weight), on_node("other", weight)
    assert one == other and one["names in eval.corpora"] == "held"
    other = on_node("other", weight + 1)
    differing = {name for name in one if one[name] != other[name]}
    assert differing == {"data.corpora", "data.stages"}


@pytest.fixture
def asked_anew() -> Iterator[None]:
    origin.commit_of.cache_clear()
    yield
    origin.commit_of.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_the_commit_is_that_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "loopcoder" / "origin.py"
    source.parent.mkdir(parents=True)
    source.touch()
    monkeypatch.setattr(origin, "__file__", str(source))
    assert provenance([], HERE, 1)["commit"] is None  # an installed package

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")[:12]
    origin.commit_of.cache_clear()
    assert provenance([], HERE, 1)["commit"] == commit
    source.write_text("changed = 1\n")
    origin.commit_of.cache_clear()
    assert provenance([], HERE, 1)["commit"] == f"{commit}+"
