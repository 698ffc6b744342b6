#!/usr/bin/env python3
"""What a peer serves: TCP and UDP echo that says who answered, and HTTP; on all of the machine's addresses.

    peer_service.py TOKEN-FILE PORT...

Runs inside the guest with its own Python and nothing else. An answer is the token, a space and what was sent; to an
HTTP GET it is a page that holds the token. The token is read anew for each answer: a fork gets its own.
"""

import asyncio
import contextlib
import functools
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

CHUNK = 4096
BACKLOG = 4096
IP_PKTINFO = 8  # not in Python's socket module before 3.14
Token = Callable[[], bytes]


def answer(token: bytes, data: bytes) -> bytes:
    if data.startswith((b"GET ", b"HEAD ")):
        page = token + b"\n"
        return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page if data[:1] == b"G" else b"")
    return token + b" " + data


async def serve_tcp(token: Token, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one connection until it ends, or until it has had its page."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            said = answer(token(), data)
            writer.write(said)
            await writer.drain()
            if said.startswith(b"HTTP/"):
                break
    writer.close()


def udp_socket(family: int, port: int) -> socket.socket:
    """A socket that learns which address was asked, so that the answer can come from it."""
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.setblocking(False)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        server.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    server.bind(("", port))
    return server


def serve_udp(server: socket.socket, token: Token) -> None:
    """Answer one packet. One that cannot be answered is lost, as packets are."""
    with contextlib.suppress(OSError):
        data, asked, _, peer = server.recvmsg(CHUNK, 256)
        try:
            server.sendmsg([answer(token(), data)], asked, 0, peer)
        except OSError:  # what was asked was everybody's: the answer comes from an address of our own
            server.sendto(answer(token(), data), peer)


async def serve_all(token: Token, ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        await asyncio.start_server(functools.partial(serve_tcp, token), sock=listener, backlog=BACKLOG)
        for family in (socket.AF_INET, socket.AF_INET6):
            server = udp_socket(family, port)
            loop.add_reader(server, serve_udp, server, token)
    say_ready()
    await loop.create_future()


def say_ready() -> None:
    """Tell systemd, if it is there (sd_notify(3))."""
    if place := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", place.replace("@", "\0", 1))


def main(token_file: str, *ports: str) -> None:
    path = Path(token_file)
    asyncio.run(serve_all(lambda: path.read_bytes().strip(), [int(port) for port in ports]))


if __name__ == "__main__":
    main(*sys.argv[1:])
