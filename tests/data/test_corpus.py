"""A corpus folder that was cut off or altered is refused."""

from __future__ import annotations

import builtins
import io
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.driver import prepare
from loopcoder.config.data import DataConfig
from loopcoder.data.corpus import Corpus, Verify, load_corpus, lost
from loopcoder.data.indexed import check_there
from loopcoder.errors import EXIT_NO_RETRY, InputError
from loopcoder.storage.digest import file_digest

VERIFY: tuple[Verify, ...] = ("hash", "size")
UNCHECKED = {"manifest.json", "report.html"}
"""The manifest itself, and what may be written anew."""


@pytest.fixture
def corpus(config: Callable[..., DataConfig]) -> Corpus:
    return prepare(config(), report=lambda line: None)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_every_file_is_checked(corpus: Corpus, rng: random.Random) -> None:
    assert load_corpus(corpus.dir) == load_corpus(str(corpus.dir), verify="size") == corpus
    files = [p for p in corpus.dir.rglob("*") if p.is_file() and p.name not in UNCHECKED]
    names = sorted(str(p.relative_to(corpus.dir)) for p in files)
    # two shards and two held-out domains, tokenizer and token_bytes
    assert len([n for n in names if not n.startswith("dropped/")]) == 4 * 4 + 2
    for name in names:
        path = corpus.dir / name
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(good))] ^= rng.randrange(1, 256)
        path.write_bytes(bad)
        with pytest.raises(InputError, match=rf"{name} .*other content"):
            load_corpus(corpus.dir)
        for length in (0, rng.randrange(len(good))):
            path.write_bytes(good[:length])
            with pytest.raises(InputError, match=rf"{name} has {length:,} bytes.*{len(good):,}"):
                load_corpus(corpus.dir, verify="size")
        path.unlink()
        for verify in VERIFY:
            with pytest.raises(InputError, match=f"{name} is missing"):
                load_corpus(corpus.dir, verify)
        path.write_bytes(good)
    load_corpus(corpus.dir)


def test_a_corpus_that_is_taken_away_is_named(corpus: Corpus, rng: random.Random) -> None:
    """Moved, cut off, or without one of its files: an error of three parts."""
    assert lost(corpus) is None
    prefix = Path(corpus.prefixes("code", "train")[0])
    index = prefix.with_name(f"{prefix.name}.idx")
    good = index.read_bytes()
    index.write_bytes(good[: rng.randrange(len(good))])
    assert f"{index} has" in str(lost(corpus))
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"\.idx"):
        check_there(str(prefix))
    assert f"{index} is missing" in str(lost(corpus))
    corpus.dir.rename(corpus.dir.with_name("moved"))
    error = lost(corpus)
    assert error is not None and error.exit_code == EXIT_NO_RETRY
    assert "data=corpus path=" in str(error).partition("fix: ")[2]


def test_manifest_itself(corpus: Corpus, tmp_path: Path) -> None:
    path = corpus.dir / "manifest.json"
    good = path.read_text()
    for bad, message in (
        (good[:-20], "cannot read"),
        ("[]", "format_version None"),
        (good.replace('"format_version": 2', '"format_version": 99'), "format_version 99"),
        ('{"format_version": 2}', "was altered"),
    ):
        path.write_text(bad)
        with pytest.raises(InputError, match=message):
            load_corpus(corpus.dir)
    path.unlink()
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        load_corpus(corpus.dir)
    with pytest.raises(InputError, match="no corpus folder"):
        load_corpus(tmp_path / "none")


def without(*path: str) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        for name in path[:-1]:
            manifest = manifest[name]
        del manifest[path[-1]]

    return change


def with_value(value: Any, *path: Any) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        for name in path[:-1]:
            manifest = manifest[name]
        manifest[path[-1]] = value

    return change


