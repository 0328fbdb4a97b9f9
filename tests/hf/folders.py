"""Checkpoints of small random models, their exports, and what exact arithmetic makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.tokenizer.encoder import train_tokenizer
from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.config.data import StageConfig
from loopcoder.config.schema import Config
from loopcoder.data.sampler import Position
from tests import reference
from tests.checkpoint.states import state_at
from tests.configs import small_config
from tests.reference import Rounding
from tests.weights import named, randomise

VOCAB = 384
TEXTS = ["def add(a, b):\n    return a + b\n", "loop gate window value key\n"] * 20


class Twice(Rounding):
    """Twice the rounding of plain PyTorch in some precision, whichever the order of its sums."""

    FACTOR = 2.0

    def __init__(self, weights: dict[str, Tensor], compute: Any, seed: int, dtype: torch.dtype):
        super().__init__(weights, compute, seed)
        self._weights = {name: w.to(dtype) for name, w in weights.items()}
        self.floor = 4 * torch.finfo(dtype).eps

    def bound(self, name: str) -> float:
        return self.FACTOR * self.noise[name] + self.floor


@cache
def tokenizer(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.exists():
        train_tokenizer(TEXTS, 330, path)
    return path


@dataclass(frozen=True)
class Made:
    """A checkpoint, and the model that was saved."""

    checkpoint: Checkpoint
    config: Config
    state: Any

    @property
    def weights(self) -> dict[str, Tensor]:
        """Under the released names, in float64."""
        return named(self.state.network, self.config.model)


def made(
    folder: Path,
    seed: int,
    precision: str = "fp32",
    stages: Sequence[StageConfig] = (),
    position: Position | None = None,
    **model: Any,
) -> Made:
    """Save a model of random weights, in the world of one process of the fixture `ranks`.

    Args:
        stages: Of its data; none: one.
        position: Of the checkpoint; None: some position of its only stage.
    """
    from loopcoder.checkpoint.save import Saver
    from loopcoder.parallel import mcore
    from loopcoder.train.state import build_state

    folder.mkdir(parents=True, exist_ok=True)
    config = small_config(model, precision)
    config = replace(config, data=replace(config.data, stages=list(stages)))
    state = build_state(config, mcore.initialise(config.parallel, 1), VOCAB)
    randomise(state.network, torch.Generator().manual_seed(seed))
    saver = Saver(config, folder / "run", lambda *_, **__: None, [tokenizer(folder)])
    about = state_at(2, vocab_size=VOCAB, num_loops=config.model.num_loops)
    about = replace(about, position=position or about.position)
    saver.save(state.network, state.ddp, None, about)
    state.network.eval()
    return Made(layout.find(folder / "run"), config, state)


def exact_logits(
    weights: dict[str, Tensor], made: Made, tokens: Tensor, start: Tensor
) -> dict[str, Tensor]:
    """Return the logits of the last loop of each row, in the weights' precision."""
    arguments = reference.arguments(made.config.model)
    rows = zip(tokens, start, strict=True)
    return {
        f"row {i}": reference.forward(weights, *row, **arguments)[-1] for i, row in enumerate(rows)
    }
