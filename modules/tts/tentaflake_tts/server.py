"""tentaflake-tts: the speech server, started by systemd with the sockets that it serves.

It has no other way to listen: who may reach it is the socket unit's business, and the sockets outlive it.
By hand: systemd-socket-activate -l 5001 tentaflake-tts --config config.json
"""

import argparse
import asyncio
import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn

from tentaflake_tts import settings
from tentaflake_tts.api import make_app
from tentaflake_tts.connection import Connection
from tentaflake_tts.engine import Engine
from tentaflake_tts.errors import SpeechError

FIRST_SOCKET = 3
NOTICE, WARNING, ERROR = 5, 4, 3
WATCHDOG_SECONDS = 10


def log(priority: int, text: str) -> None:
    """One line for the journal; the prefix gives it its priority (sd-daemon(3))."""
    print(f"<{priority}>tentaflake-tts: {' '.join(text.split())}", file=sys.stderr, flush=True)


def notify(*assignments: str) -> None:
    """Tell systemd (sd_notify(3)); nothing without systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto("\n".join(assignments).encode(), "\0" + address[1:] if address[0] == "@" else address)


def take_sockets() -> list[socket.socket]:
    """The sockets that systemd has passed (sd_listen_fds(3)); raises `SpeechError`."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        raise SpeechError(
            "no socket was passed to this process",
            "start tentaflake-tts.socket; by hand: systemd-socket-activate -l 5001 tentaflake-tts --config FILE",
        )
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    return [socket.socket(fileno=number) for number in range(FIRST_SOCKET, FIRST_SOCKET + count)]


async def serve(engine: Engine, sockets: list[socket.socket]) -> int:
    """Serve until told to end; returns the exit code."""
    code = 0

    async def watchdog() -> None:
        notify("WATCHDOG=1")

    async def load() -> None:
        nonlocal code
        try:
            await engine.load(lambda problem: log(ERROR, problem))
        except SpeechError as error:
            log(ERROR, str(error))
            code, server.should_exit = 1, True
            return
        log(NOTICE, f"ready with {', '.join(engine.voices)}")
        notify("READY=1", f"STATUS={len(engine.voices)} voices, {len(engine.failed)} broken")

    config = uvicorn.Config(
        make_app(engine),
        http=Connection,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level=logging.ERROR,  # else whoever sends rubbish writes into the journal
        proxy_headers=False,  # a client says who it is by its address and nothing else
        server_header=False,
        backlog=1024,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=15,
        callback_notify=watchdog,
        timeout_notify=WATCHDOG_SECONDS,
    )
    server = uvicorn.Server(config)
    loading = asyncio.create_task(load())
    await server.serve(sockets)
    loading.cancel()
    engine.close()
    return code


def main() -> None:
    parser = argparse.ArgumentParser(prog="tentaflake-tts", description="The speech server.")
    parser.add_argument("--config", type=Path, required=True, help="its settings, a JSON file")
    options = parser.parse_args()
    try:
        engine = Engine(settings.read(options.config))
        sockets = take_sockets()
    except SpeechError as error:
        log(ERROR, str(error))
        sys.exit(1)
    sys.exit(asyncio.run(serve(engine, sockets)))


if __name__ == "__main__":
    main()
