"""Milliseconds per token of decoding, beside the bytes that a token has to read.

    python benchmarks/decode.py
    python benchmarks/decode.py --batches 1 --loops 1 2 --products      # also each matrix product
    python benchmarks/decode.py --no-baseline --json decode.json

The released 7B shape with random weights in bf16, 2,048 tokens in the cache of each sequence.
`cuda` is our decoder with its kernels, `stock` the same in plain PyTorch, both as CUDA graphs;
`in turn` is `stock` with the loops one after the other, which reads the weights once for each of
them. The baseline is a Llama of the same shape, one loop, in transformers: static cache, compiled.

Bytes are those of the weights but for the embedding, and of the cache as far as it is filled. The
share of the peak is against the memory's rate in the data sheet, that of the copy against
copying 2 GiB in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from loopcoder.config.compose import compose
from loopcoder.config.schema import ModelConfig
from loopcoder.errors import InputError
from loopcoder.hf.mapping import released_names, released_shapes
from loopcoder.infer.cache import cache_bytes
from loopcoder.infer.decoder import Decoder
from loopcoder.infer.weights import ModelWeights, build_weights
from loopcoder.ops import decode

PEAKS = {"H200": 4.8e12, "H100 NVL": 3.9e12, "H100": 3.35e12, "A100": 2.04e12}
"""Bytes per second, by what a device's name contains."""
CONTEXT, STEPS, ROUNDS, WARM_UP = 2048, 64, 4, 8
BF16 = torch.bfloat16


