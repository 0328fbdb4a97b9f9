"""Listening, and the end of a server: what runs may finish, and nothing new begins."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from loopcoder.config.serving import ServeConfig
from loopcoder.errors import InputError
from loopcoder.infer.engine import Engine
from loopcoder.infer.prompts import Prompts
from loopcoder.infer.serve.app import make_app
from loopcoder.infer.serve.connections import connection_within
from loopcoder.infer.serve.metrics import Metrics
from loopcoder.infer.serve.model import Served
from loopcoder.infer.serve.refusals import stopping
from loopcoder.infer.serve.worker import Worker
from loopcoder.network import is_own_name
from loopcoder.storage.signals import heard, name_of

KEY = "LOOPCODER_API_KEY"
"""Variable with the key that requests must show."""
_SPARE_CONNECTIONS = 64
"""Connections besides those of answers: metrics, health, clients that are refused."""
_BACKLOG = 2048
"""Connections that may wait to be accepted, while weights are loaded too."""
_CLOSE_S = 5
"""Seconds for responses to be sent once their answers have ended."""
_CLOSE_AT_ONCE_S = 1
"""The same, after a second signal."""


def key_from_environment() -> str | None:
    """Return the key that requests must show; None: none is set.

    Raises:
        InputError: it is set to nothing, or cannot be sent in a header.
    """
    key = os.environ.get(KEY)
    if key is None or (key.isascii() and key.isprintable() and key.strip() == key != ""):
        return key
    raise InputError.of(
        f"{KEY} is set to " + ("nothing" if not key.strip() else "what no header can have"),
        "requests show it as `Authorization: Bearer KEY`, in printable ASCII",
        f"export {KEY}=$(openssl rand -hex 32), or unset {KEY}",
    )


def listen(config: ServeConfig, key: str | None) -> socket.socket:
    """Take the port; nobody is answered yet.

    Raises:
        InputError: others could use the server without a key, or the address cannot be had.
    """
    if key is None and not is_own_name(config.host):
        raise InputError.of(
            f"serve.host={config.host} without a key",
            "whoever reaches that address could use the model",
            f"export {KEY}=$(openssl rand -hex 32), or serve.host=127.0.0.1",
        )
    where = f"serve.host={config.host} serve.port={config.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
            taken.listen(_BACKLOG)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        fix = "serve.host=127.0.0.1, or another address of this machine"
        if error.errno == errno.EADDRINUSE:
            fix = "serve.port=ANOTHER (0: any that is free), or end what listens there"
        elif error.errno == errno.EACCES:
            fix = "serve.port=8000; ports below 1024 are for root"
        raise InputError.of(where, error.strerror or str(error), fix) from error
    return taken


def serve(
    engine: Engine,
    name: str,
    prompts: Prompts,
    config: ServeConfig,
    key: str | None,
    taken: socket.socket,
    report: Callable[[str], None],
) -> None:
    """Answer requests until a signal asks to stop; then what runs has `config.grace_s` seconds.

    Call from the main thread.

    Args:
        engine: With room for `most_open(config)` waiting requests.
        taken: Of `listen`.
        report: Gets what is to be printed.

    Raises:
        BaseException: that of the engine, after everybody who waited was told.
    """
    server: _Server

    def on_failure() -> None:
        server.should_exit = True

    worker = Worker(engine, most_open(config), Metrics(), on_failure)
    served = Served(name, engine, prompts, most_open(config), config.special_tokens)
    app = make_app(served, worker, config, key)
    server = _Server(app, worker, config, report)
    server.run(sockets=[taken])
    if worker.error is not None:
        raise worker.error


def most_open(config: ServeConfig) -> int:
    """Return how many sequences may be under way at once."""
    return config.places + config.max_waiting


class _Server(uvicorn.Server):
    """uvicorn's, which hears our signals, and lets answers end before it closes."""

    def __init__(
        self,
        app: Callable[..., object],
        worker: Worker,
        config: ServeConfig,
        report: Callable[[str], None],
    ):
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_within(config.timeout_s),
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=most_open(config) + _SPARE_CONNECTIONS,
                timeout_graceful_shutdown=_CLOSE_S,
            )
        )
        self._worker, self._settings, self._report = worker, config, report
        self._asked = False
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = (sockets or [])[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self._report(f"serving on http://{shown}:{port}/v1")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # which alone hears signals
            yield
            return
        loop = asyncio.get_running_loop()

        def asked(number: int, _: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._stop, number)

        before = {number: signal.signal(number, asked) for number in heard()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int) -> None:
        """Begin to stop; at the second signal, at once."""
        if self._asked:
            self._worker.end_all(stopping())
            self.config.timeout_graceful_shutdown = _CLOSE_AT_ONCE_S
            self.should_exit = True
            return
        self._asked = True
        left, grace_s = self._worker.num_open, self._settings.grace_s
        self._report(
            f"{name_of(number)}: {left} sequences under way have {grace_s:g} s to end; "
            "nothing new is accepted"
        )
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        await self._worker.drain(self._settings.grace_s)
        self.should_exit = True
