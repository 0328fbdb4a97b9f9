"""Train the same model on the same data in a layout and in one process, and compare everything.

Runs inside the processes of `launch.in_processes`. Both sides are the package's own path: data cut
by rank, megatron's schedule, reduced gradients, optimizer. What they are compared with is one
process with all loops in one autograd graph, whose model the float64 reference proves.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from loopcoder.data.batch import make_batch
from loopcoder.data.sampler import samples_of_rank
from loopcoder.model.init import _global_name as global_name
from tests.configs import small_config

VOCAB, EOD, DOMAINS = 128, 7, 2


@dataclass(frozen=True)
class Case:
    """A model in a layout."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    parallel: dict[str, Any] = field(default_factory=dict)
    isolate: bool = True
    precision: str = "fp32"

    def alone(self) -> Case:
        """The same in one process, nothing recomputed."""
        return replace(self, parallel={})


def global_batch(seed: int, step: int, rows: int, length: int, isolate: bool) -> tuple[torch.Tensor, bool]:
    generator = torch.Generator().manual_seed(seed + step)
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.08] = EOD
    return ids, isolate


def microbatches(config: Any, ids: torch.Tensor, isolate: bool, dp_rank: int, dp_size: int) -> list[Any]:
    import numpy as np

    order = np.arange(len(ids))
    mine = samples_of_rank(order, dp_rank, dp_size, config.train.micro_batch_size)
    return [
        make_batch(
            ids[torch.from_numpy(rows.copy())],
            torch.from_numpy(rows.copy()),
            torch.from_numpy(rows % DOMAINS),
            EOD,
            isolate_documents=isolate,
        )
        for rows in mine
    ]


def train(config: Any, ranks: Any, weights: dict | None, seed: int, isolate: bool, steps: int = 3) -> dict[str, Any]:
    """Train some steps; return losses, grad norms, first gradients and final weights, whole and on every rank."""
    from loopcoder.optim.optimizer import update
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    state = build_state(config, ranks, VOCAB)
    if weights is not None:
        scatter_weights(state.network, weights)
        state.optimizer.reload_model_params()
    out: dict[str, Any] = {"loss": [], "grad_norm": []}
    for step in range(steps):
        ids, _ = global_batch(seed, step, config.train.global_batch_size, config.data.seq_length, isolate)
        mine = microbatches(config, ids, isolate, ranks.dp_rank, ranks.dp_size)
        sums = forward_backward(state, mine, DOMAINS)
        if step == 0:
            out["gradients"] = gather(state, gradients(state), ranks)
        out["loss"].append((sums[0].sum() / sums[1].sum()).item())
        out["grad_norm"].append(update(state.optimizer, config.optim, config.optim.lr, step + 1))
    if config.parallel.overlap_param_gather:
        state.ddp.start_param_sync(force_sync=True)
    final = {n: p.detach().float() for n, p in state.network.named_parameters()}
    out["weights"] = gather(state, final, ranks)
    return out


def gradients(state: Any) -> dict[str, torch.Tensor]:
    """Reduced gradients, whole over data-parallel ranks: the distributed optimizer leaves each rank its shard."""
    grads = {n: p.main_grad.float().clone() for n, p in state.network.named_parameters()}
    if state.ranks.dp_size == 1 or not state.ddp.ddp_config.use_distributed_optimizer:
        return grads
    for buffer in state.ddp.buffers:
        whole = buffer.grad_data.clone()
        for bucket in buffer.buckets:
            shard = bucket.grad_data.numel() // state.ranks.dp_size
            mine = bucket.grad_data[shard * state.ranks.dp_rank :][:shard].clone()
            parts = [torch.empty_like(mine) for _ in range(state.ranks.dp_size)]
            dist.all_gather(parts, mine, group=state.ranks.groups.dp_cp)
            whole[bucket.offset : bucket.offset + bucket.grad_data.numel()] = torch.cat(parts)
        for parameter, (start, end, _) in buffer.param_index_map.items():
            name = next(n for n, p in state.network.named_parameters() if p is parameter)
            grads[name] = whole[start:end].view(parameter.shape).float().clone()
    return grads


