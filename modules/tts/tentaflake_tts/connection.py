"""One client's connection: uvicorn's, with an end to the patience with clients that are slow or gone."""

import asyncio
import socket
from collections import Counter
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_PATIENCE = 10.0
"""Seconds for a request's headers, from the connection or their first byte."""
READ_PATIENCE = 60.0
"""Seconds for a client to take what is buffered for it, a few hundred KB: seconds of any format."""
SEND_BUFFER = 128 << 10
"""Bytes that the kernel buffers for a client, and doubles (socket(7)). By itself it goes up to 4 MiB (tcp(7)), and asks
for more when a third was taken: after more than a minute, if MP3 is read as it is played."""
MOST_PER_CLIENT = 128
"""Connections from one address: nobody can take all of the server's file descriptors."""


class Connection(H11Protocol):
    """Its ``cycle`` is the request being answered, if there is one."""

    _clients: ClassVar[Counter[str]] = Counter()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._request_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._host = self.client[0] if self.client else ""
        self._clients[self._host] += 1
        if self._clients[self._host] > MOST_PER_CLIENT:
            transport.abort()
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._has_request():
            self._forget_request_timer()
        elif self._request_timer is None:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_request_timer()
        self._forget_read_timer()
        self._clients[self._host] -= 1
        if not self._clients[self._host]:
            del self._clients[self._host]
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_read_timer()

    def _has_request(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _expect_request(self) -> None:
        def expired() -> None:
            if not self._has_request():
                self.transport.abort()

        self._request_timer = self.loop.call_later(REQUEST_PATIENCE, expired)

    def _forget_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _forget_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
