"""Continuations at evaluations: greedy ones are the model's, and training does not change."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from loopcoder.checkpoint.state import Specials
from loopcoder.config.check_precision import sequence_multiple
from loopcoder.config.check_samples import check_samples
from loopcoder.config.evaluation import EvalConfig
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.indexed import IndexedWriter
from loopcoder.data.sampler import Position
from loopcoder.data.tokenizer import read_tokenizer
from loopcoder.errors import InputError
from tests.configs import small_config
from tests.conftest import fresh_seed
from tests.data.chat import chat_corpus
from tests.train.continuations import check_greedy
from tests.weights import randomise

ROWS, TOKENS, EOD = 128, 100, 7
"""Rows of the head, tokens that stand for something, the one that ends documents."""
DOCUMENTS = {"text": 3, "code": 5}


def going() -> bool:
    return False


def configured(model: dict[str, Any] | None = None, **asked: Any) -> Config:
    defaults = dict(samples=6, sample_tokens=9, sample_prompt_tokens=8)
    return replace(small_config(model), eval=EvalConfig(**(defaults | asked)))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A corpus of held-out documents alone, of 2 to 40 tokens, the words of which are numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    seed = fresh_seed()
    print(f"LOOPCODER_TEST_SEED={seed}")
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("held_out")
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(TOKENS)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    held_out: dict[str, list[list[int]]] = {}
    for domain, count in DOCUMENTS.items():
        words = [i for i in range(TOKENS) if i != EOD]
        sizes = [rng.randint(1, 39) for _ in range(count)]
        held_out[domain] = [[*rng.choices(words, k=size), EOD] for size in sizes]
        writer = IndexedWriter(folder / domain, TOKENS)
        for ids in held_out[domain]:
            writer.append(np.array(ids), np.array([len(ids)]))
        writer.finish()
    manifest = {
        "domains": {
            domain: {"val": {"documents": count, "shards": [{"prefix": domain}]}}
            for domain, count in DOCUMENTS.items()
        }
    }
    corpus = Corpus(
        dir=folder,
        domains=tuple(DOCUMENTS),
        tokenizer_path=folder / "tokenizer.json",
        tokenizer_hash="",
        vocab_size=TOKENS,
        eod_id=EOD,
        fingerprint="",
        labels=(),
        manifest=manifest,
    )
    yield SimpleNamespace(corpus=corpus, held_out=held_out)


def built(config: Config, ranks: Any, seed: int, rows: int = ROWS) -> Any:
    from loopcoder.train.state import build_state

    state = build_state(config, ranks, rows)
    randomise(state.network, torch.Generator().manual_seed(seed))
    state.optimizer.reload_model_params()
    return state


def ids_of(text: str) -> list[int]:
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("loops", [1, 3])
def test_each_token_is_the_most_probable_one(
    documents: SimpleNamespace, ranks: Any, seed: int, loops: int
) -> None:
    from loopcoder.train.samples import Samples

    config = configured(dict(num_loops=loops))
    state, samples = built(config, ranks, seed), Samples(config, documents.corpus)
    for theta in (1e4, 10.0):  # that of the data stage counts
        of_stage = replace(config, model=replace(config.model, rope_theta=theta))
        samples = Samples(of_stage, documents.corpus)
        lines = samples(state, 0, Position(step=5, tokens=123), going)
        assert state.network.rope_theta == theta
        assert [line["domain"] for line in lines] == ["text", "code"] * 3
        for number, line in enumerate(lines):
            before, after, true = (
                ids_of(line[key]) for key in ("prompt", "continuation", "reference")
            )
            assert [*before, *true] in [
                ids[: len(before) + 9] if len(ids) > len(before) + 9 else ids[:-1]
                for ids in documents.held_out[line["domain"]]
            ]
            after += [EOD] * (line["finish"] == "stop")
            check_greedy(state, before, after, 9, EOD, TOKENS)
            seen = {key: line[key] for key in ("step", "tokens", "loops", "sample")}
            assert seen == dict(step=5, tokens=123, loops=loops, sample=number)
    assert len({line["prompt"] for line in lines}) == len(lines)
    more = Samples(replace(config, eval=replace(config.eval, samples=99)), documents.corpus)
    assert more.shortage == "eval.samples=99, but there are 8 held-out documents"
    assert samples.shortage is None


def test_a_row_that_ends_ends_nothing_else(ranks: Any, seed: int) -> None:
    """Padded to a multiple, and none of the rows that stand for no token."""
    from loopcoder.train.generation import continued

    state, rng = built(configured(), ranks, seed), random.Random(seed)
    with torch.no_grad():  # its rows without a token would win
        state.network.output_layer.weight[TOKENS:] *= 9
    prompts = [[rng.randrange(TOKENS) for _ in range(rng.randint(1, 20))] for _ in range(5)]

    def run(eod: int, multiple: int) -> list[list[int]]:
        return continued(
            state,
            prompts,
            12,
            lambda logits: logits.argmax(-1),
            eod=eod,
            vocab_size=TOKENS,
            multiple=multiple,
        )

    found = run(TOKENS, 16)  # no token ends a document
    for prompt, ids in zip(prompts, found, strict=True):
        check_greedy(state, prompt, ids, 12, TOKENS, TOKENS)
    end = found[0][3]
    expected = [ids[: ids.index(end) + 1] if end in ids else ids for ids in found]
    assert run(end, 1) == expected and len(expected[0]) <= 4


def test_samples_of_a_chat_end_with_the_answer(ranks: Any, seed: int, tmp_path: Path) -> None:
    """With a turn's end of ChatML, or what an imported folder names."""
    from loopcoder.train.samples import Samples

    chats = chat_corpus(tmp_path / "chats", np.random.default_rng(seed), seq_length=32)
    turn_end = read_tokenizer(chats.tokenizer_path).token_to_id("<|im_end|>")
    config = configured(samples=999)
    data = replace(config.data, mixture={"chat": 1.0}, stages=[], corpora=[], seq_length=32)
    config = replace(config, data=data)
    state = built(config, ranks, seed, 384)
    plain = Samples(config, chats)
    assert plain.shortage is not None and plain.shortage.endswith("with room for an answer")

    def first(specials: Specials | None, token: int) -> dict[str, Any]:
        samples = Samples(config, chats, specials=specials)
        samples._choose = lambda step: lambda logits: logits.new_full((len(logits),), token)  # type: ignore[method-assign]
        return samples(state, 0, Position(), going)[0]

    other = random.Random(seed).randrange(100, 200)
    assert other != turn_end
    ended = first(None, turn_end)
    assert (ended["finish"], ended["continuation"]) == ("stop", "")
    assert first(None, other)["finish"] == "length"
    assert first(Specials({"eos_token_id": [other]}, {}, None, None), other)["finish"] == "stop"


