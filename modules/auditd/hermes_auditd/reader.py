"""Reading the record beside the daemon, without keeping it waiting.

The connection is read-only, and every page of rows is a transaction of its own: a reader that is slow, or stopped with
its output half printed, holds nothing that the daemon would wait for.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hermes_auditd.chain import COLUMNS, Event, digest
from hermes_auditd.errors import AuditError
from hermes_auditd.record import MIGRATIONS

PAGE = 1000

Row = dict[str, Any]


@dataclass(frozen=True)
class Filter:
    """Which rows; what is None does not matter."""

    agent: str | None = None
    since: int | None = None
    """Nanoseconds since 1970, as is ``until``."""
    until: int | None = None
    kinds: tuple[str, ...] = ()
    path: str | None = None
    """An SQLite GLOB of the escaped path, or of the former one: ``*`` matches ``/`` too."""
    origin: str | None = None

    def condition(self) -> tuple[str, dict[str, Any]]:
        """An SQL condition and its parameters."""
        parts = ["1"]
        if self.agent is not None:
            parts.append("event.agent = (SELECT id FROM agent WHERE name = :agent)")
        if self.since is not None:
            parts.append("time >= :since")
        if self.until is not None:
            parts.append("coalesce(first, time) < :until")
        if self.kinds:
            parts.append(f"kind IN ({', '.join(f':kind{number}' for number in range(len(self.kinds)))})")
        if self.path is not None:
            parts.append("(event.path GLOB :path OR old_path GLOB :path)")
        if self.origin is not None:
            parts.append("origin = :origin")
        kinds = {f"kind{number}": kind for number, kind in enumerate(self.kinds)}
        values = {name: getattr(self, name) for name in ("agent", "since", "until", "path", "origin")}
        return " AND ".join(parts), values | kinds


@dataclass
class Verdict:
    """Whether an agent's chain is whole, and what is wrong with it."""

    agent: str
    rows: int
    pruned: int
    """The id of the last row that was removed for its age or the room."""
    head: int
    hash: str
    faults: list[str]


