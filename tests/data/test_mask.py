"""A packed corpus with a mask: what is read of it, and what of it is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loopcoder.config.data import CacheConfig, CorpusConfig, DataConfig, ResolvedStage, StageConfig
from loopcoder.config.evaluation import EvalConfig
from loopcoder.config.schema import Config
from loopcoder.data import blocks, mirror, packed
from loopcoder.data.blend import Blend, reader_of
from loopcoder.data.check_packed import check_packed
from loopcoder.data.corpus import Corpus, load_corpus, with_reader
from loopcoder.data.heldout import HeldOut
from loopcoder.data.indexed import lengths_of, token_dtype
from loopcoder.data.joined import open_joined
from loopcoder.data.loader import step_data
from loopcoder.data.megatron import MegatronReader
from loopcoder.data.mirror import mirror as mirrored
from loopcoder.data.own_sets import check_own_folders
from loopcoder.data.packed import PackedReader
from loopcoder.data.sampler import Position
from loopcoder.data.unigram import entropies_of, unigram_entropy
from loopcoder.errors import InputError
from loopcoder.storage.files import file_digest
from loopcoder.train.prompts import prompts_of
from loopcoder.train.validation import Evaluator
from loopcoder.train.verification import Verification
from tests.configs import small_config
from tests.data.chat import EOD, VOCAB, chat_corpus
from tests.data.stores import in_memory

SEEDS = (1, 0, 0)
Shard = tuple[list[int], list[int], set[int]]


@pytest.fixture
def length(seed: int) -> int:
    return random.Random(seed).randint(16, 50)


@pytest.fixture
def corpus(tmp_path: Path, seed: int, length: int, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 128)  # so that a mask has many
    monkeypatch.setattr(packed, "BLOCK_BYTES", 128)
    return chat_corpus(tmp_path / "chats", np.random.default_rng(seed), seq_length=length)


def config_of(corpus: Corpus, length: int, **data: Any) -> Config:
    fields = {"path": str(corpus.dir), "seq_length": length, "mixture": {"chat": 1.0}} | data
    return replace(small_config(), data=DataConfig(name="corpus", **fields))


def shards_of(corpus: Corpus, split: str) -> list[Shard]:
    """Read what is in each shard, without the code under test: ids, masks, and where documents
    begin."""
    found = []
    for prefix in map(Path, corpus.prefixes("chat", split)):
        content, mask = (prefix.with_name(prefix.name + s).read_bytes() for s in (".bin", ".mask"))
        ids = np.frombuffer(content, dtype=token_dtype(VOCAB))
        ends = np.concatenate(list(lengths_of(prefix, int((ids == EOD).sum())))).cumsum()
        found.append((ids.tolist(), list(mask), {0, *ends.tolist()}))
    return found


def expected(corpus: Corpus, split: str, length: int) -> list[tuple[list[int], list[int]]]:
    """Return the ids of every sequence and which of its labels are trained."""
    return [
        (ids[i * length : (i + 1) * length + 1], mask[i * length + 1 : (i + 1) * length + 1])
        for ids, mask, _ in shards_of(corpus, split)
        for i in range((len(ids) - 1) // length)
    ]


def edited(corpus: Corpus, change: Callable[[Any], None]) -> None:
    path = corpus.dir / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def problems_of(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as raised:
        call()
    return str(raised.value)


def test_each_sequence_is_read_once_with_its_mask(corpus: Corpus, length: int) -> None:
    reader = PackedReader(corpus, "chat", length, SEEDS)
    for epoch in (0, 1):
        rows = [reader.row(epoch, i) for i in range(int(reader.sequences.sum()))]
        found = [
            (row.ids.tolist(), row.trained.int().tolist())
            for row in rows
            if row.trained is not None
        ]
        assert sorted(found) == sorted(expected(corpus, "train", length))
    borders = {start for _, _, starts in shards_of(corpus, "train") for start in starts}
    assert all(border in borders for border in range(0, max(borders), length))


def test_a_batch_counts_what_the_mask_trains_and_nothing_else(corpus: Corpus, length: int) -> None:
    config = with_reader(config_of(corpus, length), corpus)
    assert config.data.reader == "shuffled"
    stage = config.stages[0]
    blend = Blend(corpus, stage, 0, config.seed, reader_of(config.data))
    wanted = {tuple(ids): mask for ids, mask in expected(corpus, "train", length)}
    step = step_data(config, corpus, Position(), 0, 1, lambda _: blend)
    for batch in step.microbatches:
        for tokens, labels, mask in zip(batch.tokens, batch.labels, batch.loss_mask, strict=True):
            row = (*tokens.tolist(), int(labels[-1]))
            assert mask.int().tolist() == wanted[row]
    assert int(step.label_tokens.sum()) == step.size * length, "the ledger counts positions"


def test_held_out_conversations_are_masked_and_never_cut(corpus: Corpus, length: int) -> None:
    wanted = expected(corpus, "val", length)
    data = config_of(corpus, length).data
    for count in (1, 3, 1000):
        held = HeldOut(corpus, "chat", data, length, count * length)
        assert held.rows.tolist() == [ids for ids, _ in wanted[:count]]
        assert held.valid.int().tolist() == [mask for _, mask in wanted[:count]]
        (batch,) = held.batches(0, 1, len(held.rows))
        assert batch.loss_mask.int().tolist() == [mask for _, mask in wanted[:count]]


def test_held_out_conversations_stand_alone_whatever_a_run_does(
    corpus: Corpus, length: int
) -> None:
    """They may be a set of a run that joins its documents."""
    data = config_of(corpus, length).data
    (wanted,) = HeldOut(corpus, "chat", data, length, 3 * length).batches(0, 1, 3)
    data = replace(data, isolate_documents=False)
    (found,) = HeldOut(corpus, "chat", data, length, 3 * length).batches(0, 1, 3)
    assert torch.equal(found.document_start, wanted.document_start)
    assert torch.equal(found.position_ids, wanted.position_ids)
    assert torch.equal(found.loss_mask, wanted.loss_mask)


def test_labels_are_counted_apart_from_those_that_are_trained(corpus: Corpus, length: int) -> None:
    held = HeldOut(corpus, "chat", config_of(corpus, length).data, length, 3 * length)
    trained = sum(sum(mask) for _, mask in expected(corpus, "val", length)[:3])
    assert (held.num_tokens, held.num_trained) == (3 * length, trained)
    assert trained < held.num_tokens


def test_blocks_ahead_are_fetched_up_to_the_last_token(
    corpus: Corpus, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the last block may be without a label; the mask is opened once."""
    length, sequences = 32, 12
    rng = np.random.default_rng(seed)
    corpus = chat_corpus(tmp_path / "even", rng, seq_length=length, sequences=sequences)
    size = np.dtype(token_dtype(VOCAB)).itemsize
    last, left = divmod(length * sequences * size, 128)
    assert left == 0, "a block has nothing but the end of the shard"
    there = load_corpus(mirrored(in_memory(corpus.dir, tmp_path.name), tmp_path / "kept"), "small")
    far = PackedReader(there, "chat", length, SEEDS, cache=CacheConfig(dir=str(tmp_path / "kept")))
    opened: list[tuple[Any, ...]] = []
    real = Corpus.mask_file

    def mask_file(self: Corpus, *given: Any, **rest: Any) -> Any:
        opened.append(given)
        return real(self, *given, **rest)

    monkeypatch.setattr(Corpus, "mask_file", mask_file)
    for block in range(last + 1):
        far._fetch(0, block)
    assert opened == [("chat", "train", 0)]
    mirror.mirror.cache_clear()


