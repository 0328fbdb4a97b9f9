"""Runs every kernel on shapes that leave tiles half empty; for compute-sanitizer, see
test_sanitizer.py.

All inputs are made on the CPU and copied: the sanitizer watches our kernels only, and takes what
PyTorch's kernels write for memory that nobody has written.
"""

import random
import sys

import torch

from loopcoder.ops import kernels


def main(seed: int) -> None:
    kernels.load()
    ops, rng = torch.ops.loopcoder, random.Random(seed)
    torch.manual_seed(seed)
    for d, window, many in (
        (64, 64, False),
        (128, 64, False),
        (128, 5, False),
        (64, 200, False),
        (128, 256, False),
        # A chain of tiles for every multiprocessor of an H100 or H200: then a block of the Hopper
        # kernel walks through all five tiles, and its ring of keys and its stages wrap.
        (128, 64, True),
    ):
        seq, batch, kv_heads = rng.randrange(65, 300), rng.choice([1, 2]), rng.choice([1, 2])
        if many:
            seq, batch, kv_heads = 300, 66, 2
        group = 1 if many else 3
        dtype = rng.choice([torch.bfloat16, torch.float16])

        def draw(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(*shape).to("cuda", dtype)

        q, other, d_out, d_q = (draw(seq, batch, group * kv_heads, d) for _ in range(4))
        k, v = (draw(seq, batch, kv_heads, d) for _ in range(2))
        gate = draw(seq, batch, group * kv_heads)
        first = torch.rand(batch, seq) < 0.05
        start = torch.where(first, torch.arange(seq), 0).cummax(1).values.cuda()
        _, lse = ops.gated_window_forward(q, k, v, gate, other, start, window, d**-0.5)
        _, dot = ops.gated_window_prepare(d_out, gate, other)
        for portable in (False, True):
            inputs = (d_out, q, k, v, gate, dot, lse, start, window, d**-0.5, d_q)
            ops.gated_window_backward(*inputs, portable)
        e, h, before = draw(seq, batch, 8 * d), draw(seq, batch, 8 * d), draw(1, batch, 8 * d)
        ops.loop_input_forward(e, h, before, first.cuda().T, 0.7, 0.1)
        ops.loop_input_backward(e, first.cuda().T, 0.7, 0.1, True)
        heads, width = rng.choice([3, 40, 70]), 2 * d
        h, d_logits = draw(seq, batch, width), draw(seq, batch, heads)
        weight, norm, bias = draw(heads, width), draw(width), draw(heads)
        folded = (weight.cpu() * norm.cpu()).cuda()
        _, raw, rms = ops.gate_logits_forward(h, folded, bias, 1e-5)
        ops.gate_logits_backward(d_logits, raw, rms, h, folded, weight, norm)
    for d, loops in ((64, 1), (128, 2), (128, 4)):
        decode_kernels(rng, d, loops)
    torch.cuda.synchronize()


def decode_kernels(rng: random.Random, d: int, loops: int) -> None:
    """Products with one part of x and with several, and lengths that leave splits empty."""
    ops, batch = torch.ops.loopcoder, rng.choice([1, 3])

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to("cuda", torch.bfloat16)

    for rows in (1, 5, 8):
        width = 8 * rng.randrange(40, 1200)
        x, norm, columns = draw(rows, width), draw(width), rng.randrange(1, 3000)
        for swiglu in (False, True):
            weight, added = draw(columns * (1 + swiglu), width), draw(rows, columns)
            ops.decode_linear(x, weight, norm, 1e-5, swiglu, added, not swiglu)
    kept = [draw(4, 2, 300, d) for _ in range(2)]
    rings = [draw(4, loops - 1, 2, 65, d) for _ in range(2)] if loops > 1 else [None, None]
    places, positions = torch.arange(batch).cuda(), torch.randint(300, (batch,)).cuda()
    cos, sin = (torch.rand(batch, d).cuda() for _ in range(2))
    tokens = (*kept, *rings, places, positions)
    q = ops.decode_rotate(draw(batch, loops, (6 + 4) * d), cos, sin, *tokens)
    gate = draw(batch, loops - 1, 6) if loops > 1 else None
    ops.decode_attention(q, *tokens, gate, d**-0.5)


if __name__ == "__main__":
    main(int(sys.argv[1]))