SHARD = ("domains", "text", "train", "shards", 0)
ALTERED = [
    (without("fingerprint"), "fingerprint is missing"),
    (without("domains"), "domains is missing"),
    (without("files"), "files is missing"),
    (without("tokenizer"), "tokenizer is missing"),
    (without("tokenizer", "eod_id"), "tokenizer.eod_id is missing"),
    (without("domains", "text", "val"), "domains.text.val is missing"),
    (without("domains", "code", "train", "shards"), "domains.code.train.shards is missing"),
    (without("files", "tokenizer.json"), "files lacks tokenizer.json"),
    (without("files", "val/code.idx"), "files lacks val/code.idx, a shard of code"),
    (without("unigram_entropy", "text"), "unigram_entropy.text is missing"),
    (with_value({}, "domains"), "domains has no entries"),
    (with_value(["text"], "domains"), "domains is ['text'], not a mapping"),
    (with_value(7, "fingerprint"), "fingerprint is 7, not text"),
    (with_value("600", "tokenizer", "vocab_size"), "tokenizer.vocab_size is '600', not a whole"),
    (with_value(True, "tokenizer", "eod_id"), "tokenizer.eod_id is True, not a whole number"),
    (with_value(10**6, "tokenizer", "eod_id"), "tokenizer.eod_id is 1000000, of "),
    (with_value("x", "tokenizer", "xxh3_128"), "other hashes of tokenizer.json"),
    (with_value("many", *SHARD, "tokens"), "domains.text.train.shards.0.tokens is 'many'"),
    (with_value("train/gone", *SHARD, "prefix"), "files lacks train/gone.bin"),
    (with_value("4", "files", "tokenizer.json", "bytes"), "files.tokenizer.json.bytes is '4'"),
    (with_value("low", "unigram_entropy", "code"), "unigram_entropy.code is 'low', not a number"),
]


@pytest.mark.parametrize("verify", VERIFY)
def test_an_altered_manifest_names_the_entry(corpus: Corpus, verify: Verify) -> None:
    path = corpus.dir / "manifest.json"
    good = path.read_text()
    for change, says in ALTERED:
        edit(path, change)
        with pytest.raises(InputError) as error:
            load_corpus(corpus.dir, verify)
        assert str(error.value).startswith(f"{path} was altered") and says in str(error.value)
        path.write_text(good)


def test_index_and_data_must_agree(corpus: Corpus) -> None:
    # consistent with a forged manifest, but not with each other
    index, data = (corpus.dir / f"val/text{suffix}" for suffix in (".idx", ".bin"))
    data.write_bytes(data.read_bytes()[:-2])

    def forge(manifest: Any) -> None:
        size = data.stat().st_size
        manifest["files"][f"val/{data.name}"] = {"bytes": size, "xxh3_128": file_digest(data)}

    edit(corpus.dir / "manifest.json", forge)
    with pytest.raises(InputError, match=rf"{data.name} has .* bytes, but {index.name} names"):
        load_corpus(corpus.dir)


def test_counts_must_agree(corpus: Corpus) -> None:
    edit(
        corpus.dir / "manifest.json",
        lambda m: m["domains"]["code"]["train"].update(tokens=corpus.tokens("code", "train") + 1),
    )
    with pytest.raises(InputError, match="code train has"):
        load_corpus(corpus.dir, verify="size")


def test_by_size_no_file_but_the_manifest_is_opened(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    really = io.open

    def noted(file: Any, *args: Any, **how: Any) -> Any:
        opened.append(Path(file))
        return really(file, *args, **how)

    monkeypatch.setattr(io, "open", noted)
    monkeypatch.setattr(builtins, "open", noted)
    monkeypatch.setattr(np, "memmap", None)
    monkeypatch.setattr(np, "fromfile", None)
    assert load_corpus(corpus.dir, "size") == corpus
    assert opened == [corpus.dir / "manifest.json"]
    with pytest.raises(TypeError, match="NoneType"):  # so an index would have been noticed
        load_corpus(corpus.dir, "hash")
    assert len(opened) > 5


@pytest.mark.data_full
def test_a_corpus_of_many_files_opens_by_size_at_once(corpus: Corpus) -> None:
    """30,000 files of 1 TB each, as 18T tokens would have them, were they not sparse."""
    size, number = 1 << 40, 10_000
    prefixes, ends = [f"train/text-{i:05}" for i in range(number)], (".bin", ".idx", ".labels")

    def grow(manifest: Any) -> None:
        train = manifest["domains"]["text"]["train"]
        train["shards"] = [{"prefix": p, "documents": 1, "tokens": size} for p in prefixes]
        train |= {"documents": number, "tokens": number * size}
        entry = {"bytes": size, "xxh3_128": "0" * 32}
        manifest["files"] |= {p + end: entry for p in prefixes for end in ends}

    for prefix in prefixes:
        for end in ends:
            with open(corpus.dir / (prefix + end), "wb") as file:
                file.truncate(size)
    edit(corpus.dir / "manifest.json", grow)
    tracemalloc.start()
    load_corpus(corpus.dir, "size")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    start = time.process_time()
    many = load_corpus(corpus.dir, "size")
    seconds = time.process_time() - start
    assert len(many.prefixes("text", "train")) == number
    assert seconds < 5, seconds
    assert peak < 60e6, peak
    with open(corpus.dir / f"{prefixes[-1]}.bin", "wb") as file:
        file.truncate(size - 1)
    with pytest.raises(InputError, match=f"{prefixes[-1]}.bin has"):
        load_corpus(corpus.dir, "size")
