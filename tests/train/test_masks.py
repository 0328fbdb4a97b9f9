"""Packed conversations are trained as each of them alone would be: the masked loss and every
gradient, against one conversation after the other in float64."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from loopcoder.config.data import DataConfig
from loopcoder.config.schema import ModelConfig
from loopcoder.data.blend import Blend, reader_of
from loopcoder.data.corpus import Corpus, with_reader
from loopcoder.data.indexed import token_dtype
from loopcoder.data.loader import step_data
from loopcoder.data.sampler import Position
from tests import reference
from tests.configs import small_config
from tests.data.chat import EOD, VOCAB, chat_corpus
from tests.model.test_reference import CASES
from tests.reference import Rounding, arguments, errors
from tests.weights import named, randomise

PADDED = 384
"""Rows of embedding and head."""
Conversation = tuple[Tensor, Tensor]
"""Its tokens, and which of them are trained."""


def conversations_of(corpus: Corpus) -> dict[tuple[int, ...], list[Conversation]]:
    """Return those of every sequence by its ids, from the files alone."""
    length, found = corpus.packed_for("chat"), {}
    assert length is not None
    for prefix in corpus.prefixes("chat", "train"):
        ids = np.frombuffer(Path(prefix + ".bin").read_bytes(), token_dtype(VOCAB)).astype(int)
        mask = np.frombuffer(Path(prefix + ".mask").read_bytes(), np.uint8)
        for start in range(0, len(ids) - 1, length):
            own = ids[start : start + length]
            ends = np.flatnonzero(own == EOD) + 1
            parts = zip([0, *ends[:-1]], ends, strict=True)
            found[tuple(own.tolist())] = [
                (torch.tensor(own[a:b]), torch.tensor(mask[start + a : start + b]))
                for a, b in parts
            ]
    return found


def alone(
    weights: dict[str, Tensor], model: ModelConfig, chats: list[Conversation]
) -> dict[str, Tensor]:
    """Return the mean loss of each loop over all trained tokens, and the gradients of the last
    one's, one conversation after the other."""
    weights = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    sums, count = [torch.zeros(())] * model.num_loops, 0
    for ids, trained in chats:
        tokens, labels, mask = ids[:-1], ids[1:], trained[1:]
        logits = reference.forward(weights, tokens, torch.zeros_like(tokens), **arguments(model))
        for r, x in enumerate(logits):
            own = torch.nn.functional.cross_entropy(x, labels, reduction="none")
            sums[r] = sums[r] + (own * mask).sum()
        count += int(mask.sum())
    losses = [x / count for x in sums]
    grads = torch.autograd.grad(losses[-1], [*weights.values()], materialize_grads=True)
    out = {f"loss {r}": x.detach() for r, x in enumerate(losses)}
    return out | dict(zip(weights, grads, strict=True))


@pytest.mark.parametrize(
    "case", ["r1", "r2", "r3", "query_gate", "own_kv", "no_shift", "norm_once", "window_self_only"]
)
def test_a_packed_step_is_that_of_each_conversation_alone(
    ranks: Any, tmp_path: Path, seed: int, case: str
) -> None:
    """Read, batched and trained as a run does, in several microbatches."""
    from loopcoder.parallel import mcore
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward, losses

    length = random.Random(seed).randint(24, 40)
    corpus = chat_corpus(
        tmp_path / "chats", np.random.default_rng(seed), seq_length=length, sequences=4
    )
    config = small_config(CASES[case])
    data = DataConfig(name="corpus", path=str(corpus.dir), seq_length=length, mixture={"chat": 1.0})
    config = with_reader(replace(config, data=data), corpus)
    blend = Blend(corpus, config.stages[0], 0, config.seed, reader_of(config.data))
    step = step_data(config, corpus, Position(), 0, 1, lambda _: blend)
    assert len(step.microbatches) == 4

    state = build_state(config, mcore.initialise(config.parallel, 1), PADDED)
    randomise(state.network, torch.Generator().manual_seed(seed))
    model = config.model
    by_ids = conversations_of(corpus)
    rows = [tuple(row) for batch in step.microbatches for row in batch.tokens.tolist()]
    chats = [chat for row in rows for chat in by_ids[row]]
    assert len(chats) > len(rows), "some sequences have several conversations"
    weights = named(state.network, model)
    rounding = Rounding(weights, lambda w: alone(w, model, chats), seed)

    sums = forward_backward(state, step.microbatches, 1)
    trained = sum(int(mask[1:].sum()) for _, mask in chats)
    assert int(sums[1].sum()) == trained
    for parameter in state.network.parameters():
        parameter.grad = parameter.main_grad / trained
    by_loop = torch.zeros(model.num_loops)
    with torch.no_grad():
        found = losses(state, step.microbatches, every_loop=True)
        for batch, loss in zip(step.microbatches, found, strict=True):
            by_loop += (loss * batch.loss_mask).sum((1, 2))
    ours = {f"loss {r}": x / trained for r, x in enumerate(by_loop)}
    ours[f"loss {model.num_loops - 1}"] = sums[0].sum() / trained
    ours |= named(state.network, model, grad=True)
    assert ours.keys() == rounding.exact.keys()
    assert not rounding.beyond(errors(ours, rounding.exact))