@pytest.mark.parametrize("verify", [True, False])
def test_a_corpus_in_a_store_has_the_same_masks(
    corpus: Corpus, length: int, tmp_path: Path, verify: bool
) -> None:
    url = in_memory(corpus.dir, tmp_path.name)
    there = load_corpus(mirrored(url, tmp_path / "kept"), "small")
    assert there.chat_template == corpus.chat_template is not None
    assert (there.dir / "held_out.jsonl").is_file()
    assert not list(there.dir.glob("train/*.mask"))
    cache = CacheConfig(dir=str(tmp_path / "kept"))
    far = PackedReader(there, "chat", length, SEEDS, verify=verify, cache=cache)
    far._fetch(0, 0)
    files = there.manifest["files"]
    first = {min(128, files[f"train/chat-00000{end}"]["bytes"]) for end in (".bin", ".mask")}
    kept = [p for p in (tmp_path / "kept" / "blocks").iterdir() if "." not in p.name]
    assert len(kept) == 2 and {p.stat().st_size for p in kept} == first
    near = PackedReader(corpus, "chat", length, SEEDS)
    for i in range(int(near.sequences.sum())):
        assert all(map(torch.equal, far.row(0, i), near.row(0, i)))
    mirror.mirror.cache_clear()


def test_a_damaged_mask_is_named_before_it_is_used(corpus: Corpus, length: int, seed: int) -> None:
    path = corpus.dir / "train" / "chat-00001.mask"
    content = bytearray(path.read_bytes())
    at = random.Random(seed).randrange(len(content))
    content[at] ^= 1
    path.write_bytes(content)
    assert f"{path} " in problems_of(lambda: load_corpus(corpus.dir))
    load_corpus(corpus.dir, "small")
    reader = PackedReader(corpus, "chat", length, SEEDS)

    def read_all() -> None:
        for i in range(int(reader.sequences.sum())):
            reader.row(0, i)

    if at > 0:  # that of a shard's first token is nobody's label, but its block has others
        assert f"{path} is damaged in its bytes {at // 128 * 128:,}" in problems_of(read_all)
    content[at] = 7
    path.write_bytes(content)
    unverified = PackedReader(corpus, "chat", length, SEEDS, verify=False)
    if at > 0:
        reader = unverified
        assert "it has 7 for a token" in problems_of(read_all)