def test_training_goes_on_as_without_them(
    documents: SimpleNamespace, ranks: Any, seed: int
) -> None:
    """Bit for bit: gradients, weights, and what draws random numbers."""
    from loopcoder.data.batch import make_batch
    from loopcoder.optim.optimizer import update
    from loopcoder.train.samples import Samples
    from loopcoder.train.step import forward_backward

    found = []
    for temperature in (None, 0.0, 1.0):
        config = configured(sample_temperature=temperature or 0.0)
        state, samples = built(config, ranks, seed), Samples(config, documents.corpus)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        ids = torch.Generator().manual_seed(seed)
        values: list[Any] = []
        for step in range(3):
            rows = torch.randint(0, TOKENS, (4, 33), generator=ids)
            index = torch.arange(4)
            batch = make_batch(rows, index, index % 2, EOD)
            sums = forward_backward(state, [batch], 2)
            update(state.optimizer, config.optim, config.optim.lr, sums[1].sum())
            if temperature is not None:
                samples(state, 0, Position(step=step), going)
                assert state.network.training
            values += [sums, *(p.detach().clone() for p in state.network.parameters())]
        values += [torch.rand(3), torch.tensor(np.random.rand(3))]
        found.append(values)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_draws_are_of_the_softmax_and_repeat(
    documents: SimpleNamespace, ranks: Any, seed: int
) -> None:
    from loopcoder.train.samples import Samples

    config = configured(samples=3, sample_prompts=["1 2 3"], sample_temperature=0.7)
    state, samples = built(config, ranks, seed), Samples(config, documents.corpus)

    def texts(step: int) -> list[str]:
        lines = samples(state, 0, Position(step=step), going)
        assert {line["prompt"] for line in lines} == {"1 2 3"}
        assert all(line["domain"] is None and "reference" not in line for line in lines)
        return [line["continuation"] for line in lines]

    assert texts(1) == texts(1) != texts(2)
    assert len(set(texts(1))) > 1
    logits, times = torch.randn(6, generator=torch.Generator().manual_seed(seed)), 4000
    many = replace(config, eval=replace(config.eval, samples=times))
    chosen = Samples(many, documents.corpus)._choose(3)(logits.expand(times, -1))
    share = torch.bincount(chosen, minlength=6) / times
    expected = (logits.double() / 0.7).softmax(0)
    assert ((share - expected).abs() < 6 * (expected * (1 - expected) / times).sqrt() + 1e-3).all()


