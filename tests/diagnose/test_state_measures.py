"""Measures of states, outputs and exits against their definitions, token by token in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from loopcoder.diagnose.measures import states
from loopcoder.diagnose.measures.exits import exit_loops, exit_loops_kl, exit_values
from loopcoder.diagnose.measures.outputs import is_largest, read_outputs
from loopcoder.diagnose.measures.rank import effective_rank
from loopcoder.diagnose.measures.states import alignment, offset_cost, step_size
from loopcoder.model.documents import Documents
from tests.model.test_reference import random_starts

SEQ, BATCH, DIM, VOCAB, PADDED = 11, 2, 24, 50, 64


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[1, 100, 2**23], ids="elements{}".format)
def in_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "ELEMENTS", request.param)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def norm(x: Tensor) -> float:
    return math.sqrt(sum(value * value for value in x.tolist()))


def check_rounding(
    measure: Callable[..., Tensor], plain: Callable[..., Tensor], *tensors: Tensor
) -> None:
    """In fp32 the measure is at most twice as far from float64 as PyTorch's own operators."""
    fp32 = [x.float() for x in tensors]
    exact = plain(*(x.double() for x in fp32))
    ours, theirs = ((f(*fp32) - exact).square().mean().sqrt() for f in (measure, plain))
    assert ours <= 2 * theirs + torch.finfo(torch.float32).eps * exact.abs().max()


@pytest.mark.usefixtures("in_chunks")
def test_step_size(generator) -> None:
    now, before = normal(generator, SEQ, BATCH, DIM), normal(generator, SEQ, BATCH, DIM)
    found = step_size(now, before)
    assert found.shape == (SEQ, BATCH) and found.dtype == torch.float64
    for t in range(SEQ):
        for b in range(BATCH):
            assert found[t, b].item() == pytest.approx(norm(now[t, b] - before[t, b]), rel=1e-12)
    check_rounding(step_size, lambda x, y: (x - y).norm(dim=-1), now, before)
    near = [x.bfloat16() for x in (now, before)]
    torch.testing.assert_close(step_size(*near), step_size(*(x.float() for x in near)))


@pytest.mark.usefixtures("in_chunks")
def test_alignment(generator) -> None:
    h = [normal(generator, SEQ, BATCH, DIM) for _ in range(3)]
    h[1][3, 1] = h[2][3, 1]
    h[0][4, 0] = h[1][4, 0]
    found, defined = alignment(*h)
    still = {(3, 1), (4, 0)}
    for t in range(SEQ):
        for b in range(BATCH):
            assert defined[t, b].item() == ((t, b) not in still)
            if (t, b) in still:
                assert found[t, b].isnan()
                continue
            last, first = h[0][t, b] - h[1][t, b], h[1][t, b] - h[2][t, b]
            cosine = sum((last * first).tolist()) / norm(last) / norm(first)
            assert found[t, b].item() == pytest.approx(cosine, rel=1e-9, abs=1e-12)

    def plain(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.cosine_similarity(x - y, y - z, dim=-1)

    check_rounding(lambda *x: alignment(*x)[0], plain, *(normal(generator, 99, DIM) for _ in h))


@pytest.mark.usefixtures("in_chunks")
def test_offset_cost_stays_inside_documents(generator) -> None:
    h = normal(generator, SEQ, BATCH, DIM)
    docs = Documents.packed(random_starts(generator, BATCH, SEQ))
    found, defined = offset_cost(h, docs.first_token)
    for t in range(SEQ):
        for b in range(BATCH):
            inside = bool(docs.start[b, t] < t)
            assert defined[t, b].item() == inside and found[t, b].isnan().item() == (not inside)
            if inside:
                assert found[t, b].item() == pytest.approx(norm(h[t, b] - h[t - 1, b]), rel=1e-12)


@pytest.mark.parametrize("tokens", [9, 40], ids=["wide", "tall"])
def test_effective_rank_is_that_of_the_singular_values(generator, tokens: int) -> None:
    x = normal(generator, 3, tokens, DIM) * normal(generator, tokens, 1).exp()
    x[..., 0] += 20  # a direction that all share, as trained models have
    found = effective_rank(x)
    for n in range(3):
        rows = x[n] / x[n].square().mean(-1, keepdim=True).sqrt()
        s = torch.linalg.svdvals(rows)
        s = s / s.sum()
        assert found[n].item() == pytest.approx(math.exp(-(s * s.log()).sum()), rel=1e-6)
        assert effective_rank(x[n]).item() == pytest.approx(found[n].item(), rel=1e-12)


def test_effective_rank_of_known_matrices(generator) -> None:
    row = normal(generator, 1, 300)
    scaled = row * normal(generator, 200, 1)  # one direction, whatever the lengths and signs
    assert effective_rank(scaled.float()).item() == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(scaled).item() == pytest.approx(1.0, rel=1e-6)
    assert effective_rank(3 * torch.eye(9, DIM)).item() == pytest.approx(9.0)
    padded = torch.cat([torch.eye(5, DIM), torch.zeros(2, DIM)])
    assert effective_rank(padded).item() == pytest.approx(5.0)
    assert effective_rank(torch.zeros(4, DIM)).isnan()
    broken = torch.stack([torch.eye(5), torch.eye(5).fill_diagonal_(torch.inf)])
    found = effective_rank(broken)
    assert found[0].item() == pytest.approx(5.0) and found[1].isnan()


def test_outputs(generator) -> None:
    logits, before = 3 * normal(generator, 7, PADDED), 3 * normal(generator, 7, PADDED)
    logits[:, VOCAB:] = before[:, VOCAB:] = 30.0  # padding, which would take all
    labels = torch.randint(VOCAB, (7,), generator=generator)
    labels[2] = logits[2, :VOCAB].argmax()
    found = read_outputs(logits, before, labels, vocab_size=VOCAB)
    assert found.shift is not None
    for t, label in enumerate(labels.tolist()):
        p, q = ([math.exp(x) for x in row[t, :VOCAB].tolist()] for row in (logits, before))
        p, q = ([x / sum(row) for x in row] for row in (p, q))
        wanted = {
            "loss": -math.log(p[label]),
            "entropy": -sum(x * math.log(x) for x in p),
            "rank": sorted(p, reverse=True).index(p[label]) + 1,
            "shift": sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)),
            "confidence": max(p),
            "prediction": p.index(max(p)),
            "top1": p[label] == max(p),
        }
        got = {name: getattr(found, name)[t].item() for name in wanted}
        assert got == pytest.approx(wanted, rel=1e-9)
    assert found.top1[2]
    assert read_outputs(logits, None, labels, vocab_size=VOCAB).shift is None


