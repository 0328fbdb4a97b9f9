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
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(int(sys.argv[1]))
