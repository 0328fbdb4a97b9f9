"""The unigram entropy is that of held-out tokens under training frequencies, once per corpus."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from data_pipeline import sealing
from data_pipeline.driver import prepare
from data_pipeline.shuffle.validate import validate_corpus
from loopcoder.config.data import DataConfig
from loopcoder.data import unigram
from loopcoder.data.corpus import Corpus, load_corpus
from loopcoder.errors import LoopcoderError
from tests.data.corpora import stream

NAME = "unigram_entropy"


def by_hand(train: list[int], val: list[int], vocab_size: int) -> float:
    """The same in Python's float64, token by token."""
    counts = Counter(train)
    total = len(train) + vocab_size
    return -math.fsum(math.log((counts[i] + 1) / total) for i in val) / len(val)


def expected(corpus: Corpus, limit: int | None = None) -> dict[str, float]:
    return {
        d: by_hand(stream(corpus, d, "train")[:limit], stream(corpus, d, "val"), corpus.vocab_size)
        for d in corpus.domains
    }


def old(corpus: Corpus) -> Corpus:
    """Make a corpus as one that was built before its manifest had unigram entropies."""
    path = corpus.dir / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[NAME]
    path.write_text(json.dumps(manifest))
    return load_corpus(corpus.dir)


def said(corpus: Corpus, cache: Path) -> tuple[dict[str, float], list[str]]:
    lines: list[str] = []
    return unigram.entropies_of(corpus, cache, lines.append), lines


def test_the_manifest_has_it(corpus: Corpus, tmp_path: Path) -> None:
    found, lines = said(corpus, tmp_path)
    assert found == pytest.approx(expected(corpus), rel=1e-12)
    assert set(found) == {"text", "code"}
    assert not lines
    assert not validate_corpus(corpus.dir)
    # what a token costs that training never saw: it is not impossible
    assert found["text"] < math.log(corpus.vocab_size)


def test_older_corpora_are_counted_once(corpus: Corpus, tmp_path: Path) -> None:
    wanted, before = expected(corpus), corpus.fingerprint
    corpus = old(corpus)
    found, lines = said(corpus, tmp_path)
    assert found == pytest.approx(wanted, rel=1e-12)
    assert len(lines) == 1
    assert "once" in lines[0] and "sample" not in lines[0]
    assert (corpus.dir / f"{NAME}.json").exists()
    assert said(corpus, tmp_path) == (found, [])
    # the corpus is what it was
    assert not validate_corpus(corpus.dir)
    assert load_corpus(corpus.dir).fingerprint == before


def test_what_was_kept_is_of_this_corpus(corpus: Corpus, tmp_path: Path) -> None:
    corpus = old(corpus)
    found, _ = said(corpus, tmp_path)
    kept = corpus.dir / f"{NAME}.json"
    other = {"fingerprint": "another", NAME: {"text": 1.0, "code": 1.0}}
    for content in (json.dumps(other), "{", "[]", '{"fingerprint": null}'):
        kept.write_text(content)
        assert said(corpus, tmp_path)[0] == found, content
    assert json.loads(kept.read_text())["fingerprint"] == corpus.fingerprint


@pytest.mark.parametrize("cache_is_writable", [True, False])
def test_read_only_corpus(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_is_writable: bool
) -> None:
    corpus = old(corpus)
    writes = unigram.write_json
    cache = tmp_path / "another"

    def read_only(path: Path, content: object) -> None:
        if path.is_relative_to(corpus.dir) or not cache_is_writable:
            raise PermissionError(13, "Permission denied")
        writes(path, content)

    monkeypatch.setattr(unigram, "write_json", read_only)
    found, lines = said(corpus, cache)
    assert found == pytest.approx(expected(corpus), rel=1e-12)
    assert not (corpus.dir / f"{NAME}.json").exists()
    if cache_is_writable:
        assert said(corpus, cache) == (found, [])
    else:
        assert len(lines) == 2
        assert said(corpus, cache) == (found, lines)


