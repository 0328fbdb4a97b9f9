"""Decoding by the CUDA kernels: when it is chosen, and what it computes, emulated on the CPU."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from loopcoder.backends import NOT_BUILT, Backends
from loopcoder.errors import InputError
from loopcoder.hf.mapping import from_released
from loopcoder.infer import decoder as decoder_module
from loopcoder.infer.decoder import Decoder
from loopcoder.infer.fused_layers import choose
from loopcoder.infer.split import Split
from loopcoder.infer.weights import build_weights
from loopcoder.ops import decode
from tests.hf.folders import Twice
from tests.infer.models import VOCAB, draw, random_ids
from tests.ops.decode_emulated import DecodeKernels
from tests.reference import errors

WIDE: dict[str, Any] = dict(
    hidden_size=80, ffn_hidden_size=96, num_attention_heads=4, num_kv_heads=2, head_dim=64
)
"""The hidden size is not that of a head, or rounding would reorder the weights of query gates."""
HOPPER = Backends(gpu_count=1, compute_capability=(9, 0), kernels_fault=None)
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> DecodeKernels:
    return DecodeKernels(tmp_path_factory.mktemp("decode"), random.Random())


@pytest.mark.compile
@pytest.mark.parametrize(
    "model",
    [
        dict(num_loops=1),
        dict(num_loops=2),
        dict(num_loops=3, gate="query"),
        dict(num_loops=4, norm_per_loop=False),
    ],
    ids=str,
)
def test_logits_equal_the_full_pass(
    seed: int,
    rng: random.Random,
    kernels: DecodeKernels,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
) -> None:
    """Steps of one and of two places, so that there are rows for the kernel's products."""
    kernels.rng.seed(seed)
    kernels.splits = 3
    for name in ("linear", "rotate", "attention"):
        monkeypatch.setattr(decode, name, getattr(kernels, name))
    monkeypatch.setattr(decoder_module.fused_layers, "choose", lambda *_: True)
    monkeypatch.setattr(decoder_module.kernel_operators, "load", lambda: None)
    drawn = draw(seed, window=5, **WIDE, **model)
    drawn.weights.update({n: w.bfloat16().double() for n, w in drawn.weights.items()})
    sequences = [random_ids(rng, 3 + 8), random_ids(rng, 20 + 8)]

    def compute(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: x[-8:] for name, x in drawn.compute(weights, sequences).items()}

    ours = from_released(drawn.weights, drawn.model)
    weights = build_weights(
        ours.__getitem__, drawn.model, VOCAB, torch.device("cpu"), torch.bfloat16
    )
    fused = Decoder(weights, drawn.model, VOCAB, num_places=3, max_length=40)
    fused.prefill({2 * i: ids[:-8] for i, ids in enumerate(sequences)})
    found: list[list[torch.Tensor]] = [[], []]
    for step in range(8):
        turn = [0, 1] if step % 2 else [1, 0]
        for some in (turn,) if step % 3 else ([turn[0]], [turn[1]]):
            logits = fused.step([2 * i for i in some], [sequences[i][step - 8] for i in some])
            for i, row in zip(some, logits, strict=True):
                found[i].append(row)
    rounding = Twice(drawn.weights, compute, seed, torch.bfloat16)
    rows = {str(i): torch.stack(x) for i, x in enumerate(found)}
    assert not rounding.beyond(errors(rows, rounding.exact))
    assert rounding.bound("0") < 0.2  # gates of other heads are further off


def test_auto_takes_the_kernels_where_they_were_tested_and_can_run_the_model(seed: int) -> None:
    model, bf16 = draw(seed, num_loops=2, **WIDE).model, torch.bfloat16
    assert choose("auto", model, GPU, bf16, HOPPER)
    assert choose("cuda", model, GPU, bf16, HOPPER)
    assert not choose("stock", model, GPU, bf16, HOPPER)
    cpu, other = torch.device("cpu"), Backends(gpu_count=1, compute_capability=(8, 0))
    not_built = Backends(gpu_count=1, compute_capability=(9, 0), kernels_fault=NOT_BUILT)
    narrow = draw(seed, num_loops=2).model
    waits = draw(seed, num_loops=2, shift=False, **WIDE).model
    own = draw(seed, num_loops=2, kv_sharing="own", **WIDE).model
    cases: list[tuple[Any, ...]] = [(model, cpu, bf16, HOPPER), (model, GPU, torch.float32, HOPPER)]
    cases += [(x, GPU, bf16, HOPPER) for x in (narrow, waits, own)]
    cases += [(model, GPU, bf16, not_built), (model, GPU, bf16, other)]
    for case in cases:
        assert not choose("auto", *case)
        with pytest.raises(InputError, match="kernels=cuda\n"):
            choose("cuda", *case)


def test_a_rank_of_several_has_the_widths_that_the_kernels_read(seed: int) -> None:
    """96 columns of an MLP are 12 for each of 8 ranks."""
    model = draw(seed, num_loops=2, **WIDE).model
    ranks = [Split(0, size) for size in (1, 2, 4, 8)]
    taken = [choose("auto", model, GPU, torch.bfloat16, HOPPER, split) for split in ranks]
    assert taken == [True, True, True, False]
    with pytest.raises(InputError, match="multiples of 8, and ffn_hidden_size of a rank is 12"):
        choose("cuda", model, GPU, torch.bfloat16, HOPPER, ranks[-1])


@pytest.mark.parametrize("capability", [(8, 6), (8, 9), (12, 0)])
def test_gpus_with_little_shared_memory_are_refused(seed: int, capability: tuple[int, int]) -> None:
    model = draw(seed, num_loops=2, **WIDE).model
    small = Backends(gpu_count=1, compute_capability=capability, kernels_fault=None)
    assert not choose("auto", model, GPU, torch.bfloat16, small)
    with pytest.raises(InputError, match="107 KiB of shared memory"):
        choose("cuda", model, GPU, torch.bfloat16, small)


def test_a_build_that_is_out_of_date_is_an_error_and_not_passed_over(seed: int) -> None:
    model = draw(seed, num_loops=2, **WIDE).model
    stale = Backends(gpu_count=1, compute_capability=(9, 0), kernels_fault="built for torch 1.0")
    with pytest.raises(InputError, match=r"kernels=auto\n.*: built for torch 1.*\n.*make kernels"):
        choose("auto", model, GPU, torch.bfloat16, stale)
