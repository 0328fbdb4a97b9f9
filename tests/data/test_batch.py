"""make_batch against loops over single tokens."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch

from loopcoder.data.batch import make_batch

EOD = 3


def random_rows(generator: torch.Generator, batch: int, seq_length: int) -> torch.Tensor:
    """Rows with many EODs: several in a row, and at both ends."""
    rows = torch.randint(0, 6, (batch, seq_length + 1), generator=generator)
    rows[torch.rand(rows.shape, generator=generator) < 0.2] = EOD
    rows[0, 0] = EOD
    rows[-1, -2:] = EOD
    middle = int(torch.randint(0, seq_length, (), generator=generator))
    rows[0, middle : middle + 3] = EOD
    return rows


def by_loops(
    rows: list[list[int]], isolate: bool, mask: bool, valid: list[list[bool]] | None
) -> dict:
    """The contract, token by token."""
    out: dict = {k: [] for k in ("tokens", "labels", "loss_mask", "position_ids", "document_start")}
    lengths = []
    for b, row in enumerate(rows):
        start, fields = 0, {k: [] for k in out}
        for t in range(len(row) - 1):
            if isolate and t > 0 and row[t - 1] == EOD:
                lengths.append(t - start)
                start = t
            counts = not (mask and row[t] == EOD) and (valid is None or valid[b][t])
            fields["tokens"].append(row[t])
            fields["labels"].append(row[t + 1])
            fields["loss_mask"].append(float(counts))
            fields["position_ids"].append(t - start)
            fields["document_start"].append(start)
        lengths.append(len(row) - 1 - start)
        for k, values in fields.items():
            out[k].append(values)
    cu_seqlens = [0]
    for length in lengths:
        cu_seqlens.append(cu_seqlens[-1] + length)
    return out | {"cu_seqlens": cu_seqlens if isolate else None, "max_seqlen": max(lengths)}


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize(("isolate", "mask"), product([True, False], [True, False]))
def test_against_loops(seed, isolate, mask, padded):
    generator = torch.Generator().manual_seed(seed)
    for batch, seq_length in ((1, 1), (1, 17), (3, 2), (4, 29)):
        rows = random_rows(generator, batch, seq_length)
        untouched = rows.clone()
        valid = torch.rand(batch, seq_length, generator=generator) < 0.7 if padded else None
        sample_ids, domain_ids = torch.arange(batch) + 100, torch.arange(batch) % 2
        got = make_batch(
            rows,
            sample_ids,
            domain_ids,
            EOD,
            isolate_documents=isolate,
            mask_document_start=mask,
            valid=valid,
        )
        expected = by_loops(rows.tolist(), isolate, mask, valid.tolist() if padded else None)
        for name in ("tokens", "labels", "loss_mask", "position_ids", "document_start"):
            assert getattr(got, name).tolist() == expected[name], name
        cu_seqlens = None if got.cu_seqlens is None else got.cu_seqlens.tolist()
        assert (cu_seqlens, got.max_seqlen) == (expected["cu_seqlens"], expected["max_seqlen"])
        assert torch.equal(got.sample_ids, sample_ids)
        assert torch.equal(got.domain_ids, domain_ids)
        assert got.label_ids.tolist() == [[domain] * seq_length for domain in domain_ids.tolist()]
        assert torch.equal(rows, untouched)


def test_types_and_memory_layout(seed):
    rows = random_rows(torch.Generator().manual_seed(seed), 3, 12)
    for isolate in (True, False):
        got = make_batch(
            rows, torch.arange(3), torch.zeros(3, dtype=torch.long), EOD, isolate_documents=isolate
        )
        for name in ("tokens", "labels", "position_ids", "document_start", "label_ids"):
            x = getattr(got, name)
            # An expanded tensor would be copied to the device element by element, or not at all.
            assert (x.dtype, x.shape, x.is_contiguous()) == (torch.int64, (3, 12), True), name
        assert got.loss_mask.dtype == torch.float32
        assert got.cu_seqlens is None or got.cu_seqlens.dtype == torch.int32


def test_lengths_agree_with_document_start(seed):
    """The two descriptions of a packed batch, for the two kinds of attention, say the same."""
    rows = random_rows(torch.Generator().manual_seed(seed), 4, 40)
    got = make_batch(rows, torch.arange(4), torch.zeros(4, dtype=torch.long), EOD)
    start = (got.document_start + 40 * torch.arange(4)[:, None]).flatten().tolist()
    cu_seqlens = got.cu_seqlens.tolist()
    assert cu_seqlens[:-1] == sorted(set(start))
    assert cu_seqlens[-1] == 160
    for begin, end in pairwise(cu_seqlens):
        assert start[begin:end] == [begin] * (end - begin)
        assert got.position_ids.flatten()[begin:end].tolist() == list(range(end - begin))
    assert got.max_seqlen == max(e - b for b, e in pairwise(cu_seqlens))


@pytest.mark.parametrize("isolate", [True, False])
def test_moving_keeps_everything(seed, isolate):
    rows = random_rows(torch.Generator().manual_seed(seed), 2, 9)
    batch = make_batch(rows, torch.arange(2), torch.tensor([1, 0]), EOD, isolate_documents=isolate)
    moved = batch.to(torch.device("meta"))
    assert moved.max_seqlen == batch.max_seqlen
    for name in ("tokens", "loss_mask", "sample_ids", "domain_ids", "document_start"):
        before, after = getattr(batch, name), getattr(moved, name)
        assert (after.device.type, after.shape, after.dtype) == ("meta", before.shape, before.dtype)
    assert (moved.cu_seqlens is None) == (not isolate)
    documents = batch.documents
    assert documents.start is batch.document_start
    assert documents.position_ids is batch.position_ids
    assert documents.cu_seqlens is batch.cu_seqlens
    assert documents.max_seqlen == batch.max_seqlen
