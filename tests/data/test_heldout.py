"""Held-out sequences: every label once, on whatever number of ranks."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from loopcoder.data.heldout import HeldOut
from tests.data.corpora import stream


def held_out(corpus, data, seed: int, sequences: int, domain: str = "text", **fields):
    config = data(**fields)
    seq_length = random.Random(seed).randint(6, 40)
    return HeldOut(corpus, domain, config, seq_length, sequences * seq_length), seq_length


@pytest.mark.parametrize("sequences", [1, 3, 10**6], ids=["one", "three", "all"])
@pytest.mark.parametrize("domain", ["text", "code"])
def test_rows_are_the_documents_in_order(corpus, data, seed, domain, sequences):
    held, seq_length = held_out(corpus, data, seed, sequences, domain)
    ids = stream(corpus, domain, "val")[: sequences * seq_length + 1]
    # Every label is in exactly one row: the rows' tokens, laid end to end, are all but the last.
    labels = held.rows[:, 1:][held.valid]
    assert labels.tolist() == ids[1:]
    assert held.rows[:, :-1][held.valid].tolist() == ids[:-1]
    assert len(held.rows) == -(-(len(ids) - 1) // seq_length) <= sequences
    # What is not valid is padding at the end.
    assert set(held.rows[:, 1:][~held.valid].tolist()) <= {corpus.eod_id}
    assert held.valid.flatten().tolist() == sorted(held.valid.flatten().tolist(), reverse=True)


def test_shorter_than_a_sequence(corpus, data):
    """A handful of tokens still gives a loss."""
    ids = stream(corpus, "code", "val")
    held = HeldOut(corpus, "code", data(), 10 * len(ids), 50 * len(ids))
    assert held.rows.shape == (1, 10 * len(ids) + 1)
    assert held.valid.sum() == len(ids) - 1
    (batch,) = held.batches(0, 1, 1)
    assert batch.loss_mask[0, len(ids) - 1 :].sum() == 0


@pytest.mark.data_full
@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
@pytest.mark.parametrize("mask", [True, False], ids=["masked", "unmasked"])
def test_every_label_counts_once_over_all_ranks(corpus, data, seed, micro_batch_size, mask):
    held, seq_length = held_out(corpus, data, seed, 10**6, "code", mask_document_start=mask)
    rows = held.rows.tolist()
    expected = {
        (r, t): rows[r][t + 1]
        for r in range(len(rows))
        for t in range(seq_length)
        if held.valid[r, t] and not (mask and rows[r][t] == corpus.eod_id)
    }
    for dp_size in (1, 2, 3):
        counted: Counter[tuple[int, int]] = Counter()
        parts = [list(held.batches(rank, dp_size, micro_batch_size)) for rank in range(dp_size)]
        # A rank with fewer batches would leave the others waiting in a collective.
        assert len({len(part) for part in parts}) == 1
        for batch in (batch for part in parts for batch in part):
            assert batch.tokens.shape == (micro_batch_size, seq_length)
            assert set(batch.domain_ids.tolist()) == {corpus.domains.index("code")}
            for b, t in batch.loss_mask.nonzero().tolist():
                place = (int(batch.sample_ids[b]), t)
                counted[place] += 1
                assert batch.labels[b, t] == expected[place]
        assert counted == dict.fromkeys(expected, 1), dp_size


def test_documents_are_kept_apart_as_in_training(corpus, data, seed):
    for isolate in (True, False):
        held, _ = held_out(corpus, data, seed, 10**6, isolate_documents=isolate)
        batch = next(held.batches(0, 1, len(held.rows)))
        assert batch.documents.is_packed == isolate
        after_eod = (batch.tokens[:, :-1] == corpus.eod_id).nonzero()
        assert len(after_eod) > 0
        starts = batch.document_start[after_eod[:, 0], after_eod[:, 1] + 1]
        assert torch.equal(starts, after_eod[:, 1] + 1 if isolate else torch.zeros_like(starts))
