"""Shards that are compared while a run trains on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loopcoder.data import verifier as verifiers
from loopcoder.data.corpus import Corpus, load_corpus
from loopcoder.data.verifier import Verifier, unverified
from loopcoder.errors import InputError, LoopcoderError
from loopcoder.train.verification import Verification
from tests.configs import data_config, small_config
from tests.data.stores import written

CPU = torch.device("cpu")


@pytest.fixture
def corpus(tmp_path: Path, seed: int) -> Corpus:
    return written(tmp_path / "corpus", np.random.default_rng(seed))


def without_digests(corpus: Corpus, domain: str = "") -> Corpus:
    """As the pipeline built a domain before it wrote digests."""
    manifest = json.loads((corpus.dir / "manifest.json").read_text())
    for name in [n for n in manifest["files"] if n.endswith(".blocks") and domain in n]:
        del manifest["files"][name]
        (corpus.dir / name).unlink()
    (corpus.dir / "manifest.json").write_text(json.dumps(manifest))
    return load_corpus(corpus.dir, "size")


def config(reader: Any, verify: Any, mixture: dict[str, float] | None = None) -> Any:
    mixture = mixture or {"text": 1, "code": 1}
    data = data_config(name="t", seq_length=20, reader=reader, verify=verify, mixture=mixture)
    return replace(small_config(), data=data)


def shard(corpus: Corpus, suffix: str = ".bin") -> Path:
    return Path(corpus.prefixes("code", "train")[2] + suffix)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_what_nothing_else_compares(corpus: Corpus) -> None:
    assert unverified(config("packed", "hash"), corpus) == []
    assert unverified(config("megatron", "hash"), corpus) == []
    everything = [(corpus, f"train/{d}-{i:05}") for i in range(3) for d in ("text", "code")]
    for reader in ("packed", "megatron"):
        assert unverified(config(reader, "background"), corpus) == everything
        assert unverified(config(reader, "size"), corpus) == []
    text = unverified(config("packed", "background", {"text": 1}), corpus)
    assert text == everything[::2], "what no stage reads is not compared"
    older = without_digests(corpus, "code")
    found = unverified(config("packed", "hash"), older)
    assert found == [(older, prefix) for _, prefix in everything[1::2]]
    assert unverified(config("packed", "size"), older) == []


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "unreadable"])
@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_damaged_shard_is_found(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, how: str, suffix: str
) -> None:
    path = shard(corpus, suffix)
    if how == "flipped":
        flip(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "gone":
        path.unlink()
    else:
        monkeypatch.setattr(verifiers, "fault_of", failing)
    names = unverified(config("megatron", "background"), corpus)
    found = Verifier(names, (".bin", ".idx"))
    found.wait()
    assert isinstance(found.fault, LoopcoderError)
    assert (how == "unreadable") or (str(path) in str(found.fault))
    assert not found.is_finished
    for part in ("why:", "fix:"):
        assert part in str(found.fault)
    packed = Verifier(names, (".bin",))
    packed.wait()
    assert (packed.fault is None) == (suffix == ".idx" and how != "unreadable")


def failing(*_: Any) -> None:
    raise OSError(5, "Input/output error", "/disk/shard.bin")


def test_whole_shards_are_said_once(corpus: Corpus) -> None:
    said: list[str] = []
    events: list[tuple[str, dict[str, Any]]] = []

    def event(kind: str, **fields: Any) -> None:
        events.append((kind, fields))

    run = Verification(config("packed", "background"), corpus, said.append)
    assert "6 shards" in said[0] and "samples are used unverified" in said[0]
    assert run._verifier is not None
    run._verifier.wait()
    run.refuse_damaged(CPU)
    for step in (5, 6):
        run.tell_finished(step, event)
    run.close(event)
    assert events == [("shards_verified", {"step": 5, "shards": 6})]
    assert len(said) == 2


def test_a_run_that_ends_before_says_what_was_not_compared(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Verifier, "_run", lambda self: None)
    said: list[str] = []
    run = Verification(config("packed", "background"), corpus, said.append)
    run.close(lambda *_, **__: None)
    assert "6 of 6 shards were not verified" in said[-1]


def test_nothing_is_saved_after_a_damaged_shard(corpus: Corpus) -> None:
    flip(shard(corpus))
    run = Verification(config("packed", "background"), corpus, lambda _: None)
    assert run._verifier is not None
    run._verifier.wait()
    assert run.found_fault
    with pytest.raises(InputError, match=shard(corpus).name):
        run.refuse_damaged(CPU)


def test_other_processes_of_a_node_compare_nothing(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    flip(shard(corpus))
    run = Verification(config("packed", "background"), corpus, lambda _: None)
    assert run._verifier is None and not run.found_fault
    run.refuse_damaged(CPU)


def test_what_readers_compare_is_not_compared_twice(corpus: Corpus) -> None:
    said: list[str] = []
    run = Verification(config("packed", "hash"), corpus, said.append)
    assert run._verifier is None and said == []
    run.refuse_damaged(CPU)
