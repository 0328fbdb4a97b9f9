"""What `packed_attention.py` attends over, and when an attention is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    rows: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        return f"{self.rows} x {self.length}, {heads} of {self.head_dim}"


SHAPES = {
    "tiny": Shape(3, 32, 4, 2, 16),
    "14M": Shape(32, 1024, 3, 3, 128),
    "91M": Shape(32, 1024, 6, 6, 128),
    "91M-2048": Shape(16, 2048, 6, 6, 128),
    "91M-8192": Shape(4, 8192, 6, 6, 128),
    "6x64": Shape(32, 1024, 6, 6, 64),
    "12x64": Shape(32, 1024, 12, 12, 64),
    "7B": Shape(1, 8192, 40, 8, 128),
}
"""14M and 91M have the heads of `small_gpu.py`, 7B those of the released model; 6x64 and 12x64
have their widths with the smaller heads that are usual there. `tiny` is for tests."""
CHECKED = 6
"""Documents of a draw that are compared with float64."""
FLOOR = 2.0**-8
"""Rounding to bf16, of a row whose size is the root of the mean square of all."""
NAMES = ("output", "dq", "dk", "dv")


@dataclass
class Case:
    """Tensors of a shape with rows end to end, and two draws of documents over them."""

    shape: Shape
    borders: list[Tensor]
    """Of each draw, from 0 to the number of tokens: int32 [documents + 1], on the CPU."""
    q: Tensor
    """[tokens, heads, head_dim]; k and v [tokens, kv_heads, head_dim]."""
    k: Tensor
    v: Tensor
    d_out: Tensor
    """Gradient of the output, like q."""

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v, self.d_out


def draw_case(shape: Shape, mean: int | None, device: torch.device) -> Case:
    """Draw a case, the same one in each process. Args: mean: tokens; None: rows are documents."""
    generator = torch.Generator().manual_seed(1)
    borders = [draw_borders(shape, mean, generator) for _ in range(2)]
    numbers = torch.Generator(device).manual_seed(1)
    q, k, v, d_out = (
        torch.randn(
            *(shape.tokens, heads, shape.head_dim),
            generator=numbers,
            device=device,
            dtype=torch.bfloat16,
        )
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
    )
    return Case(shape, borders, q, k, v, d_out)


def draw_borders(shape: Shape, mean: int | None, generator: torch.Generator) -> Tensor:
    """Return where documents begin over rows end to end, and where the last ends; int32."""
    begins = torch.zeros(shape.rows, shape.length, dtype=torch.bool)
    if mean is not None:
        begins = torch.rand(begins.shape, generator=generator) < 1 / mean
    begins[:, 0] = True
    first = begins.flatten().nonzero().flatten()
    return torch.cat([first, first.new_tensor([shape.tokens])]).to(torch.int32)


def padded(borders: Tensor, room: int) -> Tensor:
    """Return borders with empty documents at the end. [room + 1]"""
    return torch.cat([borders, borders[-1:].expand(room + 1 - len(borders))])


def plain(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Attend within one document, and backwards, by matrix products in `dtype`.

    Args:
        q, d_out: [L, heads, head_dim]
        k, v: [L, kv_heads, head_dim]

    Returns:
        output, dq, dk and dv, of the shapes of q, q, k and v
    """
    length, kv_heads = k.shape[:2]
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    found: list[list[Tensor]] = [[], [], [], []]
    for number in range(kv_heads):  # one at a time: a long document's scores are large
        group = q.shape[1] // kv_heads
        mine = slice(number * group, (number + 1) * group)
        inputs = [
            x.detach().to(dtype).requires_grad_() for x in (q[:, mine], k[:, number], v[:, number])
        ]
        scores = torch.einsum("qhd,kd->hqk", inputs[0], inputs[1]) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        out = torch.einsum("hqk,kd->qhd", weights, inputs[2])
        d_q, d_k, d_v = torch.autograd.grad(out, inputs, d_out[:, mine].to(dtype))
        for parts, part in zip(found, (out, d_q, d_k[:, None], d_v[:, None]), strict=True):
            parts.append(part.detach())
    return [torch.cat(parts, 1) for parts in found]


def worst_errors(case: Case, draw: int, found: Sequence[Tensor]) -> dict[str, tuple[float, float]]:
    """Return the largest error of a row of some documents, and what is allowed.

    A row is what one token has in one head. Both numbers are parts of the root mean square size of
    a row. What is not finite anywhere is an infinite error.

    Args:
        found: output, dq, dk and dv over all tokens, rows end to end.
    """
    exact, own, got = ([[] for _ in NAMES] for _ in range(3))  # type: ignore[var-annotated]
    for begin, end in some_documents(case.borders[draw]):
        inputs = [x[begin:end] for x in case.tensors]
        for kept, dtype in ((exact, torch.float64), (own, torch.bfloat16)):
            for parts, part in zip(kept, plain(*inputs, dtype), strict=True):
                parts.append(part)
        for parts, tensor in zip(got, found, strict=True):
            parts.append(tensor.detach()[begin:end])
    errors = {}
    for name, tensor, *parts in zip(NAMES, found, exact, own, got, strict=True):
        right, plainly, here = (torch.cat(x).double() for x in parts)
        size = right.norm(dim=-1).square().mean().sqrt()
        error = (here - right).norm(dim=-1).max() / size
        allowed = 2 * (plainly - right).norm(dim=-1).max() / size + FLOOR
        finite = bool(tensor.isfinite().all())
        errors[name] = (float(error) if finite else math.inf, float(allowed))
    return errors


def some_documents(borders: Tensor) -> list[tuple[int, int]]:
    """Return begin and end of the first, the last, the longest, the shortest and some others."""
    lengths = borders.diff()
    count = len(lengths)
    chosen = {0, count - 1, int(lengths.argmax()), int(lengths.argmin())}
    others = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
    for other in others:
        if len(chosen) < CHECKED:
            chosen.add(other)
    return [(int(borders[i]), int(borders[i + 1])) for i in sorted(chosen)]


def checked(case: Case, draw: int, found: Sequence[Tensor]) -> dict[str, float]:
    """Return the errors. Raises ArithmeticError where one is larger than allowed."""
    errors = worst_errors(case, draw, found)
    wrong = [
        f"{name} {error:.4f} of {allowed:.4f}"
        for name, (error, allowed) in errors.items()
        if not error <= allowed
    ]
    if wrong:
        raise ArithmeticError(f"wrong in draw {draw}: {', '.join(wrong)}")
    return {name: round(error, 5) for name, (error, _) in errors.items()}