def test_a_damaged_mask_is_found_in_the_background(corpus: Corpus, length: int) -> None:
    config = with_reader(config_of(corpus, length, verify="background"), corpus)
    path = corpus.dir / "train" / "chat-00001.mask"
    path.write_bytes(bytes([1 - path.read_bytes()[0]]) + path.read_bytes()[1:])
    said: list[str] = []
    verification = Verification(config, corpus, said.append)
    assert verification._verifier is not None
    verification._verifier.wait()
    assert verification.found_fault and len(said) == 1
    assert f"{path} " in str(verification._verifier.fault)


@pytest.mark.parametrize("name", ["train/chat-00000.mask", "val/chat.mask.blocks"])
def test_a_packed_corpus_without_a_mask_is_altered(corpus: Corpus, name: str) -> None:
    edited(corpus, lambda manifest: manifest["files"].pop(name))
    assert f"files lacks {name}" in problems_of(lambda: load_corpus(corpus.dir))


def test_a_manifest_that_is_at_odds_with_its_packing_is_altered(
    corpus: Corpus, length: int
) -> None:
    edited(corpus, lambda manifest: manifest["packed"].update(seq_length=length + 1))
    assert f"not whole sequences of {length + 1} and an end" in problems_of(
        lambda: load_corpus(corpus.dir)
    )
    edited(corpus, lambda manifest: manifest.update(packed={}))
    assert "packed.seq_length is missing" in problems_of(lambda: load_corpus(corpus.dir))


def rewritten(corpus: Corpus, name: str, change: Callable[[bytearray], None]) -> None:
    """Change a file and its entries in the manifest, as a pipeline with a fault would write it."""
    content = bytearray((corpus.dir / name).read_bytes())
    change(content)
    (corpus.dir / name).write_bytes(content)
    entry = {"bytes": len(content), "xxh3_128": file_digest(corpus.dir / name)}
    edited(corpus, lambda manifest: manifest["files"].update({name: entry}))


def test_a_mask_that_trains_the_beginning_of_a_conversation_is_refused(
    corpus: Corpus, seed: int
) -> None:
    at = random.Random(seed).choice(sorted(shards_of(corpus, "val")[0][2])[:-1])
    rewritten(corpus, "val/chat.mask", lambda mask: mask.__setitem__(at, 1))
    assert "trains the first token of a document" in problems_of(lambda: load_corpus(corpus.dir))


def test_conversations_that_lie_across_sequences_are_refused(tmp_path: Path, seed: int) -> None:
    """Packed for 32 tokens and said to be for 16, of which they are also whole multiples."""
    corpus = chat_corpus(tmp_path / "chats", np.random.default_rng(seed), seq_length=32)
    edited(corpus, lambda manifest: manifest["packed"].update(seq_length=16))
    found = problems_of(lambda: load_corpus(corpus.dir))
    assert "is not made of whole sequences of 16 tokens" in found


