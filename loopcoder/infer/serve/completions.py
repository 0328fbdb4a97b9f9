"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loopcoder.infer.request import Piece, Request
from loopcoder.infer.serve.bodies import CompletionBody
from loopcoder.infer.serve.logprobs import CompletionLogprobs, check_told
from loopcoder.infer.serve.model import Served
from loopcoder.infer.serve.replies import Reply

MAX_TOKENS = 16
"""Of an answer where the body does not say; so it is in OpenAI's API."""


class Completion(Reply):
    """The continuations of one prompt or several."""

    prefix, kind, kind_of_chunk = "cmpl", "text_completion", "text_completion"
    body: CompletionBody

    def __init__(self, body: CompletionBody, served: Served):
        """
        Raises:
            Refused: a prompt cannot be answered.
        """
        super().__init__(body, served.name)
        prompts = body.prompts
        served.check_number(len(prompts), body.samples)
        most = MAX_TOKENS if body.max_tokens is None else body.max_tokens
        self.requests: list[Request] = []
        for prompt in prompts:
            ids = served.of_text(prompt) if isinstance(prompt, str) else tuple(prompt)
            served.check_length(ids, most)
            for sample in range(body.samples):
                self.requests.append(
                    Request(
                        ids=ids,
                        max_tokens=most,
                        sampling=body.sampling(sample),
                        stop=body.stops,
                        stop_ids=body.stop_ids(served.eos),
                        logprobs=body.logprobs,
                        prompt_logprobs=body.logprobs if body.echo else None,
                    )
                )
        check_told(self.requests)
        self._logprobs = [CompletionLogprobs(served.bytes_of) for _ in self.requests]
        self._begun: set[int] = set()
        self._prompts, self._written = prompts, served.written

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        opening = "" if number in self._begun else self._echoed(number)
        self._begun.add(number)
        told = None
        if self.body.logprobs is not None:
            told = self._logprobs[number].of(piece.prompt, piece.tokens)
        return {
            "index": number,
            "text": opening + piece.text,
            "logprobs": told,
            "finish_reason": piece.finish,
        }

    def chunks(self, number: int, piece: Piece) -> Iterator[dict[str, Any]]:
        choice = self.choice(number, piece)
        if choice["text"] or choice["finish_reason"] or choice["logprobs"] is not None:
            yield choice

    def _echoed(self, number: int) -> str:
        """Return what a choice begins with."""
        if not self.body.echo:
            return ""
        prompt = self._prompts[number // self.body.samples]
        return prompt if isinstance(prompt, str) else self._written(prompt)
