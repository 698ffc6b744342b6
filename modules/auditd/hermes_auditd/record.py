"""The record: an SQLite database that one daemon writes, and what it knows of the files that are there.

Rows of the table ``event`` are only ever added and, the oldest first, pruned. The table ``entry`` mirrors the state
directories as they were last seen; both change in the same transaction, so that after a crash a rescan finds just what
has not been recorded. Directories have numbers, and an entry names its directory by that: renaming a directory
changes one row, whatever it holds.
"""

import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hermes_auditd.chain import COLUMNS, START, Event, digest
from hermes_auditd.checkpoint import Checkpointer
from hermes_auditd.errors import AuditError

MIGRATIONS = [
    """
    CREATE TABLE agent (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, path TEXT NOT NULL, uid INTEGER,
        root INTEGER NOT NULL UNIQUE,             -- the number of its state directory
        head_id INTEGER NOT NULL DEFAULT 0, head_hash BLOB NOT NULL,
        pruned_id INTEGER NOT NULL DEFAULT 0, pruned_hash BLOB NOT NULL,
        rows INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE event (
        id INTEGER PRIMARY KEY, agent INTEGER NOT NULL REFERENCES agent (id), time INTEGER NOT NULL,
        kind TEXT NOT NULL, path TEXT NOT NULL, origin TEXT NOT NULL, old_path TEXT, first INTEGER,
        count INTEGER NOT NULL, size INTEGER, mode INTEGER, uid INTEGER, gid INTEGER, detail TEXT, hash BLOB NOT NULL
    ) STRICT;
    CREATE INDEX event_of_agent ON event (agent, id);
    CREATE TABLE entry (
        parent INTEGER NOT NULL, name BLOB NOT NULL, number INTEGER, agent INTEGER NOT NULL,
        inode INTEGER, size INTEGER, mode INTEGER, uid INTEGER, gid INTEGER, mtime INTEGER, ctime INTEGER,
        PRIMARY KEY (parent, name)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX entry_number ON entry (number) WHERE number IS NOT NULL;
    CREATE TABLE clock_jump (id INTEGER PRIMARY KEY, nanoseconds INTEGER NOT NULL) STRICT;
    """,
]
"""What brings a database from one version of the schema to the next; the version is SQLite's ``user_version``."""

HOST = 1
"""The agent that stands for the daemon itself; its name is empty."""
ROW_COST = 160
"""Bytes that a row takes in the file beside its texts, indexes included; measured."""
ENTRY_COST = 120
"""Bytes that an entry takes in the file; measured, with names of 20 bytes."""
PRUNE_STEP = 5000
"""Rows pruned at a time, so that pruning keeps nobody waiting."""
BUSY_MS = 200
_INSERT = f"INSERT INTO event ({', '.join(COLUMNS)}, hash) VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"
_COST = f"{ROW_COST} + length(path) + length(coalesce(old_path, '')) + length(coalesce(detail, ''))"
_KNOWN = "number, inode, size, mode, uid, gid, mtime, ctime"
_REMEMBER = f"INSERT OR REPLACE INTO entry (parent, name, agent, {_KNOWN}) VALUES ({', '.join('?' * 11)})"

Key = tuple[int, bytes]
"""The number of a directory, and a name in it."""


class Known(NamedTuple):
    """A file or directory as it was last seen. All but ``number`` is None if it was heard of and never seen."""

    number: int | None = None
    """Of a directory."""
    inode: int | None = None
    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime: int | None = None
    ctime: int | None = None

    @classmethod
    def of(cls, seen: os.stat_result, number: int | None = None) -> "Known":
        times = seen.st_mtime_ns, seen.st_ctime_ns
        return cls(number, seen.st_ino, seen.st_size, seen.st_mode, seen.st_uid, seen.st_gid, *times)

    @property
    def is_directory(self) -> bool:
        return self.mode is not None and stat.S_ISDIR(self.mode)


class Head(NamedTuple):
    """Where an agent's chain stands."""

    id: int
    hash: bytes