def test_what_a_run_may_not_ask_of_it(corpus: Corpus, length: int) -> None:
    def refused(config: Config) -> str:
        return problems_of(lambda: check_packed(config, corpus))

    config = config_of(corpus, length)
    check_packed(config, corpus)
    found = refused(config_of(corpus, length + 1))
    assert f"data.seq_length={length + 1}, and the corpus is packed for {length} tokens" in found
    assert f"fix: data.seq_length={length}, or" in found
    stages = [StageConfig(until=100), StageConfig(seq_length=2 * length)]
    found = refused(config_of(corpus, length, stages=stages))
    assert f"data.stages.1.seq_length={2 * length}" in found
    assert "fix: data.reader=shuffled" in refused(config_of(corpus, length, reader="megatron"))
    for field in ("isolate_documents", "mask_document_start"):
        assert f"fix: data.{field}=true" in refused(config_of(corpus, length, **{field: False}))
    further = replace(config, eval=EvalConfig(lengths=[length, 2 * length]))
    found = refused(further)
    assert f"fix: eval.lengths=[{length}]" in found
    assert problems_of(lambda: Evaluator(further, corpus)) == found, "as `loopcoder evaluate` does"
    with pytest.raises(InputError, match="packed for"):
        PackedReader(corpus, "chat", length + 1, SEEDS)
    with pytest.raises(InputError, match=r"fix: data\.seq_length="):
        HeldOut(corpus, "chat", config.data, length + 1, 100)
    with pytest.raises(InputError, match=r"data\.reader=shuffled"):
        MegatronReader(corpus, "chat", length, SEEDS)


def test_own_sets_have_to_fit_the_model(corpus: Corpus, length: int) -> None:
    config = config_of(corpus, 8)
    config = replace(config, eval=EvalConfig(corpora={"chats": str(corpus.dir)}))
    check_own_folders(config)
    small = replace(config, model=replace(config.model, max_position_embeddings=length - 1))
    found = problems_of(lambda: check_own_folders(small))
    assert f"eval.corpora.chats is packed for {length} tokens" in found
    further = replace(config, eval=replace(config.eval, lengths=[length + 1]))
    assert "fix: eval.lengths=null" in problems_of(lambda: check_own_folders(further))


@pytest.fixture
def joined(tmp_path: Path, seed: int, length: int) -> Callable[..., Config]:
    """Make a config of two chat corpora; keywords are of the second."""
    rng = np.random.default_rng(seed)

    def make(**second: Any) -> Config:
        corpora = []
        for name, fields in (("one", {}), ("two", second)):
            folder = tmp_path / f"{name}-{rng.integers(1 << 40)}"
            chat_corpus(folder, rng, **({"seq_length": length} | fields))
            corpora.append(CorpusConfig(path=str(folder), name=name, domains=["chat"]))
        data = DataConfig(name="corpus", seq_length=length, mixture={"chat": 1.0}, corpora=corpora)
        return replace(small_config(), data=data)

    return make


def test_corpora_of_other_lengths_or_templates_are_not_joined(
    joined: Callable[..., Config], length: int
) -> None:
    config = joined()
    check_packed(config, open_joined(config.data, "size"))
    config = joined(seq_length=2 * length)
    found = problems_of(lambda: check_packed(config, open_joined(config.data, "size")))
    assert f"and the corpus two is packed for {2 * length} tokens" in found
    config = joined(template="{{ messages }}")
    found = problems_of(lambda: check_packed(config, open_joined(config.data, "size")))
    assert "the corpora one and two were rendered with other chat templates" in found


def test_corpora_of_two_lengths_have_no_further_one(
    joined: Callable[..., Config], length: int
) -> None:
    """A length that one of them is packed for is none of the other's."""
    stages = [
        StageConfig(until=100, seq_length=length, mixture={"one/chat": 1.0}),
        StageConfig(seq_length=2 * length, mixture={"two/chat": 1.0}),
    ]
    config = joined(seq_length=2 * length)
    config = replace(config, data=replace(config.data, stages=stages))
    corpus = open_joined(config.data, "size")
    check_packed(config, corpus)
    for lengths in ([length], [2 * length], [length, 2 * length]):
        further = replace(config, eval=EvalConfig(lengths=lengths))
        found = problems_of(lambda further=further: check_packed(further, corpus))
        assert found.count("fix:") == 1 and "fix: eval.lengths=null" in found


