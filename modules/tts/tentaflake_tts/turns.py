"""Who may use the engine next, and who may wait for it at all.

A turn is one piece of speech, not one request: so a long text keeps nobody waiting for longer than a sentence takes.
Clients have their turns in rotation, whoever has asked more often: so one client does not keep out the others.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from tentaflake_tts.errors import ApiError

T = TypeVar("T")


class Turns:
    """Runs what takes time in ``workers`` threads."""

    def __init__(self, workers: int, most: int, most_per_client: int) -> None:
        self._workers, self._most, self._most_per_client = workers, most, most_per_client
        self._pool = ThreadPoolExecutor(workers, "speech")
        self._free = workers
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._requests: Counter[str] = Counter()
        self._usual = 1.0

    @property
    def requests(self) -> int:
        """Requests that are being answered or wait."""
        return self._requests.total()

    @contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """For as long as a client's request takes; raises `ApiError` when there are too many already."""
        if self.requests >= self._most:
            raise self._too_many(f"{self.requests} requests wait already")
        if self._requests[client] >= self._most_per_client:
            raise self._too_many(f"{self._requests[client]} requests of yours wait already")
        self._requests[client] += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self._usual += (time.monotonic() - started - self._usual) / 16
            self._requests[client] -= 1
            if not self._requests[client]:
                del self._requests[client]

    def _too_many(self, why: str) -> ApiError:
        """One place is free after about what one request takes, less when many are answered at a time."""
        wait = min(max(1, math.ceil(self._usual / self._workers)), 60)
        return ApiError(
            429, f"{why}: try again in {wait} s", code="rate_limit_exceeded", headers={"Retry-After": str(wait)}
        )

    async def run(self, client: str, work: Callable[[], T]) -> T:
        """Do the work in a thread when it is this client's turn. Who is cancelled meanwhile does not wait for it."""
        await self._take(client)
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    async def _take(self, client: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came in the same moment
                self._give()
            raise

    def _done(self, future: "asyncio.Future[T]") -> None:
        if not future.cancelled():
            future.exception()  # nobody may be there any more to take it
        self._give()

    def _give(self) -> None:
        while self._waiting:
            client = next(iter(self._waiting))
            turns = self._waiting.pop(client)
            while turns and turns[0].done():  # gone
                turns.popleft()
            if turns:
                turns.popleft().set_result(None)
                if turns:
                    self._waiting[client] = turns  # behind everybody else
                return
        self._free += 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
