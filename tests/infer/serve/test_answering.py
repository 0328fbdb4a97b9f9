"""Answers between the thread that makes them and who reads them."""

from __future__ import annotations

import asyncio

import pytest

from loopcoder.infer.request import Piece, Token
from loopcoder.infer.serve.answering import Answers


def piece(text: str, *ids: int, last: bool = False) -> Piece:
    return Piece(text, tuple(Token(i) for i in ids), finish="length" if last else None)


def test_what_has_waited_comes_as_one_piece() -> None:
    async def read() -> list[tuple[int, Piece]]:
        answers = Answers(2)
        first, second = answers.each
        found = []
        first.add(piece("a", 1))
        first.add(piece("b", 2))
        second.add(piece("x", 7, 8, last=True))
        second.add(piece("after the end", 9))
        async for one in answers.pieces():
            found.append(one)
            if len(found) == 2:  # the reader is slow: more comes while it is busy
                first.add(piece("", 3))
                first.add(piece("c", 4, last=True))
        return found

    assert asyncio.run(read()) == [
        (0, piece("ab", 1, 2)),
        (1, piece("x", 7, 8, last=True)),
        (0, piece("c", 3, 4, last=True)),
    ]


def test_an_error_of_one_reaches_the_reader_and_a_finished_one_keeps_its_answer() -> None:
    async def read() -> None:
        answers = Answers(2)
        first, second = answers.each
        first.add(piece("a", 1, last=True))
        for answering in answers.each:
            answering.fail(ValueError("late"))
        assert first.take() == piece("a", 1, last=True)
        second.add(piece("x"))
        with pytest.raises(ValueError, match="late"):
            await answers.whole()

    asyncio.run(read())
