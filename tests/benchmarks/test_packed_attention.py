"""Attention over packed documents: what is drawn, what counts as right, and what a CPU can run."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loopcoder.model.documents import Documents

CPU = torch.device("cpu")


def case_of(mean: int | None = 9) -> Any:
    from packed_documents import SHAPES, draw_case

    return draw_case(SHAPES["tiny"], mean, CPU)


def start_of(borders: Tensor, rows: int, length: int) -> Tensor:
    """Return the first token, in its row, of each position's document. [rows, length]"""
    start = torch.zeros(rows * length, dtype=torch.int64)
    for begin, end in pairwise(borders.tolist()):
        start[begin:end] = begin % length
    return start.view(rows, length)


def masked(case: Any, draw: int, dtype: torch.dtype) -> list[Tensor]:
    """Output, dq, dk and dv by one masked attention over all rows, rows end to end."""
    shape = case.shape
    mask = Documents.packed(start_of(case.borders[draw], shape.rows, shape.length)).causal_mask
    q, k, v, d_out = (
        x.to(dtype).view(shape.rows, shape.length, *x.shape[1:]).transpose(1, 2)
        for x in case.tensors
    )
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = F.scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True)
    found = [out, *torch.autograd.grad(out, inputs, d_out)]
    return [x.transpose(1, 2).flatten(0, 1) for x in found]


def test_documents_end_with_their_row() -> None:
    from packed_documents import SHAPES, draw_borders

    shape = SHAPES["91M"]
    seed = torch.Generator().manual_seed(5)
    borders = draw_borders(shape, 256, seed)
    assert borders.dtype == torch.int32 and borders[0] == 0 and borders[-1] == shape.tokens
    lengths = borders.diff()
    assert lengths.min() >= 1 and lengths.max() <= shape.length
    assert set(range(0, shape.tokens, shape.length)) <= set(borders.tolist())
    # a row is one document more than the borders that fall into it
    expected = shape.rows * (1 + (shape.length - 1) / 256)
    assert len(lengths) == pytest.approx(expected, rel=0.3)
    assert torch.equal(borders, draw_borders(shape, 256, torch.Generator().manual_seed(5)))
    whole = draw_borders(shape, None, seed)
    assert whole.tolist() == list(range(0, shape.tokens + 1, shape.length))


def test_every_process_draws_the_same() -> None:
    first, second = case_of(), case_of()
    for one, other in zip(first.tensors, second.tensors, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(first.borders, second.borders, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.borders[0], first.borders[1])


def test_padded_borders_end_with_empty_documents() -> None:
    from packed_documents import padded

    borders = torch.tensor([0, 3, 8], dtype=torch.int32)
    assert padded(borders, 5).tolist() == [0, 3, 8, 8, 8, 8]
    assert padded(borders, 2).tolist() == [0, 3, 8]


def test_the_reference_is_a_masked_attention() -> None:
    from packed_documents import plain

    case = case_of()
    expected = masked(case, 0, torch.float64)
    for begin, end in pairwise(case.borders[0].tolist()):
        found = plain(*(x[begin:end] for x in case.tensors), torch.float64)
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want[begin:end])


def test_what_counts_as_right() -> None:
    from packed_documents import NAMES, checked, some_documents

    case = case_of()
    right = masked(case, 0, torch.float64)
    assert set(checked(case, 0, right)) == set(NAMES)
    checked(case, 0, [x.bfloat16() for x in right])

    borders = case.borders[0].clone()
    begin, end = max(some_documents(borders), key=lambda d: d[1] - d[0])
    case.borders[0][borders == begin] += 1  # the longest document begins a token late
    late = masked(case, 0, torch.float64)
    case.borders[0][:] = borders
    with pytest.raises(ArithmeticError, match="wrong in draw 0: output"):
        checked(case, 0, late)

    for place, name in enumerate(NAMES):
        wrong = [x.clone() for x in right]
        wrong[place][end - 1, -1] *= 0.5  # one row of one tensor
        wrong[place][end - 1, -1] += 0.5
        with pytest.raises(ArithmeticError, match=f"draw 0: {name} [^,]*$"):
            checked(case, 0, wrong)
        wrong[place] = right[place].clone()
        wrong[place][0, 0, 0] = torch.nan
        with pytest.raises(ArithmeticError, match=f"{name} inf"):
            checked(case, 0, wrong)


