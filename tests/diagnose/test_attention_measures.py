"""Attention measures against the whole maps, softmaxed in float64 and compared key by key."""

from __future__ import annotations

import math
import weakref
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from loopcoder.diagnose.measures.attention import (
    AttentionValues,
    LoopAttention,
    attention_sums,
    head_diversity,
    head_vectors,
)
from loopcoder.diagnose.measures.maps import queries_per_chunk
from tests.model.test_reference import random_starts

SEQ, BATCH, HEADS, KV_HEADS, DIM = 37, 2, 6, 3, 8
CHUNKS = (5, 16, SEQ, 100)


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def loops(generator: torch.Generator, *, window: int = 4, sharp: float = 1.5) -> list:
    """Return three loops: the first, and two that mix. Some gates are nearly shut or open; with
    `sharp` 6 some queries look at nothing but one key."""
    shape = (SEQ, BATCH, KV_HEADS, DIM)
    shared = sharp * normal(generator, *shape)
    found = [
        LoopAttention(normal(generator, SEQ, BATCH, HEADS, DIM), shared, None, None, window, 0.4)
    ]
    for _ in range(2):
        q = found[0].q + normal(generator, SEQ, BATCH, HEADS, DIM)
        logits = 4 * normal(generator, SEQ, BATCH, HEADS)
        logits[torch.rand(logits.shape, generator=generator) < 0.1] = -35.0
        logits[torch.rand(logits.shape, generator=generator) < 0.1] = 35.0
        own = sharp * normal(generator, *shape)
        found.append(LoopAttention(q, own, shared, logits.sigmoid(), window, 0.4))
    return found


def whole_map(x: LoopAttention, start: Tensor) -> Tensor:
    """[B, H, S, S], in the precision of x, by softmaxes over all keys."""
    q = x.q.permute(1, 2, 0, 3)
    index = torch.arange(len(x.q))
    causal = (index <= index[:, None]) & (index >= start[..., None])

    def softmax(k: Tensor, seen: Tensor) -> Tensor:
        heads = k.permute(1, 2, 0, 3).repeat_interleave(q.shape[1] // k.shape[2], dim=1)
        return (x.scale * (q @ heads.mT)).masked_fill(~seen[:, None], -math.inf).softmax(-1)

    if x.shared_k is None:
        return softmax(x.k, causal)
    gate = x.gate.permute(1, 2, 0)[..., None]
    near = causal & (index >= index[:, None] - x.window)
    return gate * softmax(x.shared_k, causal) + (1 - gate) * softmax(x.k, near)


def without_first(maps: Tensor, start: Tensor) -> Tensor:
    """Drop the first key and scale to sum 1; rows of no other key become zero."""
    first = torch.arange(maps.shape[-1]) == start[..., None]
    others = maps.masked_fill(first[:, None], 0.0)
    total = others.sum(-1, keepdim=True)
    return others / torch.where(total == 0, 1.0, total)


def entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)


def plain(now: LoopAttention, before: LoopAttention | None, start: Tensor) -> AttentionValues:
    """The measures from whole maps, as PyTorch does them in the precision of the tensors."""
    p = whole_map(now, start)
    q = None if before is None else whole_map(before, start)
    p_others, q_others = (None if x is None else without_first(x, start) for x in (p, q))

    def summed(values: Tensor) -> Tensor:
        return values.sum(1).T

    return AttentionValues(
        entropy=summed(entropy(p)),
        entropy_no_first=summed(entropy(p_others)),
        change=None if q is None else summed(divergence(p, q)),
        change_no_first=None if q is None else summed(divergence(p_others, q_others)),
        has_others=(start < torch.arange(len(now.q))).T,
    )


def cast(x: LoopAttention, dtype: torch.dtype) -> LoopAttention:
    tensors = {
        f.name: getattr(x, f.name).to(dtype)
        for f in fields(x)
        if isinstance(getattr(x, f.name), Tensor)
    }
    return replace(x, **tensors)


PAIRS = {"first": (0, None), "second": (1, 0), "third": (2, 1), "own": (0, 0)}


def pair(found: list, which: str) -> tuple[LoopAttention, LoopAttention | None]:
    now, before = PAIRS[which]
    if which == "own":  # K/V of its own: a causal map in every loop
        return replace(found[1], shared_k=None, gate=None), found[0]
    return found[now], None if before is None else found[before]


