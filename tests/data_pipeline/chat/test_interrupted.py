"""A corpus of conversations is the same for any number of workers, and after every interruption."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.chat import packed, rendered, stages
from data_pipeline.driver import prepare
from loopcoder.config.build import ExecutorConfig
from loopcoder.data.corpus import Corpus
from loopcoder.errors import InputError
from tests.data_pipeline.builds import REPOSITORY, hashes, left
from tests.data_pipeline.chat.conftest import MakeConfig, rows, write
from tests.parts import one_of

pytestmark = pytest.mark.data_full

FAILURES = [
    (rendered, "conversation_of"),
    (packed, "pack"),
    (stages, "write_sequences"),
    (stages, "count_tokens"),
]

KILLED = """
import json, os, signal, sys
from data_pipeline.chat import rendered
from data_pipeline.driver import prepare
from loopcoder.config.data import DataConfig
begun = 0
whole = rendered.conversation_of
def dies(document):
    global begun
    begun += 1
    if begun > 60:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(document)
rendered.conversation_of = dies
prepare(DataConfig(**json.loads(sys.argv[1])))
"""


def given(folder: Path, rng: random.Random) -> None:
    for part in range(4):
        write(folder / f"chats/{part}.jsonl", rows(rng, 40))


def built(config: MakeConfig, cache: Path, **fields: Any) -> Corpus:
    return prepare(config(part_bytes=20_000, cache_dir=str(cache), **fields), report=lambda _: None)


def test_any_number_of_workers_gives_the_same_corpus(
    config: MakeConfig, tmp_path: Path, rng: random.Random
) -> None:
    given(tmp_path, rng)
    alone = built(config, tmp_path / "one", executor=ExecutorConfig(workers=1))
    three = built(config, tmp_path / "three", executor=ExecutorConfig(workers=3))
    assert hashes(alone) == hashes(three)


def test_a_build_that_was_killed_continues(
    config: MakeConfig, tmp_path: Path, rng: random.Random
) -> None:
    given(tmp_path, rng)
    data = config(part_bytes=20_000)
    dead = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(dataclasses.asdict(data))],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    (work,) = left(data, ".work")
    assert list((work / "done" / "render").iterdir()), "nothing was rendered before the kill"
    lines: list[str] = []
    corpus = prepare(data, report=lines.append)
    assert lines[0].startswith("data: continuing")
    assert any("render and tokenise: done before" in line for line in lines)
    assert hashes(corpus) == hashes(built(config, tmp_path / "other"))


@pytest.mark.parametrize(("module", "name"), one_of(FAILURES))
def test_a_build_that_failed_continues(
    config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rng: random.Random,
    module: Any,
    name: str,
) -> None:
    def fail(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    given(tmp_path, rng)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(KeyboardInterrupt):
            built(config, tmp_path / "cache")
    corpus = built(config, tmp_path / "cache")
    assert hashes(corpus) == hashes(built(config, tmp_path / "other"))


def test_a_damaged_work_folder_is_refused(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rng: random.Random
) -> None:
    def fail(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    given(tmp_path, rng)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "write_sequences", fail)
        with pytest.raises(KeyboardInterrupt):
            built(config, tmp_path / "cache")
    work = next(p for p in (tmp_path / "cache").iterdir() if p.suffix == ".work")
    with open(work / "pack" / "train.items", "r+b") as file:
        file.write(b"\x07")
    with pytest.raises(InputError, match=r"train\.items"):
        built(config, tmp_path / "cache")


def test_shards_share_the_sequences(config: MakeConfig, tmp_path: Path, rng: random.Random) -> None:
    given(tmp_path, rng)
    one = built(config, tmp_path / "cache")
    several = built(config, tmp_path / "cache", shards=3)
    sequences = one.manifest["packed"]["sequences"]
    tokens = several.shard_tokens("chat", "train")
    length = one.manifest["packed"]["seq_length"]
    assert [n // length for n in tokens] == [
        sequences * (s + 1) // 3 - sequences * s // 3 for s in range(3)
    ]
    parts = [
        Path(f"{prefix}.bin").read_bytes()[:-2] for prefix in several.prefixes("chat", "train")
    ]
    (whole,) = one.prefixes("chat", "train")
    assert b"".join(parts) == Path(f"{whole}.bin").read_bytes()[:-2]
    with pytest.raises(InputError, match=r"data\.build\.shards=10000"):
        built(config, tmp_path / "cache", shards=10_000)
