"""Log-probabilities as the two endpoints tell them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from loopcoder.infer.request import Request, Token
from loopcoder.infer.serve.refusals import Refused
from loopcoder.infer.text import TokenBytes

MOST_TOLD = 2**20
"""Log-probabilities in the answer to one request, some 200 bytes each until they are sent."""


def check_told(requests: Sequence[Request]) -> None:
    """Refuse requests of one body that ask for too many log-probabilities together."""
    told = 0
    for one in requests:
        told += 0 if one.prompt_logprobs is None else len(one.ids) * (one.prompt_logprobs + 1)
        told += 0 if one.logprobs is None else one.max_tokens * (one.logprobs + 1)
    if told > MOST_TOLD:
        raise Refused(
            400,
            f"the answer may have {told:,} log-probabilities, and at most {MOST_TOLD:,} are told "
            "at once: for each token (of a prompt with echo, and of max_tokens) the most probable "
            "ones and its own; send fewer prompts at once, or smaller logprobs, n or max_tokens",
            "logprobs",
        )


def written(bytes_of: TokenBytes, token: int) -> str:
    """Return a token as a text of its own; bytes that are no whole character become U+FFFD."""
    return bytes_of.named(token).decode(errors="replace")


class CompletionLogprobs:
    """Those of one choice of a completion, whose tokens come piece by piece."""

    def __init__(self, bytes_of: TokenBytes) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._length = 0

    def of(self, prompt: Iterable[Token], tokens: Iterable[Token]) -> dict[str, list[Any]]:
        """Return the object `logprobs` of further tokens.

        `text_offset` counts the whole characters before a token in the text of the choice, in which
        special tokens of a prompt stand, and those of an answer do not.
        """
        found: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for token, is_prompt in [*((t, True) for t in prompt), *((t, False) for t in tokens)]:
            found["tokens"].append(written(self._bytes_of, token.id))
            found["token_logprobs"].append(token.logprob)
            found["top_logprobs"].append(None if token.logprob is None else self._top(token))
            found["text_offset"].append(self._length)
            added = self._bytes_of.named(token.id) if is_prompt else self._bytes_of[token.id]
            self._length += len(self._decoder.decode(added))
        return found

    def _top(self, token: Token) -> dict[str, float | None]:
        """Return the most probable tokens and the token itself by their texts; of several with one
        text the best."""
        found: dict[str, float | None] = {}
        for other, logprob in (*token.top, (token.id, token.logprob)):  # the best comes first
            found.setdefault(written(self._bytes_of, other), logprob)
        return found


def chat_logprobs(bytes_of: TokenBytes, tokens: Iterable[Token]) -> dict[str, Any]:
    """Return the object `logprobs` of a choice of a chat."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        own = bytes_of.named(token)
        return {"token": own.decode(errors="replace"), "logprob": logprob, "bytes": list(own)}

    content = [
        entry(token.id, token.logprob)
        | {"top_logprobs": [entry(other, logprob) for other, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}
