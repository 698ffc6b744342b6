"""Moving rows from SQLite's log into the database beside the daemon's work: on a busy disk it takes seconds."""

import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

SOON = 16 * 1024 * 1024
"""Bytes of the log from which on it is moved beside the work."""
NOW = 128 * 1024 * 1024
"""Bytes from which on the work waits for it, or else the log would grow for as long as rows come in."""


class Checkpointer:
    """A thread that moves the log when it is told that something was written."""

    def __init__(self, path: str) -> None:
        self._address = f"file:{quote(path)}?mode=rw"
        self._log = Path(f"{path}-wal")
        self._wanted = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def written(self, connection: sqlite3.Connection) -> None:
        """To be called after each transaction, with the connection that made it."""
        with suppress(OSError):
            size = self._log.stat().st_size
            if size > NOW:
                connection.execute("PRAGMA wal_checkpoint(RESTART)")
            elif size > SOON:
                self._wanted.set()

    def close(self) -> None:
        self._is_closed = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while self._wanted.wait() and not self._is_closed:
            self._wanted.clear()
            # What is wrong with the disk or the file, the daemon's own next transaction will say.
            with suppress(sqlite3.Error), closing(sqlite3.connect(self._address, uri=True)) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
