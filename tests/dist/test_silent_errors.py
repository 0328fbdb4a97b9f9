"""One flipped bit in one replica is found, and its rank is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from loopcoder.parallel.fingerprint import fingerprint
from tests.dist.launch import in_processes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_bit_counts(dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopcoder.parallel.fingerprint._CHUNK", 7)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 6, generator=generator).to(dtype)
    size = x.element_size() * 8
    bits = x.view({16: torch.int16, 32: torch.int32, 64: torch.int64}[size]).view(-1)
    before = int(fingerprint(x))
    assert before == sum(b * (2 * i + 1) for i, b in enumerate(bits.tolist())) % 2**64 - (
        2**64 if before < 0 else 0
    )
    for _ in range(20):
        place, bit = (int(torch.randint(n, (), generator=generator)) for n in (30, size - 1))
        bits[place] ^= 1 << bit
        assert int(fingerprint(x)) != before
        bits[place] ^= 1 << bit
    assert int(fingerprint(x)) == before
    bits[[3, 4]] = bits[[4, 3]]
    assert int(fingerprint(x)) != before


def _flip(tensor: torch.Tensor) -> None:
    tensor.detach().view(-1).view(torch.int32)[0] ^= 1


def _flipped(rank: int, victim: int, layouts: list[dict[str, Any]], seed: int) -> list[Any]:
    """Return what each layout says after a step, and after one bit of one rank was flipped."""
    from loopcoder.data.loader import StepData
    from loopcoder.optim.optimizer import update
    from loopcoder.parallel import mcore
    from loopcoder.train import silent_errors
    from loopcoder.train.silent_errors import SilentError, compare_replicas, replay
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward
    from tests.configs import small_config
    from tests.dist.layouts import DOMAINS, VOCAB, global_batch, microbatches
    from tests.train.test_health import step_data

    def said(compare: Any, *args: Any) -> tuple[str, list[dict[str, Any]]]:
        events: list[dict[str, Any]] = []
        try:
            compare(*args, lambda kind, **fields: events.append({"kind": kind, **fields}))
        except SilentError as error:
            return str(error), events
        return "", events

    found = []
    for parallel in layouts:
        config = small_config(dict(num_layers=4), **parallel)
        ranks = mcore.initialise(config.parallel, 1)
        config = replace(config, train=replace(config.train, global_batch_size=4 * ranks.dp_size))
        state = build_state(config, ranks, VOCAB)
        ids = global_batch(seed, 0, config.train.global_batch_size, config.data.seq_length)
        mine = microbatches(config, ids, True, ranks.dp_rank, ranks.dp_size)
        data = StepData(**(vars(step_data(1)) | {"microbatches": mine}))
        replayed = said(replay, state, data, DOMAINS)
        loss, tokens = forward_backward(state, mine, DOMAINS).sum(1)
        tp = config.parallel.tp
        norm = update(state.optimizer, config.optim, 1e-3, tokens, loss=loss, tp_size=tp)
        before = said(compare_replicas, state, 1)
        if rank == victim:
            if config.parallel.distributed_optimizer:
                _flip(next(state.network.parameters()))
            else:
                inner = getattr(state.optimizer, "chained_optimizers", [state.optimizer])[0]
                _flip(next(iter(inner.optimizer.state.values()))["exp_avg"])
        after = said(compare_replicas, state, 1)
        # a device that computes other bits now and then
        gradients, calls = silent_errors._own_gradients, iter((0, 1))

        def wrong(*args: Any, real: Any = gradients, calls: Any = calls) -> torch.Tensor:
            return real(*args) + next(calls) * (rank == victim)

        silent_errors._own_gradients = wrong
        differs = said(replay, state, data, DOMAINS)
        silent_errors._own_gradients = gradients
        found.append((replayed, before, after, differs, norm.item()))
    return found


def check(world: int, layouts: list[dict[str, Any]], seed: int, named: list[list[int]]) -> None:
    victim = world - 1
    results = in_processes(world, _flipped, victim, layouts, seed)
    for found in results:
        for (replayed, before, after, differs, _), ranks in zip(found, named, strict=True):
            assert replayed == before == ("", [])
            assert ("data-parallel replicas have other" in after[0]) == bool(ranks)
            assert all(f"rank {rank} on " in after[0] for rank in ranks)
            events = [("replicas_differ", ranks)] if ranks else []
            assert [(e["kind"], e["ranks"]) for e in after[1]] == events
            assert [(e["kind"], e["ranks"]) for e in differs[1]] == [("replay_differs", [victim])]


@pytest.mark.dist_full
def test_one_flipped_bit_of_three_replicas(seed: int) -> None:
    check(3, [dict(distributed_optimizer=False)], seed, [[2]])


@pytest.mark.dist_full
def test_one_flipped_bit_of_two_replicas(seed: int) -> None:
    """Two differ, and either may be wrong. Weights that are gathered when needed are mended
    by that before anything is computed with them."""
    layouts: list[dict[str, Any]] = [{}, dict(overlap_grad_reduce=True, overlap_param_gather=True)]
    check(2, layouts, seed, [[0, 1], []])


@pytest.mark.dist_full
def test_one_flipped_bit_with_pipeline_or_tensor_parallelism(seed: int) -> None:
    check(4, [dict(tp=2), dict(pp=2)], seed, [[1, 3], [2, 3]])
