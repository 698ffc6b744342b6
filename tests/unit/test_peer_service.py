"""What peers serve, on this machine's loopback: the guest's program itself."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.guests import peer_service
from tests.unit.support import PATIENCE

ADDRESSES = ["127.0.0.1", "127.0.0.9", "::1"]


@dataclass(frozen=True)
class Service:
    """A peer's services on one port; ``token`` is the file that it answers with."""

    port: int
    token: Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    token = directory / "token"
    token.write_text("peer-1\n")
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as free:
        port = free.getsockname()[1]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(directory / "ready"))
        ready.settimeout(PATIENCE)
        command = [sys.executable, "-I", peer_service.__file__, str(token), str(port)]
        with subprocess.Popen(command, env={"NOTIFY_SOCKET": str(directory / "ready")}) as process:
            try:
                assert ready.recv(100) == b"READY=1"
                yield Service(port, token)
            finally:
                process.kill()


def client(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    made.settimeout(PATIENCE)
    made.connect((address, port))
    return made


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_an_echo_comes_with_the_token_from_the_address_that_was_asked(
    kind: socket.SocketKind, address: str, service: Service
) -> None:
    """A connected socket takes an answer from no other address."""
    with client(kind, address, service.port) as connection:
        for word in (b"one", b"two"):
            connection.send(word)
            assert connection.recv(100) == b"peer-1 " + word


@pytest.mark.parametrize(
    ("request_line", "page"), [(b"GET / HTTP/1.1\r\n", b"peer-1\n"), (b"HEAD / HTTP/1.0\r\n", b"")]
)
def test_a_web_page_holds_the_token(request_line: bytes, page: bytes, service: Service) -> None:
    with client(socket.SOCK_STREAM, "127.0.0.1", service.port) as connection, connection.makefile("rb") as answer:
        connection.sendall(request_line + b"\r\n")
        head, _, body = answer.read().partition(b"\r\n\r\n")
    assert head == b"HTTP/1.0 200 OK\r\nContent-Length: 7"
    assert body == page


def test_a_new_token_is_answered_with_at_once(service: Service) -> None:
    with client(socket.SOCK_STREAM, "127.0.0.1", service.port) as connection:
        service.token.write_text("peer-2\n")
        try:
            connection.send(b"who?")
            assert connection.recv(100) == b"peer-2 who?"
        finally:
            service.token.write_text("peer-1\n")


def test_many_connections_are_served_at_the_same_time(service: Service) -> None:
    connections = [client(socket.SOCK_STREAM, "127.0.0.1", service.port) for _ in range(400)]
    try:
        for connection in connections:
            connection.send(b"x")
        assert {connection.recv(100) for connection in connections} == {b"peer-1 x"}
    finally:
        for connection in connections:
            connection.close()
