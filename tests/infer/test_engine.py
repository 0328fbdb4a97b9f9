"""The engine: whatever comes, goes and runs beside a request, its answer is that of it alone."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from loopcoder.errors import InputError
from loopcoder.infer.engine import Engine, EngineBusy, EngineFailed
from loopcoder.infer.gathered import Gathered
from loopcoder.infer.request import Answer, Piece, Request, Sampling, Token
from loopcoder.infer.text import TextStream
from tests.infer.stand_in import MARKER, StandIn, tokenizer_of

TOKENIZER = tokenizer_of(["the loop reads the gate of the window " * 10])
SIZE = TOKENIZER.get_vocab_size()


def engine(num_places: int = 3, **settings: int) -> Engine:
    return Engine(StandIn(SIZE, num_places), TOKENIZER, **settings)


def some_request(rng: random.Random) -> Request:
    ids = tuple(rng.randrange(SIZE) for _ in range(rng.randrange(1, 20)))
    sampling = Sampling(temperature=rng.choice([0, 1.0]), top_k=8, seed=rng.randrange(99))
    stop = tuple(rng.choices("abcdefgh", k=rng.randrange(3)))
    stop_ids = frozenset(rng.sample(range(SIZE), rng.randrange(9)))
    logprobs = rng.choice([None, 0, 2])
    return Request(
        ids, rng.randrange(30), sampling, stop, stop_ids, logprobs, rng.choice([None, 3])
    )


def alone(request: Request, decoder: StandIn) -> Answer:
    """Answer a greedy request by the words of `Request`, a token at a time."""
    bytes_of = engine().bytes_of
    ids, text, tokens = list(request.ids), TextStream(bytes_of, request.stop), []
    said, finish, stopped_by = "", "length", None
    for _ in range(request.max_tokens):
        logits = decoder.logits(ids)
        ids.append(int(logits.argmax()))
        tokens.append(ids[-1])
        said += text.end() if ids[-1] in request.stop_ids else text.add(ids[-1])
        if ids[-1] in request.stop_ids or text.stopped_by is not None:
            stopped_by = text.stopped_by or ids[-1]
            return Answer(said, tuple(map(Token, tokens)), "stop", (), stopped_by)
    said += text.end()
    finish = "stop" if text.stopped_by else "length"
    return Answer(said, tuple(map(Token, tokens)), finish, (), text.stopped_by)  # type: ignore[arg-type]


def bare(answer: Answer) -> Answer:
    """Leave out what is told of log-probabilities."""
    return replace(answer, tokens=tuple(Token(t.id) for t in answer.tokens), prompt=())


def test_answers_are_those_of_each_request_alone(rng: random.Random) -> None:
    """Many requests of any kind through few places, some cancelled, all seeded."""
    requests = [some_request(rng) for _ in range(40)]
    one_by_one = [engine(1).generate([request])[0] for request in requests]
    for request, answer in zip(requests, one_by_one, strict=True):
        if request.sampling.temperature == 0:
            assert bare(answer) == alone(request, StandIn(SIZE))
    together = engine(rng.randrange(2, 6), prefill_tokens=rng.randrange(1, 60))
    assert together.generate(requests) == one_by_one
    assert (together.num_running, together.num_waiting) == (0, 0)
    assert sum(together.totals.answers.values()) == 40
    assert together.totals.generated_tokens == sum(len(a.tokens) for a in one_by_one)
    assert together.totals.prompt_tokens == sum(len(r.ids) for r in requests)

    answers, doomed = {}, set(rng.sample(range(40), 15))
    todo = list(range(40))
    tickets: dict[int, int] = {}
    while todo or together.num_running or together.num_waiting:
        for i in [todo.pop() for _ in range(min(len(todo), rng.randrange(4)))]:
            answers[i] = Gathered()
            tickets[i] = together.submit(requests[i], answers[i].add)
        for i in [i for i in doomed & tickets.keys() if rng.random() < 0.1]:
            together.cancel(tickets[i])
        together.step()
    for i, gathered in answers.items():
        answer, whole = gathered.answer(), one_by_one[i]
        if answer.finish == "cancelled":
            assert i in doomed and answer.tokens == whole.tokens[: len(answer.tokens)]
            assert whole.text.startswith(answer.text.rstrip("�"))
        else:
            assert answer == whole


def test_log_probabilities_of_prompts(rng: random.Random) -> None:
    ids = tuple(rng.randrange(SIZE) for _ in range(17))
    short_one = Request(ids[:1], 1, prompt_logprobs=0)
    requests = [Request(ids, 0, prompt_logprobs=2), Request(ids, 1), short_one]
    made = engine()
    told, silent, short = made.generate(requests)
    assert isinstance(made.decoder, StandIn) and len(made.decoder.wanted[0]) == 2
    assert silent.prompt == () and short.prompt == (Token(ids[0]),)
    assert [t.id for t in told.prompt] == list(ids) and told.prompt[0] == Token(ids[0])
    assert (told.tokens, told.text, told.finish) == ((), "", "length")
    for i, token in enumerate(told.prompt[1:], 1):
        exact = StandIn(SIZE).logits(ids[:i]).log_softmax(-1)
        assert token.logprob == pytest.approx(float(exact[token.id]), abs=1e-5)
        assert [i for i, _ in token.top] == exact.topk(2).indices.tolist()


def test_order_of_arrival_and_the_size_of_a_pass() -> None:
    """Two places are free for three; a prompt above the budget goes alone."""
    made = engine(4, prefill_tokens=10)
    decoder = made.decoder
    assert isinstance(decoder, StandIn)
    begun: list[int] = []
    for i, length in enumerate([6, 4, 1, 12, 3, 2]):
        request = Request(tuple(range(length)), 5)
        made.submit(request, lambda piece, i=i: begun.append(i))  # type: ignore[misc]
    made.step()
    assert decoder.passes == [[6, 4]] and decoder.steps == [2]
    made.step()
    assert decoder.passes == [[6, 4], [1]] and decoder.steps == [2, 3]
    while made.step():
        pass
    assert decoder.passes == [[6, 4], [1], [12], [3, 2]] and max(decoder.steps) == 4
    assert list(dict.fromkeys(begun)) == list(range(6))
    assert Counter(begun) == dict.fromkeys(range(6), 5)


def test_running_sequences_get_a_token_between_two_passes() -> None:
    made = engine(8, prefill_tokens=4)
    came: list[Piece] = []
    made.submit(Request((1,), 20), came.append)
    made.step()
    for _ in range(6):
        made.submit(Request((1, 2, 3, 4), 20), lambda piece: None)
    for _ in range(6):
        before = len(came)
        made.step()
        assert len(came) == before + 1
    assert made.num_running == 7


def test_a_cancelled_request_frees_its_place_at_once() -> None:
    made = engine(1)
    first, second = Gathered(), Gathered()
    ticket = made.submit(Request((1, 2), 30), first.add)
    waits = made.submit(Request((3,), 30), second.add)
    made.step()
    made.cancel(ticket)
    assert first.answer().finish == "cancelled" and made.num_running == 0
    made.cancel(ticket)
    made.cancel(waits)
    assert second.answer() == Answer("", (), "cancelled")
    assert not made.step()
    assert made.totals.answers["cancelled"] == 2


def test_a_receiver_may_cancel_and_submit(rng: random.Random) -> None:
    made = engine(3)
    later, other = Gathered(), Gathered()
    tickets: list[int] = []

    def receive(piece: Piece) -> None:
        if piece.finish is None:
            made.cancel(tickets[0])
            made.cancel(tickets[1])
            made.submit(Request((5,), 3), later.add)

    tickets += [made.submit(Request((1,), 9), receive), made.submit(Request((2,), 9), other.add)]
    while made.step():
        pass
    assert other.answer().finish == "cancelled" and len(other.tokens) <= 1
    assert later.answer() == engine().generate([Request((5,), 3)])[0]


def test_a_receiver_that_raises_ends_its_own_request_only() -> None:
    made, gathered = engine(), Gathered()

    def receive(piece: Piece) -> None:
        raise OSError("nobody there")

    made.submit(Request((1,), 9), receive)
    made.submit(Request((2,), 9), gathered.add)
    with pytest.raises(OSError, match="nobody there"):
        made.step()
    while made.step():
        pass
    assert gathered.answer() == engine().generate([Request((2,), 9)])[0]


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_model_that_fails_leaves_nobody_waiting(fails_at: int) -> None:
    made = engine(2)
    assert isinstance(made.decoder, StandIn)
    made.decoder.fails_at = fails_at
    told: dict[int, Exception] = {}
    for i in range(4):
        request = Request((1, 2), 20)
        made.submit(request, lambda piece: None, lambda error, i=i: told.update({i: error}))  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="device is lost"):
        while made.step():
            pass
    assert told.keys() == {0, 1, 2, 3} and len({*map(id, told.values())}) == 1
    assert (made.num_running, made.num_waiting) == (0, 0)
    with pytest.raises(EngineFailed, match="device is lost"):
        made.submit(Request((1,), 1), lambda piece: None)
    assert not made.step()


def test_the_name_of_a_special_token_stops_at_the_token() -> None:
    """It is generated as the next token, and has no text."""
    made = engine(1)
    decoder = made.decoder
    assert isinstance(decoder, StandIn)
    marker, ids = TOKENIZER.token_to_id(MARKER), (1, 2)
    plain = decoder.logits
    decoder.logits = lambda ids: plain(ids) + 99 * (torch.arange(SIZE) == marker) * (len(ids) == 5)  # type: ignore[method-assign]
    going, named, by_id = (
        made.generate([Request(ids, 8, stop=stop, stop_ids=frozenset(stop_ids))])[0]
        for stop, stop_ids in (((), ()), ((MARKER, "~~"), ()), ((), (marker,)))
    )
    assert going.finish == "length" and going.ids[3] == marker
    assert (named.ids, named.finish, named.stopped_by) == (going.ids[:4], "stop", MARKER)
    assert replace(named, stopped_by=marker) == by_id and MARKER not in named.text


def test_too_many_wait() -> None:
    made = engine(1, max_waiting=2)
    for _ in range(2):
        made.submit(Request((1,), 9), lambda piece: None)
    with pytest.raises(EngineBusy, match="2 requests wait for 1 place"):
        made.submit(Request((1,), 9), lambda piece: None)
    answers = engine(1, max_waiting=2).generate([Request((i,), 2) for i in range(9)])
    assert len(answers) == 9


def test_a_stream_that_is_left_frees_its_place() -> None:
    made = engine(1)
    whole = made.generate([Request((1, 2), 8)])[0]
    gathered = Gathered()
    for piece in made.stream(Request((1, 2), 8)):
        gathered.add(piece)
    assert gathered.answer() == whole
    left = made.stream(Request((1, 2), 8))
    next(left)
    assert made.num_running == 1
    left.close()  # type: ignore[attr-defined]
    assert made.num_running == 0
    made.stream(Request((1, 2), 8)).close()  # type: ignore[attr-defined]
    assert (made.num_running, made.num_waiting) == (0, 0)


def test_a_step_that_is_interrupted_is_the_last_one() -> None:
    """What has come is told; what the model has kept of the step nobody knows."""
    made, gathered = engine(1), Gathered()
    assert isinstance(made.decoder, StandIn)
    made.decoder.fails_at, made.decoder.error = 3, KeyboardInterrupt()
    ticket = made.submit(Request((1, 2), 8), gathered.add)
    beside = made.stream(Request((3,), 8))
    with pytest.raises(KeyboardInterrupt):
        while made.step():
            pass
    assert made.has_failed
    with pytest.raises(EngineFailed, match="KeyboardInterrupt"):
        made.step()
    with pytest.raises(EngineFailed):
        next(beside)
    made.cancel(ticket)
    assert gathered.answer().finish == "cancelled" and len(gathered.tokens) == 3


def test_a_stream_ends_when_the_step_of_another_one_fails() -> None:
    made = engine(2)
    assert isinstance(made.decoder, StandIn)
    one, other = (made.stream(Request((i,), 8)) for i in range(2))
    next(one), next(other)
    made.decoder.fails_at = len(made.decoder.passes) + len(made.decoder.steps)
    with pytest.raises(RuntimeError, match="device is lost"):
        for _ in one:
            pass
    with pytest.raises(EngineFailed):
        for _ in other:
            pass


WRONG = [
    (Request((), 3), "the prompt has no tokens"),
    (Request((SIZE,), 3), f"token id {SIZE} in the prompt"),
    (Request((-1,), 3), "token id -1"),
    (Request((1,) * 60, 5), "prompt has 60 tokens, and max_tokens=5\n.*be 64\n.*max_tokens=4"),
    (Request((1,) * 70, 0), "the prompt has 70 tokens.*\n.*may be 64\n.*a shorter prompt"),
    (Request((1,), -1), "max_tokens=-1"),
    (Request((1,), 1, logprobs=SIZE + 1), f"logprobs={SIZE + 1}"),
    (Request((1,), 1, prompt_logprobs=-1), "prompt_logprobs=-1"),
    (Request((1,), 1, stop=("a", "")), "empty stop string"),
    (Request((1,), 1, Sampling(top_p=2)), "top_p=2"),
    (Request((1,), 1, Sampling(temperature=math.nan)), "temperature=nan"),
    (Request((1,), 1, Sampling(-1, -1, 0, 2)), "temperature=-1(.*\n)+.*top_k(.*\n)+.*top_p"),
]


@pytest.mark.parametrize(("request_", "said"), WRONG)
def test_requests_that_can_never_be_answered(request_: Request, said: str) -> None:
    made = engine()
    for refuse in (
        lambda: made.check(request_),
        lambda: made.submit(request_, lambda piece: None),
        lambda: made.generate([Request((1,), 1), request_]),
    ):
        with pytest.raises(InputError, match=said):
            refuse()
    assert made.totals.passes == 0
    made.check(Request((1,) * 60, 4, logprobs=SIZE))


def test_logits_that_are_not_finite_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    monkeypatch.setattr(StandIn, "logits", lambda *_: torch.full((SIZE,), float("nan")))
    with pytest.raises(FloatingPointError):
        made.generate([Request((1,), 1)])
    assert made.num_running == 0