class Reader:
    """A read-only connection to the record."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection = _connect(path)
        self._connection.row_factory = sqlite3.Row

    def close(self) -> None:
        self._connection.close()

    def agents(self) -> list[str]:
        return [name for (name,) in self._connection.execute("SELECT name FROM agent WHERE name != '' ORDER BY name")]

    def rows(self, wanted: Filter, after: int = 0) -> Iterator[Row]:
        """Rows with an id above ``after``, in the order in which they were recorded."""
        condition, values = wanted.condition()
        statement = f"{_SELECT} WHERE event.id > :after AND {condition} ORDER BY event.id LIMIT {PAGE}"
        while page := self._connection.execute(statement, values | {"after": after}).fetchall():
            yield from map(dict, page)
            after = page[-1]["id"]

    def last_rows(self, wanted: Filter, count: int) -> list[Row]:
        condition, values = wanted.condition()
        statement = f"{_SELECT} WHERE {condition} ORDER BY event.id DESC LIMIT :count"
        return [
            dict(row) for row in reversed(self._connection.execute(statement, values | {"count": count}).fetchall())
        ]

    def last_id(self) -> int:
        """The id of the newest row."""
        [last] = self._connection.execute("SELECT coalesce(max(head_id), 0) FROM agent").fetchone()
        return int(last)

    def follow(self, wanted: Filter, after: int, interval: float = 0.2) -> Iterator[Row]:
        """Rows as they are recorded, for ever; looks for them each ``interval`` seconds."""
        version = None
        while True:
            [now] = self._connection.execute("PRAGMA data_version").fetchone()
            if now != version:
                version = now
                newest = self.last_id()
                for row in self.rows(wanted, after):
                    newest = max(newest, row["id"])  # there may be more by now
                    yield row
                after = max(after, newest)
            time.sleep(interval)

    def stats(self) -> list[Row]:
        """For each agent: rows, bytes, kinds, times."""
        found = []
        for agent in self._connection.execute("SELECT * FROM agent ORDER BY id").fetchall():
            kinds = self._connection.execute(
                "SELECT kind, count(*), sum(count), min(time), max(time) FROM event WHERE agent = ? GROUP BY kind",
                (agent["id"],),
            ).fetchall()
            [files] = self._connection.execute("SELECT count(*) FROM entry WHERE agent = ?", (agent["id"],)).fetchone()
            found.append(
                {
                    "agent": agent["name"],
                    "path": agent["path"],
                    "rows": agent["rows"],
                    "bytes": agent["bytes"],
                    "files": files,
                    "first": min((row[3] for row in kinds), default=None),
                    "last": max((row[4] for row in kinds), default=None),
                    "kinds": {row[0]: row[1] for row in kinds},
                }
            )
        return found

    # --- verifying

    def verify(self, expected: dict[str, tuple[int, str]]) -> list[Verdict]:
        """Check the database and every chain; ``expected`` are heads that were noted elsewhere, by agent."""
        self._connection.execute("BEGIN")
        try:
            faults = [row[0] for row in self._connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
            verdicts = [
                self._verify_agent(agent, expected.get(agent["name"]))
                for agent in self._connection.execute("SELECT * FROM agent ORDER BY id").fetchall()
            ]
        finally:
            self._connection.execute("ROLLBACK")
        names = {verdict.agent for verdict in verdicts}
        faults += [
            f"the agent {name!r}, whose head was noted, is not in the record" for name in expected.keys() - names
        ]
        strangers = self._connection.execute("SELECT count(*) FROM event WHERE agent NOT IN (SELECT id FROM agent)")
        if strangers.fetchone()[0]:
            faults.append("there are rows of an agent that does not exist")
        verdicts[0].faults[:0] = faults
        return verdicts

    def _verify_agent(self, agent: sqlite3.Row, expected: tuple[int, str] | None) -> Verdict:
        """Follow the chain from what was pruned to the head."""
        verdict = Verdict(agent["name"], 0, agent["pruned_id"], agent["head_id"], agent["head_hash"].hex(), [])
        last, value = agent["pruned_id"], agent["pruned_hash"]
        found = expected is None or expected == (last, value.hex()) or expected[0] < last
        statement = f"SELECT {', '.join(COLUMNS)}, hash FROM event WHERE agent = ? ORDER BY id"
        for row in self._connection.execute(statement, (agent["id"],)):
            number, *fields, recorded = tuple(row)
            value = digest(value, number, Event(*fields))
            verdict.rows += 1
            if value != recorded:
                verdict.faults.append(
                    f"row {number} is not as it was recorded, or a row before it is missing or was added"
                )
                value = recorded
            if number <= last:
                verdict.faults.append(f"row {number} is not in its place")
            last = number
            found = found or expected == (number, value.hex())
        if (last, value) != (agent["head_id"], agent["head_hash"]) and agent["head_id"]:
            verdict.faults.append(
                f"the chain ends with row {last}, and should with {agent['head_id']}: rows are missing"
            )
        if verdict.rows != agent["rows"]:
            verdict.faults.append(f"{agent['rows']} rows should be here, and {verdict.rows} are")
        if not found and expected is not None:
            verdict.faults.append(f"row {expected[0]} does not have the hash that was noted: the record was rewritten")
        return verdict


_SELECT = (
    "SELECT event.id, agent.name AS agent, time, first, kind, origin, event.path, old_path, count, size, mode,"
    " event.uid, event.gid, detail FROM event JOIN agent ON agent.id = event.agent"
)


def _connect(path: str) -> sqlite3.Connection:
    file = Path(path).absolute()
    try:
        if not file.exists():
            raise AuditError(f"there is no record at {path}", "name it with --database, or start hermes-auditd")
        # Where there is no log and none may be made, the daemon does not run: then nothing is written meanwhile, which
        # is what `immutable` promises.
        is_live = Path(f"{file}-wal").exists() or os.access(file.parent, os.W_OK)
        address = f"file:{quote(str(file))}?{'mode=ro' if is_live else 'immutable=1'}"
        connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=5)
        [version] = connection.execute("PRAGMA user_version").fetchone()
    except (OSError, sqlite3.Error) as error:
        raise AuditError(f"{path} cannot be read: {error}", "it takes membership in the group that owns it") from None
    if version != len(MIGRATIONS):
        raise AuditError(
            f"{path} has schema version {version}, and this hermes-audit reads version {len(MIGRATIONS)}",
            "use the hermes-audit of the hermes-auditd that writes it",
        )
    return connection