def test_equal_logits_do_not_count_against_the_true_token() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    for label, rank in ((0, 3), (1, 1), (2, 1), (3, 4)):
        found = read_outputs(logits, None, torch.tensor([label]), vocab_size=4)
        assert (found.rank.item(), found.top1.item()) == (rank, rank == 1)
        assert found.prediction.item() == 1


def test_rounding_of_outputs(generator) -> None:
    logits, before = 3 * normal(generator, 40, VOCAB), 3 * normal(generator, 40, VOCAB)
    labels = torch.randint(VOCAB, (40,), generator=generator)

    def plain(name: str) -> Callable[[Tensor, Tensor], Tensor]:
        def compute(x: Tensor, y: Tensor) -> Tensor:
            p, q = x.softmax(-1), y.softmax(-1)
            return {
                "loss": torch.nn.functional.cross_entropy(x, labels, reduction="none"),
                "entropy": torch.special.entr(p).sum(-1),
                "shift": (p * (p / q).log()).sum(-1),
                "confidence": p.max(-1).values,
            }[name]

        return compute

    for name in ("loss", "entropy", "shift", "confidence"):

        def measure(x: Tensor, y: Tensor, name: str = name) -> Tensor:
            return getattr(read_outputs(x, y, labels, vocab_size=VOCAB), name)

        check_rounding(measure, plain(name), logits, before)
    near = read_outputs(logits.bfloat16(), before.bfloat16(), labels, vocab_size=VOCAB)
    assert near.loss.dtype == torch.float32


def test_exits_are_at_the_first_loop_where_the_rule_holds(generator) -> None:
    loops, tokens = 4, 60
    confidence = torch.rand(loops, tokens, generator=generator)
    shift = torch.rand(loops, tokens, generator=generator)
    shift[0] = torch.nan
    losses = torch.rand(loops, tokens, generator=generator)
    predictions = torch.randint(2, (loops, tokens), generator=generator)
    sure, settled = exit_loops(confidence, 0.6), exit_loops_kl(shift, 0.3)
    for t in range(tokens):
        by_sure = [r for r in range(1, 5) if confidence[r - 1, t] >= 0.6]
        by_shift = [r for r in range(2, 5) if shift[r - 1, t] <= 0.3]
        assert sure[t].item() == min([*by_sure, 4])
        assert settled[t].item() == min([*by_shift, 4])
    found = exit_values(sure, losses, predictions)
    for t, r in enumerate(sure.tolist()):
        assert found.loss[t] == losses[r - 1, t] and found.loops[t] == r
        assert found.agrees[t].item() == bool(predictions[r - 1, t] == predictions[3, t])
    assert exit_loops_kl(shift[:1], 0.3).eq(1).all()  # one loop, which is the last
    assert exit_loops(confidence, 2.0).eq(4).all()


def test_the_largest_shift_of_a_token_is_at_one_loop(generator) -> None:
    shift = torch.rand(3, 30, generator=generator)
    shift[:, 4] = 0.5
    found = is_largest(shift)
    assert found.sum(0).eq(1).all() and found[0, 4]
    for t in set(range(30)) - {4}:
        assert found[:, t].tolist() == [
            x == max(shift[:, t].tolist()) for x in shift[:, t].tolist()
        ]
