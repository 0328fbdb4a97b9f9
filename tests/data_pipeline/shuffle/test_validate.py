"""Whatever is wrong with a finished corpus is found, all of it at once."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data_pipeline.driver import prepare
from data_pipeline.shuffle import validate as module
from data_pipeline.shuffle.validate import validate_corpus
from loopcoder.config.data import DataConfig
from loopcoder.data.corpus import Corpus, load_corpus
from loopcoder.data.indexed import IndexedWriter
from loopcoder.errors import Problem
from loopcoder.storage.digest import file_digest
from loopcoder.storage.files import synced_entry


@pytest.fixture
def corpus(config: Callable[..., DataConfig]) -> Corpus:
    found = prepare(config(shards=3, seq_length=16), report=lambda _: None)
    assert validate_corpus(found.dir) == []
    return found


def facts(corpus: Corpus) -> str:
    return "\n".join(p.fact for p in validate_corpus(corpus.dir))


def edit(corpus: Corpus, change: Callable[[Any], object]) -> None:
    path = corpus.dir / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def rewrite(corpus: Corpus, prefix: str, documents: list[list[int]]) -> None:
    """Replace a shard and forge its hashes and counts, and those of its domain."""
    writer = IndexedWriter(corpus.dir / prefix, 600)
    lengths = np.array([len(d) for d in documents])
    writer.append(np.concatenate([np.array(d) for d in documents]), lengths)
    paths = writer.finish()

    def forge(manifest: Any) -> None:
        for path in paths:
            name = str(path.relative_to(corpus.dir))
            manifest["files"][name] = synced_entry(path)
        split, name = prefix.split("/")
        stats = manifest["domains"][name.split("-")[0]][split]
        (shard,) = [s for s in stats["shards"] if s["prefix"] == prefix]
        for key, value in (("documents", len(documents)), ("tokens", int(lengths.sum()))):
            stats[key] += value - shard[key]
            shard[key] = value

    edit(corpus, forge)


def test_every_file_is_checked(corpus: Corpus, rng: random.Random) -> None:
    paths = sorted(p for p in corpus.dir.rglob("*") if p.suffix in (".bin", ".idx"))
    assert len(paths) == 2 * (3 + 1) * 2
    for path in paths:
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(good))] ^= rng.randrange(1, 256)
        path.write_bytes(bad)
        assert f"{path} " in facts(corpus) and "other content" in facts(corpus)
        length = rng.randrange(len(good))
        path.write_bytes(good[:length])
        assert f"{path} has {length:,} bytes" in facts(corpus)
        path.unlink()
        assert f"{path} is missing" in facts(corpus)
        path.write_bytes(good)
    assert validate_corpus(corpus.dir) == []
    shutil.copy(paths[0], corpus.dir / "train" / "text-00009.bin")
    assert "train/text-00009.bin is not in manifest.json" in facts(corpus)


def test_all_problems_at_once(corpus: Corpus) -> None:
    names = ("text-00000.bin", "code-00001.bin", "text-00002.idx")
    for name in names:
        (corpus.dir / "train" / name).unlink()
    problems = validate_corpus(corpus.dir)
    assert all(name in facts(corpus) for name in names)
    assert all(p.fact and p.why and p.fix for p in problems)


@pytest.mark.data_full
@pytest.mark.parametrize("prefix", ["train/text-00001", "val/code"])
def test_documents_must_be_sound(corpus: Corpus, prefix: str) -> None:
    eod = corpus.eod_id
    fine = [[9, 9, eod]] * 200
    for documents, fact in (
        ([*fine, [9, eod, 9, eod]], "202 EODs in 201 documents"),
        ([*fine, [650, eod]], "ids from 0 to 650"),
        ([*fine, [9, 9]], f"do not end with token {eod}"),
    ):
        rewrite(corpus, prefix, documents)
        assert fact in facts(corpus)
        assert "other content" not in facts(corpus)


@pytest.mark.data_full
def test_proportions(corpus: Corpus) -> None:
    rewrite(corpus, "train/code-00001", [[9] * 15 + [corpus.eod_id]] * 50)
    assert "other proportions than {'text': 1, 'code': 1}" in facts(corpus)
    assert "3 shards of code with" in facts(corpus)


def test_too_many_documents(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.MAX_DOCUMENTS == 2**31 - 1
    monkeypatch.setattr(module, "MAX_DOCUMENTS", 1)
    whys = [p.why for p in validate_corpus(corpus.dir)]
    splits = [split for domain in corpus.manifest["domains"].values() for split in domain.values()]
    prefixes = [shard["documents"] for split in splits for shard in split["shards"]]
    too_many = sum(documents > 1 for documents in prefixes)
    assert (len(prefixes), too_many > 0) == (8, True)
    assert whys == ["megatron-core numbers the documents of a prefix up to 1"] * too_many


def test_shares(corpus: Corpus) -> None:
    def plan_less(manifest: Any, by: float) -> None:
        manifest["share_tolerance"] = 0.01
        rows = manifest["plan"]["languages"]
        train = manifest["domains"]["code"]["train"]
        for row in (row for row in rows if row["domain"] == "code"):
            row["share"] = train["languages"][row["language"]]["tokens"] / train["tokens"] - by
        rows.append({"domain": "code", "language": "Go", "share": by})

    edit(corpus, lambda m: plan_less(m, 0.009))
    assert validate_corpus(corpus.dir) == []
    edit(corpus, lambda m: m["plan"]["languages"].pop())
    edit(corpus, lambda m: plan_less(m, 0.011))
    assert [p.fact.split()[0] for p in validate_corpus(corpus.dir)] == ["Go", "Python"]


def test_counts_must_agree(corpus: Corpus) -> None:
    edit(corpus, lambda m: m["domains"]["code"]["val"]["languages"].clear())
    assert "the languages of code (val)" in facts(corpus)
    edit(corpus, lambda m: m.update(num_shards=4))
    assert "3 shards of text with" in facts(corpus)
    edit(corpus, lambda m: m["domains"]["code"]["train"]["shards"].pop())
    assert "code train has" in facts(corpus)


def test_files_and_shards_must_agree(corpus: Corpus) -> None:
    (corpus.dir / "val/other.idx").touch()
    assert "val/other.idx is not in manifest.json" in facts(corpus)
    edit(corpus, lambda m: m["files"].pop("val/text.idx"))
    (problem,) = validate_corpus(corpus.dir)  # which is not even opened
    assert "manifest.json was altered" in problem.fact and "val/text.idx" in problem.why


@pytest.mark.data_full
@pytest.mark.parametrize("key", ["plan", "share_tolerance", "num_shards", "weights"])
def test_a_manifest_without_an_entry(corpus: Corpus, key: str) -> None:
    edit(corpus, lambda m: m.pop(key))
    problems: list[Problem] = validate_corpus(corpus.dir)
    assert ["was altered" in p.fact for p in problems] == [True]


def test_a_corpus_of_an_earlier_commit(corpus: Corpus) -> None:
    """At 3b7e4bd there was a list of the shards beside them, and a domain was called a side."""
    shards = corpus.dir / "train" / "shards.json"
    shards.write_text("{}")

    def older(manifest: Any) -> None:
        manifest["files"]["train/shards.json"] = {"bytes": 2, "xxh3_128": file_digest(shards)}
        for row in manifest["plan"]["languages"]:
            row["side"] = row.pop("domain")

    edit(corpus, older)
    assert validate_corpus(corpus.dir) == []
    rows = load_corpus(corpus.dir, "size").manifest["plan"]["languages"]
    assert {row["domain"] for row in rows} == {"text", "code"} and "side" not in rows[0]
    shards.write_text("[]")
    assert "shards.json (2 bytes) has other content" in facts(corpus)
