"""Steps for tests of CUDA graphs, with all that changes from step to step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loopcoder.config.schema import Config
from tests.configs import small_config

VOCAB, DOMAINS, EOD = 128, 3, 3


def config_of(model: dict[str, Any] | None = None, precision: str = "fp32") -> Config:
    """A config whose rates move the weights in every step, parts of the model at others."""
    config = small_config(model, precision)
    changed = replace(
        config.optim, lr=1e-2, head_lr_scale=0.5, vocabulary_warmup_steps=20, clip_grad=0.5
    )
    return replace(config, optim=changed)


def rate(step: int) -> tuple[float, float]:
    """Return the rate of a step, and the share of it at which embedding and head learn."""
    return 1e-2 * (0.6 + 0.4 * math.cos(step)), min(1.0, step / 20)


def batches_of(
    seed: int,
    *,
    microbatches: int = 2,
    rows: int = 2,
    length: int = 32,
    packed: bool = True,
    vocab: int = VOCAB,
    borders: float = 0.1,
) -> list[Any]:
    """Random microbatches, each with documents of its own, masked labels and domains."""
    from loopcoder.data.batch import make_batch

    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(microbatches):
        ids = torch.randint(EOD + 1, vocab, (rows, length + 1), generator=generator)
        ids[torch.rand(ids.shape, generator=generator) < borders] = EOD
        domains = torch.randint(0, DOMAINS, (rows,), generator=generator)
        labels = torch.randint(0, 6, (rows, length), generator=generator)
        valid = torch.rand(rows, length, generator=generator) < 0.9
        batch = make_batch(
            ids,
            torch.arange(rows),
            domains,
            EOD,
            label_ids=labels,
            isolate_documents=packed,
            valid=valid,
        )
        made.append(batch.pin())
    return made


def build(config: Config, ranks: Any, vocab: int = VOCAB) -> Any:
    from loopcoder.train.state import build_state

    return build_state(config, ranks, vocab)


def train_eagerly(
    state: Any, config: Config, batches: list[Any], step: int, measures: Any = None
) -> tuple[Tensor, Tensor]:
    """Train a step as a run without graphs does; return sums of the loss and the norm."""
    from loopcoder.optim.optimizer import update
    from loopcoder.train.measures import NOTHING
    from loopcoder.train.step import forward_backward

    lr, share = rate(step)
    sums = forward_backward(state, batches, DOMAINS, measures or NOTHING)
    loss, tokens = sums.sum(1)
    norm = update(state.optimizer, config.optim, lr, tokens, share, loss=loss)
    return sums, norm


def trained(state: Any) -> list[Tensor]:
    """Return copies of all weights and moments, and how often Adam has stepped."""
    out = [p.detach().clone() for p in state.network.parameters()]
    for inner in getattr(state.optimizer, "chained_optimizers", [state.optimizer]):
        for group in inner.optimizer.param_groups:
            out.append(torch.tensor(group.get("step", 0)))
            for parameter in group["params"]:
                out.append(parameter.detach().clone())
                kept = inner.optimizer.state[parameter]
                out += [x.clone() for x in kept.values() if isinstance(x, Tensor)]
    return out


def same_bits(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(
        torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)) for a, b in zip(ours, theirs, strict=True)
    )
