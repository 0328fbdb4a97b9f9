"""What every request passes: the key, the limits on size and time, and its end.

Whatever ends a request (its answer, an error, the time, a client that goes away) ends its visit,
and with it everything that it holds.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Sequence
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loopcoder.infer.request import Request
from loopcoder.infer.serve.answering import Answers
from loopcoder.infer.serve.refusals import Refused, stopping
from loopcoder.infer.serve.replies import event_of
from loopcoder.infer.serve.worker import Worker
from loopcoder.network import is_own_name

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics")
_OPEN = "/health"
"""The path that needs no key."""
_EVENTS = b"text/event-stream; charset=utf-8"
_LAST_WORD_S = 1.0
"""Seconds in which a client can take the last event of a stream that has run out of time."""


class _Gone(Exception):
    """The client closed its connection."""


class Visit:
    """One request, and the sequences that it has under way."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self._answers: list[Answers] = []

    def submit(self, requests: Sequence[Request]) -> Answers:
        """Begin to answer requests, all or none.

        Raises:
            Refused: the server is stopping, or too much is waiting already.
        """
        answers = self._worker.submit(requests)
        self._answers.append(answers)
        return answers

    def end(self) -> None:
        for answers in self._answers:
            self._worker.release(answers)


class Door:
    """ASGI middleware around the application."""

    def __init__(
        self, app: ASGIApp, worker: Worker, key: str | None, max_body_bytes: int, timeout_s: float
    ):
        """
        Args:
            key: Secret that requests must show; None: none.
            max_body_bytes: Largest body.
            timeout_s: Seconds that a request may take from its first byte to its last.
        """
        self._app, self._worker = app, worker
        self._key = None if key is None else key.encode()
        self._max_body_bytes, self._timeout_s = max_body_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        is_stream = False

        async def noting(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                is_stream = (b"content-type", _EVENTS) in message["headers"]
            await send(message)

        visit = Visit(self._worker)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._enter(scope, receive, noting, visit)
        except Refused as refused:
            await refused.response(scope, receive, noting)
        except _Gone:
            pass
        except TimeoutError:
            late = Refused(504, f"the request took more than {self._timeout_s:g} s")
            if status == 0:
                await late.response(scope, receive, noting)
            elif is_stream:
                await _end_stream(late, send)
        except asyncio.CancelledError:
            pass  # the server closes, and this client has not read its answer in time
        finally:
            visit.end()
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._worker.metrics.requests[path, status] += 1
            if scope["method"] == "POST":
                self._worker.metrics.request_s.add(time.monotonic() - began)

    async def _enter(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        """Let a request in, and the application answer it while its client is there."""
        if scope["path"] != _OPEN:
            self._check_host(scope)
            self._check_key(scope)
        if self._worker.closed and scope["method"] == "POST":
            raise stopping()
        body = await self._body(scope, receive)
        left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if left:
                return left.pop()
            await asyncio.Event().wait()  # until it is cancelled: the door sees who goes away
            raise AssertionError

        scope.setdefault("state", {})["visit"] = visit
        answer = asyncio.ensure_future(self._app(scope, replay, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _Gone
            answer.result()
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    def _check_host(self, scope: Scope) -> None:
        """Refuse another host's name, without a key: so a page on the web would reach a server on
        this machine, once its own name means 127.0.0.1."""
        if self._key is not None:
            return
        asked = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        name = re.sub(r":\d*$", "", asked)
        if name.startswith("[") and name.endswith("]"):
            name = name[1:-1]
        if not is_own_name(name.lower()):
            raise Refused(
                421,
                f"the request is for the host {asked[:200]!r}; a server without a key answers "
                "for localhost, 127.0.0.1 and [::1] only: ask there, or start it with a key in "
                "$LOOPCODER_API_KEY",
                code="wrong_host",
            )

    def _check_key(self, scope: Scope) -> None:
        if self._key is None:
            return
        shown = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = shown.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise Refused(
                401,
                "the key is missing or wrong; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the body, no further than it may be long."""
        told = dict(scope["headers"]).get(b"content-length", b"0")
        too_long = told.isdigit() and int(told) > self._max_body_bytes
        parts, size, more = [], 0, True
        while more and not too_long:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
            size += len(parts[-1])
            too_long = size > self._max_body_bytes
        if too_long:
            raise Refused(
                413,
                f"the body has more than {self._max_body_bytes} bytes (serve.max_body_bytes)",
                headers={"Connection": "close"},
            )
        return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end_stream(refused: Refused, send: Send) -> None:
    """Say why a stream ends, unless its client has stopped reading."""
    event = event_of(refused.body)
    with suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WORD_S):
            await send({"type": "http.response.body", "body": event, "more_body": False})
