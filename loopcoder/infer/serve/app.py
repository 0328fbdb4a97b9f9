"""The application: its paths, and what is common to all of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from loopcoder.config.serving import ServeConfig
from loopcoder.infer.serve.bodies import Body, ChatBody, CompletionBody
from loopcoder.infer.serve.chat import ChatCompletion
from loopcoder.infer.serve.completions import Completion
from loopcoder.infer.serve.door import Door
from loopcoder.infer.serve.metrics import CONTENT_TYPE
from loopcoder.infer.serve.model import Served
from loopcoder.infer.serve.refusals import Refused, failed
from loopcoder.infer.serve.replies import Reply
from loopcoder.infer.serve.worker import Worker

_PREPARED = 4
"""Requests that are parsed and tokenised at a time; others wait, so that as many long texts as
there are threads do not take the processor from the engine."""


class _Endpoints:
    """What answers at each path."""

    def __init__(self, served: Served, worker: Worker):
        self._served, self._worker = served, worker
        self._began = int(time.time())
        self._preparing = CapacityLimiter(_PREPARED)

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, CompletionBody, Completion)

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, ChatBody, ChatCompletion)

    async def models(self, _: Request) -> Response:
        model = {
            "id": self._served.name,
            "object": "model",
            "created": self._began,
            "owned_by": "loopcoder",
            "max_model_len": self._served.max_length,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, _: Request) -> Response:
        """Answer 200 while requests are accepted."""
        if self._worker.closed or not self._worker.is_alive:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        engine, worker = self._worker.engine, self._worker
        text = worker.metrics.text(engine.num_running, worker.num_waiting)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    async def _generate[B: Body](
        self, request: Request, schema: type[B], make: Callable[[B, Served], Reply]
    ) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no web page can send here without being asked
            raise Refused(415, "the body is JSON: send Content-Type: application/json")
        raw = await request.body()

        def prepare() -> Reply:
            """Parse, tokenise and check; a long prompt takes too long for the event loop."""
            body = schema.read(raw)
            self._served.check_name(body.model)
            reply = make(body, self._served)
            for one in reply.requests[:: body.samples]:
                self._served.check(one)
            return reply

        reply = await run_sync(prepare, limiter=self._preparing)
        return await reply.send(request.state.visit.submit(reply.requests))


def make_app(served: Served, worker: Worker, config: ServeConfig, key: str | None) -> Door:
    """Return the ASGI application.

    Args:
        worker: It is started with the application, and stopped with it.
        key: Secret that requests must show; None: none.
    """

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        await run_in_threadpool(worker.stop)

    at = _Endpoints(served, worker)
    app = Starlette(
        routes=[
            Route("/v1/completions", at.completions, methods=["POST"]),
            Route("/v1/chat/completions", at.chat, methods=["POST"]),
            Route("/v1/models", at.models),
            Route("/health", at.health),
            Route("/metrics", at.metrics),
        ],
        exception_handlers={
            Refused: _refused,
            HTTPException: _not_there,
            Exception: _unexpected,
        },
        lifespan=running,
    )
    app.router.redirect_slashes = False
    return Door(app, worker, key, config.max_body_bytes, config.timeout_s)


def _refused(_: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    return refused.response


def _not_there(request: Request, error: Exception) -> Response:
    """Answer 404 and 405, which are all that the router raises."""
    assert isinstance(error, HTTPException)
    about = f"{request.method} {request.url.path[:200]}"
    headers = error.headers or {}
    if error.status_code == 405:
        said = f"{about}: this path takes {headers.get('Allow', 'another method')}"
    else:
        said = f"{about}: there is no such path"
    return Refused(error.status_code, said, headers=headers).response


def _unexpected(_: Request, __: Exception) -> Response:
    """Answer 500; the server prints the traceback."""
    return failed().response
