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

    def __init__(self, engine: Engine, prompts: Prompts):
        self.engine, self.prompts = engine, prompts
        self.max_length: int = engine.decoder.max_length
        """Of a prompt and its answer together."""
        self.at_once = _ROUNDS * engine.decoder.num_places
        """Requests that keep it busy."""

    @classmethod
    def of_source(cls, source: Source, places: int, max_length: int | None) -> InProcess:
        """Load weights.

        Args:
            places: Sequences at a time.
            max_length: Tokens of each; None: as many as the model was made for, 4096 at most.

        Raises:
            InputError: they are damaged, have no tokenizer, or do not fit into memory.
        """
        gc.collect()  # a model before this one, which holds itself by a circle
        prompts = Prompts.of_source(source)
        length = max_length or min(source.model.max_position_embeddings, _LENGTH)
        try:
            loaded = load_decoder(source, num_places=places, max_length=length)
        except InputError as error:
            raise InputError([_in_our_fields(problem) for problem in error.problems]) from error
        return cls(Engine(loaded.decoder, prompts.tokenizer, prompts.end_ids), prompts)

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """See `Completes`."""
        read = [(self.prompts.of_text(prompt.text), prompt) for prompt in prompts]
        for ids, prompt in sorted(read, key=lambda one: -len(one[0]) - one[1].max_tokens):
            self._check_room(ids, prompt)  # the longest first, so that its fix suits all
        requests = [Request(ids, p.max_tokens, p.sampling, p.stop) for ids, p in read]
        for first in range(0, len(requests), self.at_once):
            answers = self.answers(requests[first : first + self.at_once])
            yield from enumerate((answer.text for answer in answers), first)

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests, which end with a document as those of a server do."""
        return self.engine.generate([replace(r, stop_ids=self.prompts.end_ids) for r in requests])

    def _check_room(self, ids: Sequence[int], prompt: Prompt) -> None:
        """Refuse a prompt whose answer has no room."""
        whole = len(ids) + prompt.max_tokens
        if whole > self.max_length:  # as servers refuse it
            raise InputError.of(
                f"a prompt has {counted(len(ids), 'token')}, its answer up to "
                f"{prompt.max_tokens:,}, and a sequence {self.max_length:,}",
                "there is no room for the answer",
                f"tasks.max_length={whole}, or a lower human_eval.max_tokens",
            )


def _in_our_fields(problem: Problem) -> Problem:
    """Let what is wrong with the room for sequences name the fields that set it."""

    def ours(text: str) -> str:
        return _ROOM.sub(lambda found: f"tasks.{found[1]}=", text)

    return replace(problem, fact=ours(problem.fact), fix=ours(problem.fix))
