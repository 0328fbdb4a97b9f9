"""Train the same model on the same data in a layout and in one process, and compare everything.

Runs inside the processes of `launch.in_processes`. Both sides are the package's own path: data cut
by rank, megatron's schedule, reduced gradients, optimizer. What they are compared with is one
process with all loops in one autograd graph, whose model the float64 reference proves.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.schema import ModelConfig
from loopcoder.data.batch import make_batch
from loopcoder.data.sampler import samples_of_rank
from loopcoder.hf.mapping import plain_name
from loopcoder.model.init import global_name
from loopcoder.model.probe import LoopProbe
from loopcoder.train.labels import Groups, LabelLosses
from tests import reference
from tests.configs import small_config, small_model
from tests.dist.launch import in_processes
from tests.weights import named, randomise, released

VOCAB, EOD, DOMAINS, STEPS = 128, 7, 2, 3
LANGUAGES = 3
"""Of each domain; documents take turns."""
GROUPS = [
    Groups("language", ("a", "b", "other"), (0, 1, 2, 0, 1, 2)),
    Groups("source", ("x", "y"), (0, 1, 1, 1, 1, 0)),
]
"""What has a loss of its own, by the labels of `batch_of`."""
OVERLAPS = dict(overlap_grad_reduce=True, overlap_param_gather=True)
LAYOUTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    # processes, layers, parallel
    "pp2": (2, 4, dict(pp=2)),
    "pp2 uneven": (2, 5, dict(pp=2)),
    "pp2 two chunks": (2, 6, dict(pp=2, chunks_per_loop=2)),
    "tp2": (2, 2, dict(tp=2)),
    "tp2 sp": (2, 2, dict(tp=2, sp=True)),
    "dp2 overlaps": (2, 2, OVERLAPS),
    "pp4": (4, 6, dict(pp=4)),
    "tp2 sp pp2": (4, 3, dict(tp=2, sp=True, pp=2)),
    "dp2 pp2 overlaps": (4, 3, dict(pp=2) | OVERLAPS),
}
"""The layouts of the whole matrix."""


@dataclass(frozen=True)
class Case:
    """A model in a layout, and the seed of its weights and data."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    parallel: dict[str, Any] = field(default_factory=dict)
    isolate: bool = True
    precision: str = "fp32"
    seed: int = 0
    optim: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    loops: tuple[int, ...] | None = None
    """That each step runs; None: all of them."""
    masked: bool = False
    """Some labels are trained, as of chats that are packed, and no others."""
    rows: int = 8
    """Sequences of a step."""

    def alone(self) -> Case:
        """The same in one process, nothing recomputed."""
        return replace(self, parallel={})


def global_batch(seed: int, step: int, rows: int, length: int) -> torch.Tensor:
    """Draw the token ids of a step, several documents in a row. [rows, length + 1]"""
    generator = torch.Generator().manual_seed(seed + step)
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.08] = EOD
    return ids


def microbatches(
    config: Any,
    ids: torch.Tensor,
    isolate: bool,
    dp_rank: int,
    dp_size: int,
    *,
    masked: bool = False,
) -> list[Any]:
    order = np.arange(len(ids))
    mine = samples_of_rank(order, dp_rank, dp_size, config.train.micro_batch_size)
    return [batch_of(ids, torch.from_numpy(rows.copy()), isolate, masked=masked) for rows in mine]


