"""A model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from loopcoder.checkpoint.format import Checkpoint
from loopcoder.errors import InputError
from loopcoder.evaluate.subjects import Prompt
from loopcoder.infer.engine import Engine
from loopcoder.infer.request import Answer, Request

_ROUNDS = 8
"""Requests that the engine gets at once, for each of its places."""


class InProcess:
    """An engine, and what it needs to continue texts as `loopcoder serve` does."""

    def __init__(self, engine: Engine, bos_id: int):
        """
        Args:
            bos_id: What a text begins behind that has nothing before it.
        """
        self.engine, self.bos_id = engine, bos_id
        self.max_length: int = engine.decoder.max_length
        self.at_once = _ROUNDS * engine.decoder.num_places

    @property
    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer`."""
        return self.engine.tokenizer

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a prompt."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        requests = [self._request(prompt) for prompt in prompts]
        for request in requests:
            self.engine.check(request)
        for first in range(0, len(requests), self.at_once):
            answers = self.answers(requests[first : first + self.at_once])
            yield from enumerate((answer.text for answer in answers), first)

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests, which end with a document as those of the server do."""
        return self.engine.generate([replace(r, stop_ids=self.engine.eos) for r in requests])

    def _request(self, prompt: Prompt) -> Request:
        ids = self.ids(prompt.text)
        room = self.max_length - len(ids)
        if room < 1:
            raise InputError.of(
                f"a prompt has {len(ids)} tokens, and sequences {self.max_length}",
                "there is no room for an answer",
                f"tasks.max_length={len(ids) + prompt.max_tokens}",
            )
        most = min(prompt.max_tokens, room)
        return Request(ids, most, prompt.sampling, prompt.stop)


def load(
    place: Path | Checkpoint,
    places: int,
    max_length: int,
    num_loops: int | None,
    precision: Literal["fp32", "bf16"] | None,
) -> tuple[InProcess, dict[str, Any]]:
    """Load weights into this process; return the model, and what it was loaded as.

    Args:
        places: Sequences at a time.
        max_length: Tokens of each.
        num_loops: None: as many as in training.
        precision: None: fp32 on a CPU, and on a GPU what was trained.

    Raises:
        InputError: they cannot be run as asked, or do not fit into memory.
    """
    from loopcoder.infer.loading import load_decoder

    loaded = load_decoder(
        place,
        num_places=places,
        max_length=max_length,
        num_loops=num_loops,
        precision=precision,
    )
    engine = Engine(loaded.decoder, loaded.tokenizer, loaded.eos_ids)
    about = {
        "num_loops": loaded.decoder.model.num_loops,
        "precision": loaded.config.precision.name,
        "max_length": loaded.decoder.max_length,
    }
    return InProcess(engine, loaded.bos_id), about
