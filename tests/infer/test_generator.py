"""Engines that grow with what is asked."""

from __future__ import annotations

import weakref

import pytest

from loopcoder.checkpoint.state import Specials
from loopcoder.errors import InputError
from loopcoder.hf.card import Tokenizer as SpecialTokens
from loopcoder.infer.generator import Generator
from loopcoder.infer.prompts import Prompts
from loopcoder.infer.request import Request
from tests.infer.stand_in import END, StandIn, tokenizer_of

TOKENIZER = tokenizer_of(["the loop reads " * 10])
SIZE = TOKENIZER.get_vocab_size()
PROMPTS = Prompts(
    TOKENIZER, SpecialTokens("", END, END, END, {END: 3}, Specials({}, {}, None, None))
)


def test_an_engine_has_room_for_all_that_was_ever_asked() -> None:
    made: list[tuple[int, int]] = []
    alive: weakref.WeakSet[StandIn] = weakref.WeakSet()

    def make(places: int, length: int) -> StandIn:
        assert not alive  # the memory of the one before it is free
        made.append((places, length))
        decoder = StandIn(TOKENIZER.get_vocab_size(), places, length)
        alive.add(decoder)
        return decoder

    generator = Generator(make, PROMPTS, vocabulary=SIZE, longest=1500)
    answers = []
    for count, length in ((1, 10), (3, 500), (2, 700), (1, 1200), (40, 4)):
        requests = [Request((i,) * (length - 3), 3) for i in range(count)]
        answers.append(generator.engine_for(requests).generate(requests))
    assert made == [(1, 512), (3, 512), (3, 1024), (3, 1500), (16, 1500)]
    assert [len(some) for some in answers] == [1, 3, 2, 1, 40]
    for wrong, said in ((Request((1,), 1500), "may be 1,500"), (Request((SIZE,), 1), "token id")):
        with pytest.raises(InputError, match=said):
            generator.engine_for([wrong])
        with pytest.raises(InputError, match=said):  # before there is an engine
            Generator(make, PROMPTS, vocabulary=SIZE, longest=1500).engine_for([wrong])
    assert len(made) == 5


def test_an_engine_that_does_not_fit_has_room_for_what_is_asked_now() -> None:
    made: list[tuple[int, int]] = []

    def make(places: int, length: int) -> StandIn:
        if places * length > 20_000:
            raise InputError.of(f"{places} x {length}", "it is too much", "less")
        made.append((places, length))
        return StandIn(SIZE, places, length)

    generator = Generator(make, PROMPTS, vocabulary=SIZE, longest=20_000)
    for count, length in ((1, 16_000), (16, 100), (1, 900), (1, 16_000)):
        assert generator.engine_for([Request((1,) * length, 3)] * count).num_running == 0
    assert made == [(1, 16_384), (16, 512), (16, 1024), (1, 16_384)]
    with pytest.raises(InputError, match="16 x 16384"):
        generator.engine_for([Request((1,) * 16_000, 3)] * 16)
    generator.engine_for([Request((1,), 3)])


@pytest.mark.parametrize("error", [RuntimeError("the device is lost"), KeyboardInterrupt()])
def test_an_engine_that_has_failed_is_replaced(error: BaseException) -> None:
    made: list[StandIn] = []

    def make(places: int, length: int) -> StandIn:
        made.append(StandIn(SIZE, places, length))
        return made[-1]

    generator = Generator(make, PROMPTS, vocabulary=SIZE, longest=1500)
    requests = [Request((1,), 8)]
    answers = generator.engine_for(requests).generate(requests)
    made[0].fails_at, made[0].error = len(made[0].passes) + len(made[0].steps) + 2, error
    with pytest.raises(type(error)):
        generator.engine_for(requests).generate(requests)
    assert generator.engine_for(requests).generate(requests) == answers
    assert len(made) == 2
