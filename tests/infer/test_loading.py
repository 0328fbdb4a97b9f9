"""Decoders from checkpoints, from folders for transformers, and from a model in memory."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loopcoder.config.data import StageConfig
from loopcoder.data.sampler import Position
from loopcoder.errors import InputError
from loopcoder.hf.export import export
from loopcoder.infer import loading
from loopcoder.infer.decoder import Decoder
from loopcoder.infer.loading import decoder_of, load_decoder
from loopcoder.model.documents import Documents
from tests import reference
from tests.configs import small_model
from tests.hf.folders import VOCAB, Twice, made
from tests.hf.released import llama_config, random_tensors, write_folder
from tests.reference import errors

ROOM = dict(num_places=2, max_length=40)


def full_pass(network: Any, ids: list[int], vocabulary: int) -> Tensor:
    docs = Documents.whole_rows(1, len(ids), torch.device("cpu"))
    with torch.no_grad():
        logits: Tensor = network(torch.tensor([ids]), docs, None)[:, 0, :vocabulary]
    return logits.float()


def decoded(decoder: Decoder, ids: list[int]) -> Tensor:
    """Return the logits after each token but the first two, of a prompt and then of steps."""
    rows = [decoder.prefill({1: ids[:3]})]
    rows += [decoder.step([1], [token]) for token in ids[3:]]
    return torch.cat(rows)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_its_export_and_the_model_in_memory_decode_alike(
    ranks: Any, seed: int, rng: random.Random, tmp_path: Path, precision: str
) -> None:
    """And as exact arithmetic does, but for what plain PyTorch rounds. The last trained stage has a
    rope_theta of its own."""
    stages = [StageConfig(until=64), StageConfig(rope_theta=100.0)]
    position = Position(step=2, stage=1, sample=3, samples=8, tokens=64)
    case = made(tmp_path, seed, precision, stages, position, num_loops=2 + seed % 2)
    case.state.network.set_rope_theta(100.0)
    ids = [rng.randrange(300) for _ in range(24)]
    folder = export(case.checkpoint, tmp_path / "out", shard_bytes=60_000).folder
    loaded = load_decoder(case.checkpoint, precision=precision, **ROOM)
    exported = load_decoder(folder, precision=precision, **ROOM)
    tokens = loaded.tokenizer.get_vocab_size()
    assert exported.decoder.vocabulary == loaded.decoder.vocabulary == tokens < VOCAB
    expected = full_pass(case.state.network, ids, tokens)[2:]
    own = decoder_of(case.state.network, exported.source.model, tokens, **ROOM)
    model = replace(case.config.model, rope_theta=100.0)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16

    def exact(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        row = torch.tensor(ids), torch.zeros(len(ids), dtype=torch.int64)
        logits = reference.forward(weights, *row, **reference.arguments(model))[-1]
        return {"row": logits[2:, :tokens]}

    rounding = Twice(case.weights, exact, seed, dtype)
    decoders = [decoded(each, ids) for each in (loaded.decoder, exported.decoder, own)]
    for found in (expected, *decoders):
        assert not rounding.beyond(errors({"row": found}, rounding.exact))
    # of the drawn weights some are such that plain PyTorch is further off in bf16
    share = 1e-5 if precision == "fp32" else max(0.06, rounding.bound("row"))
    for found in decoders:
        assert_near(found, expected, share)
    assert exported.eos_ids == loaded.eos_ids and exported.bos_id == loaded.bos_id
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("loop gate").ids) == "loop gate"


def test_the_weights_of_a_model_in_memory_are_shared(ranks: Any, seed: int, tmp_path: Path) -> None:
    case = made(tmp_path, seed)
    decoder = decoder_of(case.state.network, case.config.model, VOCAB, **ROOM)
    theirs = {p.data_ptr() for p in case.state.network.parameters()}
    assert {x.data_ptr() for x in decoder._weights.tensors()} == theirs


@pytest.mark.parametrize(("trained", "asked"), [(2, 1), (1, 3), (3, 2)])
def test_other_loops_than_were_trained(
    ranks: Any, seed: int, rng: random.Random, tmp_path: Path, trained: int, asked: int
) -> None:
    from loopcoder.backends import detect
    from loopcoder.checkpoint.load import load
    from loopcoder.config.this_machine import for_this_machine
    from loopcoder.train.state import build_network

    case = made(tmp_path, seed, num_loops=trained, gate_bias_init=0.7)
    config = for_this_machine(case.checkpoint.config(), detect(), asked, "fp32")
    network, _ = build_network(config, ranks, VOCAB)
    load(case.checkpoint, network, None, config)
    ids = [rng.randrange(300) for _ in range(16)]
    loaded = load_decoder(case.checkpoint, num_loops=asked, **ROOM).decoder
    expected = full_pass(network, ids, loaded.vocabulary)[2:]
    assert_near(decoded(loaded, ids), expected)
    folder = export(case.checkpoint, tmp_path / "out").folder
    exported = load_decoder(folder, num_loops=asked, **ROOM).decoder
    if (trained, asked) != (1, 3):  # an export does not say how new gates begin
        assert_near(decoded(exported, ids), decoded(loaded, ids))


def test_a_dense_folder_whose_head_is_its_embedding(
    seed: int, rng: random.Random, tmp_path: Path
) -> None:
    model = small_model(num_loops=1)
    tensors = random_tensors(model, seed, torch.float32)
    del tensors["lm_head.weight"]
    folder = write_folder(tmp_path / "llama", llama_config(model, is_tied=True), tensors, shards=2)
    loaded = load_decoder(folder, **ROOM)
    ids = [rng.randrange(loaded.decoder.vocabulary) for _ in range(20)]
    tokens = torch.tensor(ids)
    weights = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    expected = reference.forward(weights, tokens, 0 * tokens, **reference.arguments(model))[-1]
    assert_near(decoded(loaded.decoder, ids), expected[2:, : loaded.decoder.vocabulary])
    assert loaded.source.model.num_loops == 1 and loaded.eos_ids


def test_kernels_that_cannot_run_are_refused_before_weights_are_read(
    ranks: Any, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = made(tmp_path, seed).checkpoint
    monkeypatch.setattr(loading, "build_weights", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(InputError, match=r"kernels=cuda\n.*run on a GPU.*\n.*kernels=stock"):
        load_decoder(checkpoint, kernels="cuda", **ROOM)


def test_what_is_damaged_or_not_there_is_refused(ranks: Any, seed: int, tmp_path: Path) -> None:
    case = made(tmp_path, seed)
    with pytest.raises(InputError, match="there is no folder"):
        load_decoder(tmp_path / "nothing", **ROOM)
    with pytest.raises(InputError, match="max_position_embeddings"):
        load_decoder(case.checkpoint, num_places=1, max_length=200_000)
    shard = max(case.checkpoint.path.glob("*.distcp"), key=lambda p: p.stat().st_size)
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(b ^ 1 for b in content[middle : middle + 64])
    shard.write_bytes(content)
    with pytest.raises(InputError):
        load_decoder(case.checkpoint, **ROOM)


def assert_near(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.abs().max()))
