"""The plain PyTorch peer is our R = 1: from the same weights it has the same losses and gradients,
takes the same steps on the same batches and is evaluated alike."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from loopcoder.config.data import StageConfig
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_NO_RETRY
from tests.configs import small_config
from tests.reference import Rounding, errors
from tests.reference import evaluate as reference
from tests.weights import named, randomise

VOCAB, EOD = 128, 0
ROUNDING = 2e-6
"""Relative difference of losses after some steps of both; 30 seeds had at most 2e-7."""


def with_weights(peer, weights):
    """Load weights under the released names."""
    peer.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()})
    return peer


def random_batch(generator, isolate_documents):
    """Two rows of several documents, of one token among them; their starts are not predicted."""
    from loopcoder.data.batch import make_batch

    rows = torch.randint(1, VOCAB, (2, 38), generator=generator)
    rows[torch.rand(2, 38, generator=generator) < 0.12] = EOD
    rows[0, 5:8] = EOD
    ids = torch.zeros(2, dtype=torch.long)
    batch = make_batch(rows, ids, ids, EOD, isolate_documents=isolate_documents)
    assert 0 < batch.loss_mask.mean() < 1
    return batch


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_loss_and_gradients_are_those_of_one_loop(ranks, seed, packed, kv_heads):
    from peer import summed_loss
    from peer_model import Peer

    from loopcoder.train.state import build_network

    generator = torch.Generator().manual_seed(seed)
    config = small_config(dict(num_loops=1, num_kv_heads=kv_heads, head_dim=16))
    model = config.model
    network, _ = build_network(config, ranks, VOCAB)
    randomise(network, generator)
    batch = random_batch(generator, packed)
    tokens, labels = batch.tokens, batch.labels
    mask, start = batch.loss_mask, batch.document_start
    weights = named(network, model)
    rounding = Rounding(weights, lambda w: reference(w, model, tokens, labels, mask, start), seed)

    ours = (network(tokens, batch.documents, labels) * mask).sum() / mask.sum()
    ours.backward()
    peer = with_weights(Peer(model, VOCAB), weights)
    theirs = summed_loss(peer, batch, config, model.rope_theta) / mask.sum()
    theirs.backward()
    gradients = {
        name if name == "lm_head.weight" else f"model.{name}": p.grad
        for name, p in peer.named_parameters()
    }
    assert gradients.keys() == weights.keys()
    for found in (
        {"loss 0": ours.detach(), **named(network, model, grad=True)},
        {"loss 0": theirs.detach(), **gradients},
    ):
        assert not rounding.beyond(errors(found, rounding.exact))


def test_steps_and_evaluation_are_those_of_the_train_loop(ranks, seed, corpus):
    """From the same weights: several microbatches, clipping, warm-up, weight decay."""
    from peer import build_optimizers, evaluate, train
    from peer_model import Peer

    from loopcoder.data.loader import Loader
    from loopcoder.data.sampler import Position
    from loopcoder.model.vocabulary import padded_vocabulary
    from loopcoder.optim.optimizer import update
    from loopcoder.optim.schedule import learning_rate
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward
    from loopcoder.train.validation import Evaluator

    config = small_config(dict(num_loops=1))
    # 12 steps end in the second of three stages
    stages = [
        StageConfig(until=8 * 32 * 8),
        StageConfig(until=10**6, mixture={"text": 1, "code": 3}, seq_length=24, rope_theta=5e3),
        StageConfig(mixture={"code": 1}),
    ]
    config = replace(config, data=replace(config.data, stages=stages))
    schedule = replace(config.optim.schedule, kind="cosine", warmup_steps=2)
    optim = replace(config.optim, lr=3e-3, min_lr=1e-3, schedule=schedule, clip_grad=0.5)
    config = replace(config, seed=seed, optim=optim, train=replace(config.train, max_steps=12))
    vocab_size = padded_vocabulary(config.model, corpus.vocab_size, corpus.tokenizer_path)
    state = build_state(config, ranks, vocab_size)
    randomise(state.network, torch.Generator().manual_seed(seed))
    state.optimizer.reload_model_params()
    peer = with_weights(Peer(config.model, vocab_size), named(state.network, config.model))

    losses = []
    loader = Loader(config, corpus, Position(), 0, 1, pin=False)
    for data in loader:
        state.network.set_rope_theta(config.stages[data.before.stage].rope_theta)
        loss, tokens = forward_backward(state, data.microbatches, len(corpus.domains)).sum(1)
        lr = learning_rate(optim, data.after.step, config.train.max_steps)
        update(state.optimizer, optim, lr, tokens)
        losses.append(float(loss / tokens))
    loader.close()
    history = train(peer, config, corpus, build_optimizers(peer, optim, "adamw"))
    assert losses[-1] < losses[0]
    assert history.losses == pytest.approx(losses, rel=ROUNDING)
    assert history.tokens == data.after.tokens
    assert history.stage == data.before.stage == 1
    ours = Evaluator(config, corpus)(state, data.before.stage)
    theirs = evaluate(peer, config, corpus, history.stage)
    assert set(theirs) == {"val/loss", "val/loss/text", "val/loss/code"}
    assert theirs == pytest.approx({name: ours[name] for name in theirs}, rel=ROUNDING)


def test_the_command_writes_its_results(tmp_path, corpus, capsys):
    import peer

    out = tmp_path / "peer.json"
    shape = ["num_loops=1", "num_layers=1", "hidden_size=32", "ffn_hidden_size=48"]
    arguments = ["data=corpus", f"path={corpus.dir}", *(f"model.{field}" for field in shape)]
    arguments += ["train.max_steps=25", "data.seq_length=16", "eval.sequences_per_domain=2"]
    arguments += ["--out", str(out), "--optimizer", "muon", "--lr", "0.003"]
    assert peer.main(arguments) == 0
    result = json.loads(out.read_text())
    assert len(result["loss"]) == 3
    assert result["loss"][-1] < result["loss"][0]
    assert result["steps"] == 25
    assert result["tokens"] == 25 * 4 * 16
    assert (result["optimizer"], result["lr"]) == ("muon", 0.003)
    assert result["val"]["val/loss"] > 0
    assert "step 25/25  loss" in capsys.readouterr().out


def test_what_the_peer_is_not_is_an_error(tmp_path, capsys):
    import peer

    arguments = ["--out", str(tmp_path / "peer.json"), "precision=fp8_delayed"]
    assert peer.main(arguments) == EXIT_BAD_INPUT
    message = capsys.readouterr().err
    assert "model.num_loops=2" in message
    assert "precision=fp8_delayed" in message


def test_a_rate_keeps_the_shape_of_the_schedule():
    from peer import read_config

    config = read_config(["model.num_loops=1", "optim.lr=1e-3", "optim.min_lr=1e-4"], 4e-3)
    assert (config.optim.lr, config.optim.min_lr) == (4e-3, pytest.approx(4e-4))


def test_divergence_is_an_error(seed, corpus):
    from peer import build_optimizers, train
    from peer_model import Peer

    from loopcoder.errors import TrainingDiverged

    config = small_config(dict(num_loops=1))
    peer = Peer(config.model, corpus.vocab_size)
    torch.nn.init.constant_(peer.lm_head.weight, float("nan"))
    with pytest.raises(TrainingDiverged, match="not finite") as raised:
        train(peer, config, corpus, build_optimizers(peer, config.optim, "adamw"))
    assert raised.value.exit_code == EXIT_NO_RETRY