def test_the_unigram_entropy_is_that_of_trained_tokens(corpus: Corpus, tmp_path: Path) -> None:
    counts = {}
    for split in ("train", "val"):
        counts[split] = np.zeros(VOCAB, dtype=np.int64)
        for ids, mask, _ in shards_of(corpus, split):
            np.add.at(counts[split], np.array(ids)[np.array(mask) == 1], 1)
    assert counts["train"][EOD] == 0
    found = entropies_of(corpus, tmp_path, lambda _: None)
    assert found == {"chat": pytest.approx(unigram_entropy(counts["train"], counts["val"]))}


def test_a_damaged_mask_of_a_sample_is_named(corpus: Corpus, length: int) -> None:
    path = corpus.dir / "val" / "chat.mask"
    content = path.read_bytes()
    config = replace(config_of(corpus, length), eval=EvalConfig(samples=1000, sample_tokens=5))
    for damaged, says in ((bytes([7] * len(content)), "it has 7"), (content[:1], "it ends after")):
        path.write_bytes(damaged)
        found = problems_of(lambda: prompts_of(config, corpus, None))
        assert str(path) in found and says in found


def test_samples_continue_conversations_where_the_first_answer_begins(
    corpus: Corpus, length: int
) -> None:
    config = replace(config_of(corpus, length), eval=EvalConfig(samples=1000, sample_tokens=5))
    wanted = []
    for ids, mask, starts in shards_of(corpus, "val"):
        for a, b in pairwise(sorted(starts)):
            if any(mask[a:b]):
                answer = a + mask[a:b].index(1)
                end = answer + mask[answer:b].index(0)  # at the latest where the document ends
                wanted.append((tuple(ids[a:answer]), tuple(ids[answer : min(end, answer + 5)])))
    found = [(p.ids, p.rest) for p in prompts_of(config, corpus, None)]
    assert sorted(found) == sorted(wanted)


def test_text_beside_it_is_trained_everywhere(
    corpus: Corpus, length: int, tmp_path: Path, seed: int
) -> None:
    """A corpus without a mask in the same batches: all of its labels but beginnings count."""
    from tests.data.stores import written

    text = written(tmp_path / "text", np.random.default_rng(seed))
    (text.dir / "tokenizer.json").write_bytes((corpus.dir / "tokenizer.json").read_bytes())
    entry = {
        "bytes": (text.dir / "tokenizer.json").stat().st_size,
        "xxh3_128": corpus.tokenizer_hash,
    }
    edited(text, lambda manifest: manifest["files"].update({"tokenizer.json": entry}))
    edited(text, lambda manifest: manifest["tokenizer"].update(xxh3_128=corpus.tokenizer_hash))
    data = DataConfig(
        name="corpus",
        seq_length=length,
        mixture={"chat": 1.0, "code": 1.0},
        corpora=[
            CorpusConfig(path=str(folder), domains=[domain], name=domain)
            for folder, domain in ((corpus.dir, "chat"), (text.dir, "code"))
        ],
    )
    config = replace(small_config(), data=data)
    both = open_joined(data, "hash")
    check_packed(config, both)
    config = with_reader(config, both)
    stage: ResolvedStage = config.stages[0]
    blend = Blend(both, stage, 0, 7, reader_of(config.data))
    rows = blend.rows(np.arange(40))
    assert rows.trained is not None
    wanted = {tuple(ids): mask for ids, mask in expected(corpus, "train", length)}
    domains = [both.domains[i] for i in rows.domain_ids.tolist()]
    assert set(domains) == {"chat/chat", "code/code"}
    for domain, ids, trained in zip(domains, rows.ids, rows.trained, strict=True):
        if domain == "chat/chat":
            assert trained.int().tolist() == wanted[tuple(ids.tolist())]
        else:
            assert bool(trained.all())
