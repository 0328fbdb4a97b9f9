"""Small models with random weights, as `loopcoder.diagnose.run` finds them loaded."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from loopcoder.config.diagnosis import DiagnoseConfig
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from tests.configs import small_config
from tests.weights import randomise

VOCAB = 640
SETTINGS = DiagnoseConfig(sequences=10, rank_sequences=5, rank_tokens=9, queries=4)


def config_for(corpus: Corpus, seq_length: int, model: dict[str, Any], **parallel: Any) -> Config:
    """Return the config of a run on a corpus of text and code."""
    config = small_config(model, **parallel)
    mixture = {"text": 1.0, "code": 3.0}
    return replace(config, data=replace(config.data, seq_length=seq_length, mixture=mixture))


def loaded(
    config: Config,
    loops: int,
    ranks: Any,
    seed: int,
    dtype: torch.dtype = torch.float64,
    weights: dict[str, torch.Tensor] | None = None,
) -> Any:
    """Return this rank's part of a model.

    Args:
        loops: That are measured.
        weights: Whole ones; None: drawn.
    """
    from loopcoder.data.sampler import Position
    from loopcoder.diagnose.run import runnable
    from loopcoder.loaded import LoadedRun
    from loopcoder.train.state import build_network
    from tests.dist.layouts import scatter_weights

    runs = runnable(config, loops)
    network, _ = build_network(runs, ranks, VOCAB)
    if weights is None:
        randomise(network, torch.Generator().manual_seed(seed))
    else:
        scatter_weights(network, weights)
    network.to(dtype)
    network.eval()
    saved = SimpleNamespace(position=Position(step=3, tokens=96), vocab_size=VOCAB, corpus="c")
    checkpoint: Any = SimpleNamespace(place="checkpoint", step=3, state=lambda: saved)
    state: Any = SimpleNamespace(ranks=ranks, network=network)
    return LoadedRun(checkpoint, config, runs, state)