def names(values: AttentionValues) -> list[str]:
    return [f.name for f in fields(values) if getattr(values, f.name) is not None]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("which", PAIRS)
def test_sums_are_those_of_the_whole_maps(generator, which: str, chunk: int) -> None:
    start = random_starts(generator, BATCH, SEQ)
    for window in (0, 4, SEQ):
        now, before = pair(loops(generator, window=window), which)
        found = attention_sums(now, before, start, chunk=chunk)
        wanted = plain(now, before, start)
        assert names(found) == names(wanted)
        assert torch.equal(found.has_others, wanted.has_others)
        for name in names(found):
            ours, exact = getattr(found, name), getattr(wanted, name)
            assert ours.dtype == exact.dtype
            # Sums of a few nats in which 1e-12 is what plain float64 itself loses.
            torch.testing.assert_close(
                ours, exact, rtol=1e-6, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("sharp", [1.5, 8.0])
@pytest.mark.parametrize("which", PAIRS)
def test_fp32_is_at_most_twice_as_far_off_as_plain_pytorch(generator, which, sharp: float) -> None:
    """Over all queries of a few draws, by the root of the mean square."""
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    size: dict[str, float] = {}
    for _ in range(4):
        start = random_starts(generator, BATCH, SEQ)
        exact_pair = [
            x and cast(cast(x, torch.float32), torch.float64)
            for x in pair(loops(generator, sharp=sharp), which)
        ]
        fp32_pair = [x and cast(x, torch.float32) for x in exact_pair]
        exact = plain(*exact_pair, start)
        for errors, found in (
            (ours, attention_sums(*fp32_pair, start, chunk=11)),
            (theirs, plain(*fp32_pair, start)),
        ):
            for name in names(found):
                value, wanted = getattr(found, name).double(), getattr(exact, name).double()
                usable = value.isfinite() & wanted.isfinite()
                assert name not in ours or errors is theirs or usable.all()
                errors[name] = errors.get(name, 0.0) + float(
                    (value - wanted)[usable].square().sum()
                )
                size[name] = max(size.get(name, 0.0), float(wanted.abs().max()))
    for name, error in ours.items():
        floor = torch.finfo(torch.float32).eps * size[name]
        assert math.sqrt(error) <= 2 * math.sqrt(theirs[name]) + floor, name


def test_bf16_is_computed_in_fp32(generator) -> None:
    start = random_starts(generator, BATCH, SEQ)
    found = [cast(x, torch.bfloat16) for x in loops(generator)]
    values = attention_sums(found[1], found[0], start, chunk=16)
    exact = plain(*(cast(x, torch.float64) for x in (found[1], found[0])), start)
    for name in ("entropy", "entropy_no_first", "change", "change_no_first"):
        assert getattr(values, name).dtype == torch.float32
        torch.testing.assert_close(
            getattr(values, name).double(), getattr(exact, name), rtol=1e-4, atol=1e-4
        )


def test_a_first_key_that_has_nearly_all_leaves_the_others_their_digits(generator) -> None:
    """1 - p of the first key is 1e-12 here, which fp32 cannot tell from zero."""
    start = torch.zeros(BATCH, SEQ, dtype=torch.long)
    now, before = loops(generator)[:2][::-1]
    k = now.shared_k.clone()
    q = [x.q.clone() for x in (now, before)]
    for x in q:
        x[..., 0] = 8.0
    k[0, :, :, 0], k[1:, :, :, 0] = 8.0, 0.0
    now = replace(now, q=q[0], shared_k=k, gate=torch.ones_like(now.gate))
    before = replace(before, q=q[1], k=k)
    exact = plain(now, before, start)
    found = attention_sums(cast(now, torch.float32), cast(before, torch.float32), start, chunk=16)
    for name in ("entropy_no_first", "change_no_first"):
        value = getattr(found, name).double()
        torch.testing.assert_close(value, getattr(exact, name), rtol=1e-4, atol=1e-4)


def test_gates_that_are_quite_shut_or_open(generator) -> None:
    """A key that the loop before cannot see makes the change infinite; one that neither sees does
    not."""
    start = random_starts(generator, BATCH, SEQ)
    _, second, third = loops(generator)
    shut, opened = torch.zeros_like(second.gate), torch.ones_like(second.gate)
    for of_second, of_third in ((shut, shut), (opened, shut), (shut, opened), (shut, second.gate)):
        now, before = replace(third, gate=of_third), replace(second, gate=of_second)
        found = attention_sums(now, before, start, chunk=16)
        exact = plain(now, before, start)
        for name in names(found):
            ours, wanted = getattr(found, name), getattr(exact, name)
            torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-11)
    assert found.change.isinf().any() and found.change_no_first.isinf().any()


