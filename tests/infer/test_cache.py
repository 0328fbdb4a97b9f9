"""What weights and cache take, and what is refused for want of it."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loopcoder.errors import InputError
from loopcoder.hf.mapping import from_released
from loopcoder.infer.attention import by_share, step_bytes
from loopcoder.infer.cache import Cache, cache_bytes
from loopcoder.infer.decoder import Decoder
from loopcoder.infer.fit import check_fits
from loopcoder.infer.prefill import pass_bytes
from loopcoder.infer.split import WHOLE, Split
from loopcoder.infer.weights import build_weights, weight_bytes
from loopcoder.ops.gated_window import attention
from tests.configs import small_model
from tests.infer.models import ROWS, VOCAB, draw
from tests.infer.test_decoder import MODELS

CPU = torch.device("cpu")
THE_7B = dict(
    num_layers=14, hidden_size=5120, ffn_hidden_size=27648, num_attention_heads=40,
    num_kv_heads=8, head_dim=128, window=64,
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_of_the_cache_is_what_is_allocated(name: str, dtype: torch.dtype) -> None:
    model = small_model(**MODELS[name])
    for split in {WHOLE, Split(0, math.gcd(2, model.num_kv_heads))}:
        cache = Cache(model, 3, 50, CPU, dtype, split)
        assert cache.nbytes == cache_bytes(model, 3, 50, dtype, split)


def test_the_7b_model_takes_57344_bytes_a_token_and_a_ring_for_each_further_loop() -> None:
    def taken(loops: int, length: int) -> int:
        return cache_bytes(small_model(**THE_7B, num_loops=loops), 1, length, torch.bfloat16)

    for loops in (1, 2, 4):
        assert taken(loops, 2048) - taken(loops, 1048) == 57_344 * 1000
    ring = taken(3, 2048) - taken(2, 2048)
    carry = 2 * 5120
    assert ring - carry == 65 * 57_344  # 3.55 MiB
    model = small_model(**THE_7B)
    assert weight_bytes(model, 76800, 76800, torch.bfloat16) == 2 * 7_615_749_680


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", ["r1", "r2", "r3 query gate"])
def test_the_bytes_of_the_weights_are_what_is_held(seed: int, name: str, size: int) -> None:
    drawn = draw(seed, **MODELS[name])
    ours, held = from_released(drawn.weights, drawn.model), []
    for rank in range(size):
        split = Split(rank, size)
        found = build_weights(ours.__getitem__, drawn.model, VOCAB, CPU, torch.float32, split)
        held.append(sum(x.nbytes for x in found.tensors()))
        stored = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
                  for x in found.tensors()}  # fmt: skip
        assert size == 1 or sum(stored.values()) == held[-1], "a part keeps the whole tensor"
        assert held[-1] == weight_bytes(drawn.model, ROWS, VOCAB, torch.float32, split)
    assert size == 1 or max(held) < weight_bytes(drawn.model, ROWS, VOCAB, torch.float32)


def check(places: int, length: int, weights: int, free: int, **changes: Any) -> None:
    model = small_model(**changes)
    check_fits(model, places, length, torch.float32, WHOLE, weights, free, is_fused=True)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    model, weights = small_model(), 1_000_000
    place = cache_bytes(model, 1, 1000, torch.float32)
    work = pass_bytes(model, 1000, torch.float32, WHOLE)
    fixed = weights + work
    check(8, 1000, weights, fixed + 8 * place)
    with pytest.raises(InputError) as caught:
        check(8, 1000, weights, fixed + 5 * place)
    (problem,) = caught.value.problems
    assert "weights of 1.0 MB" in problem.fact and "8 places of 1,000 tokens" in problem.fact
    assert problem.fix.startswith("num_places=5 or max_length=")
    check(5, 1000, weights, fixed + 5 * place)
    check(8, int(problem.fix.rpartition("=")[2]), weights, fixed + 5 * place)
    with pytest.raises(InputError, match="more GPUs"):
        check(1, 1000, weights, fixed - 1)
    with pytest.raises(InputError, match="num_places=5"):
        check(10**12, 1000, weights, fixed + 5 * place)


@pytest.mark.parametrize(("places", "length", "says"), [
    (1, 131073, "max_position_embeddings"), (1, 0, "max_length=0"), (0, 5, "num_places=0"),
])  # fmt: skip
def test_sizes_that_no_cache_has_are_refused(places: int, length: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check(places, length, 0, 1 << 60)


def test_a_split_that_leaves_ranks_unequal_is_refused() -> None:
    model = small_model(num_attention_heads=12, num_kv_heads=6, ffn_hidden_size=48)
    for size in (1, 2, 3, 6):
        Split(0, size).check(model)
    with pytest.raises(InputError, match="num_kv_heads=6") as caught:
        Split(0, 4).check(model)
    assert [p.fix for p in caught.value.problems] == ["parallel.tp=3"]


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, call: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = call(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.live.values()))
        return out


@pytest.mark.parametrize(("loops", "dtype"), [(3, torch.float32), (1, torch.bfloat16)])
def test_a_pass_takes_no_more_than_its_formula_says(
    seed: int, monkeypatch: pytest.MonkeyPatch, loops: int, dtype: torch.dtype
) -> None:
    length = 4000
    monkeypatch.setattr("loopcoder.infer.layers.ROWS", 300)
    monkeypatch.setattr("loopcoder.infer.prefill.ROWS", 300)
    monkeypatch.setattr("loopcoder.infer.prefill.PASS_TOKENS", 1)
    monkeypatch.setattr("loopcoder.infer.attention._BLOCK", 100)
    drawn = draw(seed, num_loops=loops, hidden_size=64, ffn_hidden_size=160, head_dim=16)
    ours = from_released(drawn.weights, drawn.model)
    weights = build_weights(ours.__getitem__, drawn.model, VOCAB, CPU, dtype)
    decoder = Decoder(weights, drawn.model, VOCAB, num_places=1, max_length=length)
    with Live() as live:
        decoder.prefill({0: [1] * length})
    formula = pass_bytes(drawn.model, length, dtype, WHOLE)
    assert 0.6 * formula < live.peak < formula


def test_a_plain_step_takes_no_more_than_its_formula_says(seed: int) -> None:
    drawn, places, length = draw(seed, num_loops=3, head_dim=16), 8, 3000
    decoder = drawn.decoder(places, length)
    decoder.prefill({place: [1] for place in range(places)})
    decoder.lengths[:] = [length - 1] * places
    decoder._cache.start(range(places), decoder.lengths)
    with Live() as live:
        decoder.step(list(range(places)), [1] * places)
    formula = step_bytes(drawn.model, places, length, torch.float32, WHOLE)
    taken = live.peak - decoder._cache.nbytes  # which is seen by its views
    assert 0.9 * formula < taken < 1.1 * formula


def test_a_plain_step_needs_memory_that_the_kernels_do_not() -> None:
    model, places, length = small_model(), 64, 9000
    step = step_bytes(model, places, length, torch.float32, WHOLE)
    work = pass_bytes(model, length, torch.float32, WHOLE)
    assert step > work
    free = cache_bytes(model, places, length, torch.float32) + (step + work) // 2
    check(places, length, 0, free)
    with pytest.raises(InputError, match="num_places="):
        check_fits(model, places, length, torch.float32, WHOLE, 0, free, is_fused=False)


@pytest.mark.parametrize("shape", [(9, 6, 2), (9, 4, 4), (1, 3, 1)])
def test_attention_by_share_is_attention(seed: int, shape: tuple[int, int, int]) -> None:
    tokens, heads, kv_heads = shape
    torch.manual_seed(seed)
    q, k, v = (torch.randn(tokens, 1, n, 8) for n in (heads, kv_heads, kv_heads))
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
    for mask in (None, seen):
        expected = attention(q, k, v, mask)
        torch.testing.assert_close(by_share(q, k, v, mask), expected, rtol=1e-5, atol=1e-5)