def batch_of(ids: torch.Tensor, rows: torch.Tensor, isolate: bool, *, masked: bool = False) -> Any:
    domains, documents = rows % DOMAINS, (ids[rows][:, :-1] == EOD).cumsum(1)
    language = (documents + rows[:, None] // DOMAINS) % LANGUAGES
    labels = domains[:, None] * LANGUAGES + language
    valid = None
    if masked:  # drawn for the whole batch, whichever rows of it a rank has
        generator = torch.Generator().manual_seed(int(ids.sum()))
        valid = (torch.rand(ids[:, 1:].shape, generator=generator) < 0.4)[rows]
    return make_batch(
        ids[rows],
        rows,
        domains,
        EOD,
        label_ids=labels,
        isolate_documents=isolate,
        valid=valid,
    )


def build(config: Any, ranks: Any, weights: dict[str, torch.Tensor]) -> Any:
    """Build what a layout trains on this rank, with these (whole) weights."""
    from loopcoder.train.state import build_state

    state = build_state(config, ranks, VOCAB)
    scatter_weights(state.network, weights)
    state.optimizer.reload_model_params()
    return state


def train(
    state: Any,
    config: Any,
    seed: int,
    isolate: bool,
    loops: tuple[int, ...] | None = None,
    *,
    masked: bool = False,
) -> dict[str, Any]:
    """Train some steps; return losses, grad norms, first gradients and final weights, whole and on
    every rank."""
    from loopcoder.optim.optimizer import update
    from loopcoder.optim.schedule import vocabulary_share
    from loopcoder.train.measures import Measures
    from loopcoder.train.objective_sums import probes_of
    from loopcoder.train.step import forward_backward

    ranks = state.ranks
    config = replace(config, logging=replace(config.logging, loop_losses=True, loop_gradients=True))
    by_step = loops or (config.model.num_loops,) * STEPS
    out: dict[str, Any] = {"loss": [], "grad_norm": []}
    for step in range(STEPS):
        ids = global_batch(seed, step, config.train.global_batch_size, config.data.seq_length)
        mine = microbatches(config, ids, isolate, ranks.dp_rank, ranks.dp_size, masked=masked)
        if step == 0 and masked and isolate:
            check_alone(state, mine)
        probe, by_loop = probes_of(config, by_step[step], ranks.device)
        by_label = LabelLosses(GROUPS, ranks.device)
        all_loops = by_step[step] == config.model.num_loops
        direct = sums_by_label(state, mine) if step == 0 and all_loops else None
        measures = Measures(probe, by_label, by_loop)
        sums = forward_backward(state, mine, DOMAINS, measures, by_step[step])
        if direct is not None:
            check_by_label(by_label.sums, sums, direct, exact=config.precision.name == "fp32")
        if step == 0:
            assert probe is not None
            if by_loop is not None:
                out["objective"] = check_by_loop(by_loop, probe, sums)
            out["gradients"] = gather(state, gradients(state))
            out["loops"] = probe.sums.flatten().tolist()
        out["loss"].append((sums[0].sum() / sums[1].sum()).item())
        share = vocabulary_share(config.optim, step + 1)
        norm = update(state.optimizer, config.optim, config.optim.lr, sums[1].sum(), share)
        out["grad_norm"].append(norm.item())
    out["weights"] = whole_weights(state)
    return out


def check_alone(state: Any, batches: list[Any]) -> None:
    """Assert that other tokens in one document of each sequence change no loss of another that
    counts, bit for bit."""
    from loopcoder.train.step import losses

    def loss_of(some: list[Any]) -> list[torch.Tensor]:
        with torch.no_grad():
            found = losses(state, some, every_loop=False)
            return [x * batch.loss_mask for batch, (x,) in zip(some, found, strict=True)]

    changed, inside = [], []
    for batch in batches:
        start = batch.document_start
        inside.append(start == start[:, start.shape[1] // 2, None])
        others = (batch.tokens + 1) % VOCAB
        others[others == EOD] += 1
        tokens = torch.where(inside[-1] & (batch.tokens != EOD), others, batch.tokens)
        labels = torch.cat([tokens[:, 1:], batch.labels[:, -1:]], 1)
        changed.append(replace(batch, tokens=tokens, labels=labels))
    pairs = list(zip(loss_of(batches), loss_of(changed), inside, strict=True))
    assert all(torch.equal(a[~own], b[~own]) for a, b, own in pairs)
    assert not all(torch.equal(a[own], b[own]) for a, b, own in pairs)


def sums_by_label(state: Any, batches: list[Any]) -> np.ndarray:
    """Return the summed loss and the valid tokens of every label, token by token and over all
    ranks. [2, labels]"""
    from loopcoder.train.step import losses

    sums = torch.zeros(2, DOMAINS * LANGUAGES, dtype=torch.float64)
    with torch.no_grad():
        found = list(losses(state, batches, every_loop=False))
    for batch, (loss,) in zip(batches, found, strict=True):
        for label, value, counts in zip(
            *(x.flatten().tolist() for x in (batch.label_ids, loss, batch.loss_mask)), strict=True
        ):
            sums[:, label] += torch.tensor([value * counts, counts])
    dist.all_reduce(sums, group=state.ranks.groups.dp_cp)
    return sums.numpy()


def check_by_label(got: Any, by_domain: Any, direct: np.ndarray, *, exact: bool) -> None:
    """Assert that the sums of every language and source are those of its labels, and that no token
    is lost or counted twice."""
    rounding = 1e-5 if exact else 2**-9
    for kind, groups in enumerate(GROUPS):
        for index in range(len(groups.names)):
            mine = direct[:, np.array(groups.of_label) == index].sum(1)
            loss, tokens = got[:, kind, index].tolist()
            assert tokens == mine[1]
            assert abs(loss - mine[0]) <= rounding * mine[0]
        whole, of_domains = got[:, kind].sum(1).tolist(), by_domain.double().sum(1).tolist()
        assert whole[1] == of_domains[1]
        assert abs(whole[0] - of_domains[0]) <= 1e-5 * of_domains[0]


def check_by_loop(by_loop: Any, probe: LoopProbe, sums: torch.Tensor) -> float:
    """Assert that the losses of the loops that are read are those of the probe, and that the shares
    of each token add up to 1; return the objective."""
    tokens = float(sums[1].sum())
    fields, probed = by_loop.fields(tokens), probe.fields(tokens)
    for name in (n for n in fields if n.startswith("loss/loop")):
        assert abs(fields[name] - probed[name]) <= 1e-5 * probed[name], name
    assert abs(by_loop.sums[1].sum().item() / tokens - 1) <= 1e-5
    return float(fields["objective"])


def whole_weights(state: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the weights in fp32, whole and on every rank."""
    if state.ddp.ddp_config.overlap_param_gather:
        state.ddp.start_param_sync(force_sync=True)
    mine = {n: p.detach().float().clone() for n, p in state.network.named_parameters()}
    return gather(state, mine)


def gradients(state: Any) -> dict[str, torch.Tensor]:
    """Return reduced gradients, whole over data-parallel ranks: the distributed optimizer leaves
    each rank its shard."""
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


def gather(state: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put tensor-parallel shards and the layers of all stages together under whole names."""
    ranks, size = state.ranks, state.ranks.groups.tp.size()
    out = {}
    parameters = dict(state.network.named_parameters())
    for name, mine in tensors.items():
        x, parameter = mine, parameters[name]
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
        out[plain_name(global_name(name, state.network))] = x.cpu()
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
            x = weights[plain_name(global_name(name, network))]
            if size > 1 and getattr(parameter, "tensor_model_parallel", False):
                dim = parameter.partition_dim
                if "linear_fc1" in name:
                    x = torch.cat([half.chunk(size)[rank] for half in x.chunk(2)])
                else:
                    x = x.chunk(size, dim)[rank]
            parameter.copy_(x)


Asked = Callable[[Sequence[Case]], list[Case]]
"""Chooses the cases of which a run has tests."""


def in_layouts(cases: list[Case]) -> Iterator[tuple[Case, Any, Any]]:
    """Yield every case with its config and its ranks in the world that is running."""
    from loopcoder.parallel import mcore

    sizes = None
    for case in cases:
        config = small_config(case.model, case.precision, **case.parallel)
        config = replace(
            config,
            optim=replace(config.optim, **case.optim),
            train=replace(config.train, global_batch_size=case.rows),
            objective=ObjectiveConfig(**case.objective),
        )
        if sizes != (config.parallel.tp, config.parallel.pp):
            # Every process group has threads of its own: cases of one layout share them.
            gc.collect()
            ranks = mcore.initialise(config.parallel, 1)
            sizes = (config.parallel.tp, config.parallel.pp)
        yield case, config, ranks


def run_cases(_: int, cases: list[Case]) -> list[dict[str, Any]]:
    """Train every case in the world that is running; tensors come back as numpy arrays."""
    results = []
    for case, config, ranks in in_layouts(cases):
        state = build(config, ranks, random_weights(case, ranks, case.seed))
        out = train(state, config, case.seed, case.isolate, case.loops, masked=case.masked)
        for kind in ("gradients", "weights"):
            out[kind] = {n: x.numpy() for n, x in out[kind].items()}
        results.append(out)
    return results


def random_weights(case: Case, ranks: Any, seed: int) -> dict[str, torch.Tensor]:
    """Draw whole weights, the same in every layout."""
    network, _ = random_network(case, ranks, seed)
    return {n: p.detach().clone() for n, p in network.named_parameters()}


def random_network(case: Case, ranks: Any, seed: int) -> tuple[Any, Any]:
    """Draw a model of the case that is not split, whatever its layout; return it and its config."""
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    one = small_config(case.model | dict(layer_spec="torch"))
    shapes: Any = SimpleNamespace(**vars(ranks.groups))
    shapes.tp = shapes.cp = shapes.pp = _OneRank()
    objective = ObjectiveConfig(**case.objective)
    network = PLTModel(
        transformer_config(one),
        one.model,
        VOCAB,
        shapes,
        has_exit_gate=objective.has_gate(one.model.num_loops),
    )
    randomise(network, torch.Generator().manual_seed(seed))
    return network, one.model


def rounding_of(case: Case) -> reference.Rounding:
    """Measure how well fp32 can train a case, by the reference's equations."""
    ((_, config, ranks),) = in_layouts([case.alone()])
    network, model = random_network(case, ranks, case.seed)
    rows, batches = config.train.global_batch_size, []
    for step in range(STEPS):
        ids = global_batch(case.seed, step, rows, config.data.seq_length)
        batch = batch_of(ids, torch.arange(rows), case.isolate, masked=case.masked)
        batches.append((batch.tokens, batch.labels, batch.loss_mask, batch.documents.start))
    return reference.Rounding(
        named(network, model),
        lambda weights: reference.train(
            weights, model, config.optim, batches, config.objective, case.loops
        ),
        case.seed,
    )


def as_reference(result: dict[str, Any], model: ModelConfig) -> dict[str, torch.Tensor]:
    """Return what `train` gives in one process or a layout under the names of the reference's."""
    gradients, weights = (
        released({n: torch.from_numpy(x) for n, x in result[kind].items()}, model)
        for kind in ("gradients", "weights")
    )
    losses, squares = torch.tensor(result["loops"]).view(2, -1)
    lists = {f"loss {r}": x for r, x in enumerate(losses)}
    lists |= {f"gradient at input {r}": x for r, x in enumerate(squares)}
    for kind, name in (("loss", "loss"), ("grad_norm", "norm")):
        lists |= {f"step {i} {name}": torch.tensor(x) for i, x in enumerate(result[kind])}
    if "objective" in result:
        lists["objective"] = torch.tensor(result["objective"])
    return lists | gradients | {f"after {name}": w for name, w in weights.items()}


class _OneRank:
    """A process group of one, as far as building a model asks."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def differences(got: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Return relative differences: the worst loss, grad norm, gradient and weight, and the mean
    gradient (tensors by their largest element). A NaN comes out as one."""
    out = {}
    for kind in ("loss", "grad_norm", "loops"):
        a, b = np.array(got[kind]), np.array(expected[kind])
        off = abs(a - b) / abs(b)
        out |= {kind: float(np.max(off)), f"first {kind}": float(off[0])}
    for kind in ("gradients", "weights"):
        assert got[kind].keys() == expected[kind].keys()
        by_name = [abs(got[kind][n] - x).max() / abs(x).max() for n, x in expected[kind].items()]
        out |= {kind: float(np.max(by_name)), f"mean {kind}": float(np.mean(by_name))}
    return out


def fresh_seed() -> int:
    """Draw a seed for a whole module; LOOPCODER_TEST_SEED repeats a failing run."""
    value = int(os.environ.get("LOOPCODER_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"LOOPCODER_TEST_SEED={value}")
    return value


def compare(world: int, cases: list[Case]) -> dict[str, tuple[int, dict[str, Any]]]:
    """Train every case in `world` processes and in one; return the seed and the differences that
    rounding does not excuse, by name."""
    seed = fresh_seed()
    cases = [replace(case, seed=seed) for case in cases]
    spread = in_processes(world, run_cases, cases)[0]
    alone = run_cases(0, [case.alone() for case in cases])
    measured: dict[Any, reference.Rounding] = {}
    out = {}
    for case, *results in zip(cases, spread, alone, strict=True):
        drawn = (str(sorted(case.objective.items())), case.loops, case.masked, case.rows)
        model = (*sorted(case.model.items()), *sorted(case.optim.items()), case.isolate, drawn)
        if model not in measured:
            measured[model] = rounding_of(case)
        got, expected = (as_reference(r, small_model(**case.model)) for r in results)
        assert got.keys() == measured[model].exact.keys()
        out[case.name] = seed, measured[model].beyond(reference.errors(got, expected))
    return out


def check(result: tuple[int, dict[str, Any]]) -> None:
    """Assert that fp32 runs agree."""
    seed, beyond = result
    assert not beyond, (seed, beyond)


def compare_bf16(world: int, cases: list[Case]) -> dict[str, tuple[Any, ...]]:
    """Train every case in bf16 in `world` processes and in one, and in one in fp32; return seed,
    case and the three results by name."""
    seed = fresh_seed()
    cases = [replace(case, precision="bf16", seed=seed) for case in cases]
    alone = [case.alone() for case in cases]
    spread = in_processes(world, run_cases, cases)[0]
    bf16 = run_cases(0, alone)
    fp32 = run_cases(0, [replace(case, precision="fp32") for case in alone])
    results = zip(cases, spread, bf16, fp32, strict=True)
    return {case.name: (seed, case, *three) for case, *three in results}


def check_bf16(result: tuple[Any, ...], *, same_bits: bool = True) -> None:
    """Assert that a layout changes a bf16 run by no more than bf16 itself does.

    `same_bits`: one input gives the same bits each time, which cuDNN's attention does not.
    """
    seed, case, layout, bf16, fp32 = result
    # Later steps drift apart, since Adam's first updates are signs, also of noise. Only their loss
    # is held, to the mean rounding error of bf16 (9e-4 seen), loosely: fp32 proves the update.
    assert differences(layout, bf16)["loss"] <= 2**-9, (seed, layout["loss"], bf16["loss"])
    layout, bf16, fp32 = (
        r | {kind: r[kind][:1] for kind in ("loss", "grad_norm")} for r in (layout, bf16, fp32)
    )
    found, rounding = differences(layout, bf16), differences(bf16, fp32)
    # A scalar has a floor, since it may agree with fp32 by accident. Seen in 300 runs with tensor
    # parallelism: 0.5, 0.3 and 0.8 of these bounds.
    if case.parallel.get("tp", 1) == 1 and same_bits:
        # Every product is the same bit for bit. Only the order differs in which microbatches and
        # loops are added to an fp32 main gradient: about one rounding for each of some 16 terms
        # (0.1 of it seen in 40 runs).
        order = 16 * torch.finfo(torch.float32).eps
        bounds = dict.fromkeys(("loss", "grad_norm", "gradients"), order)
    elif case.parallel.get("tp", 1) == 1:
        bounds = {
            "loss": 1e-6,
            "grad_norm": max(rounding["grad_norm"], 2**-9),
            "gradients": rounding["gradients"],
        }
    else:
        # Partial sums are rounded before they are added: as much noise as one process has, and
        # independent of it, so that the ratio for the worst of many tensors is a matter of luck
        # (2.7 seen). The norm is off by no more than the gradients are.
        noise = rounding["mean gradients"]
        loss = max(rounding["loss"], 2**-11)
        bounds = {"loss": 2 * loss, "grad_norm": noise, "mean gradients": 2 * noise}
    for kind, bound in bounds.items():
        assert found[kind] <= bound, (seed, kind, found, rounding)
