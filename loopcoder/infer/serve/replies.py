"""Replies to requests that generate: whole as JSON, or as a stream of events."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, ClassVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from loopcoder.infer.request import Piece, Request
from loopcoder.infer.serve.answering import Answers
from loopcoder.infer.serve.bodies import Body
from loopcoder.infer.serve.refusals import Refused

_LONG = 100
"""Tokens of a piece from which on its event is made in a thread."""


class Reply(ABC):
    """What is sent back for one request: choices, each of which is the answer to a sequence."""

    prefix: ClassVar[str]
    """Of ids."""
    kind: ClassVar[str]
    """The `object` of a whole reply."""
    kind_of_chunk: ClassVar[str]

    requests: list[Request]
    """To the engine, in the order of the choices."""

    def __init__(self, body: Body, model: str):
        self.body = body
        self._about = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._generated = 0

    @abstractmethod
    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        """Return a choice whose whole answer is one piece."""

    @abstractmethod
    def chunks(self, number: int, piece: Piece) -> Iterator[dict[str, Any]]:
        """Yield what a piece adds to a choice, an event for each."""

    def opening(self) -> Iterator[dict[str, Any]]:
        """Yield choices that open a stream."""
        yield from ()

    async def send(self, answers: Answers) -> Response:
        """Return the response that the body asks for."""
        if self.body.stream:
            return StreamingResponse(
                self._events(answers),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache"},
            )
        return await run_in_threadpool(self._whole, await answers.whole())

    def _whole(self, pieces: Sequence[Piece]) -> Response:
        """Return a reply whose answers are complete; megabytes of log-probabilities take too long
        for the event loop."""
        self._generated = sum(len(piece.tokens) for piece in pieces)
        choices = [self.choice(number, piece) for number, piece in enumerate(pieces)]
        return JSONResponse(
            {**self._about, "object": self.kind, "choices": choices, "usage": self._usage()}
        )

    async def _events(self, answers: Answers) -> AsyncIterator[bytes]:
        options = self.body.stream_options
        tells_usage = options is not None and options.include_usage
        about = {**self._about, "object": self.kind_of_chunk}
        if tells_usage:
            about["usage"] = None

        def events(number: int, piece: Piece) -> bytes:
            chunks = self.chunks(number, piece)
            return b"".join(event_of({**about, "choices": [chunk]}) for chunk in chunks)

        begun = set[int]()  # a first piece may have the whole prompt
        for opening in self.opening():
            yield event_of({**about, "choices": [opening]})
        try:
            async for number, piece in answers.pieces():
                self._generated += len(piece.tokens)
                if number in begun and len(piece.tokens) < _LONG:
                    made = events(number, piece)
                else:
                    made = await run_in_threadpool(events, number, piece)
                begun.add(number)
                if made:
                    yield made
        except Refused as refused:
            yield event_of(refused.body)
            return
        if tells_usage:
            yield event_of({**about, "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _usage(self) -> dict[str, int]:
        prompts = self.requests[:: self.body.samples]
        read = sum(len(request.ids) for request in prompts)
        return {
            "prompt_tokens": read,
            "completion_tokens": self._generated,
            "total_tokens": read + self._generated,
        }


def event_of(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
