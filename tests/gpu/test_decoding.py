"""Decoding on the GPU: graphs compute what steps compute, and the host is never waited for."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from loopcoder.hf.mapping import from_released
from loopcoder.infer.decoder import Decoder
from loopcoder.infer.weights import build_weights
from tests.hf.folders import Twice
from tests.infer.models import VOCAB, Drawn, draw, random_ids
from tests.reference import errors

pytestmark = pytest.mark.gpu

WIDE: dict[str, Any] = dict(
    hidden_size=256, ffn_hidden_size=512, num_attention_heads=8, num_kv_heads=2, head_dim=64
)
LENGTHS = (1, 5, 64, 65, 200)


def decoder_of(
    drawn: Drawn, dtype: torch.dtype, graphs: Any, max_length: int = 300, kernels: Any = "auto"
) -> Decoder:
    ours, device = from_released(drawn.weights, drawn.model), torch.device("cuda")
    weights = build_weights(ours.__getitem__, drawn.model, VOCAB, device, dtype)
    return Decoder(
        weights,
        drawn.model,
        VOCAB,
        num_places=len(LENGTHS),
        max_length=max_length,
        cuda_graphs=graphs,
        kernels=kernels,
    )


def decode(decoder: Decoder, sequences: list[list[int]], rng: random.Random) -> dict[str, Tensor]:
    """Return the logits after the prompt's last token and 40 more, by sequence."""
    prompts = {i: ids[:-40] for i, ids in enumerate(sequences)}
    found = [[logits] for logits in decoder.prefill(prompts)]
    left = dict.fromkeys(prompts, 40)
    while left:
        places = rng.sample(sorted(left), rng.randrange(1, len(left) + 1))
        tokens = torch.tensor([sequences[p][-left[p]] for p in places], device="cuda")
        for place, logits in zip(places, decoder.step(places, tokens), strict=True):
            found[place].append(logits)
            left[place] -= 1
        left = {place: n for place, n in left.items() if n}
    return {str(i): torch.stack(rows).cpu() for i, rows in enumerate(found)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("graphs", ["off", "auto"])
@pytest.mark.parametrize("loops", [1, 2, 4])
def test_logits_equal_the_full_pass(
    seed: int, rng: random.Random, loops: int, graphs: str, dtype: torch.dtype
) -> None:
    drawn = draw(seed, num_loops=loops, window=64, **WIDE)
    drawn.weights.update({n: w.to(dtype).double() for n, w in drawn.weights.items()})
    sequences = [random_ids(rng, length + 40) for length in LENGTHS]

    def compute(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: x[-41:] for name, x in drawn.compute(weights, sequences).items()}

    rounding = Twice(drawn.weights, compute, seed, dtype)
    kernels = "cuda" if dtype == torch.bfloat16 else "stock"
    ours = decode(decoder_of(drawn, dtype, graphs, kernels=kernels), sequences, rng)
    assert not rounding.beyond(errors(ours, rounding.exact))


@pytest.mark.parametrize("shift", [True, False])
def test_a_step_waits_for_nothing(seed: int, rng: random.Random, shift: bool) -> None:
    drawn = draw(seed, num_loops=3, shift=shift, **WIDE)
    kernels = "cuda" if shift else "stock"
    decoder = decoder_of(drawn, torch.bfloat16, "off", kernels=kernels)
    decoder.prefill({i: random_ids(rng, length) for i, length in enumerate(LENGTHS)})
    places, tokens = list(range(len(LENGTHS))), torch.zeros(len(LENGTHS), device="cuda").long()
    decoder.step(places, tokens)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            tokens = decoder.step(places, tokens).argmax(-1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert decoder._cache.lengths.tolist() == decoder.lengths


def test_the_cache_takes_what_its_formula_says(seed: int) -> None:
    from loopcoder.infer.cache import cache_bytes

    drawn = draw(seed, num_loops=3, **WIDE)
    torch.cuda.synchronize()
    weights = sum(w.numel() * 2 for w in drawn.weights.values())
    before = torch.cuda.memory_allocated()
    decoder = decoder_of(drawn, torch.bfloat16, "off", 20_000)
    taken = torch.cuda.memory_allocated() - before
    formula = cache_bytes(decoder.model, len(LENGTHS), 20_000, torch.bfloat16)
    assert formula == decoder._cache.nbytes
    assert 0 <= taken - formula <= 1.1 * weights + 1e6


def test_gates_of_queries_by_the_kernels(seed: int, rng: random.Random) -> None:
    """More rows than one and more than two loops: the product of the gates leaves heads apart."""
    drawn = draw(seed, num_loops=4, window=64, gate="query", **WIDE)
    drawn.weights.update({n: w.bfloat16().double() for n, w in drawn.weights.items()})
    sequences = [random_ids(rng, length + 40) for length in LENGTHS]

    def compute(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: x[-41:] for name, x in drawn.compute(weights, sequences).items()}

    rounding = Twice(drawn.weights, compute, seed, torch.bfloat16)
    made = decoder_of(drawn, torch.bfloat16, "auto", kernels="cuda")
    assert not rounding.beyond(errors(decode(made, sequences, rng), rounding.exact))
