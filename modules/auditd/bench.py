"""hermes-auditd beside inotifywait and watchdog, on the same work, in one run: python3 modules/auditd/bench.py

Each watcher in turn watches a fresh directory (in memory, if --place is a tmpfs, so that it is not the disk that is
measured) while the same work is done in it. The record of hermes-auditd is on the disk (--record), with its fsyncs.

    burst      files made in a tight loop, a thousand in each directory that is made on the way
    sustained  files made and written at a steady rate in directories that are there: two acts each
    latency    a file each 10 ms, from before the act to where another process finds it, looking all the time
    idle       memory and processor time, with all those files there, after ten seconds of rest

inotifywait is in the package inotify-tools; watchdog is imported by the Python that --watchdog names. A watcher that is
missing is left out.
"""

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")
WATCHDOG = """
import sys, time
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer
class Handler(FileSystemEventHandler):
    def on_created(self, event):
        print(event.src_path, flush=True)
observer = Observer()
observer.schedule(Handler(), sys.argv[1], recursive=True)
observer.start()
print("established", file=sys.stderr, flush=True)
time.sleep(86400)
"""

Command = Callable[[Path, Path], list[str]]
"""What to run, for the directory to be watched and one for the watcher's own files."""


class Lines:
    """The paths in a file that a watcher writes, one each line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self.paths: set[str] = set()

    def read(self) -> set[str]:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        self.paths.update(os.fsdecode(line) for line in lines)
        return self.paths

    def has(self, path: str) -> bool:
        return path in self.read()


class Rows:
    """The paths in the record."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        self._last = 0
        self.paths: set[str] = set()

    def read(self) -> set[str]:
        found = self._connection.execute(
            "SELECT id, path FROM event WHERE kind = 'create' AND id > ? ORDER BY id", (self._last,)
        ).fetchall()
        if found:
            self._last = found[-1][0]
            self.paths.update(path for _, path in found)
        return self.paths

    def has(self, path: str) -> bool:
        return path in self.read()


@dataclass
class Watcher:
    """A running watcher, and what it has seen being made."""

    process: "subprocess.Popen[bytes]"
    seen: Lines | Rows

    def processor(self) -> float:
        """Seconds of processor time used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> float:
        """MiB, what is shared with others counted in parts."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024

    def settle(self, wanted: int) -> int:
        """How many files were seen, once all were or three seconds went by without another one."""
        count, since = len(self.seen.read()), time.monotonic()
        while count < wanted and time.monotonic() < since + 3:
            time.sleep(0.1)
            now = len(self.seen.read())
            if now > count:
                count, since = now, time.monotonic()
        return count


def auditd(home: Path, own: Path) -> list[str]:
    directories = [{"agent": "bench", "path": str(home), "uid": os.getuid()}]
    settings = {"directories": directories, "database": str(own / "audit.db"), "maxBytes": 2**34}
    (own / "config.json").write_text(json.dumps(settings))
    return [sys.executable, "-m", "hermes_auditd.daemon", f"--config={own / 'config.json'}"]


def inotifywait(home: Path, own: Path) -> list[str]:
    return ["inotifywait", "-m", "-r", "-e", "create", "--format", "%w%f", str(home)]


@contextmanager
def running(command: Command, home: Path, own: Path) -> Iterator[Watcher]:
    out, err = own / "out", own / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command(home, own),
            env=os.environ | {"PYTHONPATH": str(HERE)},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        deadline = time.monotonic() + 60
        while not any(word in err.read_bytes() for word in (b"established", b"watching")):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"bench: {command.__name__} does not start: {err.read_text()}")
            time.sleep(0.02)
        yield Watcher(process, Rows(own / "audit.db") if command is auditd else Lines(out))
    finally:
        process.kill()
        process.wait()


# --- what is measured