def test_some_documents_have_the_extremes() -> None:
    from packed_documents import CHECKED, some_documents

    lengths = torch.randint(5, 50, (40,))
    lengths[17], lengths[23] = 90, 1
    borders = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    chosen = some_documents(borders)
    assert len(chosen) == CHECKED
    ends = borders.tolist()
    for number in (0, 17, 23, 39):
        assert (ends[number], ends[number + 1]) in chosen
    assert some_documents(torch.tensor([0, 4])) == [(0, 4)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attends_within_documents_of_the_newest_batch() -> None:
    from packed_candidates import Flex
    from packed_documents import padded

    case = case_of()
    room = Flex.room(max(len(b) - 1 for b in case.borders))
    flex = Flex(case.shape, room, CPU)
    mask = flex.block_mask
    inputs = [flex.laid_out(x.float()) for x in (case.q, case.k, case.v)]
    for draw in (0, 1):
        flex.fill(padded(case.borders[draw], room))
        assert flex.block_mask is mask
        out = flex.end_to_end(flex.attend(*inputs))
        torch.testing.assert_close(out, masked(case, draw, torch.float32)[0])


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans without a GPU or the package: nothing is built, and nothing runs."""
    import packed_cudnn

    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace(create_handle=lambda: 0))
    monkeypatch.setattr(packed_cudnn.Plans, "_forward", lambda self: "forward")
    monkeypatch.setattr(packed_cudnn.Plans, "_backward", lambda self: "backward")


@pytest.mark.parametrize("name", ["cudnn", "cudnn8", "cudnn2"])
def test_cudnn_is_told_of_every_document_once(name: str, cudnn: None) -> None:
    from packed_candidates import CANDIDATES
    from packed_documents import padded

    case, kind = case_of(), CANDIDATES[name]
    shape, count = case.shape, max(len(b) - 1 for b in case.borders)
    candidate: Any = kind(shape, kind.room(count), CPU)
    assert len(candidate.plans) == (2 if name == "cudnn2" else 1)
    for draw in (0, 1):
        borders = padded(case.borders[draw], kind.room(count))
        candidate.fill(borders)
        told = []
        for plans in candidate.plans:
            places = plans.places
            assert places["lengths"].dtype == torch.int32 and places["at_q"].dtype == torch.int64
            assert len(places["lengths"]) == plans.count == len(places["at_q"]) - 1
            assert (places["at_q"].diff() >= 0).all()
            for number in places["lengths"].nonzero().flatten().tolist():
                length = int(places["lengths"][number])
                assert plans.shortest <= length <= plans.longest
                begin, rest = divmod(int(places["at_lse"][number]), shape.heads)
                assert rest == 0
                for at, x in (("at_q", case.q), ("at_k", case.k)):
                    place = int(places[at][number])
                    document = x.flatten()[place : place + length * x[0].numel()]
                    assert torch.equal(document.view(-1, *x.shape[1:]), x[begin : begin + length])
                told.append((begin, begin + length))
        assert sorted(told) == list(pairwise(case.borders[draw].tolist()))


def test_long_documents_have_room_however_they_are_drawn(cudnn: None) -> None:
    from packed_candidates import CuDNN2, CuDNN8
    from packed_documents import SHAPES

    shape = SHAPES["7B"]
    assert CuDNN2.parts(shape, 32) == [(32, 1, 1024), (7, 1025, 8192)]
    assert CuDNN2.parts(SHAPES["91M"], 128) == [(128, 1, 128), (128, 129, 1024)]
    candidate = CuDNN2(shape, 32, CPU)
    longest = torch.tensor([0, *range(1025, 7 * 1025 + 1, 1025), 8192]).int()
    candidate.fill(torch.cat([longest, longest[-1:].expand(33 - len(longest))]))
    short, long = (plans.places["lengths"].tolist() for plans in candidate.plans)
    assert long == [1025] * 7 and [x for x in short if x] == [8192 - 7 * 1025]
    assert [CuDNN8.room(n) for n in (1, 8, 9, 150)] == [8, 8, 16, 152]


def test_tensors_that_cudnn_writes_are_those_that_autograd_returns() -> None:
    from packed_cudnn import PackedAttention

    case = case_of()
    expected = masked(case, 0, torch.bfloat16)
    half = case.shape.tokens // 2

    class Part:
        """Stands for plans of the documents in a half of the tokens."""

        forward, backward = "forward", "backward"

        def __init__(self, mine: slice):
            self.mine = mine

        def run(self, plan: str, **memory: Tensor) -> None:
            if plan == "forward":
                assert memory["lse"].shape == case.q.shape[:2]
                memory["o"][self.mine] = expected[0][self.mine]
                return
            assert torch.equal(memory["o"], expected[0])
            assert memory["d_o"].is_contiguous() and torch.equal(memory["d_o"], case.d_out)
            for name, gradient in zip(("d_q", "d_k", "d_v"), expected[1:], strict=True):
                memory[name][self.mine] = gradient[self.mine]

    inputs = [x.clone().requires_grad_() for x in (case.q, case.k, case.v)]
    parts = [Part(slice(half, None)), Part(slice(half))]
    out = PackedAttention.apply(parts, *inputs)
    found = [out, *torch.autograd.grad(out, inputs, case.d_out)]
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got, want)


def test_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a CPU, in a process of its own: PyTorch's attention is right, and timed."""
    import packed_attention

    out = tmp_path / "rows.jsonl"
    options = f"--only apart --shapes tiny --means 9 --calls 2 --json {out}"
    assert packed_attention.main(options.split()) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["candidate"], row["shape"], row["mean"]) == ("apart", "tiny", 9)
    assert row["documents"] == len(case_of().borders[0]) - 1 and row["room"] == 32
    assert min(row["eager_ms"]) > 0 and set(row["errors"]) == {"output", "dq", "dk", "dv"}
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3 and table[2].startswith("| 3 x 32, 4/2 of 16 | 9 | ")


