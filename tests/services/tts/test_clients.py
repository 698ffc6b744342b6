"""Clients that are many, slow, gone or greedy, and a server that is killed."""

import json
import os
import re
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import openai
import pytest

from tests.services.tts.conftest import Start
from tests.services.tts.support import LONG, PATIENCE, Server, eventually

SLOW = LONG[:4096]
MiB = 1 << 20


def body(text: str, **more: object) -> bytes:
    fields = {"model": "tts-1", "voice": "alloy", "input": text, "response_format": "pcm", **more}
    return json.dumps(fields).encode()


def ask(speech: Server, text: str, **more: object) -> HTTPConnection:
    """A connection on which speech was asked for, and nothing was read yet."""
    connection = speech.connect()
    connection.request("POST", "/v1/audio/speech", body(text, **more), {"Content-Type": "application/json"})
    return connection


def raw(body: bytes) -> bytes:
    """A whole request for speech."""
    head = ["POST /v1/audio/speech HTTP/1.1", "Host: x", "Content-Type: application/json"]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def in_progress(speech: Server) -> float:
    _, text, _ = speech.request("GET", "/metrics")
    found = re.search(rb"^tts_requests ([0-9.]+)$", text, re.MULTILINE)
    assert found
    return float(found[1])


@contextmanager
def stalled(speech: Server) -> Iterator[HTTPConnection]:
    """A client that asks for more than any buffer holds, and reads nothing of it."""
    connection = ask(speech, SLOW, speed=0.25)
    eventually(lambda: in_progress(speech) >= 1, "it is being answered")
    try:
        yield connection
    finally:
        connection.close()


