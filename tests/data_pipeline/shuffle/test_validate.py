"""Whatever is wrong with finished shards is found, all of it at once."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.shuffle import validate as module
from data_pipeline.shuffle.shards import seal
from data_pipeline.shuffle.validate import validate
from loopcoder.data.indexed import IndexedWriter
from loopcoder.storage.digest import file_digest
from tests.data_pipeline.shuffle.test_shards import EOD, make, run, settings


@pytest.fixture
def shards(tmp_path: Path, seed: int) -> Path:
    run(tmp_path, settings(num_buckets=3), [make(seed, 400)])
    assert validate(tmp_path / "out") == []
    return tmp_path / "out"


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    manifest = json.loads((folder / "shards.json").read_text())
    change(manifest)
    (folder / "shards.json").write_text(json.dumps(manifest))


def rewrite(folder: Path, prefix: str, documents: list[list[int]]) -> None:
    """Replace a shard and forge its hashes and counts."""
    writer = IndexedWriter(folder / prefix, 600)
    lengths = np.array([len(d) for d in documents])
    writer.append(np.concatenate([np.array(d) for d in documents]), lengths)
    paths = writer.finish()
    tokens = int(lengths.sum())

    def forge(manifest: Any) -> None:
        for path in paths:
            entry = {"bytes": path.stat().st_size, "xxh3_128": file_digest(path)}
            manifest["files"][path.name] = entry
        entry = next(e for e in manifest["blend"] if e["prefix"] == prefix)
        entry.update(documents=len(documents), tokens=tokens, sequences=(tokens - 1) // 32)

    edit(folder, forge)


def test_every_file_is_checked(shards: Path, rng: random.Random) -> None:
    for path in sorted(p for p in shards.iterdir() if p.suffix in (".bin", ".idx")):
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(good))] ^= rng.randrange(1, 256)
        path.write_bytes(bad)
        assert any(
            f"{path.name} " in p.fact and "other content" in p.fact for p in validate(shards)
        )
        for length in (0, rng.randrange(len(good))):
            path.write_bytes(good[:length])
            problems = validate(shards, verify="size")
            assert any(f"{path.name} has {length:,} bytes" in p.fact for p in problems)
        path.unlink()
        assert any("is missing" in p.fact for p in validate(shards))
        path.write_bytes(good)
    assert validate(shards) == validate(shards, verify="size") == []
    shutil.copy(shards / "text-00000.bin", shards / "text-00009.bin")
    assert "is not in shards.json" in validate(shards)[0].fact


def test_all_problems_at_once(shards: Path) -> None:
    for name in ("text-00000.bin", "code-00001.bin", "text-00002.idx"):
        (shards / name).unlink()
    facts = "\n".join(p.fact for p in validate(shards))
    for name in ("text-00000.bin", "code-00001.bin", "text-00002.idx"):
        assert name in facts
    assert all(p.fact and p.why and p.fix for p in validate(shards))


def test_documents_must_be_sound(shards: Path) -> None:
    fine = [[9, 9, EOD]] * 200
    for documents, fact in (
        ([*fine, [9, EOD, 9, EOD]], "202 EODs in 201 documents"),
        ([*fine, [9, 9]], "do not end with token 7"),
        ([*fine, [650, EOD]], "ids from 0 to 650"),
    ):
        rewrite(shards, "text-00001", documents)
        assert any(fact in p.fact for p in validate(shards)), fact
        assert not any("hash" in p.fact for p in validate(shards))


def test_proportions(shards: Path) -> None:
    rewrite(shards, "code-00001", [[9] * 31 + [EOD]] * 5)
    facts = "\n".join(p.fact for p in validate(shards, verify="size"))
    assert "other proportions than {'text': 1, 'code': 1}" in facts
    assert "the shards of code" in facts


def test_order_of_the_blend(shards: Path) -> None:
    edit(shards, lambda m: m["blend"].sort(key=lambda e: e["domain"]))
    assert ["does not list text, code in turn" in p.fact for p in validate(shards)] == [True]


def test_too_many_documents(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.MAX_DOCUMENTS == 2**31 - 1
    monkeypatch.setattr(module, "MAX_DOCUMENTS", 5)
    assert [p.why for p in validate(shards)] == [
        "megatron-core numbers the documents of a prefix up to 5"
    ] * 6


def test_shares(shards: Path) -> None:
    manifest = json.loads((shards / "shards.json").read_text())
    code = manifest["domains"]["code"]
    shares = {name: n["tokens"] / code["tokens"] for name, n in code["languages"].items()}
    seal(shards, settings(num_buckets=3), {"code": shares, "text": {"Text": 1.0}})
    assert validate(shards) == []
    shares["C"] += 0.002
    shares["Go"] = 0.002
    seal(shards, settings(num_buckets=3), {"code": shares})
    assert [p.fact.split()[0] for p in validate(shards)] == ["C", "Go"]
    assert validate(shards, tolerance=0.003) == []


def test_counts_must_agree(shards: Path) -> None:
    edit(shards, lambda m: m["blend"][0].update(documents=1))
    assert any("says {'documents': 1," in p.why for p in validate(shards, verify="size"))
    edit(shards, lambda m: m["domains"]["code"]["languages"].pop("C"))
    assert any("the languages of code" in p.fact for p in validate(shards, verify="size"))


def test_manifest_itself(shards: Path) -> None:
    path = shards / "shards.json"
    good = path.read_text()
    for bad, message in (
        (good[:-20], "cannot read"),
        ("[]", "was altered"),
        ('{"format_version": 99}', "format_version 99"),
        ('{"format_version": 1}', "was altered"),
    ):
        path.write_text(bad)
        assert [message in p.fact for p in validate(shards)] == [True]
    path.unlink()
    assert ["there is no" in p.fact for p in validate(shards)] == [True]
