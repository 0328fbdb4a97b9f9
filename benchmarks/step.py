"""One training step at the width of the 7B model: looped models against plain megatron-core.

    python benchmarks/step.py                                  # every row, three rounds
    python benchmarks/step.py --precision bf16 --rounds 1

R loops over L layers do the FLOPs of a dense model of R*L layers, so each (R, L) is held against
megatron-core's own GPTModel of R*L layers: its Transformer Engine layers, its distributed optimizer
with Transformer Engine's Adam, its schedule and every fusion it has. One sequence of 8192 tokens a
step, vocabulary 76,800, one document; the row `packed` holds documents of mean length 1024 against
one document. Processes of ours and of the baseline alternate. A figure is the median of the steps
of a process, then of the rounds; the range of a ratio is that over the rounds.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

OURS = {"R=1 L=4": (1, 4), "R=2 L=2": (2, 2), "R=2 L=4": (2, 4), "R=4 L=2": (4, 2)}
PACKED = "R=2 L=4 packed"
VOCAB, SEQ, MEAN_DOCUMENT = 76800, 8192, 1024
WARM_UP, STEPS = 4, 20
MCORE_FP8 = {
    "fp8_tensorwise": dict(fp8="hybrid", fp8_recipe="tensorwise"),
    "fp8_blockwise": dict(fp8="e4m3", fp8_recipe="blockwise"),
}
Step = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp8_tensorwise"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[*OURS, PACKED])
    parser.add_argument("--side", choices=("ours", "dense"), help="internal: run one process")
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments)
    else:
        print_table(arguments, [measure(arguments) for _ in range(arguments.rounds)])


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Run one process of ours, then one of the baseline."""
    out: dict[str, dict[str, float]] = {}
    for side in ("ours", "dense"):
        command = [sys.executable, __file__, "--side", side]
        command += ["--precision", *arguments.precision, "--only", *arguments.only]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                print(line, file=sys.stderr, flush=True)
                row = json.loads(line)
                out[row["name"]] = row
    return out


