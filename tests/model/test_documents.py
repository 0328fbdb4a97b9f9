"""Masks and borders of documents against loops over single tokens."""

from __future__ import annotations

import pytest
import torch

from loopcoder.model.documents import Documents, room_for

BATCH, LENGTH = 3, 23


@pytest.fixture
def start(seed) -> torch.Tensor:
    """Random borders; documents of one token, and one as long as its row, among them."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.rand(BATCH, LENGTH, generator=generator) < 0.2
    begins[0, 4:8] = True
    begins[0, -1] = True
    begins[1] = False
    begins[:, 0] = True
    index = torch.arange(LENGTH).expand(BATCH, LENGTH)
    return torch.where(begins, index, 0).cummax(1).values


def visible(start: list[list[int]], window: int | None) -> list:
    """[B, 1, S, S]: key s is at or before query t, in its document, and at most `window` away."""
    return [
        [
            [
                [
                    s <= t and s >= row[t] and (window is None or t - s <= window)
                    for s in range(len(row))
                ]
                for t in range(len(row))
            ]
        ]
        for row in start
    ]


def test_packed_borders(start):
    docs = Documents.packed(start)
    cu_seqlens, longest = [0], 0
    for b, row in enumerate(start.tolist()):
        for t, first in enumerate(row):
            assert docs.position_ids[b, t] == t - first
            assert docs.first_token[t, b] == (t == first)
            if t + 1 == LENGTH or row[t + 1] == t + 1:  # the last token of its document
                cu_seqlens.append(b * LENGTH + t + 1)
                longest = max(longest, t + 1 - first)
    assert docs.is_packed
    assert docs.cu_seqlens.tolist() == cu_seqlens
    assert docs.cu_seqlens.dtype == torch.int32
    assert docs.max_seqlen == longest == LENGTH  # row 1


def test_packed_masks(start):
    docs = Documents.packed(start)
    assert docs.causal_mask.tolist() == visible(start.tolist(), None)
    # In any order: what is computed once must not be mistaken for another window's.
    for window in (3, 0, LENGTH, 3, 1):
        assert docs.window_mask(window).tolist() == visible(start.tolist(), window), window
    assert docs.causal_mask.tolist() == visible(start.tolist(), None)


def test_whole_rows():
    docs = Documents.whole_rows(BATCH, LENGTH, torch.device("cpu"))
    assert not docs.is_packed
    assert docs.cu_seqlens is None
    assert docs.causal_mask is None  # the kernels' own causal mask is the same
    assert docs.max_seqlen == LENGTH
    assert docs.start.tolist() == [[0] * LENGTH] * BATCH
    assert docs.position_ids.tolist() == [list(range(LENGTH))] * BATCH
    assert docs.first_token.tolist() == [[t == 0] * BATCH for t in range(LENGTH)]
    for window in (0, 2, 5, LENGTH):
        assert docs.window_mask(window).tolist() == visible([[0] * LENGTH], window)


def test_rows_that_are_one_document_each_are_the_same_packed():
    whole = Documents.whole_rows(BATCH, LENGTH, torch.device("cpu"))
    packed = Documents.packed(torch.zeros(BATCH, LENGTH, dtype=torch.long))
    assert packed.cu_seqlens.tolist() == [b * LENGTH for b in range(BATCH + 1)]
    assert torch.equal(packed.position_ids, whole.position_ids)
    assert torch.equal(packed.first_token, whole.first_token)
    assert torch.equal(packed.window_mask(4), whole.window_mask(4).expand(BATCH, 1, LENGTH, LENGTH))


def test_masks_are_computed_once(start):
    """All layers and loops of a microbatch ask for them."""
    docs = Documents.packed(start)
    assert docs.causal_mask is docs.causal_mask
    assert docs.window_mask(4) is docs.window_mask(4)
    assert docs.first_token is docs.first_token
    assert docs.causal_bias(torch.float32) is docs.causal_bias(torch.float32)
    assert docs.window_bias(4, torch.float32) is docs.window_bias(4, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_numbers_hide_what_masks_hide(start, dtype):
    docs = Documents.packed(start)
    for mask, bias in (
        (docs.causal_mask, docs.causal_bias(dtype)),
        (docs.window_mask(4), docs.window_bias(4, dtype)),
    ):
        assert bias.dtype == dtype
        assert torch.equal(bias == 0, mask)
        assert torch.equal(bias == -torch.inf, ~mask)
    assert Documents.whole_rows(BATCH, LENGTH, start.device).causal_bias(dtype) is None


def test_no_query_is_left_without_a_key(start):
    """A softmax over nothing would be NaN."""
    docs = Documents.packed(start)
    assert docs.window_mask(0).any(-1).all()
    assert docs.causal_mask.any(-1).all()


def test_rows_end_to_end_in_one(start):
    """Each query sees what it sees in its row, at the same places; only the numbers of the places
    are other ones."""
    docs, row = Documents.packed(start), Documents.packed(start).as_one_row()
    assert row.start.shape == row.position_ids.shape == (1, BATCH * LENGTH)
    assert torch.equal(row.position_ids[0], docs.position_ids.flatten())
    assert torch.equal(row.first_token[:, 0], docs.first_token.T.flatten())
    assert torch.equal(row.cu_seqlens, docs.cu_seqlens)
    assert row.max_seqlen == row.table_length == LENGTH
    for whole, apart in (
        (row.causal_mask, docs.causal_mask),
        (row.window_mask(4), docs.window_mask(4)),
    ):
        assert torch.equal(whole[0, 0], torch.block_diag(*apart[:, 0]))


def test_one_row_does_not_depend_on_borders(start):
    """What is no tensor is the same for all borders, and so are all shapes but that of cu_seqlens:
    a CUDA graph is made for them."""
    long = Documents.packed(torch.zeros_like(start)).as_one_row()
    short = Documents.packed(torch.arange(LENGTH).expand(BATCH, LENGTH)).as_one_row()
    assert (long.max_seqlen, long.row_length) == (short.max_seqlen, short.row_length)
    assert long.start.shape == short.start.shape
    assert len(long.cu_seqlens) == BATCH + 1 and len(short.cu_seqlens) == BATCH * LENGTH + 1


def test_room_for_documents_is_what_transformer_engine_plans_for():
    assert [room_for(n) for n in (1, 32, 33, 64, 65, 128, 129, 512, 513, 1024, 1025)] == [
        *(32, 32, 64, 64, 128, 128, 256, 512, 1024, 1024, 1536),
    ]
