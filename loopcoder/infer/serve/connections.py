"""Connections that end when nobody reads what they carry."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""So that a machine that is gone without a word ends its connections, within two minutes."""


def connection_within(timeout_s: float) -> type[asyncio.Protocol]:
    """Return the protocol of a connection that is cut when its client takes nothing of what waits
    for it for some seconds.

    uvicorn closes a connection once all is sent, however long that takes; meanwhile it is one of
    `limit_concurrency`.
    """

    class Connection(H11Protocol):
        _cut: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # to be told of a single byte that waits
            used = cast(socket.socket, transport.get_extra_info("socket"))
            for level, option, value in _KEEPALIVE:
                used.setsockopt(level, option, value)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._cut = self.loop.call_later(timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._keep()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._keep()

        def _keep(self) -> None:
            if self._cut is not None:
                self._cut.cancel()
                self._cut = None

    return Connection
