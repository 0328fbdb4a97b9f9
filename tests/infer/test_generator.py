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

    generator = Generator(make, PROMPTS, longest=1500)
    answers = []
    for count, length in ((1, 10), (3, 500), (2, 700), (1, 1200), (40, 4)):
        requests = [Request((i,) * (length - 3), 3) for i in range(count)]
        answers.append(generator.engine_for(requests).generate(requests))
    assert made == [(1, 512), (3, 512), (3, 1024), (3, 1500), (16, 1500)]
    assert [len(some) for some in answers] == [1, 3, 2, 1, 40]
    with pytest.raises(InputError, match="may be 1,500"):
        generator.engine_for([Request((1,), 1500)])
    assert len(made) == 5