def burst(watcher: Watcher, home: Path, options: argparse.Namespace) -> dict[str, str]:
    started = time.monotonic()
    for number in range(options.files):
        if number % 1000 == 0:
            os.mkdir(f"{home}/{number // 1000}")  # noqa: PTH102 - as fast as it goes
        os.close(os.open(f"{home}/{number // 1000}/{number}", os.O_CREAT | os.O_WRONLY))
    seconds = time.monotonic() - started
    made = options.files + -(-options.files // 1000)
    return {
        "burst: files and directories made": f"{made} in {seconds:.1f} s",
        "burst: of them seen": f"{watcher.settle(made)}",
    }


def sustained(watcher: Watcher, home: Path, options: argparse.Namespace) -> dict[str, str]:
    count, rate = options.rate // 2 * options.seconds, options.rate // 2
    directories = [home / f"s{number}" for number in range(count // 1000 + 1)]
    for directory in directories:
        directory.mkdir()
    before = watcher.settle(2**62)  # until no more come
    processor, started = watcher.processor(), time.monotonic()
    for number in range(count):
        file = os.open(f"{directories[number // 1000]}/{number}", os.O_CREAT | os.O_WRONLY)
        os.write(file, b"x")
        os.close(file)
        if number % 20 == 0:
            time.sleep(max(0, started + number / rate - time.monotonic()))
    took = time.monotonic() - started
    found = watcher.settle(before + count) - before
    behind = time.monotonic() - started - took
    return {
        "sustained: acts a second": f"{2 * count / took:.0f} for {took:.0f} s",
        "sustained: files made": f"{count}",
        "sustained: of them seen": f"{found}",
        "sustained: the last one seen after": f"{behind:.1f} s" if found >= count else "never",
        "sustained: processor": f"{(watcher.processor() - processor) / (took + behind) * 100:.0f} %",
    }


def latency(watcher: Watcher, home: Path, options: argparse.Namespace) -> dict[str, str]:
    delays = []
    for number in range(options.samples):
        path = f"{home}/latency-{number}"
        started = time.monotonic()
        os.close(os.open(path, os.O_CREAT))
        while not watcher.seen.has(path) and time.monotonic() < started + 5:
            time.sleep(0.0005)
        delays.append((time.monotonic() - started) * 1000)
        time.sleep(0.01)
    delays.sort()
    return {
        "latency: median": f"{statistics.median(delays):.0f} ms",
        "latency: 99th percentile": f"{delays[int(len(delays) * 0.99)]:.0f} ms",
    }


def idle(watcher: Watcher, home: Path, options: argparse.Namespace) -> dict[str, str]:
    time.sleep(10)
    before, seconds = watcher.processor(), options.idle
    time.sleep(seconds)
    files = sum(len(names) for _, _, names in os.walk(home))
    return {
        "idle: files there": f"{files}",
        "idle: memory": f"{watcher.memory():.1f} MiB",
        "idle: processor": f"{(watcher.processor() - before) / seconds * 100:.2f} %",
    }


def measure(command: Command, options: argparse.Namespace) -> dict[str, str]:
    """All of it, for one watcher."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.place) as place,
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.record) as own,
    ):
        home = Path(place) / "home"
        home.mkdir()
        results: dict[str, str] = {}
        with running(command, home, Path(own)) as watcher:
            for part in (burst, sustained, latency, idle):
                results |= part(watcher, home, options)
        return results


def print_table(results: dict[str, dict[str, str]]) -> None:
    """As Markdown."""
    print("| |", " | ".join(results), "|")
    print("|---" * (len(results) + 1) + "|")
    for name in next(iter(results.values())):
        print(f"| {name} |", " | ".join(found[name] for found in results.values()), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, help="in the burst")
    parser.add_argument("--rate", type=int, default=20_000, help="acts a second")
    parser.add_argument("--seconds", type=int, default=20, help="of the steady rate")
    parser.add_argument("--samples", type=int, default=500, help="of the latency")
    parser.add_argument("--idle", type=int, default=60, help="seconds")
    parser.add_argument("--place", default="/dev/shm", help="where the watched directories are made")
    parser.add_argument("--record", help="where hermes-auditd writes")
    parser.add_argument("--watchdog", metavar="PYTHON", default=sys.executable)
    options = parser.parse_args()

    def watchdog(home: Path, own: Path) -> list[str]:
        return [options.watchdog, "-c", WATCHDOG, str(home)]

    watchers: dict[str, Command] = {"hermes-auditd": auditd}
    if shutil.which("inotifywait"):
        watchers["inotifywait"] = inotifywait
    if subprocess.run([options.watchdog, "-c", "import watchdog"], capture_output=True, check=False).returncode == 0:
        watchers["watchdog"] = watchdog
    print_table({name: measure(command, options) for name, command in watchers.items()})


if __name__ == "__main__":
    main()
