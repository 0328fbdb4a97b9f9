"""Answers while they are generated, as the event loop sees them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from loopcoder.infer.request import Piece


class Answering:
    """What one sequence has been answered so far. Every method is called in the event loop.

    What a slow reader has not taken yet waits here, and comes to it as one piece: never more than
    one answer, and how many there are at once is limited (`Worker.submit`).
    """

    def __init__(self, news: asyncio.Event) -> None:
        """
        Args:
            news: Set whenever there is something to take.
        """
        self.began = time.monotonic()
        self.first_s: float | None = None
        """Seconds until the first piece came."""
        self.ended = False
        """Whether no more pieces come, whoever ended it."""
        self._pieces: list[Piece] = []
        self._error: Exception | None = None
        self._news = news

    def add(self, piece: Piece) -> None:
        """Keep a piece for the reader; what comes after the end is dropped."""
        if self.ended:
            return
        if self.first_s is None:
            self.first_s = time.monotonic() - self.began
        self._pieces.append(piece)
        self.ended = piece.finish is not None
        self._news.set()

    def fail(self, error: Exception) -> None:
        """End it by an error, which the reader gets; a finished one stays as it is."""
        if not self.ended:
            self._error, self.ended = error, True
            self._news.set()

    def take(self) -> Piece | None:
        """Return all that has come since the last call, as one piece; None: nothing.

        Raises:
            Exception: that by which it was ended.
        """
        if self._error is not None:
            raise self._error
        taken, self._pieces = self._pieces, []
        return merged(taken) if taken else None


class Answers:
    """The answers to the sequences of one request, in their order."""

    def __init__(self, number: int) -> None:
        self._news = asyncio.Event()
        self.each = [Answering(self._news) for _ in range(number)]

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield pieces as they come, each with the number of its answer.

        Raises:
            Exception: that by which one of the answers was ended.
        """
        left = dict(enumerate(self.each))
        while left:
            await self._news.wait()
            self._news.clear()
            for number, answering in list(left.items()):
                piece = answering.take()
                if piece is None:
                    continue
                if piece.finish is not None:
                    del left[number]
                yield number, piece

    async def whole(self) -> list[Piece]:
        """Return each answer as one piece, when all are complete.

        Raises:
            Exception: that by which one of them was ended.
        """
        found: list[list[Piece]] = [[] for _ in self.each]
        async for number, piece in self.pieces():
            found[number].append(piece)
        return [merged(pieces) for pieces in found]


def merged(pieces: Sequence[Piece]) -> Piece:
    """Return one piece that adds what several add, in their order."""
    if len(pieces) == 1:
        return pieces[0]
    last = pieces[-1]
    return Piece(
        text="".join(piece.text for piece in pieces),
        tokens=tuple(token for piece in pieces for token in piece.tokens),
        prompt=tuple(token for piece in pieces for token in piece.prompt),
        finish=last.finish,
        stopped_by=last.stopped_by,
    )
