"""A model in this process."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from loopcoder.errors import InputError, Problem, counted
from loopcoder.evaluate.subjects import Prompt
from loopcoder.infer.engine import Engine
from loopcoder.infer.loading import load_decoder
from loopcoder.infer.prompts import Prompts
from loopcoder.infer.request import Answer, Request
from loopcoder.infer.sources import Source

_LENGTH = 4096
_ROOM = re.compile(r"(?<![.\w])(?:num_)?(places|max_length)=")
_ROUNDS = 8
"""Requests that the engine gets at once, for each of its places."""


class InProcess:
    """An engine, and prompts as `loopcoder serve` makes them."""

    def __init__(self, engine: Engine, prompts: Prompts, positions: int | None = None):
        """
        Args:
            positions: That the model knows; None: at least as many as the engine has room for.
        """
        self.engine, self.prompts, self._positions = engine, prompts, positions
        self.max_length: int = engine.decoder.max_length
        """Of a prompt and its answer together."""
        self.at_once = _ROUNDS * engine.decoder.num_places
        """Requests that keep it busy."""

    @classmethod
    def of_source(
        cls, source: Source, places: int, max_length: int | None, room: int = 0
    ) -> InProcess:
        """Load weights.

        Args:
            places: Sequences at a time.
            max_length: Tokens of each; None: as many as the model was made for, up to 4096 or
                `room`.
            room: Tokens of the longest sequence that is known to be asked for.

        Raises:
            InputError: they are damaged, have no tokenizer, or do not fit into memory.
        """
        gc.collect()  # a model before this one, which holds itself by a circle
        prompts = Prompts.of_source(source)
        length = max_length or min(source.model.max_position_embeddings, max(_LENGTH, room))
        try:
            loaded = load_decoder(source, num_places=places, max_length=length)
        except InputError as error:
            raise InputError([_in_our_fields(problem) for problem in error.problems]) from error
        engine = Engine(loaded.decoder, prompts.tokenizer, prompts.end_ids)
        return cls(engine, prompts, source.model.max_position_embeddings)

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """See `Completes`."""
        read = [(self.prompts.of_text(prompt.text), prompt) for prompt in prompts]
        requests = [Request(ids, p.max_tokens, p.sampling, p.stop) for ids, p in read]
        self.check_room(requests, "human_eval.max_tokens")
        for first in range(0, len(requests), self.at_once):
            answers = self.answers(requests[first : first + self.at_once])
            yield from enumerate((answer.text for answer in answers), first)

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests, which end with a document as those of a server do."""
        return self.engine.generate([replace(r, stop_ids=self.prompts.end_ids) for r in requests])

    def check_room(self, requests: Sequence[Request], field: str) -> None:
        """Refuse requests whose answers have no room, as servers do.

        Args:
            field: Sets their max_tokens.

        Raises:
            InputError: about the longest, so that its fix suits all.
        """
        longest = max(requests, key=lambda one: len(one.ids) + one.max_tokens, default=None)
        if longest is None:
            return
        prompt, positions = len(longest.ids), self._positions
        whole = prompt + longest.max_tokens
        if whole <= self.max_length:
            return
        fix = f"tasks.max_length={whole}, or a lower {field}"
        if positions is not None and whole > positions:
            left = positions - prompt
            fix = f"{field}={left} tasks.max_length={positions}"
            if left < 1:
                fix = f"a model of more than {positions:,} positions, or tasks of shorter prompts"
        raise InputError.of(
            f"a prompt has {counted(prompt, 'token')}, its answer up to "
            f"{longest.max_tokens:,}, and a sequence {self.max_length:,}",
            "there is no room for the answer",
            fix,
        )


def _in_our_fields(problem: Problem) -> Problem:
    """Let what is wrong with the room for sequences name the fields that set it."""

    def ours(text: str) -> str:
        return _ROOM.sub(lambda found: f"tasks.{found[1]}=", text)

    return replace(problem, fact=ours(problem.fact), fix=ours(problem.fix))
