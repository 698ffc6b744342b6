#!/usr/bin/env python3
"""The guest's end of the root shell: runs commands that arrive on a virtio-serial port.

This file runs inside the guest, as root, with the guest's own Python and nothing else; the host's
end is ``harness.vm.shell``, which imports the framing from here. It survives a fork: between two
requests it only waits for the port, and the first request after a fork is ``hello``, which sets the
clock and feeds the kernel fresh randomness before anything else can draw any.

A frame is ``kind`` (1 byte), ``id`` (4 bytes) and ``length`` (4 bytes), big endian, then ``length``
bytes. Output travels as it was written; no output, however hostile, can look like a frame.

    host to guest    H hello (GREETING)       R run (JSON)     I standard input
    guest to host    h hello (an error, or nothing)    o stdout    e stderr    x exit (JSON)
"""

import contextlib
import fcntl
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

PORT_NAME = "tentaflake.shell"
HEADER = struct.Struct("!cII")
GREETING = struct.Struct("!d64s")
"""The time in seconds since 1970, and randomness. No JSON: a fork translates each program anew that it runs."""
CHUNK = 65536
RNDADDENTROPY = 0x40085203  # random(4)
RNDRESEEDCRNG = 0x5207


def pack(kind: bytes, request: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, request, len(payload)) + payload


class Port:
    """Whole frames over a file descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = os.read(self.fd, size - len(data))
            if not part:  # nobody at the other end yet
                time.sleep(0.05)
                continue
            data += part
        return data

    def receive(self) -> tuple[bytes, int, bytes]:
        kind, request, length = HEADER.unpack(self._read(HEADER.size))
        return kind, request, self._read(length)

    def send(self, kind: bytes, request: int, payload: bytes = b"") -> None:
        data = memoryview(pack(kind, request, payload))
        while data:
            data = data[os.write(self.fd, data) :]


def hello(message: bytes) -> bytes:
    """Make a fork a new machine by its ``GREETING``: its clock and its randomness. Returns what went wrong."""
    now, entropy = GREETING.unpack(message)
    try:
        time.clock_settime(time.CLOCK_REALTIME, now)
        device = os.open("/dev/random", os.O_WRONLY | os.O_CLOEXEC)
        fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii64s", len(entropy) * 8, len(entropy), entropy))
        fcntl.ioctl(device, RNDRESEEDCRNG)
        os.close(device)
    except OSError as error:  # without privileges, in a test
        return str(error).encode()
    return b""


def run_first() -> None:
    """Be scheduled before all that a fork wakes, and before what starves it; what this starts is not (sched(7))."""
    with contextlib.suppress(OSError):  # another kernel may give no real time to a cgroup (CONFIG_RT_GROUP_SCHED)
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def start(argv: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        close_fds=False,
        cwd=Path.home(),
    )


def run(port: Port, request: int, order: dict[str, object], stdin: bytes) -> None:
    """Run one command and stream its output; ends when it has exited, not when its heirs have."""
    argv = order["argv"]
    assert isinstance(argv, list)
    deadline = time.monotonic() + float(str(order["timeout"]))
    try:
        process = start(argv)
    except (OSError, ValueError) as error:  # ValueError: a NUL, or what is no text, in an argument
        reason = getattr(error, "strerror", None) or error
        code = 127 if isinstance(error, FileNotFoundError) else 126
        port.send(b"e", request, f"{argv[0]}: {reason}\n".encode(errors="replace"))
        port.send(b"x", request, json.dumps({"exit": code, "timed_out": False}).encode())
        return
    timed_out = pump(port, request, process, stdin, deadline)
    code = process.wait()
    verdict = {"exit": 128 - code if code < 0 else code, "timed_out": timed_out}
    port.send(b"x", request, json.dumps(verdict).encode())


def pump(port: Port, request: int, process: "subprocess.Popen[bytes]", stdin: bytes, deadline: float) -> bool:
    """Feed the process and pass its output on until it has exited; True if it had to be killed at the deadline."""
    assert process.stdin and process.stdout and process.stderr
    pidfd = os.pidfd_open(process.pid)
    streams = selectors.DefaultSelector()
    streams.register(pidfd, selectors.EVENT_READ, b"x")
    for pipe, kind in ((process.stdout, b"o"), (process.stderr, b"e")):
        os.set_blocking(pipe.fileno(), False)
        streams.register(pipe, selectors.EVENT_READ, kind)
    os.set_blocking(process.stdin.fileno(), False)
    streams.register(process.stdin, selectors.EVENT_WRITE, b"i")
    rest = memoryview(stdin)
    timed_out = exited = False
    while not exited:
        left = deadline - time.monotonic()
        if left <= 0:
            timed_out = True
            kill(process)
            left = 5.0
        for key, _ in streams.select(left):
            if key.data == b"x":
                exited = True
            elif key.data == b"i":
                rest = feed(key.fd, rest)
                if not rest:
                    streams.unregister(process.stdin)
                    process.stdin.close()
            else:
                forward(port, request, streams, key)
    # What was written before the exit is in the pipes now; what a background heir may write is not awaited,
    # and not more read than a pipe holds: the heir may never stop.
    for key in list(streams.get_map().values()):
        left_over = fcntl.fcntl(key.fd, fcntl.F_GETPIPE_SZ) if key.data in (b"o", b"e") else 0
        while left_over > 0 and forward(port, request, streams, key):
            left_over -= CHUNK
    streams.close()
    os.close(pidfd)
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    return timed_out


def feed(fd: int, data: memoryview) -> memoryview:
    """Write what fits; returns the rest, nothing if nobody reads."""
    try:
        return data[os.write(fd, data[:CHUNK]) :]
    except BrokenPipeError:
        return data[:0]


def forward(port: Port, request: int, streams: selectors.BaseSelector, key: selectors.SelectorKey) -> bool:
    """Pass on what can be read without waiting; False when there is nothing (more)."""
    try:
        data = os.read(key.fd, CHUNK)
    except BlockingIOError:
        return False
    if not data:
        streams.unregister(key.fileobj)
        return False
    port.send(key.data, request, data)
    return True


def find_port() -> str:
    """The device of our port, found by its name in sysfs (no udev rule needed)."""
    while True:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == PORT_NAME:
                return f"/dev/{name.parent.name}"
        time.sleep(0.05)


def main() -> None:
    # --stdio: the same program over a socket, for tests without a guest.
    stdio = sys.argv[1:] == ["--stdio"]
    if not stdio:
        run_first()
    port = Port(0 if stdio else os.open(find_port(), os.O_RDWR | os.O_CLOEXEC))
    stdin, stdin_of = b"", 0
    while True:
        kind, request, payload = port.receive()
        if request != stdin_of:  # what an abandoned request left behind is not for this one
            stdin, stdin_of = b"", request
        if kind == b"I":
            stdin += payload
        elif kind == b"H":
            port.send(b"h", request, hello(payload))
        elif kind == b"R":
            run(port, request, json.loads(payload), stdin)
            stdin = b""


if __name__ == "__main__":
    main()
