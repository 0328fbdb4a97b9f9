"""Answers to prompts of any number and length: an engine with room for them is made, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loopcoder.infer.engine import Engine
from loopcoder.infer.leading import Decodes
from loopcoder.infer.prompts import Prompts
from loopcoder.infer.request import Request

_STEP = 512
"""Lengths are rounded up to a multiple, so that a few tokens more need no other engine."""
MOST_PLACES = 16
"""Prompts that are answered at a time, unless asked for more; others wait."""


class Generator:
    """Makes engines for what is asked, each with all the room that was ever needed."""

    def __init__(
        self,
        make: Callable[[int, int], Decodes],
        prompts: Prompts,
        longest: int,
    ):
        """
        Args:
            make: Makes a decoder of a number of places and their length; those before it are not
                used any more.
            longest: Tokens that the model has positions for.
        """
        self.prompts, self.longest = prompts, longest
        self._make = make
        self._engine: Engine | None = None

    def engine_for(self, requests: Sequence[Request], places: int = MOST_PLACES) -> Engine:
        """Return an engine with room for some requests.

        Args:
            places: Requests that run at a time, if there are as many.

        Raises:
            InputError: one can never be answered, or there is no memory for the engine.
        """
        wanted = min(len(requests), places)
        length = max(len(r.ids) + r.max_tokens for r in requests)
        length = min(self.longest, -(-length // _STEP) * _STEP)
        if self._engine is not None:
            has_places = self._engine.decoder.num_places
            has_length = self._engine.decoder.max_length
            wanted, length = max(wanted, has_places), max(length, has_length)
            if (wanted, length) != (has_places, has_length):
                self._engine = None  # its memory is free before the next one takes some
        if self._engine is None:
            decoder = self._make(wanted, length)
            self._engine = Engine(decoder, self.prompts.tokenizer, self.prompts.end_ids)
        engine = self._engine
        for request in requests:
            engine.check(request)
        return engine
