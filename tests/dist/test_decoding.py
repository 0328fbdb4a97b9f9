"""A decoder that is split over two ranks gives what one process gives."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from loopcoder.config.schema import ParallelConfig
from loopcoder.errors import InputError, LoopcoderError
from loopcoder.hf.config import to_released
from loopcoder.hf.mapping import from_released
from loopcoder.infer.decoder import Decoder
from loopcoder.infer.leading import control_group, leading
from loopcoder.infer.loading import load_decoder
from loopcoder.infer.split import WHOLE, Split
from loopcoder.infer.weights import build_weights
from tests.configs import small_model
from tests.dist.launch import in_processes
from tests.hf.released import VOCAB as ROWS
from tests.hf.released import random_tensors, write_folder
from tests.infer.models import Drawn, draw, random_ids

MODELS: dict[str, dict[str, Any]] = {
    "r3": dict(num_loops=3),
    "r2 query gate": dict(gate="query"),
    "r1": dict(num_loops=1),
    "own K/V, no shift": dict(num_loops=3, kv_sharing="own", shift=False),
}
VOCABULARY = 91
"""Two ranks cannot have as many rows of it."""


def decoder_of(drawn: Drawn, split: Split) -> Decoder:
    ours = from_released(drawn.weights, drawn.model)
    cpu = torch.device("cpu")
    weights = build_weights(ours.__getitem__, drawn.model, VOCABULARY, cpu, torch.float32, split)
    return Decoder(weights, drawn.model, VOCABULARY, num_places=3, max_length=40, split=split)


def session(decoder: Any, seed: int) -> list[torch.Tensor]:
    """Use a decoder as a server would; return all logits."""
    rng, out = random.Random(seed), []
    prompts = {p: random_ids(rng, rng.randrange(1, 20)) for p in range(3)}
    out.append(decoder.prefill(prompts, lambda *part: out.append(part[2]), {0, 2}))
    for _ in range(8):
        places = rng.sample(range(3), rng.randrange(1, 4))
        out.append(decoder.step(places, out[-1][: len(places)].argmax(-1)[:1].repeat(len(places))))
    out.append(decoder.prefill({1: random_ids(rng, 7)}))
    out.append(decoder.step([1, 0], [3, 4]))
    out.append(torch.tensor(decoder.lengths))
    return out


def on_rank(rank: int, seed: int, folder: Path) -> dict[str, list[torch.Tensor]]:
    split, control, found = Split(rank, 2, dist.group.WORLD), control_group(range(2)), {}
    for name, model in MODELS.items():
        with leading(decoder_of(draw(seed, **model), split), control) as leader:
            if leader is not None:
                with pytest.raises(InputError):
                    leader.prefill({0: []})  # nobody else hears of it
                with pytest.raises(ValueError, match="place"):
                    leader.step([0], [1])
                found[name] = [x.tolist() for x in session(leader, seed)]
        if leader is not None:
            with pytest.raises(LoopcoderError, match="do not run together"):
                leader.step([1], [1])
    asked = dict(parallel=ParallelConfig(tp=2), split=split, num_places=3, max_length=40)
    with leading(load_decoder(folder, **asked).decoder, control) as leader:
        if leader is not None:
            found["folder"] = [x.tolist() for x in session(leader, seed)]
    with pytest.raises(InputError, match="max_position"):
        load_decoder(folder, **asked | dict(max_length=1 << 30))
    one_fails(split)
    return found


def one_fails(split: Split) -> None:
    """What one rank finds is told on all; so is that they found different things."""

    def load() -> str:
        if split.rank == 1:
            raise InputError.of("rank 1 has no room", "it is full", "less")
        return "weights"

    with pytest.raises(InputError, match="rank 1 has no room"):
        split.all_or_none(load, str)
    with pytest.raises(InputError, match="another one 1"):
        split.all_or_none(lambda: split.rank, str)
    assert split.all_or_none(lambda: 7, str) == 7


@pytest.mark.dist
def test_two_ranks_give_what_one_process_gives(seed: int, tmp_path: Path) -> None:
    model = small_model()
    tensors = random_tensors(model, seed, torch.bfloat16)
    folder = write_folder(tmp_path / "folder", to_released(model, ROWS), tensors)
    found, nothing = in_processes(2, on_rank, seed, folder, timeout_s=120)
    assert not nothing and found.keys() == {*MODELS, "folder"}
    alone = load_decoder(folder, num_places=3, max_length=40).decoder
    for ours, theirs in zip(found["folder"], session(alone, seed), strict=True):
        torch.testing.assert_close(torch.tensor(ours), theirs, rtol=1e-4, atol=1e-4)
    for name, model in MODELS.items():
        expected = session(decoder_of(draw(seed, **model), WHOLE), seed)
        for ours, theirs in zip(found[name], expected, strict=True):
            torch.testing.assert_close(torch.tensor(ours), theirs, rtol=1e-4, atol=1e-4)