@dataclasses.dataclass
class Row:
    """A line of the table."""

    variant: str
    num_loops: int
    batch: int
    ms: float
    """Per step: a token of each sequence."""
    quartiles: tuple[float, float]
    bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--loops", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--variants", nargs="+", default=["cuda", "stock", "in turn"])
    parser.add_argument("--products", action="store_true", help="also each matrix product")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--json", help="file to write to")
    arguments = parser.parse_args()

    model = dataclasses.replace(compose(["model=plt_7b"]).model, num_loops=max(arguments.loops))
    name = torch.cuda.get_device_name()
    peak = next((rate for part, rate in PEAKS.items() if part in name), None)
    copy = copy_rate()
    print(f"{name}, peak {_rate(peak)}, copy {_rate(copy)}, torch {torch.__version__}\n")
    weights = random_weights(model)
    check_memory(weights, model)
    print("| variant | R | batch | GB | ms (quartiles) | of the peak | of the copy | over R=1 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows: list[Row] = []
    for batch in arguments.batches:
        for variant in arguments.variants:
            for loops in arguments.loops:
                if variant != "in turn" or loops > 1:
                    rows.append(measure(weights, model, variant, loops, batch))
                    print_row(rows, peak, copy)
    if arguments.products:
        print_products(weights, peak)
    if not arguments.no_baseline:
        del weights
        rows += baseline(model, arguments.batches[:1], peak, copy)  # each is compiled anew
    if arguments.json:
        about = {"device": name, "peak": peak, "copy": copy, "torch": torch.__version__}
        with open(arguments.json, "w") as file:
            json.dump(about | {"rows": [dataclasses.asdict(row) for row in rows]}, file, indent=1)


def random_weights(model: ModelConfig, device: str = "cuda") -> ModelWeights:
    """Draw all weights; on the device `meta` they only have their sizes."""
    shapes, names = released_shapes(model, model.vocab_size), released_names(model)

    def read(name: str) -> Tensor:
        first, *more = (shapes[theirs] for theirs in names[name])
        shape = (first[0] + sum(other[0] for other in more), *first[1:])
        x = torch.empty(shape, dtype=BF16, device=device)
        if x.is_meta:
            return x
        return x.fill_(1.0) if "norm" in name else x.normal_(0, 0.02)

    return build_weights(read, model, model.vocab_size, torch.device(device), BF16)


def check_memory(weights: ModelWeights, model: ModelConfig) -> None:
    """Compare what caches ask the allocator for with their formula."""

    def requested() -> int:
        return torch.cuda.memory_stats()["requested_bytes.all.current"]

    for places in (1, 16):
        before = requested()
        decoder = Decoder(weights, model, model.vocab_size, num_places=places, max_length=CONTEXT)
        taken, formula = requested() - before, cache_bytes(model, places, CONTEXT, BF16)
        print(
            f"cache of {places} x {CONTEXT} tokens, R={model.num_loops}: {taken} bytes, "
            f"{formula} by the formula"
        )
        assert taken == formula
        del decoder
    print()


def bytes_of_a_step(
    weights: ModelWeights, model: ModelConfig, batch: int, *, in_turn: bool = False
) -> int:
    """Return what a step has to read: weights, and the cache of half the steps that are timed.

    Args:
        in_turn: Each loop reads the layers and what is kept of all tokens; the head is read once,
            as are the rings, of which each loop has its own.
    """
    read = sum(x.nbytes for x in weights.tensors()) - weights.embedding.nbytes
    gates = [x for x in weights.layers if x.gate is not None]
    if model.num_loops == 1:
        for layer in gates:
            read -= sum(x.nbytes for x in vars(layer.gate).values())
    cache = cache_bytes(model, batch, CONTEXT + STEPS // 2, BF16)
    if in_turn:
        once = cache_bytes(model, batch, 0, BF16)
        by_loop = read - weights.head.nbytes + cache - once
        return model.num_loops * by_loop + weights.head.nbytes + once
    return read + cache


def measure(weights: ModelWeights, model: ModelConfig, variant: str, loops: int, batch: int) -> Row:
    of_row = dataclasses.replace(model, num_loops=loops, shift=variant != "in turn")
    decoder = Decoder(
        weights,
        of_row,
        model.vocab_size,
        num_places=batch,
        max_length=CONTEXT + STEPS + WARM_UP,
        kernels="cuda" if variant == "cuda" else "stock",
    )
    for x in (*decoder._cache.full, *decoder._cache.ring, decoder._cache.carry):
        x.normal_()
    places = list(range(batch))
    tokens = torch.randint(model.vocab_size, (batch,), device=decoder.device)

    def step() -> None:
        nonlocal tokens
        tokens = decoder.step(places, tokens).argmax(-1)

    def rewind() -> None:
        decoder.lengths[:] = [CONTEXT] * batch
        decoder._cache.start(places, decoder.lengths)
        for _ in range(WARM_UP):
            step()

    times = timed(step, rewind)
    low, middle, high = statistics.quantiles(times, n=4)
    size = bytes_of_a_step(weights, of_row, batch, in_turn=variant == "in turn")
    return Row(variant, loops, batch, middle, (low, high), size)


def timed(step: Callable[[], None], rewind: Callable[[], None]) -> list[float]:
    """Return the milliseconds between the ends of consecutive steps."""
    times = []
    for _ in range(ROUNDS):
        rewind()
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(STEPS + 1)]
        ends[0].record()
        for end in ends[1:]:
            step()
            end.record()
        torch.cuda.synchronize()
        times += [a.elapsed_time(b) for a, b in itertools.pairwise(ends)]
    return times


def baseline(model: ModelConfig, batches: list[int], peak: float | None, copy: float) -> list[Row]:
    try:
        from transformers import LlamaForCausalLM
    except ImportError as e:
        print(f"\nno baseline: {e}")
        return []
    torch.set_default_dtype(BF16)
    with torch.device("cuda"):
        llama = LlamaForCausalLM(llama_config(model)).eval()
    torch.set_default_dtype(torch.float32)
    one_loop = dataclasses.replace(model, num_loops=1)
    rows: list[Row] = []
    for batch in batches:
        ids = torch.randint(model.vocab_size, (batch, CONTEXT), device="cuda")
        try:
            times = [generated(llama, ids, STEPS) for _ in range(ROUNDS)]
        except Exception as e:  # the compiler's errors are many
            print(
                f"no baseline of batch {batch}: {type(e).__name__}: {str(e)[:200]}", file=sys.stderr
            )
            continue
        low, middle, high = statistics.quantiles(times, n=4)
        read = (
            sum(x.nbytes for x in llama.parameters()) - llama.get_input_embeddings().weight.nbytes
        )
        read += cache_bytes(one_loop, batch, CONTEXT + STEPS // 2, BF16)
        rows.append(Row("transformers", 1, batch, middle, (low, high), read))
        print_row(rows, peak, copy)
    return rows


def llama_config(model: ModelConfig) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_position_embeddings,
        rms_norm_eps=model.norm_eps,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )


def generated(llama: Any, ids: Tensor, steps: int) -> float:
    """Return milliseconds per token of `generate`, which compiles with a static cache: the
    difference of a long and a short run, in which the prompt has no part."""
    import time

    def seconds(new: int) -> float:
        began = time.perf_counter()
        llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            cache_implementation="static",
        )
        if ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    short, long = steps // 4, steps + steps // 4
    seconds(long), seconds(short)  # compiles
    return 1e3 * (seconds(long) - seconds(short)) / (long - short)


