"""What is done with every request before and after the API sees it."""

import asyncio
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tentaflake_tts.errors import ApiError
from tentaflake_tts.metrics import Metrics

MOST_BYTES = 131_072
"""4,096 characters of input and as many of instructions, each of them escaped, and then some."""
PATIENCE = 10.0
"""Seconds for a body to arrive."""
LINGER = 2.0
"""Seconds for which the rest of a refused body is read, and thrown away."""


class Count:
    """Counts answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._metrics.answers.labels(path, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counting if scope["type"] == "http" else send)


class WholeBody:
    """Reads a request's body before anything else is done, if it is not too large and not too slow."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(PATIENCE):
                body: bytes | None = await _read(scope, receive)
        except (ApiError, TimeoutError) as error:
            if not isinstance(error, ApiError):
                error = ApiError(408, f"the request's body did not arrive within {PATIENCE:.0f} s")
            await _refuse(error, scope, receive, send)
            return
        if body is None:
            return  # the client is gone

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        await self._app(scope, replay, send)


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and close only then when nothing more comes: closed with bytes unread, a connection is reset, and the
    answer lost with it (RFC 9112, 9.6)."""

    async def unfinished(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await JSONResponse(error.body, error.status, {"Connection": "close"})(scope, receive, unfinished)
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})


async def _read(scope: Scope, receive: Receive) -> bytes | None:
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    body = bytearray()
    while int(announced) <= MOST_BYTES and len(body) <= MOST_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False) and len(body) <= MOST_BYTES:
            return bytes(body)
    raise ApiError(413, f"the request's body is too large: send at most {MOST_BYTES} bytes")
