"""What each token is of: the files beside the shards, and what both readers make of them."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_pipeline.driver import prepare
from data_pipeline.shuffle.bucket_index import Indexed, labels_of
from data_pipeline.shuffle.validate import validate_corpus
from loopcoder.config.build import SourceConfig
from loopcoder.config.data import DataConfig, ResolvedStage
from loopcoder.data import labels as module
from loopcoder.data import packed
from loopcoder.data.blend import Blend
from loopcoder.data.corpus import Corpus, load_corpus
from loopcoder.data.heldout import HeldOut
from loopcoder.data.labels import Label, LabelFile, LabelWriter, label_bytes
from loopcoder.data.loader import step_data
from loopcoder.data.megatron import MegatronReader
from loopcoder.data.packed import PackedReader
from loopcoder.data.sampler import Given, Position
from loopcoder.errors import InputError
from loopcoder.storage.files import synced_entry
from tests.configs import small_config

SEEDS = (1, 0, 0)
ENDINGS = {".txt": ("text", "Text"), ".py": ("code", "Python"), ".java": ("code", "Java")}
LETTERS = "abcdef"
"""What the documents of each label are written in."""
READERS = [PackedReader, MegatronReader]
Make = Callable[..., DataConfig]


@pytest.fixture(autouse=True)
def short_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRIDE", 32)
    monkeypatch.setattr(packed, "STRIDE", 32)


@pytest.fixture
def letter_of(tmp_path: Path, seed: int) -> dict[Label, str]:
    """Write documents of three languages in two folders, each language of a folder in a letter of
    its own."""
    rng = random.Random(seed)
    letters = {}
    for source in range(2):
        folder = tmp_path / f"source{source}"
        folder.mkdir()
        for ending, (domain, language) in ENDINGS.items():
            letter = LETTERS[len(letters)]
            letters[Label(domain, language, f"{source}-files")] = letter
            for i in range(25):
                words = [letter * rng.randint(1, 9) for _ in range(rng.choice((2, 9, 40)))]
                (folder / f"{letter}{i}{ending}").write_text(" ".join(words) + "\n")
    return letters


@pytest.fixture
def corpus(tmp_path: Path, data: Make, letter_of: dict[Label, str], seed: int) -> Corpus:
    sources = [SourceConfig(kind="files", path=str(tmp_path / f"source{i}")) for i in range(2)]
    length = random.Random(seed).randint(11, 24)
    fields = {"shards": 2, "seq_length": length, "sources": sources, "tokenizer_vocab_size": 400}
    return prepare(data(**fields), report=lambda _: None)


def length_of(corpus: Corpus) -> int:
    return int(corpus.manifest["seq_length"])


def edit(corpus: Corpus, change: Callable[[Any], object]) -> None:
    path = corpus.dir / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def letters_by_id(corpus: Corpus) -> list[set[str]]:
    """The letters in the text of every token."""
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in range(corpus.vocab_size)]
    return [set(text) & set(LETTERS) for text in texts]


def agree(
    corpus: Corpus, letter_of: dict[Label, str], ids: NDArray[Any], labels: NDArray[Any]
) -> int:
    """Compare labels with what the tokens are written in; return how many tell it."""
    letters = letters_by_id(corpus)
    told = 0
    for token, label in zip(ids.tolist(), labels.tolist(), strict=True):
        assert letters[token] <= {letter_of[corpus.labels[label]]}
        told += bool(letters[token])
    return told


def rows(
    corpus: Corpus, reader: Any, length: int, domain: str, before: Given = ()
) -> Iterator[tuple[Any, Any]]:
    opened = reader(corpus, domain, length, SEEDS, before)
    for i in range(int(opened.sequences.sum())):
        yield opened.row(0, i)[:2]


@pytest.mark.parametrize("reader", READERS)
def test_each_label_is_that_of_the_document_of_the_token_that_is_predicted(
    corpus: Corpus, letter_of: dict[Label, str], seed: int, reader: Any
) -> None:
    lengths = {length_of(corpus), 1, 32, random.Random(seed).randint(2, 150)}
    for domain, length in itertools.product(corpus.domains, lengths):
        told, total, ends = 0, 0, 0
        for ids, labels in rows(corpus, reader, length, domain):
            assert labels.dtype == torch.int64 and labels.shape == (length,)
            told += agree(corpus, letter_of, ids[1:].numpy(), labels.numpy())
            # what ends a document is of it, what follows is of the next one
            inside = ids[1:-1] != corpus.eod_id
            assert bool((labels[1:] == labels[:-1])[inside].all())
            ends += int((~inside).sum())
            total += length
        assert told > total // 3 and (ends > 9 or length <= 2)


def test_so_it_is_after_a_change_of_the_length(
    corpus: Corpus, letter_of: dict[Label, str], seed: int
) -> None:
    """Where a sequence does not begin at a multiple of its length."""
    for length in (7, random.Random(seed).randint(2, 40)):
        told, total = 0, 0
        for ids, labels in rows(corpus, PackedReader, length, "code", ((16, 5),)):
            told += agree(corpus, letter_of, ids[1:].numpy(), labels.numpy())
            total += length
        assert told > total // 3


@pytest.mark.parametrize("reader", READERS)
def test_an_epoch_has_as_many_tokens_of_each_label_as_the_manifest_says(
    corpus: Corpus, reader: Any
) -> None:
    """Every token of a shard is predicted once but its first one."""
    wanted = corpus.label_tokens("train")
    found = np.zeros_like(wanted)
    for domain in corpus.domains:
        assert sum(wanted[[x.domain == domain for x in corpus.labels]]) == corpus.tokens(
            domain, "train"
        )
        for _, labels in rows(corpus, reader, length_of(corpus), domain):
            found += np.bincount(labels.numpy(), minlength=len(found))
    assert (wanted - found).min() >= 0
    assert (wanted - found).sum() == 2 * 2  # domains, shards
    assert len(np.flatnonzero(wanted)) == len(corpus.labels) == 6


def test_the_files_are_what_the_documents_are(corpus: Corpus, letter_of: dict[Label, str]) -> None:
    assert corpus.labels == tuple(
        Label(domain, language, f"{source}-files")
        for domain, language in (("text", "Text"), ("code", "Java"), ("code", "Python"))
        for source in (0, 1)
    )
    for domain in corpus.domains:
        for split in ("train", "val"):
            counts = np.zeros(len(corpus.labels), dtype=np.int64)
            for number, prefix in enumerate(corpus.prefixes(domain, split)):
                ids = np.fromfile(prefix + ".bin", np.uint16)
                ends = np.flatnonzero(ids == corpus.eod_id) + 1
                content = Path(prefix + ".labels").read_bytes()
                assert len(content) == label_bytes(len(ends), len(ids), len(corpus.labels))
                assert corpus.manifest["files"][f"{split}/{Path(prefix).name}.labels"]
                labels = np.frombuffer(content, "<u2", len(ends))
                lengths = np.diff(ends, prepend=0)
                counts += np.bincount(labels, weights=lengths, minlength=len(counts)).astype(int)
                agree(corpus, letter_of, ids, np.repeat(labels, lengths))
                ended = np.frombuffer(content, "<u4", offset=2 * len(ends))
                borders = range(0, len(ids), 32)
                assert ended.tolist() == [sum(end <= border for end in ends) for border in borders]
                file = corpus.label_file(domain, split, number)
                assert file is not None and np.array_equal(file.of_documents(), labels)
            mine = [label.domain == domain for label in corpus.labels]
            assert counts.tolist() == np.where(mine, corpus.label_tokens(split), 0).tolist()
    assert validate_corpus(corpus.dir) == []


def test_held_out_labels(
    corpus: Corpus, data: Make, letter_of: dict[Label, str], seed: int
) -> None:
    length = random.Random(seed).randint(5, 60)
    for domain in corpus.domains:
        held = HeldOut(corpus, domain, data(), length, 10**6)
        ids, labels = held.rows[:, 1:][held.valid], held.label_ids[held.valid]
        told = agree(corpus, letter_of, ids.numpy(), labels.numpy())
        assert told > held.num_tokens // 3
        batches = list(held.batches(0, 1, 3))
        label_ids = torch.cat([batch.label_ids for batch in batches])[: len(held.rows)]
        assert torch.equal(label_ids, held.label_ids)


def test_a_step_has_them(corpus: Corpus, data: Make, seed: int) -> None:
    base = small_config()
    train = replace(base.train, global_batch_size=12, micro_batch_size=3)
    config = replace(base, data=data(seq_length=length_of(corpus)), train=train)
    blend = Blend(corpus, config.stages[0], 0, seed, PackedReader)
    for rank in range(2):
        step = step_data(config, corpus, Position(), rank, 2, lambda _: blend)
        for batch in step.microbatches:
            wanted = blend.rows(batch.sample_ids.numpy())
            assert torch.equal(batch.label_ids, wanted.label_ids)
            assert torch.equal(batch.labels, wanted.ids[:, 1:])


@pytest.mark.parametrize("reader", READERS)
def test_a_corpus_without_them_is_read_as_before(corpus: Corpus, data: Make, reader: Any) -> None:
    """As earlier commits built it: all is the same but the labels, which are by domain."""
    length = length_of(corpus)
    stage = ResolvedStage({"text": 1.0, "code": 1.0}, length, 1e4)
    wanted = Blend(corpus, stage, 0, 1, reader).rows(np.arange(60))

    def older(manifest: Any) -> None:
        del manifest["labels"]
        for name in [n for n in manifest["files"] if n.endswith(".labels")]:
            del manifest["files"][name]
            (corpus.dir / name).unlink()
        for splits in manifest["domains"].values():
            for split in splits.values():
                del split["labels"]

    edit(corpus, older)
    before = load_corpus(corpus.dir)
    assert not before.has_labels
    assert before.labels == (Label("text", None, None), Label("code", None, None))
    assert before.label_tokens("val").tolist() == [before.tokens(d, "val") for d in before.domains]
    found = Blend(before, stage, 0, 1, reader).rows(np.arange(60))
    assert torch.equal(found.ids, wanted.ids)
    assert torch.equal(found.label_ids, found.domain_ids[:, None].expand(60, length))
    held = HeldOut(before, "code", data(), length, 500)
    assert bool((held.label_ids == 1).all())
    assert validate_corpus(before.dir) == []


def test_files_that_were_altered_are_named(corpus: Corpus, rng: random.Random) -> None:
    path = Path(corpus.prefixes("code", "train")[0] + ".labels")
    good, length = path.read_bytes(), length_of(corpus)

    def read(verify: bool) -> None:
        reader = PackedReader(corpus, "code", length, SEEDS, verify=verify)
        for i in range(int(reader.sequences.sum())):
            reader.row(0, i)

    bad = bytearray(good)
    bad[rng.randrange(len(good))] ^= 1
    path.write_bytes(bad)
    load_corpus(corpus.dir, "blocks")  # which leaves to the reader what the reader compares
    with pytest.raises(InputError, match=r"labels .*has other content"):
        load_corpus(corpus.dir, "hash")
    with pytest.raises(InputError, match=rf"{path.name} is damaged in its bytes 0 to .*") as error:
        read(verify=True)
    assert f"delete {corpus.dir}" in error.value.problems[0].fix
    documents = corpus.manifest["domains"]["code"]["train"]["shards"][0]["documents"]
    path.write_bytes(b"\xff" * (2 * documents) + good[2 * documents :])
    for reader in (
        lambda: read(verify=False),
        lambda: list(rows(corpus, MegatronReader, 9, "code")),
    ):
        with pytest.raises(InputError, match=f"{path.name} is damaged: it names label 65,535"):
            reader()
    path.write_bytes(good[: 2 * documents] + b"\xff" * (len(good) - 2 * documents))
    with pytest.raises(InputError, match=rf"{path.name} is damaged: it names document 4,294,\d+"):
        read(verify=False)
    path.write_bytes(good)
    os.truncate(path, rng.randrange(len(good) // 2))
    with pytest.raises(InputError, match=f"{path.name} ends after {path.stat().st_size:,} of"):
        read(verify=False)
    with pytest.raises(InputError, match=f"{path.name} has {path.stat().st_size:,} bytes"):
        load_corpus(corpus.dir, "size")
    path.unlink()
    for verify in (True, False):
        with pytest.raises(FileNotFoundError, match=path.name):
            read(verify)
    with pytest.raises(InputError, match=f"{path.name} is missing"):
        load_corpus(corpus.dir, "size")


def test_a_manifest_that_was_altered_is_named(corpus: Corpus) -> None:
    path = corpus.dir / "manifest.json"
    good = path.read_text()
    changes: list[tuple[Callable[[Any], object], str]] = [
        (lambda m: m["labels"].pop(), "code train has the label 5, which is none of its own"),
        (lambda m: m["labels"].reverse(), "text train has the label 0"),
        (lambda m: m["labels"].append(["music", "a", "b"]), "labels.6 is"),
        (lambda m: m["labels"].append(["text", "a"]), "labels.6 is"),
        (lambda m: m["labels"].append(["text", 1, "b"]), "labels.6.1 is 1, not text"),
        (lambda m: m["domains"]["text"]["val"].pop("labels"), "domains.text.val.labels is missing"),
        (lambda m: m["files"].pop("val/text.labels"), "files lacks val/text.labels"),
    ]
    for change, fact in changes:
        edit(corpus, change)
        with pytest.raises(InputError, match=r"manifest\.json was altered") as error:
            load_corpus(corpus.dir)
        assert fact in str(error.value)
        path.write_text(good)


def test_validating_reads_the_files(corpus: Corpus) -> None:
    """Files that agree with their hash and not with their shard."""
    path = Path(corpus.prefixes("code", "train")[1] + ".labels")
    good = path.read_bytes()
    documents = corpus.manifest["domains"]["code"]["train"]["shards"][1]["documents"]
    for bad, fact in (
        (bytes(2) + good[2:], "code-00001.labels has labels of text"),
        (b"\xff\xff" + good[2:], "code-00001.labels is damaged: it names label 65,535"),
        (good[: 2 * documents] + bytes(len(good) - 2 * documents), "counts other documents than"),
    ):
        path.write_bytes(bad)
        name = str(path.relative_to(corpus.dir))
        edit(corpus, lambda m, name=name: m["files"].update({name: synced_entry(path)}))
        (problem,) = validate_corpus(corpus.dir)
        assert fact in problem.fact
    path.write_bytes(good)
    edit(corpus, lambda m: m["files"].update({name: synced_entry(path)}))
    assert validate_corpus(corpus.dir) == []
    edit(corpus, lambda m: m["domains"]["code"]["train"]["labels"][0].update(tokens=1))
    assert "the labels of code (train)" in validate_corpus(corpus.dir)[0].fact


@pytest.mark.parametrize("num_labels", [1, 1 << 16, (1 << 16) + 1])
def test_any_number_of_labels_in_pieces_of_any_size(
    tmp_path: Path, rng: random.Random, num_labels: int
) -> None:
    lengths = np.array([rng.randint(1, 100) for _ in range(400)])
    numbers = np.array([rng.randrange(num_labels) for _ in lengths])
    numbers[7] = num_labels - 1
    cuts = [0, *sorted(rng.sample(range(1, 400), rng.randint(0, 20))), 200, 200, 400]
    cuts.sort()
    writer = LabelWriter(num_labels)
    for start, stop in itertools.pairwise(cuts):
        writer.append(lengths[start:stop], numbers[start:stop])
    path = tmp_path / "a.labels"
    writer.finish(path)
    tokens = int(lengths.sum())
    assert path.stat().st_size == label_bytes(400, tokens, num_labels)
    file = LabelFile(path, 400, tokens, num_labels, None, "fix")
    assert np.array_equal(file.of_documents(), numbers)
    eod = 3
    ids = np.full(tokens, 9)
    ids[np.cumsum(lengths) - 1] = eod
    of_token = np.repeat(numbers, lengths)
    for _ in range(50):
        start = rng.randrange(len(ids) - 2)
        stop = rng.randrange(start + 2, len(ids) + 1)
        before = ids[start - start % 32 : start]
        found = file.of_sequence(start, before, ids[start:stop], eod)
        assert np.array_equal(found, of_token[start + 1 : stop])


def test_their_order_does_not_depend_on_what_comes_first(rng: random.Random) -> None:
    found = [Label(d, f"l{i}", f"{i % 3}-files") for d in ("text", "code") for i in range(9)]
    wanted = labels_of(("text", "code"), Indexed(found, {}))
    assert wanted == sorted(found, key=lambda label: (label.domain != "text", *label[1:]))
    for _ in range(5):
        some = [Indexed(rng.sample(found, 18)[:k], {}) for k in (18, 7)]
        assert labels_of(("text", "code"), *some) == wanted