def test_a_large_corpus_is_sampled(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = old(corpus)
    limit = min(corpus.tokens(d, "val") for d in corpus.domains)
    assert limit < min(corpus.tokens(d, "train") for d in corpus.domains)
    monkeypatch.setattr(unigram, "SAMPLE_TOKENS", limit)
    found, (line,) = said(corpus, tmp_path)
    vals = {d: stream(corpus, d, "val")[:limit] for d in corpus.domains}
    for domain, val in vals.items():
        total = corpus.tokens(domain, "train")
        assert f"{limit:,} of the {total:,} training tokens of {domain}" in line
        shards = corpus.shard_tokens(domain, "train")
        assert len(shards) == 1, "else the sample is of every shard"
        train = stream(corpus, domain, "train")[:limit]
        assert found[domain] == pytest.approx(by_hand(train, val, corpus.vocab_size), rel=1e-12)


def test_every_shard_gives_its_part_of_the_sample(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int | None] = []

    def counted(path: Path, vocab_size: int, limit: int | None, **how: Any) -> object:
        limits.append(limit)
        return count(path, vocab_size, limit, **how)

    count = unigram.count_tokens
    monkeypatch.setattr(unigram, "count_tokens", counted)
    monkeypatch.setattr(unigram, "SAMPLE_TOKENS", 40)
    manifest = json.loads((corpus.dir / "manifest.json").read_text())
    shard = manifest["domains"]["text"]["train"]["shards"][0]
    sizes = [100, 300, 400]
    many = [shard | {"tokens": n} for n in sizes]
    manifest["domains"]["text"]["train"] |= {"shards": many, "tokens": sum(sizes)}
    unigram._counts(replace(corpus, manifest=manifest), "text", "train")
    assert limits == [5, 15, 20]


def test_vocabularies_of_four_bytes(tmp_path: Path) -> None:
    """Ids of large vocabularies are int32 on disk; those above the last one used count as well."""
    import numpy as np

    ids = np.array([70_000, 3, 3, 69_999], dtype=np.int32)
    ids.tofile(tmp_path / "a.bin")
    counts = unigram.count_tokens(tmp_path / "a.bin", 80_000)
    assert counts.shape == (80_000,)
    assert {int(i): int(counts[i]) for i in counts.nonzero()[0]} == {3: 2, 69_999: 1, 70_000: 1}
    assert unigram.count_tokens(tmp_path / "a.bin", 80_000, 2).sum() == 2
    entropy = unigram.unigram_entropy(counts, counts)
    assert entropy == pytest.approx(by_hand(ids.tolist(), ids.tolist(), 80_000), rel=1e-12)


def test_all_shards_are_counted(data: Callable[..., DataConfig]) -> None:
    corpus = prepare(data(shards=2, seq_length=11), report=lambda _: None)
    assert len(corpus.prefixes("code", "train")) == 2
    assert corpus.manifest[NAME] == pytest.approx(expected(corpus), rel=1e-12)


def test_a_build_that_an_older_version_began_is_counted_later(
    data: Callable[..., DataConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks left no counts; the build goes on, and the corpus is as an older one."""
    fault = OSError(5, "Input/output error")
    with monkeypatch.context() as patch:
        patch.setattr(sealing, "write_report", Mock(side_effect=fault))
        with pytest.raises(LoopcoderError, match="Input/output"):
            prepare(data(seq_length=16), report=lambda _: None)
    (marker,) = tmp_path.glob("cache/.*.work/done/validate/*.json")
    content = json.loads(marker.read_text())
    assert content["files"]
    marker.write_text(json.dumps(content | {"files": {}}))
    corpus = prepare(data(seq_length=16), report=lambda _: None)
    assert NAME not in corpus.manifest
    assert not validate_corpus(corpus.dir)
    assert said(corpus, tmp_path)[0] == pytest.approx(expected(corpus), rel=1e-12)