def test_what_cannot_run_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    import packed_attention

    if torch.cuda.is_available():
        pytest.skip("nothing is left out for want of a GPU")
    assert packed_attention.main(["--only", "fa3", "flex", "--shapes", "tiny"]) == 1
    said = capsys.readouterr().err
    assert "fa3: left out, there is no module flash_attn_interface: build" in said
    assert "flex: left out, it needs a GPU" in said


def test_a_candidate_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import packed_attention
    from packed_candidates import Apart

    attend = Apart.attend

    def failing(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(self.lengths) == self.shape.rows:
            raise RuntimeError("no plan\nfor this")
        out = attend(self, q, k, v)
        return out + 0.1 if len(self.lengths) == 96 else out

    monkeypatch.setattr(Apart, "attend", failing)
    given = packed_attention.argparse.Namespace(
        candidate="apart", shapes=["tiny"], means=[10**6, 1, 9], calls=1, seconds=60.0
    )
    raised, wrong, right = packed_attention.measure(given)
    assert raised["failed"] == "RuntimeError: no plan for this"
    assert wrong["failed"].startswith("ArithmeticError: wrong in draw 0: output ")
    assert "failed" not in right and right["eager_ms"]
    given.seconds = 0.0
    assert list(packed_attention.measure(given)) == []


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    import packed_attention

    times = {"batch_ms": 0.02, "eager_ms": [0.5, 1.0], "graph_ms": [0.2, 0.4]}
    rows: list[dict[str, Any]] = [
        {"candidate": "te", "shape": "91M", "mean": 256, "documents": 160}
        | {"batch_ms": 0.01, "eager_ms": [1.0, 3.0], "graph_ms": [0.5, 1.0]},
        {"candidate": "flex", "shape": "91M", "mean": 256, "documents": 160}
        | {"batch_ms": 0.4, "eager_ms": [0.4, 1.5], "not_captured": "RuntimeError: no"},
        {"candidate": "rows", "shape": "91M", "mean": None, "documents": 32} | times,
        {"candidate": "cudnn", "shape": None, "failed": "its process ended with -6"},
    ]
    packed_attention.print_table(rows)
    what = "| 32 x 1024, 6 of 128 |"
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"{what} row | 32 | rows | 0.200 ms, **1.00** | 0.400 ms, **1.00** | 0.020 ms | graph |",
        f"{what} 256 | 160 | te | 0.500 ms, **2.50** | 1.000 ms, **2.50** | 0.010 ms | graph |",
        f"{what} 256 | 160 | flex | 0.400 ms, **0.80** | 1.500 ms, **1.50** | 0.400 ms | eager |",
        "|  | row |  | cudnn | failed: its process ended with -6 | | | |",
    ]