def test_it_is_broken_off(documents: SimpleNamespace, ranks: Any, seed: int) -> None:
    from loopcoder.train.samples import Samples
    from loopcoder.train.validation import EvaluationStopped

    config, asked = configured(), []

    def stopping() -> bool:
        asked.append(True)
        return len(asked) == 3

    state = built(config, ranks, seed)
    with pytest.raises(EvaluationStopped):
        Samples(config, documents.corpus)(state, 0, Position(), stopping)
    assert len(asked) == 3 and state.network.training


def test_none_are_asked_for_by_default(tmp_path: Path) -> None:
    from loopcoder.train.samples import Samples

    samples = Samples(small_config(), SimpleNamespace(tokenizer_path=tmp_path / "none"))  # type: ignore[arg-type]
    assert samples(None, 0, Position(), going) == []  # type: ignore[arg-type]
    assert samples.shortage is None


@pytest.mark.parametrize(("text", "says"), [("1 " * 2000, "2,000 tokens"), (" ", "0 tokens")])
def test_a_text_that_cannot_be_continued(documents: SimpleNamespace, text: str, says: str) -> None:
    from loopcoder.train.samples import Samples

    model = dict(max_position_embeddings=2008)
    config = configured(model, samples=1, sample_prompts=[text])
    with pytest.raises(InputError) as caught:
        Samples(config, documents.corpus)
    (problem,) = caught.value.problems
    assert says in problem.fact and problem.why and problem.fix


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        (dict(samples=1, interval=None, at_end=False), "eval.samples=0, or eval.at_end=true"),
        (dict(samples=0, sample_prompts=["a"]), "eval.samples=1"),
        (dict(samples=1, sample_prompts=["a", "b"]), "eval.samples=2"),
        (dict(samples=3, sample_prompts=["a", "b"]), "eval.samples=2, or eval.sample_temperature="),
        (dict(samples=1, sample_prompts=[]), "give texts, or null"),
        (dict(samples=2, sample_prompts=["a", ""]), "a text for each"),
        (dict(sample_tokens=10**6), "eval.sample_prompt_tokens=8 eval.sample_tokens="),
    ],
)
def test_what_cannot_be_honoured_is_refused(asked: dict[str, Any], fix: str) -> None:
    (problem,) = check_samples(configured(**asked))
    assert problem.fix.startswith(fix)


def test_which_text_is_empty_is_said() -> None:
    (problem,) = check_samples(configured(samples=3, sample_prompts=["a", "", "b", ""]))
    assert problem.why.endswith("empty: eval.sample_prompts.1, eval.sample_prompts.3")


def test_what_can_be_is_not() -> None:
    for asked in ({}, dict(samples=2, sample_prompts=["a", "b"]), dict(samples=0, at_end=False)):
        assert not list(check_samples(configured(**asked)))
    drawn = dict(samples=5, sample_prompts=["a"], sample_temperature=1.0)
    assert not list(check_samples(configured(**drawn)))


@pytest.mark.parametrize(
    ("precision", "parallel", "expected"),
    [
        ("fp32", dict(tp=2), 1),
        ("bf16", dict(tp=2, sp=True), 2),
        ("fp8_tensorwise", dict(), 16),
        ("fp8_blockwise", dict(tp=4, sp=True), 512),
    ],
)
def test_lengths_suit_the_layout(precision: str, parallel: dict[str, Any], expected: int) -> None:
    assert sequence_multiple(small_config(precision=precision, **parallel)) == expected


def test_the_history_of_scaling_stays() -> None:
    """Delayed FP8 scales by what was computed before, which samples are no part of."""
    from loopcoder.checkpoint.fp8_history import unchanged

    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    scaling = SimpleNamespace(scale=torch.rand(3), amax_history=torch.rand(4, 3))
    network[1].fp8_meta = {"scaling_fwd": scaling, "recipe": None}
    before = scaling.scale.clone(), scaling.amax_history.clone()
    with pytest.raises(KeyError), unchanged(network):
        scaling.scale += 1
        scaling.amax_history[0] = 9
        raise KeyError
    assert torch.equal(scaling.scale, before[0])
    assert torch.equal(scaling.amax_history, before[1])
