"""state.json: what was written is read back, from earlier versions too."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from loopcoder.checkpoint import state as module
from loopcoder.checkpoint.state import CheckpointState, UnknownFormat
from loopcoder.data.ledger import Ledger, LedgerEntry
from loopcoder.data.sampler import Position, Skipped
from tests.checkpoint.states import state_at

VERSION_1 = """{
 "format_version": 1,
 "step": 40,
 "position": {
  "step": 40,
  "stage": 0,
  "sample": 160,
  "samples": 160,
  "tokens": 20480
 },
 "num_loops": 2,
 "vocab_size": 2048,
 "tokenizer_hash": "ccd3b2b132d4109ef434301447a54ec3",
 "tokenizer_path": "/cache/sample-0c9816b21df4db05/tokenizer.json",
 "corpus": "0c9816b21df4db05",
 "config_hash": "b9c6bd6e4d",
 "world_size": 1
}
"""
"""As the tiny preset wrote it when there was no other version yet."""


def test_version_1_is_read_as_ever():
    state = CheckpointState.from_json(json.loads(VERSION_1))
    assert state == CheckpointState(
        position=Position(step=40, stage=0, sample=160, samples=160, tokens=20480, before=None),
        num_loops=2,
        vocab_size=2048,
        tokenizer_hash="ccd3b2b132d4109ef434301447a54ec3",
        tokenizer_path="/cache/sample-0c9816b21df4db05/tokenizer.json",
        corpus="0c9816b21df4db05",
        corpus_dir="/cache/sample-0c9816b21df4db05",
        config_hash="b9c6bd6e4d",
        world_size=1,
        warmup_steps=None,
    )
    assert state.step == 40


def test_stages_of_a_run_of_version_2_keep_orders_of_their_own():
    content = state_at(3).to_json() | {"format_version": 2}
    content["position"] = dict(step=3, stage=1, sample=8, samples=24, tokens=768)
    assert CheckpointState.from_json(content).position == Position(3, 1, 8, 24, 768, before=None)


def test_any_state_is_read_back(seed):
    rng = random.Random(seed)
    position = Position(
        *(rng.randrange(10**12) for _ in range(5)),
        before=rng.choice([None, {}, {"text": ((32, rng.randrange(10**9)), (64, 5)), "code": ()}]),
        skipped=tuple(Skipped(*rng.sample(range(99), 5)) for _ in range(rng.randrange(3))),
    )
    ledger = Ledger(
        since_step=rng.randrange(9),
        since_tokens=position.tokens // 2,
        entries=(
            LedgerEntry("code", "c++", "files", 12),
            LedgerEntry("text", None, None, position.tokens - position.tokens // 2 - 12),
        ),
    )
    state = state_at(0, position=position, world_size=rng.randrange(1, 9999), ledger=ledger)
    assert CheckpointState.from_json(json.loads(json.dumps(state.to_json()))) == state


@pytest.mark.parametrize("name", ["position", "num_loops", "tokenizer_hash", "world_size"])
def test_what_is_missing_or_of_another_kind_is_named(name):
    content = state_at(3).to_json()
    with pytest.raises(ValueError, match=f"^{name}: "):
        CheckpointState.from_json({k: v for k, v in content.items() if k != name})
    with pytest.raises(ValueError, match=rf"^{name}[.\w]*: "):
        CheckpointState.from_json(content | {name: ["no", "such", "thing"]})


def test_a_ledger_that_does_not_add_up_is_damage():
    content = state_at(3, ledger=Ledger(entries=(LedgerEntry("text", None, None, 767),))).to_json()
    with pytest.raises(ValueError, match=r"ledger has 767 tokens .* the position 768"):
        CheckpointState.from_json(content)


@pytest.mark.parametrize("version", [0, 4, None, "1"])
def test_another_version_is_refused(version):
    with pytest.raises(UnknownFormat, match=str(version)):
        CheckpointState.from_json(state_at(3).to_json() | {"format_version": version})


def test_earlier_versions_go_through_every_migration(monkeypatch):
    """As if version 1 had called the loops `R`, and version 2 had no number of ranks."""

    def first(content: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in content.items() if k != "R"} | {"num_loops": content["R"]}

    def second(content: dict[str, Any]) -> dict[str, Any]:
        return content | {"world_size": 1}

    monkeypatch.setattr(module, "FORMAT_VERSION", 3)
    monkeypatch.setattr(module, "MIGRATIONS", {1: first, 2: second})
    now = state_at(3).to_json()
    assert now["format_version"] == 3
    missing = {k: v for k, v in now.items() if k not in ("num_loops", "world_size")}
    old = missing | {"format_version": 1, "R": 2}
    between = missing | {"format_version": 2, "num_loops": 2}
    assert CheckpointState.from_json(old) == CheckpointState.from_json(between) == state_at(3)
    with pytest.raises(UnknownFormat):
        CheckpointState.from_json(now | {"format_version": 4})
