"""The host's end of the root shell in a guest (the guest's end is ``guest_shell``)."""

import json
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.pace import stretch
from harness.vm.guest_shell import GREETING, HEADER, pack

TICK = 0.2
"""Seconds between two looks at whether the guest still lives."""
RUN_TIMEOUT = 120.0
"""Seconds for a command that is not known to take long."""
GRACE = 30.0
"""Seconds past a command's own timeout after which the guest itself is held to be hung."""
MAX_PAYLOAD = 1 << 20


class GuestUnresponsive(HarnessError, TimeoutError):
    """The machine runs, but its root shell does not answer: a hung kernel, a starved guest."""


class CommandFailed(HarnessError):
    """A command that had to succeed did not."""


class CommandTimeout(CommandFailed, TimeoutError):
    """A command that had to succeed was killed at the end of its time."""


@dataclass(frozen=True)
class Result:
    """What a command did. ``exit`` is as a shell gives it: 128 + N after signal N."""

    command: str
    exit: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    seconds: float

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")

    def check(self) -> "Result":
        """Return self, or raise what went wrong with the end of what it said."""
        self.stop_if_timed_out()
        if self.exit:
            raise CommandFailed(f"in the guest, exit code {self.exit}: {self._shown()}\n{self._tail()}")
        return self

    def stop_if_timed_out(self) -> "Result":
        """Return self, or raise ``CommandTimeout`` if the guest had to kill it."""
        if self.timed_out:
            raise CommandTimeout(f"in the guest, killed after {self.seconds:.1f} s: {self._shown()}\n{self._tail()}")
        return self

    def _shown(self) -> str:
        return self.command if len(self.command) <= 300 else f"{self.command[:300]} ..."

    def _tail(self) -> str:
        return (self.stderr[-2000:] or self.stdout[-2000:]).decode(errors="replace").strip()


class Shell:
    """A root shell over a connected socket. One command at a time.

    ``watch`` is called while waiting; it raises when the guest has died, so that no wait outlives it.
    ``last_words`` gives the end of the guest's console, for the error when it does not answer. ``resume`` is called
    before each command.
    """

    def __init__(
        self,
        connection: socket.socket,
        watch: Callable[[], None],
        last_words: Callable[[], str] = str,
        resume: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._watch = watch
        self._last_words = last_words
        self._resume = resume
        self._request = int.from_bytes(os.urandom(3), "big") << 8
        self._buffer = bytearray()
        self._unsent = bytearray()
        self._greeting: int | None = None

    def greet(self, timeout: float) -> None:
        """Send what ``hello`` waits for an answer to: a start for a guest that is waited for later."""
        self._greeting = self._next_request()
        message = GREETING.pack(time.time(), os.urandom(64))
        self._send(pack(b"H", self._greeting, message), time.monotonic() + stretch(timeout))

    def hello(self, timeout: float) -> None:
        """Wait for the shell to answer; set the guest's clock and reseed its randomness.

        Raises ``GuestUnresponsive`` when ``timeout`` (seconds, stretched) has passed.
        """
        deadline = time.monotonic() + stretch(timeout)
        if self._greeting is None:
            self.greet(timeout)
        request, self._greeting = self._greeting, None
        assert request is not None
        while True:
            kind, payload = self._receive(request, deadline, "hello")
            if kind == b"h":
                if payload:
                    error = payload.decode(errors="replace")
                    raise HarnessError(f"the guest can not set its clock and randomness: {error}")
                return

    def run(self, command: str | Sequence[str], *, timeout: float = RUN_TIMEOUT, stdin: bytes = b"") -> Result:
        """Run a shell command line, or an argument vector, as root; never raises for its exit code.

        ``timeout`` is in seconds, stretched by the machine's pace, after which the guest kills it with all its process
        group.
        Raises ``GuestUnresponsive``, or what ``watch`` raises, when the guest itself is gone.
        """
        return self.start(command, timeout=timeout, stdin=stdin)()

    def start(
        self, command: str | Sequence[str], *, timeout: float = RUN_TIMEOUT, stdin: bytes = b""
    ) -> Callable[[], Result]:
        """``run`` in two steps: give the order, and later call what is returned, before the next order, to wait."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        assert argv, "an empty command"
        shown = command if isinstance(command, str) else " ".join(command)
        self._resume()
        request = self._next_request()
        started, timeout = time.monotonic(), stretch(timeout)
        deadline = started + timeout + stretch(GRACE)
        for start in range(0, len(stdin), MAX_PAYLOAD):
            self._send(pack(b"I", request, stdin[start : start + MAX_PAYLOAD]), deadline)
        order = json.dumps({"argv": argv, "timeout": timeout}).encode()
        self._send(pack(b"R", request, order), deadline)
        return lambda: self._finish(request, shown, started, deadline)

    def _finish(self, request: int, shown: str, started: float, deadline: float) -> Result:
        output: dict[bytes, bytearray] = {b"o": bytearray(), b"e": bytearray()}
        while True:
            kind, payload = self._receive(request, deadline, shown)
            if kind in output:
                output[kind] += payload
            elif kind == b"x":
                end = json.loads(payload)
                return Result(
                    command=shown,
                    exit=end["exit"],
                    stdout=bytes(output[b"o"]),
                    stderr=bytes(output[b"e"]),
                    timed_out=end["timed_out"],
                    seconds=time.monotonic() - started,
                )

    def _next_request(self) -> int:
        self._request += 1
        return self._request

    def _wait(self, event: int, deadline: float, doing: str) -> None:
        poller = select.poll()
        poller.register(self._socket, event)
        ready = False
        while not ready:
            ready = bool(poller.poll(TICK * 1000))
            if not ready:
                self._watch()
            if time.monotonic() > deadline:  # even while it talks: it may be about something else for ever
                raise GuestUnresponsive(
                    "the guest's root shell has not answered in time; "
                    f"it was asked: {doing[:200]}\n{self._last_words()}",
                    hint="its console may show what it was doing; a host with too little CPU or memory looks the same",
                )

    def _send(self, data: bytes, deadline: float) -> None:
        self._unsent += data  # behind the rest of a frame whose sending was given up, so that frames stay whole
        while self._unsent:
            try:
                del self._unsent[: self._socket.send(self._unsent)]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline, "to take input")
            except OSError:
                self._closed()

    def _receive(self, request: int, deadline: float, doing: str) -> tuple[bytes, bytes]:
        """The next frame that answers ``request``; what answers an abandoned one is dropped."""
        while True:
            while len(self._buffer) >= HEADER.size:
                kind, answered, length = HEADER.unpack_from(self._buffer)
                if len(self._buffer) < HEADER.size + length:
                    break
                payload = bytes(self._buffer[HEADER.size : HEADER.size + length])
                del self._buffer[: HEADER.size + length]
                if answered == request:
                    return kind, payload
            self._wait(select.POLLIN, deadline, doing)
            try:
                data = self._socket.recv(1 << 18)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._closed()
            self._buffer += data

    def _closed(self) -> None:
        """The other end is gone: say why if it can be known, within a second."""
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            self._watch()
            time.sleep(0.02)
        raise GuestUnresponsive(f"the guest's root shell has closed its end\n{self._last_words()}")
