"""Answers to prompts of any number and length: an engine with room for them is made, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loopcoder.errors import InputError
from loopcoder.infer.answerable import check_request
from loopcoder.infer.engine import Engine
from loopcoder.infer.leading import Decodes
from loopcoder.infer.prompts import Prompts
from loopcoder.infer.request import Request

_STEP = 512
"""Lengths are rounded up to a multiple, so that a few tokens more need no other engine."""
MOST_PLACES = 16
"""Prompts that are answered at a time, unless asked for more; others wait."""


class Generator:
    """Makes engines for what is asked, each with all the room that was ever needed, if memory has
    it; in place of one that has failed another."""

    def __init__(
        self,
        make: Callable[[int, int], Decodes],
        prompts: Prompts,
        *,
        vocabulary: int,
        longest: int,
    ):
        """
        Args:
            make: Makes a decoder of a number of places and their length; those before it are not
                used any more.
            vocabulary: Tokens that the model has.
            longest: Tokens that the model has positions for.
        """
        self.prompts, self.vocabulary, self.longest = prompts, vocabulary, longest
        self._make = make
        self._engine: Engine | None = None

    def engine_for(self, requests: Sequence[Request], places: int = MOST_PLACES) -> Engine:
        """Return an engine with room for some requests.

        Args:
            places: Requests that run at a time, if there are as many.

        Raises:
            InputError: one can never be answered, or there is no memory for the engine.
        """
        for request in requests:
            check_request(request, self.vocabulary, self.longest)
        length = max(len(r.ids) + r.max_tokens for r in requests)
        asked = min(len(requests), places), min(self.longest, -(-length // _STEP) * _STEP)
        if self._engine is not None and self._engine.has_failed:
            self._engine = None
        if self._engine is None:
            self._engine = self._made(asked)
            return self._engine
        has = self._engine.decoder.num_places, self._engine.decoder.max_length
        wanted = max(asked[0], has[0]), max(asked[1], has[1])
        if wanted == has:
            return self._engine
        self._engine = None  # its memory is free before the next one takes some
        try:
            self._engine = self._made(wanted)
        except InputError:  # one long prompt before many short ones: both together do not fit
            if wanted == asked:
                raise
            self._engine = self._made(asked)
        return self._engine

    def _made(self, room: tuple[int, int]) -> Engine:
        return Engine(self._make(*room), self.prompts.tokenizer, self.prompts.end_ids)
