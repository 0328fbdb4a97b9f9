"""What is asked of a model that generates, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Finish = Literal["stop", "length", "cancelled"]
"""Why an answer ended: by a stop string or token, at its most tokens, or nobody waits for it."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its distribution. The limits apply in this order."""

    temperature: float = 0.0
    """Of the softmax; 0: the most probable token (the lowest id of several) without any limit."""
    top_k: int = 0
    """Most tokens that may be drawn; 0: all."""
    top_p: float = 1.0
    """The most probable tokens whose probabilities reach this sum may be drawn."""
    min_p: float = 0.0
    """A token may be drawn from this share of the highest probability on."""
    seed: int | None = None
    """Of the draws of this request, whatever runs beside it; None: another one each time."""


@dataclass(frozen=True)
class Request:
    """A prompt, and what is wanted of its continuation."""

    ids: tuple[int, ...]
    """Of the prompt; at least one."""
    max_tokens: int
    """Most tokens that are generated; 0: only the prompt is read, for `prompt_logprobs`."""
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    """Texts that end the answer, which are left out of it; the name of a special token stands for
    that token."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer: the last of its tokens, but nothing of its text."""
    logprobs: int | None = None
    """How many of the most probable tokens are told at each generated one; None: none, and no
    log-probability of the token itself."""
    prompt_logprobs: int | None = None
    """The same at each token of the prompt."""
    shown: frozenset[int] = frozenset()
    """Special tokens whose names stand in the text of the answer; others have no text."""


@dataclass(frozen=True)
class Token:
    """A token of a prompt or of an answer."""

    id: int
    logprob: float | None = None
    """Of the model (temperature 1, no limits), in nats. None where none is asked for, and at the
    first token of a prompt."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens in its place, best first, with their log-probabilities."""


@dataclass(frozen=True)
class Piece:
    """What one step adds to an answer."""

    text: str = ""
    """Whole characters; what may yet become a stop string comes with a later piece."""
    tokens: tuple[Token, ...] = ()
    prompt: tuple[Token, ...] = ()
    """With the first piece, if `prompt_logprobs` asks for it."""
    finish: Finish | None = None
    """With the last piece."""
    stopped_by: str | int | None = None
    """The stop string or token that ended the answer."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    tokens: tuple[Token, ...]
    finish: Finish
    prompt: tuple[Token, ...] = ()
    stopped_by: str | int | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]