def test_keys_and_a_gate_come_together(generator) -> None:
    with pytest.raises(ValueError, match="needs both"):
        replace(loops(generator)[1], gate=None)


class Memory(TorchDispatchMode):
    """Adds up the bytes of what operators allocate and what is still alive of it."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.known |= {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        out = operator(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage.data_ptr())
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self.freed, storage.data_ptr(), storage.nbytes())
        return out

    def freed(self, pointer: int, size: int) -> None:
        self.known.discard(pointer)
        self.alive -= size


def test_memory_stays_within_the_budget(generator) -> None:
    length, budget = 320, 2_000_000
    shape = (length, 1, 4, 8)
    q, k, own = (normal(generator, *shape) for _ in range(3))
    before = LoopAttention(q, k, None, None, 8, 0.4)
    now = replace(
        before, k=own, shared_k=k, gate=torch.rand(shape[:3], generator=generator).double()
    )
    start = torch.zeros(1, length, dtype=torch.long)
    chunk = queries_per_chunk(1, length, 4, element_bytes=8, budget_bytes=budget)
    assert 40 < chunk < 80
    small = 40 * q.numel() * 8 // length * chunk  # a chunk's queries and single numbers
    with Memory() as memory:
        attention_sums(now, before, start, chunk=chunk)
    assert 0.7 * budget < memory.peak < budget + small
    assert memory.alive < 0.1 * budget  # the results
    with Memory() as whole:
        attention_sums(now, before, start, chunk=length)
    assert whole.peak > 3 * length * length * 4 * 8 > 4 * budget
    assert queries_per_chunk(1, 4096, 40, element_bytes=4, budget_bytes=2**30) > 512
    assert queries_per_chunk(1, 4096, 40, element_bytes=4, budget_bytes=1) == 1


@pytest.mark.parametrize("which", [0, 1])
def test_head_vectors_are_rows_of_the_whole_map(generator, which: int) -> None:
    start = random_starts(generator, BATCH, SEQ)
    x = loops(generator)[which]
    maps = whole_map(x, start)
    queries = torch.randperm(SEQ, generator=generator)[:9]
    torch.testing.assert_close(
        head_vectors(x, start, queries), maps[:, :, queries].permute(2, 0, 1, 3)
    )
    each = torch.randint(SEQ, (9, BATCH), generator=generator)
    found = head_vectors(x, start, each)
    for b in range(BATCH):
        torch.testing.assert_close(found[:, b], maps[b][:, each[:, b]].transpose(0, 1))


def test_head_diversity_is_that_of_the_singular_values(generator) -> None:
    vectors = torch.rand(4, 3, HEADS, SEQ, generator=generator, dtype=torch.float64).pow(8)
    vectors /= vectors.sum(-1, keepdim=True)
    rank, cosine = head_diversity(vectors)
    for place in [(i, j) for i in range(4) for j in range(3)]:
        matrix = vectors[place]
        s = torch.linalg.svdvals(matrix)
        s = s / s.sum()
        assert rank[place].item() == pytest.approx(math.exp(-(s * s.log()).sum()), rel=1e-6)
        cosines = [
            float(matrix[h] @ matrix[g] / matrix[h].norm() / matrix[g].norm())
            for h in range(HEADS)
            for g in range(HEADS)
            if h != g
        ]
        assert cosine[place].item() == pytest.approx(sum(cosines) / len(cosines), rel=1e-6)
    same = vectors[0, 0, :1].expand(HEADS, SEQ)
    rank, cosine = head_diversity(same)
    assert (rank.item(), cosine.item()) == pytest.approx((1.0, 1.0), rel=1e-6)
    rank, cosine = head_diversity(torch.eye(HEADS, SEQ))
    assert (rank.item(), cosine.item()) == pytest.approx((HEADS, 0.0))
    assert head_diversity(same[:1])[1].isnan()