def is_corrupt(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_busy(error: sqlite3.Error) -> bool:
    """Somebody else holds the lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_transient(error: sqlite3.Error) -> bool:
    """A full or read-only disk, an error of the device, a lock held by somebody: what another try may get over."""
    return isinstance(error, sqlite3.OperationalError) and not is_corrupt(error)


def connect(path: str) -> sqlite3.Connection:
    """The daemon's own connection.

    WAL, so that readers and the daemon do not wait for each other. ``synchronous=FULL``: a transaction is on the disk
    before anyone can see it, so what was once read is there after a power cut; in WAL that costs one fsync for each,
    at most twenty a second.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_MS / 1000, cached_statements=256)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # a thread does that (hermes_auditd.checkpoint)
    connection.execute("PRAGMA journal_size_limit = 0")  # so that the size of the log is what is in use of it
    connection.execute("PRAGMA cache_size = -16000")
    return connection


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the schema up to date, each step whole or not at all."""
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise AuditError(
            f"{path} has schema version {version}, and this hermes-auditd knows versions up to {len(MIGRATIONS)}",
            "run the newer hermes-auditd that wrote it, or move the file away to begin a new one",
        )
    for number in range(version, len(MIGRATIONS)):
        try:
            connection.executescript(f"BEGIN;\n{MIGRATIONS[number]};\nPRAGMA user_version = {number + 1};\nCOMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def set_aside(path: str, label: str) -> str:
    """Keep a corrupt database under another name, with its log; returns that name."""
    aside = f"{path}.corrupt-{label}"
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(path + suffix).rename(aside + suffix)
    return aside


class Record:
    """The open database. What is added or remembered is in it after the next `commit`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection = connect(path)
        migrate(self._connection, path)
        self._events: list[Event] = []
        self._entries: dict[int, dict[bytes, tuple[int, Known | None]]] = {}
        """What changed and is not in the database yet, by directory and name; None for what is gone."""
        self._remembered: dict[int, int] = {}
        self._share: dict[int, int] = {}
        self._load()
        self._checkpointer = Checkpointer(path)

    def _load(self) -> None:
        execute = self._connection.execute
        execute(
            "INSERT OR IGNORE INTO agent (id, name, path, root, head_hash, pruned_hash) VALUES (?, '', '', 0, ?, ?)",
            (HOST, START, START),
        )
        self._forget_orphans()
        self._last: int = execute("SELECT coalesce(max(head_id), 0) FROM agent").fetchone()[0]
        highest = "SELECT max((SELECT coalesce(max(number), 0) FROM entry), (SELECT max(root) FROM agent))"
        self._number: int = execute(highest).fetchone()[0]
        self._heads = {agent: Head(*head) for agent, *head in execute("SELECT id, head_id, head_hash FROM agent")}
        self._bytes: dict[int, int] = dict(execute("SELECT id, bytes FROM agent").fetchall())
        self._jumps: list[tuple[int, int]] = execute("SELECT id, nanoseconds FROM clock_jump ORDER BY id").fetchall()

    def check(self) -> None:
        """Raise `sqlite3.DatabaseError` if the file is damaged: done when it was not closed in order."""
        [[answer], *_] = self._connection.execute("PRAGMA quick_check(1)").fetchall()
        if answer != "ok":
            raise _corrupt(answer)

    def close(self) -> None:
        self._checkpointer.close()
        self._connection.close()

    def reconnect(self) -> None:
        """Open the file anew, after an error that may lie in the open file."""
        fresh = connect(self.path)
        self._connection.close()
        self._connection = fresh

    # --- agents

    def agent(self, name: str, path: str, uid: int, share: int) -> tuple[int, int]:
        """The ids of an agent and of its state directory, which are made if they are new.

        ``share`` is how many bytes of entries are remembered for the agent.
        """
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        found = execute("SELECT id, root FROM agent WHERE name = ?", (name,)).fetchone()
        if found is None:
            self._number += 1
            cursor = execute(
                "INSERT INTO agent (name, path, uid, root, head_hash, pruned_hash) VALUES (?, ?, ?, ?, ?, ?)",
                (name, path, uid, self._number, START, START),
            )
            assert cursor.lastrowid is not None
            found = (cursor.lastrowid, self._number)
            self._heads[found[0]] = Head(0, START)
            self._bytes[found[0]] = 0
        else:
            execute("UPDATE agent SET path = ?, uid = ? WHERE id = ?", (path, uid, found[0]))
        execute("COMMIT")
        agent, root = found
        [self._remembered[agent]] = execute("SELECT count(*) FROM entry WHERE agent = ?", (agent,)).fetchone()
        self._share[agent] = share // ENTRY_COST
        return agent, root

    def heads(self) -> list[tuple[str, int, str]]:
        """Name, id of the last row and its hash, for each agent."""
        rows = self._connection.execute("SELECT name, head_id, head_hash FROM agent ORDER BY id").fetchall()
        return [(name, number, value.hex()) for name, number, value in rows]

    def last_event(self) -> tuple[int, str] | None:
        """Time and kind of the daemon's last row, and of the agents' the time."""
        found: tuple[int, str] | None = self._connection.execute(
            "SELECT max(time, (SELECT coalesce(max(e.time), 0) FROM agent a JOIN event e ON e.id = a.head_id)), kind"
            " FROM event WHERE agent = ? ORDER BY id DESC LIMIT 1",
            (HOST,),
        ).fetchone()
        return found

    # --- events

    def add(self, event: Event) -> None:
        self._events.append(event)

    @property
    def waiting(self) -> int:
        """Events that are not in the database yet."""
        return len(self._events)

    def commit(self) -> int:
        """Write all that waits, in one transaction; if that fails it goes on waiting. Returns the number of rows."""
        if not self._events and not self._entries:
            return 0
        rows, heads, costs = self._chained()
        execute, executemany = self._connection.execute, self._connection.executemany
        execute("BEGIN IMMEDIATE")
        try:
            executemany(_INSERT, rows)
            self._write_entries()
            executemany(
                "UPDATE agent SET head_id = ?, head_hash = ?, rows = rows + ?, bytes = bytes + ? WHERE id = ?",
                [(*heads[agent], count, cost, agent) for agent, (count, cost) in costs.items()],
            )
            jumps = [(row[0], int(row[-2])) for row in rows if row[3] == "clock"]
            executemany("INSERT INTO clock_jump VALUES (?, ?)", jumps)
            execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        self._heads.update(heads)
        self._last += len(rows)
        self._jumps += jumps
        for agent, (_, cost) in costs.items():
            self._bytes[agent] += cost
        self._events, self._entries = [], {}
        self._checkpointer.written(self._connection)
        return len(rows)

    def _chained(self) -> tuple[list[tuple[Any, ...]], dict[int, Head], dict[int, tuple[int, int]]]:
        """The rows that wait, with ids and hashes; each agent's last one; each agent's number of rows and bytes."""
        heads: dict[int, Head] = {}
        costs: dict[int, tuple[int, int]] = {}
        rows: list[tuple[Any, ...]] = []
        for number, event in enumerate(self._events, self._last + 1):
            agent = event.agent
            previous = heads.get(agent) or self._heads[agent]
            value = digest(previous.hash, number, event)
            heads[agent] = Head(number, value)
            count, cost = costs.get(agent, (0, 0))
            cost += ROW_COST + len(event.path) + len(event.old_path or "") + len(event.detail or "")
            costs[agent] = count + 1, cost
            rows.append((number, *event, value))
        return rows, heads, costs

    def _write_entries(self) -> None:
        gone: list[Key] = []
        here: list[tuple[int | bytes | None, ...]] = []
        for parent, names in self._entries.items():
            for name, (agent, known) in names.items():
                if known is None:
                    gone.append((parent, name))
                else:
                    here.append((parent, name, agent, *known))
        # A directory's number is unique: where one was moved, its former entry goes first.
        self._connection.executemany("DELETE FROM entry WHERE parent = ? AND name = ?", gone)
        self._connection.executemany(_REMEMBER, here)

    def drop(self) -> int:
        """Give up all that waits; returns the number of events. What is known is then what the database knows."""
        lost = len(self._events)
        self._events, self._entries = [], {}
        return lost

    # --- what is there

    def new_number(self) -> int:
        """A number for a directory."""
        self._number += 1
        return self._number

    def known(self, key: Key) -> Known | None:
        changed = self._entries.get(key[0])
        if changed is not None and key[1] in changed:
            return changed[key[1]][1]
        found = self._connection.execute(f"SELECT {_KNOWN} FROM entry WHERE parent = ? AND name = ?", key).fetchone()
        return Known(*found) if found else None

    def known_among(self, parent: int, names: list[bytes]) -> dict[bytes, Known]:
        """Those of the names that are known in a directory."""
        marks = ", ".join("?" * len(names))
        found = self._connection.execute(
            f"SELECT name, {_KNOWN} FROM entry WHERE parent = ? AND name IN ({marks})", (parent, *names)
        )
        known: dict[bytes, Known | None] = {name: Known(*rest) for name, *rest in found}
        changed = self._entries.get(parent, {})
        known |= {name: changed[name][1] for name in names if name in changed}
        return {name: entry for name, entry in known.items() if entry is not None}

    def names(self, parent: int, step: int = 500) -> Iterator[list[bytes]]:
        """The names that are known in a directory, by the step. Some may be known no longer when they are given."""
        last = b""
        if changed := self._entries.get(parent):
            yield [name for name, (_, known) in changed.items() if known is not None]
        while names := [
            name
            for (name,) in self._connection.execute(
                "SELECT name FROM entry WHERE parent = ? AND name > ? ORDER BY name LIMIT ?", (parent, last, step)
            )
        ]:
            last = names[-1]
            yield names

    def holds(self, parent: int) -> bool:
        """Whether anything may be known in a directory."""
        if parent in self._entries:
            return True
        return (
            self._connection.execute("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (parent,)).fetchone() is not None
        )

    def remember(self, agent: int, key: Key, known: Known) -> bool:
        """What is there now. False, and not remembered, if the agent has as many entries as its share allows."""
        if self.known(key) is None:
            if self._remembered[agent] >= self._share[agent]:
                return False
            self._remembered[agent] += 1
        self._entries.setdefault(key[0], {})[key[1]] = agent, known
        return True

    def forget(self, agent: int, key: Key) -> None:
        if self.known(key) is not None:
            self._remembered[agent] -= 1
            self._entries.setdefault(key[0], {})[key[1]] = agent, None

    def remembered(self, agent: int) -> int:
        return self._remembered[agent]

    def _forget_orphans(self) -> None:
        """Entries of directories that are no more: left where an agent had more entries than its share."""
        statement = (
            "DELETE FROM entry WHERE parent NOT IN (SELECT number FROM entry WHERE number IS NOT NULL)"
            " AND parent NOT IN (SELECT root FROM agent) AND parent != 0"
        )
        while self._connection.execute(statement).rowcount > 0:
            pass

    # --- pruning

    def size(self, agent: int) -> int:
        """Bytes that an agent's events take."""
        return self._bytes[agent]

    def agents(self) -> Iterable[int]:
        return self._bytes.keys()

    def prune(self, agent: int, excess: int, before: int) -> tuple[int, int | None]:
        """Remove an agent's oldest rows: ``excess`` bytes of them, and those from before a time.

        At most `PRUNE_STEP` rows; returns their number and the time of the first.
        """
        statement = f"SELECT id, time, hash, {_COST} FROM event WHERE agent = ? ORDER BY id LIMIT ?"
        rows = self._connection.execute(statement, (agent, PRUNE_STEP)).fetchall()
        freed = count = 0
        for number, time, _, cost in rows:
            if freed >= excess and self._in_present_time(number, time) >= before:
                break
            freed += cost
            count += 1
        if count == 0:
            return 0, None
        last, _, value, _ = rows[count - 1]
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            execute("DELETE FROM event WHERE agent = ? AND id <= ?", (agent, last))
            execute(
                "UPDATE agent SET pruned_id = ?, pruned_hash = ?, rows = rows - ?, bytes = bytes - ? WHERE id = ?",
                (last, value, count, freed, agent),
            )
            execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        self._bytes[agent] -= freed
        return count, rows[0][1]

    def _in_present_time(self, number: int, time: int) -> int:
        """When a row was written, by the clock as it goes now: a clock that was set makes nothing old."""
        return time + sum(jump for after, jump in self._jumps if after > number)


def _corrupt(answer: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(answer)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def open_record(path: str, label: str) -> tuple[Record, str | None]:
    """The record at ``path``; a corrupt one is set aside, and where to is the second value."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            return _checked(path), None
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
        aside = set_aside(path, label)
        return Record(path), aside
    except (OSError, sqlite3.Error) as error:
        raise AuditError(
            f"the record {path} cannot be opened: {error}", "see that its directory can be written"
        ) from None


def _checked(path: str) -> Record:
    untidy = Path(path + "-wal").exists()  # the last to close a database in order removes its log
    record = Record(path)
    try:
        if untidy:
            record.check()
    except sqlite3.Error:
        record.close()
        raise
    return record