def gather(state: Any, tensors: dict[str, torch.Tensor], ranks: Any) -> dict[str, torch.Tensor]:
    """Put tensor-parallel shards together under whole names."""
    size = ranks.groups.tp.size()
    out = {}
    for name, parameter in state.network.named_parameters():
        x = tensors[name]
        if size > 1:
            parts = [torch.empty_like(x) for _ in range(size)]
            dist.all_gather(parts, x.contiguous(), group=ranks.groups.tp)
            if not getattr(parameter, "tensor_model_parallel", False):
                for part in parts:
                    assert torch.equal(part, x), f"{name} differs between tensor-parallel ranks"
            elif "linear_fc1" in name:
                halves = [part.chunk(2) for part in parts]
                x = torch.cat([h[0] for h in halves] + [h[1] for h in halves])
            else:
                x = torch.cat(parts, parameter.partition_dim)
        out[global_name(name, state.network)] = x.cpu()
    if ranks.groups.pp.size() > 1:
        stages: list[Any] = [None] * ranks.groups.pp.size()
        dist.all_gather_object(stages, out, group=ranks.groups.pp)
        assert sum(len(stage) for stage in stages) == len({n for stage in stages for n in stage})
        out = {name: x for stage in stages for name, x in stage.items()}
    return out


def scatter_weights(network: Any, weights: dict[str, torch.Tensor]) -> None:
    """Give a rank its shards of whole weights."""
    size, rank = network.tp_group.size(), network.tp_group.rank()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            x = weights[global_name(name, network)]
            if size > 1 and getattr(parameter, "tensor_model_parallel", False):
                dim = parameter.partition_dim
                if "linear_fc1" in name:
                    x = torch.cat([half.chunk(size)[rank] for half in x.chunk(2)])
                else:
                    x = x.chunk(size, dim)[rank]
            parameter.copy_(x)


def run_cases(rank: int, cases: list[Case], seed: int) -> list[dict[str, Any]]:
    """Train every case in the world that is running; tensors come back as numpy arrays."""
    from loopcoder.parallel import mcore

    results, sizes = [], None
    for case in cases:
        config = small_config(case.model, case.precision, **case.parallel)
        if sizes != (config.parallel.tp, config.parallel.pp):
            # Every process group has threads of its own: cases of one layout share them.
            gc.collect()
            ranks = mcore.initialise(config.parallel, 1)
            sizes = (config.parallel.tp, config.parallel.pp)
        out = train(config, ranks, random_weights(case, ranks, seed), seed, case.isolate)
        for kind in ("gradients", "weights"):
            out[kind] = {n: x.numpy() for n, x in out[kind].items()}
        results.append(out)
    return results


def random_weights(case: Case, ranks: Any, seed: int) -> dict[str, torch.Tensor]:
    """Draw whole weights, the same in every layout: shapes come from a model of meta tensors that is not split."""
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config
    from tests.weights import randomise

    one = small_config(case.model)
    shapes: Any = SimpleNamespace(**vars(ranks.groups))
    shapes.tp = shapes.cp = shapes.pp = _OneRank()
    network = PLTModel(transformer_config(one), one.model, VOCAB, shapes)
    randomise(network, torch.Generator().manual_seed(seed))
    return {n: p.detach().clone() for n, p in network.named_parameters()}


class _OneRank:
    """A process group of one, as far as building a model asks."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def differences(got: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Return the worst relative difference of loss, grad norm, gradients and weights (per tensor, by its largest)."""
    out = {
        k: max(abs(a - b) / abs(b) for a, b in zip(got[k], expected[k], strict=True)) for k in ("loss", "grad_norm")
    }
    for kind in ("gradients", "weights"):
        assert got[kind].keys() == expected[kind].keys()
        out[kind] = max(abs(got[kind][n] - x).max() / abs(x).max() for n, x in expected[kind].items())
    return out