def print_table(arguments: argparse.Namespace, rounds: list[dict[str, Any]]) -> None:
    print("| precision | ours | step | dense | step | ratio | ours, memory | dense, memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for precision in arguments.precision:
        for name in arguments.only:
            loops, layers = OURS.get(name, (2, 4))
            ours, dense = f"{precision} {name}", f"{precision} dense {loops * layers}"
            if name == PACKED:
                dense = f"{precision} R=2 L=4"
            times = {n: statistics.median(r[n]["step_ms"] for r in rounds) for n in (ours, dense)}
            spread = [r[dense]["step_ms"] / r[ours]["step_ms"] for r in rounds]
            print(
                f"| {precision} | {name} | {times[ours]:.1f} ms | {dense.removeprefix(precision)} "
                f"| {times[dense]:.1f} ms | {times[dense] / times[ours]:.3f} "
                f"({min(spread):.3f} to {max(spread):.3f}) "
                f"| {rounds[0][ours]['memory_gib']:.1f} GiB "
                f"| {rounds[0][dense]['memory_gib']:.1f} GiB |"
            )


def start_alone() -> Any:
    """Start a process group of this process alone; return its ranks."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from loopcoder.config.schema import ParallelConfig
    from loopcoder.parallel import mcore

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    mcore.start_processes()
    return mcore.initialise(ParallelConfig(), seed=1)


def run_side(arguments: argparse.Namespace) -> None:
    from loopcoder.parallel import mcore

    ranks = start_alone()
    shapes = {name: OURS.get(name, (2, 4)) for name in arguments.only}
    for precision in arguments.precision:
        if arguments.side == "ours":
            for name, (loops, layers) in shapes.items():
                report(
                    f"{precision} {name}",
                    lambda r=loops, n=layers, p=precision, packed=name == PACKED: looped(
                        r, n, p, packed, ranks
                    ),
                )
        else:
            for depth in sorted({loops * layers for loops, layers in shapes.values()}):
                report(
                    f"{precision} dense {depth}", lambda n=depth, p=precision: dense(n, p, ranks)
                )
    mcore.shutdown()


def report(name: str, build: Callable[[], Step]) -> dict[str, Any]:
    """Time a step, print a line of JSON and return what it says."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    step = build()
    for _ in range(WARM_UP):
        step()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(STEPS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        loss = step()
        mark.record()
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    row = {
        "name": name,
        "step_ms": round(statistics.median(times), 2),
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "loss": round(float(loss), 3),
    }
    print(json.dumps(row), flush=True)
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return row


def looped(
    loops: int,
    layers: int,
    precision: str,
    packed: bool,
    ranks: Any,
    *overrides: str,
    adjust: Callable[[Any], None] = lambda network: None,
) -> Step:
    """Build the step of the package's own train loop; `adjust` may change the network first."""
    import torch

    from loopcoder.backends import detect
    from loopcoder.config.compose import compose
    from loopcoder.config.resolve import resolve
    from loopcoder.data.batch import make_batch
    from loopcoder.optim.optimizer import update
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    config = resolve(
        compose(
            [
                "model=plt_7b",
                f"model.num_loops={loops}",
                f"model.num_layers={layers}",
                f"model.vocab_size={VOCAB}",
                f"precision={precision}",
                *overrides,
            ]
        ),
        detect(),
    )
    state = build_state(config, ranks, VOCAB)
    adjust(state.network)
    ids = torch.randint(1, VOCAB, (1, SEQ + 1), generator=torch.Generator().manual_seed(1))
    if packed:
        ids[
            torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 1 / MEAN_DOCUMENT
        ] = 0
    one = torch.zeros(1, dtype=torch.long)
    batch = make_batch(ids, one, one, 0, isolate_documents=packed).pin()

    def step() -> Any:
        sums = forward_backward(state, [batch], 1)
        update(state.optimizer, config.optim, 1e-4, sums[1].sum())
        return sums[0].sum() / sums[1].sum()

    return step


def dense(layers: int, precision: str, ranks: Any) -> Step:
    """Build the step of megatron-core's own dense model."""
    import torch
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining
    from megatron.core.transformer.transformer_config import TransformerConfig

    from loopcoder.ops import weight_gradient

    weight_gradient.provide()
    config = TransformerConfig(
        num_layers=layers,
        hidden_size=5120,
        ffn_hidden_size=27648,
        num_attention_heads=40,
        num_query_groups=8,
        kv_channels=128,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        gradient_accumulation_fusion=True,
        bias_activation_fusion=True,
        cross_entropy_loss_fusion=True,
        cross_entropy_fusion_impl="te",
        apply_rope_fusion=True,
        **MCORE_FP8.get(precision, {}),
    )
    model = GPTModel(
        config,
        get_gpt_layer_with_transformer_engine_spec(),
        VOCAB,
        SEQ,
        position_embedding_type="rope",
        rotary_base=500000,
        share_embeddings_and_output_weights=False,
    ).cuda()
    ddp = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True),
        model,
    )
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=1e-4,
            weight_decay=0.1,
            clip_grad=1.0,
            bf16=True,
            params_dtype=torch.bfloat16,
            use_distributed_optimizer=True,
        ),
        [ddp],
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    generator = torch.Generator(device="cuda").manual_seed(1)
    ids = torch.randint(1, VOCAB, (1, SEQ + 1), generator=generator, device="cuda")
    positions = torch.arange(SEQ, device="cuda")[None]

    def forward(_: Any, network: Any) -> Any:
        loss = network(ids[:, :-1], positions, None, labels=ids[:, 1:])
        return loss, lambda x: (x.mean(), {"loss": x.detach().mean()})

    def step() -> Any:
        ddp.zero_grad_buffer()
        optimizer.zero_grad()
        reports = forward_backward_no_pipelining(
            forward_step_func=forward,
            data_iterator=None,
            model=ddp,
            num_microbatches=1,
            seq_length=SEQ,
            micro_batch_size=1,
        )
        optimizer.step()
        return reports[0]["loss"]

    return step


if __name__ == "__main__":
    main()
