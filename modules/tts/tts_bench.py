"""The speech server beside Piper's own HTTP server and command line, on the same work in one run:
python3 modules/tts/tts_bench.py

    engine     Piper's Python API by itself, its voice loaded and warm: what nothing can be faster than
    tentaflake this server, as WAV, which is what the others give
    http       python -m piper.http_server (needs the package flask)
    command    python -m piper for each request, raw samples to its standard output

Two voices, unless --voice names one: "light", the stand-in of tone_voice.py, which costs next to nothing, so that what
is measured is everything else; and "heavy", the same with products of matrices for each sentence (--work). A connection
for each request. Medians over rounds, in each of which every subject has its turn.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import tone_voice
from piper import PiperVoice

HERE = Path(__file__).resolve().parent
TEXTS = {
    "1 word": "Hello.",
    "10 words": "This is what it says when it is asked to.",
    "100 words": "This is what it says when it is asked to. " * 10,
}
CLIENTS = (1, 2, 8)
# Becomes what it is told, with the socket where systemd has it.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

Times = tuple[float, float]
"""Seconds to the first byte, and to the last."""
Say = Callable[[str], Times]


@dataclass(frozen=True)
class Subject:
    name: str
    say: Say
    pid: int | None


def ask(port: int, path: str, body: Callable[[str], Mapping[str, object]]) -> Say:
    def say(text: str) -> Times:
        started = time.perf_counter()
        connection = HTTPConnection("127.0.0.1", port, timeout=300)
        connection.request("POST", path, json.dumps(body(text)), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read(1)
        first = time.perf_counter() - started
        answer.read()
        connection.close()
        assert answer.status == 200, answer.status
        return first, time.perf_counter() - started

    return say


@contextmanager
def running(command: list[str], port: int, **options: object) -> Iterator[int]:
    """Run a server until it answers on its port and to the end of the block; gives its process id."""
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(HERE)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        **options,  # type: ignore[call-overload]
    )
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"bench: it does not start: {' '.join(command[:4])} ...")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health/ready")
        return connection.getresponse().status in (200, 404)
    except OSError:
        return False


@contextmanager
def tentaflake(model: Path) -> Iterator[Subject]:
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        config = Path(directory) / "config.json"
        config.write_text(json.dumps({"voices": str(model.parent), "default": model.stem}))
        number, port = listener.fileno(), listener.getsockname()[1]
        command = [sys.executable, "-c", ACTIVATE, str(number), "-m", "tentaflake_tts.server", f"--config={config}"]
        with running(command, port, pass_fds=[number]) as pid:
            fields = {"model": "piper", "voice": model.stem, "response_format": "wav"}
            yield Subject("tentaflake", ask(port, "/v1/audio/speech", lambda text: fields | {"input": text}), pid)


@contextmanager
def http(model: Path) -> Iterator[Subject]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "piper.http_server", "--host=127.0.0.1", f"--port={port}", f"--model={model}"]
    with running(command, port) as pid:
        yield Subject("http", ask(port, "/synthesize", lambda text: {"text": text}), pid)


@contextmanager
def command(model: Path) -> Iterator[Subject]:
    def say(text: str) -> Times:
        started = time.perf_counter()
        line = [sys.executable, "-m", "piper", f"--model={model}", "--output-raw", "--", text]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout
            process.stdout.read(1)
            first = time.perf_counter() - started
            process.stdout.read()
        return first, time.perf_counter() - started

    yield Subject("command", say, None)


@contextmanager
def engine(model: Path) -> Iterator[Subject]:
    voice = PiperVoice.load(model)

    def say(text: str) -> Times:
        started, first = time.perf_counter(), 0.0
        for chunk in voice.synthesize(text):
            _ = chunk.audio_int16_bytes
            first = first or time.perf_counter() - started
        return first, time.perf_counter() - started

    yield Subject("engine", say, None)


def throughput(say: Say, clients: int, requests: int) -> float:
    """Requests a second of 10 words."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(say, [TEXTS["10 words"]] * requests))
    return requests / (time.perf_counter() - started)


def memory(pid: int) -> float:
    """MiB, the most that it ever was."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def measure(subject: Subject, count: int) -> dict[str, list[float]]:
    """One round: of each column what was seen, in ms and requests a second."""
    seen: dict[str, list[float]] = {}
    for name, text in TEXTS.items():
        subject.say(text)
        times = [subject.say(text) for _ in range(count)]
        first, total = (statistics.median(column) * 1000 for column in zip(*times, strict=True))
        seen[f"{name}: first byte, total (ms)"] = [first, total]
    if subject.name != "engine":
        for clients in CLIENTS:
            seen[f"{clients} clients (1/s)"] = [throughput(subject.say, clients, count)]
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voice", type=Path, help="a model of Piper's instead of the stand-ins")
    parser.add_argument("--work", type=int, default=8, help="products of matrices for a sentence of the heavy voice")
    parser.add_argument("--requests", type=int, default=100, help="in a round")
    parser.add_argument("--few", type=int, default=2, help="requests of Piper's command line in a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if options.voice is not None:
            models = [options.voice]
        else:
            light = tone_voice.make(Path(directory) / "light", "light")
            models = [light, tone_voice.make(Path(directory) / "heavy", "heavy", work=options.work)]
        for model in models:
            print(f"\n{model.stem}, load {os.getloadavg()[0]:.1f} before\n", flush=True)
            compare(model, options)


def compare(model: Path, options: argparse.Namespace) -> None:
    """All subjects run all the time and are asked in turn, so that what else the machine does meets all of them."""
    with ExitStack() as stack:
        subjects = [stack.enter_context(subject(model)) for subject in (engine, tentaflake, http, command)]
        rounds: dict[str, list[dict[str, list[float]]]] = {subject.name: [] for subject in subjects}
        for _ in range(options.rounds):
            for subject in subjects:
                count = options.few if subject.name == "command" else options.requests
                rounds[subject.name].append(measure(subject, count))
        columns = list(rounds["tentaflake"][0])
        print("| |", " | ".join([*columns, "memory (MiB)"]), "|\n" + "|---" * (len(columns) + 2) + "|")
        for subject in subjects:
            cells = [_median([each[name] for each in rounds[subject.name] if name in each]) for name in columns]
            cells.append(f"{memory(subject.pid):.0f}" if subject.pid else "")
            print(f"| {subject.name} |", " | ".join(cells), "|", flush=True)


def _median(rounds: list[list[float]]) -> str:
    return ", ".join(f"{statistics.median(column):.1f}" for column in zip(*rounds, strict=True))


if __name__ == "__main__":
    main()