# --- slow and gone


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ends it, whatever it says before."""
    connection.settimeout(PATIENCE)
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


UNFINISHED = {
    "nothing": b"",
    "half of the headers": b"POST /v1/audio/speech HTTP/1.1\r\nHost:",
    "half of the second request": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHo",
}


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED)
def test_a_client_that_does_not_finish_its_request_is_dropped(start: Start, sent: bytes) -> None:
    speech = start(patience=0.5)
    with socket.create_connection(("127.0.0.1", speech.port)) as slow:
        slow.sendall(sent)
        assert is_closed(slow)
    assert speech.post()[0] == 200


def test_a_body_that_does_not_come_is_an_error(start: Start) -> None:
    speech = start(patience=0.5)
    with socket.create_connection(("127.0.0.1", speech.port)) as slow:
        slow.settimeout(PATIENCE)
        slow.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(4096)
        assert is_closed(slow)
    assert speech.post()[0] == 200


def test_a_client_that_does_not_read_is_dropped_and_one_that_reads_slowly_is_not(start: Start) -> None:
    patience = 2.0
    speech = start(patience=patience)
    with stalled(speech) as deaf:
        reader = ask(speech, SLOW, speed=0.25)
        answer, end = reader.getresponse(), time.monotonic() + 3 * patience
        while time.monotonic() < end:
            assert answer.read(100_000)
            time.sleep(patience / 8)  # this is its slowness
        assert in_progress(speech) == 1  # the other one's has ended; this one's has not
        assert deaf.sock is not None
    reader.close()
    eventually(lambda: in_progress(speech) == 0, "nothing is left of them")


def test_an_answer_that_nobody_waits_for_is_not_made(start: Start, heavy: Path) -> None:
    speech = start(heavy, workers=1)
    for _ in range(3):
        ask(speech, SLOW).close()
    eventually(lambda: in_progress(speech) == 0, "they are gone")


def test_a_text_that_is_long_keeps_no_other_client_waiting(start: Start, heavy: Path) -> None:
    """One worker, and one client with many long texts: another has its turn after at most a sentence of each worker."""
    speech = start(heavy, workers=1)
    greedy = [ask(speech, SLOW) for _ in range(10)]
    eventually(lambda: in_progress(speech) == 10, "all of them are being answered")
    with socket.create_connection(("127.0.0.1", speech.port), source_address=("127.0.0.2", 0)) as other:
        other.settimeout(PATIENCE)
        text = body("Hi.")
        other.sendall(raw(text))
        assert b" 200 " in other.recv(4096)
        assert in_progress(speech) == 10
    for connection in greedy:
        connection.close()


# --- too many


def test_more_than_may_wait_get_429_and_later_an_answer(start: Start) -> None:
    speech = start(queue=2)
    waiting = [ask(speech, SLOW, speed=0.25) for _ in range(2)]
    eventually(lambda: in_progress(speech) == 2, "both are being answered")
    status, refused, headers = speech.request(
        "POST", "/v1/audio/speech", body("Hello."), {"Content-Type": "application/json"}
    )
    assert status == 429 and int(headers["retry-after"]) >= 1
    assert refused["error"]["type"] == "rate_limit_error" and refused["error"]["code"] == "rate_limit_exceeded"
    assert speech.get("/health")[0] == 200
    for connection in waiting:
        connection.close()
    eventually(lambda: in_progress(speech) == 0, "they are gone")
    assert speech.post()[0] == 200


def test_the_official_client_comes_again_when_it_is_told_to(start: Start) -> None:
    speech = start(queue=1)
    with stalled(speech) as deaf:
        with speech.openai as client, pytest.raises(openai.RateLimitError):
            client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.")
        threading.Timer(0.5, deaf.close).start()
        with speech.openai.with_options(max_retries=5) as client:
            assert client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.").content


def test_one_client_leaves_room_in_the_queue_for_others(start: Start) -> None:
    speech = start(queue=8, queuePerClient=1)
    with stalled(speech):
        assert speech.post()[0] == 429
        with socket.create_connection(("127.0.0.1", speech.port), source_address=("127.0.0.2", 0)) as other:
            other.settimeout(PATIENCE)
            text = body("Hi.")
            other.sendall(raw(text))
            assert b" 200 " in other.recv(4096)


def test_one_client_does_not_take_all_connections(speech: Server) -> None:
    idle = [socket.create_connection(("127.0.0.1", speech.port), source_address=("127.0.0.3", 0)) for _ in range(200)]
    closed = 0
    for connection in idle:
        connection.setblocking(False)
    deadline = time.monotonic() + PATIENCE
    while closed < 72:
        assert time.monotonic() < deadline, f"{closed} of 200 connections are closed"
        closed = sum(_has_ended(connection) for connection in idle)
        time.sleep(0.01)
    assert speech.post()[0] == 200
    for connection in idle:
        connection.close()
    assert closed == 72


def _has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


# --- load


def test_many_clients_have_no_error_and_health_is_answered_meanwhile(start: Start) -> None:
    """32 clients, 1,000 requests and one that stalls. The test itself takes its part of the processor."""
    speech = start()
    formats = ["mp3", "opus", "flac", "wav", "pcm"]
    health: list[float] = []
    done = threading.Event()
    wanted = speech.post(response_format="pcm")[1]

    def watch() -> None:
        connection = speech.connect()
        while not done.wait(0.02):
            started = time.perf_counter()
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            health.append(time.perf_counter() - started)
        connection.close()

    def client(requests: int) -> int:
        connection = speech.connect()
        for request in range(requests):
            codec = formats[request % len(formats)]
            connection.request(
                "POST",
                "/v1/audio/speech",
                body("Hello.", response_format=codec),
                {"Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status == 200 and (data == wanted or codec != "pcm"), data[:200]
        connection.close()
        return requests

    with stalled(speech):
        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(32) as pool:
            assert sum(pool.map(client, [10] * 32)) == 320
            before = speech.memory("VmHWM")
            assert sum(pool.map(client, [32] * 8 + [31] * 24)) == 1000
        done.set()
        watcher.join()
        assert in_progress(speech) == 1  # the one that stalls
    assert speech.memory("VmHWM") - before < 16 * MiB and before < 400 * MiB
    assert len(health) > 20 and statistics.quantiles(health, n=20)[-1] < 0.1


# --- killed


SOME = LONG[:1000]


def outcomes(speech: Server, count: int, interrupt: Callable[[], None]) -> list[str]:
    """What so many clients of a long answer have in the end; all of them have its beginning when it is interrupted."""
    begun, go = threading.Barrier(count + 1), threading.Event()

    def client() -> str:
        connection = ask(speech, SOME)
        answer = connection.getresponse()
        begin = answer.read(1000)
        begun.wait(PATIENCE)
        go.wait(PATIENCE)
        try:
            rest = answer.read()
        except (HTTPException, OSError) as error:
            return type(error).__name__
        finally:
            connection.close()
        return str(len(begin) + len(rest))

    with ThreadPoolExecutor(count) as pool:
        clients = [pool.submit(client) for _ in range(count)]
        begun.wait(PATIENCE)
        interrupt()
        go.set()
        return [client.result(PATIENCE) for client in clients]


def test_killed_under_load_it_serves_no_half_answer_as_a_whole_one_and_comes_back(start: Start, heavy: Path) -> None:
    speech = start(heavy)
    whole = str(len(speech.post(input=SOME, response_format="pcm")[1]))
    assert set(outcomes(speech, 4, lambda: None)) == {whole}  # the control: without a kill they are whole
    waiting: list[HTTPConnection] = []

    def kill() -> None:
        speech.kill()
        waiting.append(ask(speech, "Hello."))  # nobody serves; the socket is there

    assert set(outcomes(speech, 8, kill)) <= {"IncompleteRead", "ConnectionResetError"}
    speech.start()
    assert waiting[0].getresponse().status == 200
    waiting[0].close()


def test_a_restart_finishes_what_is_begun_and_refuses_nobody(start: Start) -> None:
    speech = start()
    whole = str(len(speech.post(input=SOME, response_format="pcm")[1]))
    assert set(outcomes(speech, 4, lambda: os.kill(speech.process.pid, signal.SIGTERM))) == {whole}  # type: ignore[union-attr]
    waiting = ask(speech, "Hello.")
    assert speech.process is not None and speech.process.wait(PATIENCE) == -signal.SIGTERM
    speech.start()
    assert waiting.getresponse().status == 200
    waiting.close()
