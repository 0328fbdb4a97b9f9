"""Loop-parallel decoding against a full forward pass that shares no code with it."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from loopcoder.errors import InputError
from loopcoder.hf.mapping import from_released
from loopcoder.infer.decoder import Decoder
from loopcoder.infer.layers import head
from loopcoder.infer.prefill import passes
from loopcoder.infer.weights import build_weights
from tests.infer.models import VOCAB, Drawn, draw, random_ids
from tests.reference import errors

MODELS: dict[str, dict[str, Any]] = {
    "r1": dict(num_loops=1),
    "r2": dict(num_loops=2),
    "r3 query gate": dict(num_loops=3, gate="query"),
    "r4 deep": dict(num_loops=4, num_layers=3),
    "no grouped heads": dict(num_kv_heads=4),
    "one K/V head": dict(num_loops=3, num_kv_heads=1),
    "a window of the token alone": dict(num_loops=3, window=0),
    "a window longer than all": dict(num_loops=3, window=64),
    "no shift": dict(num_loops=3, shift=False),
    "no shift, query gate": dict(num_loops=3, shift=False, gate="query", window=3),
    "own K/V": dict(num_loops=3, kv_sharing="own"),
    "own K/V, no shift": dict(num_loops=3, kv_sharing="own", shift=False),
    "norm once": dict(num_loops=3, norm_per_loop=False),
    "norm once, no shift": dict(num_loops=3, norm_per_loop=False, shift=False),
    "no scales": dict(num_loops=3, emb_scale=None, hidden_scale=None),
    "wide heads": dict(head_dim=16),
}
LONG = [1, 2, 63, 64, 65, 66, 129, 130, 131, 300]


@pytest.mark.parametrize("name", MODELS)
def test_sequences_that_come_and_go_equal_the_full_pass(
    seed: int, rng: random.Random, name: str
) -> None:
    """Prompts of some lengths in one pass, steps of some in any order, places used again."""
    drawn = draw(seed, **MODELS[name])
    decoder = drawn.decoder(num_places=3, max_length=20)
    sequences = [random_ids(rng, rng.randrange(2, 21)) for _ in range(5)]
    found: list[list[Tensor]] = [[] for _ in sequences]
    waiting, running = list(range(len(sequences))), dict[int, int]()
    while waiting or running:
        free = [place for place in range(3) if place not in running]
        taken = {place: waiting.pop() for place in free if waiting and rng.random() < 0.7}
        if taken:
            prefill(decoder, {p: sequences[i] for p, i in taken.items()}, taken, found, rng)
        running |= taken
        done = [p for p, i in running.items() if len(found[i]) == len(sequences[i])]
        running = {p: i for p, i in running.items() if p not in done}
        some = [place for place in running if rng.random() < 0.7]
        rng.shuffle(some)
        if some:
            tokens = [sequences[running[p]][len(found[running[p]])] for p in some]
            given = torch.tensor(tokens) if rng.random() < 0.5 else tokens
            for place, logits in zip(some, decoder.step(some, given), strict=True):
                found[running[place]].append(logits)
    ours = {str(i): torch.stack(rows) for i, rows in enumerate(found)}
    rounding = drawn.rounding(sequences, seed)
    assert not rounding.beyond(errors(ours, rounding.exact))


def prefill(
    decoder: Decoder,
    sequences: dict[int, list[int]],
    taken: dict[int, int],
    found: list[list[Tensor]],
    rng: random.Random,
) -> None:
    """Begin with a part of each sequence, and note the logits of all of its tokens."""
    prompts = {place: ids[: rng.randrange(1, len(ids) + 1)] for place, ids in sequences.items()}

    def read(place: int, first: int, logits: Tensor) -> None:
        assert first == len(found[taken[place]])
        found[taken[place]].extend(logits)

    last = decoder.prefill(prompts, read)
    assert last.shape == (len(prompts), VOCAB) and last.dtype == torch.float32
    for place, logits in zip(prompts, last, strict=True):
        torch.testing.assert_close(logits, found[taken[place]][-1])
        assert decoder.lengths[place] == len(found[taken[place]])


def test_prompts_of_1_to_300_tokens_across_the_window(seed: int, rng: random.Random) -> None:
    model = dict(num_loops=2 + seed % 3, gate=("hidden", "query")[seed // 3 % 2])
    drawn = draw(seed, window=64, **model)
    decoder = drawn.decoder(len(LONG), 304)
    sequences = [random_ids(rng, length + 4) for length in LONG]
    rows = [decoder.prefill({i: s[:-4] for i, s in enumerate(sequences)})]
    for step in range(4):
        places = list(range(len(LONG)))
        rng.shuffle(places)
        logits = decoder.step(places, [sequences[p][LONG[p] + step] for p in places])
        rows.append(logits[torch.tensor(places).argsort()])
    rounding = drawn.rounding(sequences, seed)
    rounding.exact = {name: x[-5:] for name, x in rounding.exact.items()}
    compute = rounding._compute
    rounding._compute = lambda w: {name: x[-5:] for name, x in compute(w).items()}
    ours = {str(i): x for i, x in enumerate(torch.stack(rows, 1))}
    assert not rounding.beyond(errors(ours, rounding.exact))


@pytest.mark.parametrize("loops", [1, 2, 3, 4])
def test_200_greedy_tokens_are_those_of_an_uncached_loop(
    seed: int, rng: random.Random, loops: int
) -> None:
    """Each is the best by the full pass over all before it, or as good to rounding."""
    drawn = draw(seed, num_loops=loops, window=(6, 64)[seed % 2])
    prompts = {i: random_ids(rng, length) for i, length in enumerate((1, 7, 70))}
    decoder = drawn.decoder(3, 280)
    best, out = decoder.prefill(prompts).argmax(-1), [list(ids) for ids in prompts.values()]
    for _ in range(200):
        for ids, token in zip(out, best.tolist(), strict=True):
            ids.append(token)
        best = decoder.step(list(prompts), best).argmax(-1)
    for ids, prompt in zip(out, prompts.values(), strict=True):
        assert_greedy(drawn, ids, len(prompt))


def assert_greedy(drawn: Drawn, ids: list[int], first: int) -> None:
    logits = drawn.logits(ids[:-1])[first - 1 :]
    tokens = torch.tensor(ids[first:])
    behind = logits.max(-1).values - logits.gather(1, tokens[:, None])[:, 0]
    assert len(tokens) == 200 and behind.max() < 1e-4 * logits.abs().max()
    assert (behind == 0).float().mean() > 0.98


def test_parts_of_the_logits_are_small(
    seed: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopcoder.infer.decoder._LOGITS_BYTES", 4 * VOCAB * 3)
    drawn = draw(seed)
    decoder, ids, parts = drawn.decoder(2, 30), random_ids(rng, 11), []
    decoder.prefill({1: ids, 0: ids[:2]}, lambda *part: parts.append(part))
    assert [(p, first, len(x)) for p, first, x in parts] == [
        (1, 0, 3), (1, 3, 3), (1, 6, 3), (1, 9, 2), (0, 0, 2)
    ]  # fmt: skip


def test_long_prompts_go_through_the_layers_in_parts(
    seed: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw(seed, num_loops=3)
    ids = random_ids(rng, 50)
    whole = drawn.decoder(1, 60).prefill({0: ids})
    monkeypatch.setattr("loopcoder.infer.layers.ROWS", 7)
    monkeypatch.setattr("loopcoder.infer.attention._BLOCK", 5)
    torch.testing.assert_close(drawn.decoder(1, 60).prefill({0: ids}), whole)


def test_many_prompts_go_in_several_passes(
    seed: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw(seed)
    prompts = {
        place: random_ids(rng, length) for place, length in ((3, 9), (0, 20), (2, 4), (1, 8))
    }
    together = drawn.decoder(4, 20).prefill(prompts)
    monkeypatch.setattr("loopcoder.infer.prefill.PASS_TOKENS", 12)
    assert [[*part] for part in passes(prompts, 20)] == [[3], [0], [2, 1]]
    torch.testing.assert_close(drawn.decoder(4, 20).prefill(prompts), together)


def test_what_cannot_be_decoded_is_refused_and_changes_nothing(
    seed: int, rng: random.Random
) -> None:
    decoder = draw(seed).decoder(2, 8)
    ids = random_ids(rng, 4)
    decoder.prefill({0: ids})
    for wrong, says in (([], "no tokens"), (random_ids(rng, 9), "9 tokens"), ([VOCAB], "token id")):
        with pytest.raises(InputError, match=says):
            decoder.prefill({0: ids, 1: wrong})
    for places, tokens in (([1], [1]), ([0, 0], [1, 1]), ([0], [1, 2]), ([], [])):
        with pytest.raises(ValueError, match="place"):
            decoder.step(places, tokens)
    assert decoder.lengths == [4, 0]
    for token in random_ids(rng, 4):
        decoder.step([0], [token])
    with pytest.raises(ValueError, match="8 of 8"):
        decoder.step([0], [1])


def test_the_cache_of_a_decoder_that_is_dropped_is_gone(seed: int, rng: random.Random) -> None:
    """At once, and not when Python looks for circles: the next one may need its memory."""
    gc.collect()
    gc.disable()
    try:
        drawn = draw(seed)
        decoder = drawn.decoder(2, 30)
        decoder.prefill({0: random_ids(rng, 3)}, lambda *_: None)
        decoder.step([0], random_ids(rng, 1))
        cache = weakref.ref(decoder._cache)
        del decoder
        assert cache() is None
    finally:
        gc.enable()


def test_logits_of_bf16_weights_are_not_rounded(seed: int, rng: random.Random) -> None:
    """Of one row and of many, of a prompt and of steps: the head is applied in fp32."""
    drawn = draw(seed, num_loops=2)
    ours = from_released(drawn.weights, drawn.model)
    device = torch.device("cpu")
    weights = build_weights(ours.__getitem__, drawn.model, VOCAB, device, torch.bfloat16)
    decoder = Decoder(weights, drawn.model, VOCAB, num_places=10, max_length=30)
    told: list[Tensor] = []
    some = [
        decoder.prefill({i: random_ids(rng, 9) for i in range(10)}, lambda *a: told.append(a[2]))
    ]
    some += [decoder.step(range(n), random_ids(rng, n)) for n in (1, 10)]
    for logits in (*some, *told):
        assert logits.dtype == torch.float32
        assert (logits != logits.bfloat16().float()).double().mean() > 0.5
    normed = torch.randn(9, drawn.model.hidden_size).bfloat16()
    exact = normed.double() @ weights.head.double().T
    torch.testing.assert_close(head(normed, weights.head).double(), exact, rtol=1e-5, atol=1e-5)


def test_only_wanted_prompts_go_through_the_head(seed: int, rng: random.Random) -> None:
    decoder = draw(seed).decoder(3, 30)
    prompts = {i: random_ids(rng, 3 + i) for i in range(3)}
    told: dict[int, Tensor] = {}
    decoder.prefill(prompts, lambda place, _, logits: told.update({place: logits}), {1})
    assert told.keys() == {1} and told[1].shape == (4, VOCAB)