def print_products(weights: ModelWeights, peak: float | None) -> None:
    """Print each product by itself: our kernel, and cuBLAS without norm, SwiGLU and sum."""
    layers = weights.layers
    shapes: dict[str, tuple[list[Tensor], dict[str, Any]]] = {
        "qkv": ([x.qkv for x in layers], {"norm": layers[0].input_norm, "eps": 1e-5}),
        "output": ([x.output for x in layers], {}),
        "gate_up": (
            [x.gate_up for x in layers],
            {"norm": layers[0].mlp_norm, "eps": 1e-5, "swiglu": True},
        ),
        "down": ([x.down for x in layers], {}),
        "head": ([weights.head] * 4, {"to_float": True}),
    }
    print("\n| product | rows | MB | ours | of the peak | cuBLAS | of the peak |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (matrices, extra) in shapes.items():
        for rows in (1, 2, 4, 8):
            x = torch.randn(rows, matrices[0].shape[1], device="cuda", dtype=BF16)
            cells = []
            for product in (
                lambda w, x=x, extra=extra: decode.linear(x, w, **extra),
                lambda w, x=x: torch.nn.functional.linear(x, w),
            ):
                ms = graphed(product, matrices)
                share = f"{matrices[0].nbytes / ms * 1e3 / peak:.0%}" if peak else "-"
                cells.append(f"{1e3 * ms:.1f} us | {share}")
            size = matrices[0].nbytes / 1e6
            print(f"| {name} | {rows} | {size:.0f} | {' | '.join(cells)} |", flush=True)


def graphed(product: Callable[[Tensor], Tensor], matrices: list[Tensor]) -> float:
    """Return milliseconds per product of a graph that has one of each matrix, which no cache
    holds."""
    graph = torch.cuda.CUDAGraph()
    product(matrices[0])
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for matrix in matrices:
            product(matrix)
    times = []
    for _ in range(12):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended) / len(matrices))
    return statistics.median(times[2:])


def print_row(rows: list[Row], peak: float | None, copy: float) -> None:
    row = rows[-1]
    rate = row.bytes / row.ms * 1e3
    alike = "stock" if row.variant == "in turn" else row.variant
    first = [x for x in rows if (x.variant, x.batch, x.num_loops) == (alike, row.batch, 1)]
    over = f"{row.ms / first[0].ms:.3f}" if first else "-"
    low, high = row.quartiles
    print(
        f"| {row.variant} | {row.num_loops} | {row.batch} | {row.bytes / 1e9:.2f} "
        f"| {row.ms:.3f} ({low:.3f} to {high:.3f}) | {f'{rate / peak:.1%}' if peak else '-'} "
        f"| {rate / copy:.1%} | {over} |",
        flush=True,
    )


def copy_rate() -> float:
    """Return bytes/s of a copy, read and written."""
    source = torch.empty(2 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        target.copy_(source)
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended))
    return 2 * source.numel() / statistics.median(times[2:]) * 1e3


def _rate(rate: float | None) -> str:
    return f"{rate / 1e12:.2f} TB/s" if rate else "unknown"


if __name__ == "__main__":
    try:
        main()
    except InputError as e:
        raise SystemExit(str(e)) from None
