"""The cache on disk: entries named by the content that they were made from.

    <root>/images/<key>/      guests' disks, kernels, initrds
    <root>/templates/<key>/   snapshots of booted machines
    <root>/records/<key>/     tests that passed and need not be run again for now
    <root>/verdicts/<key>     small findings (which accelerator works here)
    <root>/run/<id>/          one running machine or one mutant's files each, locked by its owner
    <root>/locks/             one lock file per entry being made

An entry is made in a temporary directory beside it and renamed into place, so that it is whole or not
there. Makers hold a lock keyed by the entry; whoever waits finds it made. Locks are flock(2): the
kernel releases them when their owner dies, however it dies.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError


class CacheUnusable(HarnessError, OSError):
    """The cache directory can not be written, or its disk is full."""


def default_root() -> Path:
    """``$XDG_CACHE_HOME/tentaflake`` (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tentaflake"


def key_of(**parts: Any) -> str:
    """A short name for content: the first 20 hex digits of the SHA-256 of the parts as JSON."""
    text = json.dumps(parts, sort_keys=True, default=os.fspath)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explain_disk_errors(root: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into one clear error."""
    try:
        yield
    except OSError as error:
        if isinstance(error, HarnessError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            there = next(path for path in (root, *root.absolute().parents) if path.exists())
            free = shutil.disk_usage(there).free >> 20
            raise CacheUnusable(
                f"the disk of the cache {root} is full ({free} MiB free)",
                hint="free some space, run `harness image prune`, or choose another place with --vm-cache",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise CacheUnusable(
                f"the cache {root} can not be written: {error}",
                hint="choose another place with --vm-cache or TENTAFLAKE_CACHE",
            ) from error
        raise


@dataclass(frozen=True)
class Cache:
    """A cache directory; created when first used."""

    root: Path

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def find(self, kind: str, key: str) -> Path | None:
        """The entry, if it has been made; marks it as used just now."""
        path = self.path(kind, key)
        if not path.is_dir():
            return None
        with suppress(OSError):
            os.utime(path)
        return path

    def make(self, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        """The entry, made by ``build(directory)`` if it is not there; made once, whoever asks."""
        if found := self.find(kind, key):
            return found
        with explain_disk_errors(self.root), self.lock(f"{kind}-{key}"):
            if found := self.find(kind, key):
                return found
            path = self.path(kind, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sweep(path)
            partial = path.with_name(f".{key}.{os.getpid()}.partial")
            partial.mkdir()
            try:
                build(partial)
                partial.rename(path)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return path

    def remove(self, kind: str, key: str) -> None:
        """Delete the entry, if it is there."""
        path = self.path(kind, key)
        if path.is_dir():
            with explain_disk_errors(self.root), self.lock(f"{kind}-{key}"):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold ``locks/<name>`` for the duration; wait for whoever holds it."""
        directory = self.root / "locks"
        with explain_disk_errors(self.root):
            directory.mkdir(parents=True, exist_ok=True)
            file = (directory / name).open("a+")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    @contextmanager
    def run_directory(self) -> Iterator[Path]:
        """A fresh directory for one running machine or one mutant's files, deleted at the end.

        Its ``lock`` is held by this process. A directory whose lock is free belonged to a process that
        was killed; the next caller removes it, and its QEMU should that still run.
        """
        parent = self.root / "run"
        with explain_disk_errors(self.root):
            parent.mkdir(parents=True, exist_ok=True)
            path = parent / f"{os.getpid()}-{secrets.token_hex(4)}"
            partial = parent / f".{path.name}"
            partial.mkdir()
            lock = (partial / "lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            partial.rename(path)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            lock.close()

    def live_runs(self) -> list[Path]:
        """The directories of the machines that run now, this process's and others': those whose lock is held."""
        found = []
        for path in sorted((self.root / "run").glob("[!.]*")):
            try:
                with (path / "lock").open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(path)
            except OSError:
                continue
        return found

    def sweep_runs(self) -> list[Path]:
        """Remove what killed runs left behind, machines and half-made entries; returns the directories removed."""
        swept = self._sweep_partials()
        for path in sorted((self.root / "run").glob("*")):
            if path.name.startswith(".") and _age(path) < 60:
                continue  # being made: its lock is not held yet
            try:
                lock = (path / "lock").open("r+")
            except FileNotFoundError:
                # Being made or removed by its owner; one that stays like this was killed in between.
                if _age(path) > 60:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            except OSError:
                continue
            with lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                _kill_orphan(path)
                shutil.rmtree(path, ignore_errors=True)
                swept.append(path)
        return swept

    def prune(
        self, *, unused_for: float, kinds: tuple[str, ...] = ("templates", "images", "roots", "records")
    ) -> list[Path]:
        """Delete entries not used for that many seconds; returns what was deleted."""
        pruned = []
        for kind in kinds:
            for path in sorted((self.root / kind).glob("[!.]*")):
                if _age(path) >= unused_for:
                    with self.lock(f"{kind}-{path.name}"):
                        if _age(path) >= unused_for:  # nobody used it while we waited
                            shutil.rmtree(path, ignore_errors=True)
                            pruned.append(path)
        return pruned

    def _sweep_partials(self) -> list[Path]:
        """Remove half-made entries, whatever their key, that nobody is making: their lock is free."""
        swept = []
        for path in sorted(self.root.glob("*/.*.partial")):
            key = path.name.split(".")[1]
            with (self.root / "locks" / f"{path.parent.name}-{key}").open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                shutil.rmtree(path, ignore_errors=True)
                swept.append(path)
        return swept

    def _sweep(self, path: Path) -> None:
        """Remove partial builds of this entry: we hold its lock, so their makers are dead."""
        for left in path.parent.glob(f".{path.name}.*.partial"):
            shutil.rmtree(left, ignore_errors=True)


def _age(path: Path) -> float:
    """Seconds since the entry was last marked as used."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _kill_orphan(run: Path) -> None:
    """Kill the QEMU that a dead owner left running in ``run``, known by its working directory."""
    try:
        pid = int((run / "qemu.pid").read_text())
        if Path(f"/proc/{pid}/cwd").resolve() == run.resolve():
            os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        pass
