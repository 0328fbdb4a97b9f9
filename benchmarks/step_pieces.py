"""What each CUDA kernel brings inside a training step at the width of the 7B model.

    python benchmarks/step_pieces.py                     # R=2 L=4, bf16
    python benchmarks/step_pieces.py --shape "R=4 L=2" --precision fp8_tensorwise

The step is that of `benchmarks/step.py`. The last row leaves out the gate's norm and product,
forward and backward: it is what is left to gain there, and no model to train.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import step

Variant = tuple[str, Callable[[Any], None]]
"""`model.kernels`, and what is changed in the network."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shapes = [name for name, (loops, _) in step.OURS.items() if loops > 1]
    parser.add_argument("--shape", choices=shapes, default="R=2 L=4")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    from loopcoder.parallel import mcore

    loops, layers = step.OURS[arguments.shape]
    ranks = step.start_alone()

    def measure(name: str) -> float:
        kernels, adjust = VARIANTS[name]
        override = f"model.kernels={kernels}"
        row = step.report(
            name,
            lambda: step.looped(
                loops, layers, arguments.precision, False, ranks, override, adjust=adjust
            ),
        )
        return row["step_ms"]

    rounds = [{name: measure(name) for name in VARIANTS} for _ in range(arguments.rounds)]
    mcore.shutdown()
    print(f"| {arguments.shape}, {arguments.precision} | step | against stock | range |")
    print("| --- | --- | --- | --- |")
    for name in VARIANTS:
        gains = [r["stock"] - r[name] for r in rounds]
        print(
            f"| {name} | {statistics.median(r[name] for r in rounds):.1f} ms "
            f"| {statistics.median(gains):+.2f} ms | {min(gains):+.2f} to {max(gains):+.2f} ms |"
        )


def only(loop_input: bool = False, attention: bool = False, gate: bool = False) -> Variant:
    """Return the variant that has some of the kernels."""

    def adjust(network: Any) -> None:
        network.uses_cuda_kernels = loop_input
        for layer in network.decoder.layers:
            layer.self_attention.uses_cuda_kernels = attention
            layer.self_attention.plt_gate.uses_cuda_kernels = gate

    return "cuda", adjust


def without_logits(network: Any) -> None:
    for layer in network.decoder.layers:
        gate = layer.self_attention.plt_gate

        def logits(_: Any, query: Any, gate: Any = gate) -> Any:
            # depends on the gate's weights, which must get a gradient
            value = (gate.bias + gate.weight.sum() + gate.gate_norm.weight.sum()) * 0
            return value.expand(query.shape[:3]).contiguous()

        gate.forward = logits


VARIANTS: dict[str, Variant] = {
    "stock": ("stock", lambda network: None),
    "gated attention": only(attention=True),
    "loop input": only(loop_input=True),
    "gate's logits": only(gate=True),
    "all": ("cuda", lambda network: None),
    "all, logits for nothing": ("cuda", without_logits),
}


if __name__ == "__main__":
    main()
