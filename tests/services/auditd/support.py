"""An audit daemon to test: in this process, one turn at a time, or as the program that systemd starts."""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hermes_auditd.config import parse
from hermes_auditd.daemon import Daemon
from hermes_auditd.reader import Filter, Reader, Row, Verdict

PACKAGE = Path(__file__).resolve().parents[3] / "modules" / "auditd"
PATIENCE = 60.0
"""Seconds after which a test gives up; never what a test measures."""
FILE_KINDS = ("create", "write", "delete", "rename", "chmod", "chown", "attrib")


def obstacle_to_others() -> str | None:
    """Why a test cannot become somebody else, who then runs a program of this clone."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return "only root can become somebody else"
    reads = ["setpriv", "--reuid=61185", "--regid=61185", "--clear-groups", "test", "-r", str(PACKAGE / "unit.json")]
    readable = subprocess.run(reads, check=False).returncode == 0
    return None if readable else f"this clone is for its owner alone: nobody else can read {PACKAGE}"


def settings(root: Path, *agents: str, **more: Any) -> dict[str, Any]:
    """Settings for agents whose state directories are made below ``root``."""
    for agent in agents:
        (root / agent).mkdir(exist_ok=True)
    directories = [{"agent": agent, "path": str(root / agent), "uid": os.getuid()} for agent in agents]
    return {"directories": directories, "database": str(root / "record" / "audit.db")} | more


class Local:
    """A daemon in this process. Nothing happens but in `drain`."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.daemon = Daemon(parse(data))
        self.drain()

    def drain(self) -> None:
        """Have the daemon do all that there is to do by now."""
        for _ in range(3):  # what is begun after a commit, such as a rescan, is done in the next round
            for watcher in self.daemon.watchers.values():
                while watcher.read() or watcher.is_busy:
                    watcher.scan(time.monotonic_ns() + 10**9)
                watcher.settle_all()
            self.daemon._commit()

    def lose(self, agent: str) -> None:
        """What happens when the kernel's queue is full: notifications are thrown away, and one says so."""
        watcher = self.daemon.watchers[agent]
        list(watcher.tree.inotify.read(2**20))
        watcher._overflowed()

    def restart(self, *, crash: bool = False) -> None:
        if crash:
            self.daemon.close()
        else:
            self.daemon.stop()
        self.daemon = Daemon(parse(self.data))
        self.drain()

    def close(self) -> None:
        self.daemon.close()

    def rows(self, **wanted: Any) -> list[Row]:
        return rows(self.data["database"], **wanted)


def rows(database: str, **wanted: Any) -> list[Row]:
    reader = Reader(database)
    try:
        return list(reader.rows(Filter(**wanted)))
    finally:
        reader.close()


def verdicts(database: str) -> list[Verdict]:
    reader = Reader(database)
    try:
        return reader.verify({})
    finally:
        reader.close()


def told(found: list[Row], root: Path, origin: bool = False) -> list[str]:
    """What rows about files say, one line each: ``kind path`` or ``rename old path``."""
    lines = []
    for row in found:
        if row["kind"] in FILE_KINDS and row["path"] != str(root):
            names = [row["old_path"], row["path"]] if row["old_path"] is not None else [row["path"]]
            words = [row["kind"], *(name.removeprefix(f"{root}/") for name in names)]
            lines.append(" ".join([*words, row["origin"]] if origin else words))
    return lines


def eventually(condition: Callable[[], bool], what: str, within: float = PATIENCE) -> float:
    """Wait until the condition holds; returns how long that took, in seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + within, f"{what}: not within {within} s"
        time.sleep(0.005)
    return time.monotonic() - started


class Program:
    """A running hermes-auditd, with a socket in place of systemd's."""

    def __init__(self, data: dict[str, Any], directory: Path, wrapper: list[str]) -> None:
        self.data = data
        self.directory = directory
        self.wrapper = wrapper
        self.config = directory / "config.json"
        self.said: list[str] = []
        """What systemd was told, one assignment each."""
        self._log = directory / "log"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(directory / "notify"))
        (directory / "notify").chmod(0o777)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def start(self, ready: bool = True) -> None:
        self.config.write_text(json.dumps(self.data))
        command = [*self.wrapper, sys.executable, "-m", "hermes_auditd.daemon", f"--config={self.config}"]
        environment = os.environ | {
            "PYTHONPATH": str(PACKAGE),
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "PYTHONFAULTHANDLER": "1",
        }
        self.said.clear()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=log)
        if ready:
            self.wait_told("READY=1")

    def hear(self) -> None:
        """Take what systemd was told by now."""
        while True:
            try:
                self.said += self._socket.recv(4096, socket.MSG_DONTWAIT).decode().splitlines()
            except BlockingIOError:
                return

    def wait_told(self, assignment: str, within: float = PATIENCE) -> float:
        def condition() -> bool:
            assert self.process is not None and self.process.poll() is None, f"hermes-auditd ended:\n{self.log}"
            self.hear()
            return assignment in self.said

        return eventually(condition, f"systemd is told {assignment}", within)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """As systemd does."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.log

    def wait(self) -> int:
        assert self.process is not None
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hermes-auditd does not end; {self.evidence()}") from None

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._socket.close()

    def rows(self, **wanted: Any) -> list[Row]:
        return rows(self.data["database"], **wanted)

    def rows_after(self, number: int) -> list[Row]:
        """Rows with a higher id."""
        reader = Reader(self.data["database"])
        try:
            return list(reader.rows(Filter(), number))
        finally:
            reader.close()

    def wait_row(self, within: float = PATIENCE, **wanted: Any) -> float:
        """Wait for a row; each is looked at once, so that waiting takes no processor from the daemon."""
        reader, seen = Reader(self.data["database"]), 0

        def condition() -> bool:
            nonlocal seen
            last = reader.last_id()
            found = any(True for _ in reader.rows(Filter(**wanted), seen))
            seen = last
            return found

        try:
            return eventually(condition, f"a row with {wanted}", within)
        except AssertionError:
            raise AssertionError(f"there is no row with {wanted} within {within} s; {self.evidence()}") from None
        finally:
            reader.close()

    def evidence(self) -> str:
        """Where the program is, and what it said. Ends it."""
        assert self.process is not None
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGABRT)  # Python's faulthandler then says where it is
        self.process.wait()
        newest = [f"{row['kind']} {row['path']}" for row in self.rows()[-5:]]
        return f"the newest rows are {newest}, and hermes-auditd says\n{self.log}"


@contextmanager
def program(data: dict[str, Any], directory: Path, *wrapper: str, ready: bool = True) -> Iterator[Program]:
    running = Program(data, directory, list(wrapper))
    try:
        running.start(ready)
        yield running
    finally:
        running.close()


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """End what would hang."""

    def expired(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def let_pass(directory: Path) -> None:
    """Let other users through to a test's directory; pytest makes it private."""
    for passage in [directory, *directory.parents]:
        if passage.stat().st_uid == os.getuid() and passage.stat().st_mode & 0o005 != 0o005:
            passage.chmod(passage.stat().st_mode | 0o005)


def exchange(one: bytes, other: bytes) -> None:
    """renameat2(2) with RENAME_EXCHANGE, which Python does not have."""
    if _LIBC.renameat2(-100, one, -100, other, 2) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_LIBC = ctypes.CDLL(None, use_errno=True)
