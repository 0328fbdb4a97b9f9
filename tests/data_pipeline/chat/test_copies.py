"""Copies and benchmarks are found by what is said, not by tools that a whole set shares."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.driver import prepare
from loopcoder.config.build import DecontaminateConfig, NearDedupConfig
from loopcoder.data.places import HELD_OUT
from tests.data_pipeline.chat.conftest import MakeConfig, write

WORDS = [f"{a}{b}" for a in ("lo", "ga", "shi", "to", "wei") for b in ("op", "te", "ft", "ken")]


def row(question: str, answer: str) -> dict[str, Any]:
    shared = " ".join(WORDS)
    tool = {"name": "f", "description": shared, "parameters": {"type": "object"}}
    system = {"role": "system", "content": f"You are told: {shared}"}
    return {
        "messages": [
            system,
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        "tools": [tool],
    }


def same_in_another_form(given: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a row that says the same, with another system prompt or none, or less to learn."""
    system, user, answer = given["messages"]
    return rng.choice(
        [
            {"messages": [user, answer], "tools": given["tools"]},
            {"messages": [{**system, "content": "Be brief."}, user, answer]},
            {**given, "messages": [system, user, {**answer, "train": False}]},
        ]
    )


def test_what_is_said_decides(config: MakeConfig, tmp_path: Path, rng: random.Random) -> None:
    pytest.importorskip("rensa")

    def text(count: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(count))

    given = [row(text(8), text(15)) for _ in range(12)]
    question, answer = text(40), text(150)
    problem = text(60)
    benchmark = write(tmp_path / "secret.jsonl", [{"id": "p", "text": problem}])
    extra = [
        row(question, answer),
        row(question, f"{answer} again"),
        given[0],
        same_in_another_form(given[1], rng),
        row(f"Solve this: {problem}", "Hm."),
    ]
    write(tmp_path / "chats/a.jsonl", given + extra)
    corpus = prepare(
        config(
            near_dedup=NearDedupConfig(enabled=True),
            decontaminate=DecontaminateConfig(benchmarks=[str(benchmark)]),
        ),
        report=lambda _: None,
    )
    drops = {
        reason: number
        for stage in corpus.manifest["stages"]
        for reason, number in stage["drops"].items()
    }
    held = len((corpus.dir / HELD_OUT).read_text().splitlines())
    assert drops == {
        "contaminated_secret": 1,
        "exact_duplicate": 2,
        "near_duplicate": 1,
        "held_out": held,
    }
    assert json.loads((corpus.dir / HELD_OUT).read_text().splitlines()[0])["tools"]
