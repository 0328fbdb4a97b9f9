"""Sequences of a real corpus: complete epochs, one order for every run, errors that mend
themselves."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from data_pipeline.driver import prepare
from loopcoder.config.data import ResolvedStage
from loopcoder.config.schema import Config
from loopcoder.data.blend import Blend
from loopcoder.data.loader import Loader, step_data
from loopcoder.data.megatron import MegatronReader
from loopcoder.data.packed import PackedReader
from loopcoder.data.sampler import Position, enter_stage
from loopcoder.errors import InputError
from tests.configs import small_config
from tests.data.corpora import pairs, stream


def one_domain(corpus, domain: str, seq_length: int, seed: int = 1, stage_idx: int = 0) -> Blend:
    return Blend(corpus, ResolvedStage({domain: 1.0}, seq_length, 1e4), stage_idx, seed)


def epoch(blend: Blend, corpus, domain: str, number: int) -> list[list[int]]:
    size = (corpus.tokens(domain, "train") - 1) // blend.seq_length
    return blend.rows(np.arange(number * size, (number + 1) * size)).ids.tolist()


def run_config(data, seed: int, **train: int) -> Config:
    base = small_config()
    return replace(base, data=data, seed=seed, train=replace(base.train, **train))


@pytest.mark.parametrize("domain", ["text", "code"])
def test_an_epoch_covers_every_token_at_most_once(corpus, seed, domain):
    seq_length = random.Random(seed).randint(5, 60)
    tokens = stream(corpus, domain, "train")
    blend = one_domain(corpus, domain, seq_length, seed)
    for number in range(2):
        rows = epoch(blend, corpus, domain, number)
        assert {len(row) for row in rows} == {seq_length + 1}
        seen = Counter(t for row in rows for t in row[:-1])
        assert seen <= Counter(tokens)
        # The last token of all has no label, and less than a sequence may be left over.
        assert len(tokens) - 1 - seq_length < seen.total() <= len(tokens) - 1
        # So do pairs of neighbours, which tell one place of the corpus from another better than
        # tokens do.
        in_rows, in_corpus = pairs(rows, corpus.eod_id), pairs([tokens], corpus.eod_id)
        assert in_rows <= in_corpus
        assert (in_corpus - in_rows).total() <= seq_length


def test_sequences_of_an_epoch_are_one_stream_of_whole_documents(corpus, seed):
    """The last label of a sequence is the first token of another one; documents are never cut but
    by a sequence."""
    seq_length = random.Random(seed).randint(20, 60)
    rows = epoch(one_domain(corpus, "text", seq_length, seed), corpus, "text", 0)
    firsts, lasts = Counter(row[0] for row in rows), Counter(row[-1] for row in rows)
    # All but the first sequence's first token and the last sequence's last label.
    assert (firsts - lasts).total() <= 1
    eod = corpus.eod_id
    text = stream(corpus, "text", "train")
    ends = [i for i, t in enumerate(text) if t == eod]
    documents = {tuple(text[a + 1 : b + 1]) for a, b in zip([-1, *ends], ends, strict=False)}
    inside = 0
    for row in rows:
        at = [i for i, t in enumerate(row) if t == eod]
        for a, b in pairwise(at):
            assert tuple(row[a + 1 : b + 1]) in documents
            inside += 1
    assert inside > 0


def test_epochs_and_seeds_have_their_own_order(corpus, seed):
    seq_length = 16
    blend = one_domain(corpus, "code", seq_length, seed)
    first = epoch(blend, corpus, "code", 0)
    assert first != epoch(blend, corpus, "code", 1)
    assert first == epoch(one_domain(corpus, "code", seq_length, seed), corpus, "code", 0)
    assert first != epoch(one_domain(corpus, "code", seq_length, seed + 1), corpus, "code", 0)
    assert first != epoch(
        one_domain(corpus, "code", seq_length, seed, stage_idx=1), corpus, "code", 0
    )


def test_any_sample_alone_is_the_same_as_in_a_walk(corpus, seed):
    """Nothing depends on what was read before, across the borders of epochs too."""
    stage = ResolvedStage({"text": 2.0, "code": 1.0}, 24, 1e4)
    walked, domains, labels, _ = Blend(corpus, stage, 0, seed).rows(np.arange(1000))
    blend = Blend(corpus, stage, 0, seed)
    for i in random.Random(seed).sample(range(1000), 40):
        row, domain, label, _ = blend.rows(np.array([i]))
        assert torch.equal(row[0], walked[i])
        assert domain.tolist() == [domains[i]]
        assert torch.equal(label[0], labels[i])


def test_samples_do_not_depend_on_length_of_run_or_ranks(corpus, data, seed):
    seen: list[dict[int, list[int]]] = []
    for max_steps, dp_size in ((3, 1), (50, 1), (3, 2), (7, 4)):
        config = run_config(
            data(seq_length=24), seed, max_steps=max_steps, global_batch_size=8, micro_batch_size=2
        )
        rows: dict[int, list[int]] = {}
        for rank in range(dp_size):
            loader = Loader(config, corpus, Position(), rank, dp_size, pin=False)
            for step in islice(loader, 3):
                for batch in step.microbatches:
                    rows |= dict(zip(batch.sample_ids.tolist(), batch.tokens.tolist(), strict=True))
            loader.close()
        seen.append(rows)
    assert sorted(seen[0]) == list(range(24))
    assert all(other == seen[0] for other in seen[1:])


def test_rows_carry_their_domain(corpus, seed):
    stage = ResolvedStage({"text": 1.0, "code": 1.0}, 20, 1e4)
    rows, domains, _, _ = Blend(corpus, stage, 0, seed).rows(np.arange(40))
    assert rows.dtype == torch.int64
    assert domains.tolist().count(0) == domains.tolist().count(1) == 20
    for row, domain in zip(rows.tolist(), domains.tolist(), strict=True):
        whole = stream(corpus, corpus.domains[domain], "train")
        assert pairs([row], corpus.eod_id) <= pairs([whole], corpus.eod_id)


def test_a_mixture_interleaves_each_domains_own_sequences(corpus, seed):
    """It skips none of them and repeats none: they are those of a stage of this domain alone."""
    stage = ResolvedStage({"text": 2.0, "code": 3.0}, 20, 1e4)
    rows, domains, _, _ = Blend(corpus, stage, 0, seed).rows(np.arange(500))
    for index, domain in enumerate(corpus.domains):
        mine = rows[domains == index]
        assert len(mine) == (200, 300)[index]
        alone = one_domain(corpus, domain, 20, seed).rows(np.arange(len(mine)))
        assert torch.equal(mine, alone.ids)


@pytest.mark.parametrize("reader", [MegatronReader, PackedReader])
def test_a_domain_goes_on_from_stage_to_stage(corpus, seed, reader):
    """Whatever it is mixed with: the sequences of two stages are those of one, over epochs too."""
    both, code = {"text": 1.0, "code": 1.0}, {"code": 1.0}
    taken = random.Random(seed).randint(1, 400)
    alone, _, _, _ = Blend(corpus, ResolvedStage(code, 20, 1e4), 0, seed, reader).rows(
        np.arange(430)
    )
    first = ResolvedStage(both, 20, 1e4, until=1)
    position = Position(sample=2 * taken, tokens=1, before={})
    position = enter_stage([first, ResolvedStage(code, 20, 1e4)], position)
    begun = Blend(corpus, first, 0, seed, reader, {})
    rows = begun.rows(np.arange(2 * taken))
    assert torch.equal(rows.ids[rows.domain_ids == corpus.domains.index("code")], alone[:taken])
    stage = ResolvedStage(code, 20, 1e4)
    later = Blend(corpus, stage, 1, seed, reader, position.before)
    assert torch.equal(later.rows(np.arange(30)).ids, alone[taken : taken + 30])
    size = int(later._readers["code"].sequences.sum())
    assert later.epochs(30)["code"] == pytest.approx((taken + 30) / size)
    assert later.locate(0) == ("code", *divmod(taken, size))
    # a run of before has an order of its own for every stage
    older = Blend(corpus, stage, 1, seed, reader)
    own = reader(corpus, "code", 20, (seed, 1, corpus.domains.index("code")))
    assert torch.equal(older.rows(np.array([0])).ids[0], own.row(0, 0).ids)


def test_at_another_length_an_index_makes_an_order_of_its_own(corpus, seed):
    """Each time: it is that of no stage before, and goes on while the length stays."""
    index = corpus.domains.index("code")

    def reader(length, *before):
        return MegatronReader(corpus, "code", length, (seed, 0, index), before)

    def rows(opened):
        size = int(opened.sequences.sum())
        places = (divmod(opened.start + i, size) for i in range(20))
        return [opened.row(*place).ids.tolist() for place in places]

    first, third = rows(reader(20)), rows(reader(20, (20, 7), (30, 4)))
    assert first != third
    assert rows(reader(20, (20, 7), (30, 4), (20, 5)))[:15] == third[5:]
    sizes = [int(reader(length).sequences.sum()) for length in (20, 30)]
    passes = reader(20, (20, 7), (30, 4), (20, 5)).epochs(3)
    assert passes == pytest.approx((7 + 8) / sizes[0] + 4 / sizes[1])


def test_microbatches_of_a_step(corpus, data, seed):
    config = run_config(data(seq_length=24), seed, global_batch_size=12, micro_batch_size=3)
    position = Position(step=5, sample=60, samples=60, tokens=60 * 24)
    blend = Blend(corpus, config.stages[0], 0, seed)
    parts = [step_data(config, corpus, position, rank, 2, lambda _: blend) for rank in range(2)]
    for part in parts:
        assert [batch.tokens.shape for batch in part.microbatches] == [(3, 24)] * 2
        assert (part.before, part.size) == (position, 12)
        assert part.after == Position(step=6, sample=72, samples=72, tokens=72 * 24)
    ids = torch.cat([batch.sample_ids for part in parts for batch in part.microbatches])
    assert sorted(ids.tolist()) == list(range(60, 72))
    # Half of every global batch is code, wherever it lands.
    domains = torch.cat([batch.domain_ids for part in parts for batch in part.microbatches])
    assert domains.sum() == 6


def test_the_config_switches_reach_the_batch(corpus, data, seed):
    for isolate in (True, False):
        for mask in (True, False):
            fields = data(seq_length=40, isolate_documents=isolate, mask_document_start=mask)
            config = run_config(fields, seed, global_batch_size=32, micro_batch_size=32)
            blend = Blend(corpus, config.stages[0], 0, seed)
            batch = step_data(config, corpus, Position(), 0, 1, lambda _: blend).microbatches[0]  # noqa: B023
            is_eod = batch.tokens == corpus.eod_id
            assert is_eod.any()
            assert batch.documents.is_packed == isolate
            assert torch.equal(batch.loss_mask == 0, is_eod if mask else torch.zeros_like(is_eod))


def test_epochs_counts_passes(corpus, seed):
    rng = random.Random(seed)
    seq_length = rng.randint(10, 30)
    weights = {"text": float(rng.randint(1, 4)), "code": float(rng.randint(1, 4))}
    blend = Blend(corpus, ResolvedStage(weights, seq_length, 1e4), 0, seed)
    samples = len(blend.mixture.pattern) * rng.randint(1, 300)
    for domain, passes in blend.epochs(samples).items():
        sequences = (corpus.tokens(domain, "train") - 1) // seq_length
        expected = samples * weights[domain] / sum(weights.values()) / sequences
        assert passes == pytest.approx(expected, rel=1e-12)
        # As many as rows() really goes through.
        taken = sum(blend.mixture.locate(i)[0] == domain for i in range(samples))
        assert passes == pytest.approx(taken / sequences, rel=1e-12)


def test_unknown_domain(data):
    text_only = prepare(data(mixture={"text": 1}), report=lambda _: None)
    with pytest.raises(InputError, match="'code', the corpus"):
        Blend(text_only, ResolvedStage({"text": 1.0, "code": 1.0}, 16, 1e4), 0, 1)


@pytest.mark.parametrize("domain", ["text", "code"])
def test_too_small_a_domain(corpus, domain):
    tokens = corpus.tokens(domain, "train")
    assert len(epoch(one_domain(corpus, domain, tokens - 1), corpus, domain, 0)) == 1
    with pytest.raises(InputError, match=f"'{domain}' has {tokens:,} training tokens") as error:
        one_domain(corpus, domain, tokens)
    advised = int(re.search(r"data\.seq_length=(\d+)", error.value.problems[0].fix)[1])
    assert len(epoch(one_domain(corpus, domain, advised), corpus, domain, 0)) >= 1
