"""Getting rows into the record: in batches, whatever the disk does, and within what each agent may use."""

import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from hermes_auditd import service
from hermes_auditd.chain import Event
from hermes_auditd.config import Limits
from hermes_auditd.mirror import MILLISECOND
from hermes_auditd.record import HOST, PRUNE_STEP, Record, is_busy, is_corrupt, is_transient

DELAY = 50 * MILLISECOND
"""How long a row may wait for others to be written with it."""
BATCH = 10_000
"""Rows that are written without waiting longer."""
HELD_ROWS = 100_000
"""Rows kept in memory, some 60 MB, while the disk takes none. What is more is given up, and found by a rescan."""
RETRY = 1000 * MILLISECOND
PATIENCE = 5000 * MILLISECOND
"""How long somebody else may hold the lock, as a reader does for a moment when it opens the database."""
ENOUGH = 0.9
"""Pruning goes on until this part of what an agent may have is left."""
DAY = 86400 * 1000 * MILLISECOND


class Writer:
    """Commits the record. Times are of the monotonic clock."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.counters: Counter[str] = Counter()
        self.trouble: str | None = None
        """Why the record cannot be written, while it cannot."""
        self.lag = 0
        """How long the oldest row of the last batch waited, in nanoseconds."""
        self.has_gap = False
        """Whether rows were given up, so that everything has to be compared."""
        self._lost = 0
        self._oldest: int | None = None
        self._retry_at = 0
        self._busy_since = 0
        self._pruning: dict[int, tuple[int, int | None]] = {}

    def tell(self, kind: str, detail: str, first: int | None = None, count: int = 1) -> None:
        """Add a row about the daemon itself."""
        self.record.add(Event(HOST, time.time_ns(), kind, first=first, count=count, detail=detail))

    def due(self, now: int) -> int | None:
        """When to commit; None if nothing waits."""
        if self._oldest is None:
            if not self.record.waiting:
                return None
            self._oldest = now
        due = now if self.record.waiting >= BATCH else self._oldest + DELAY
        return max(due, self._retry_at)

    def commit(self) -> bool:
        """Write what waits; False if that cannot be done now. It is kept then, and tried again in a second."""
        if time.monotonic_ns() < self._retry_at:
            return False
        try:
            rows = self.record.commit()
        except sqlite3.Error as error:
            self._failed(error)
            return False
        self._busy_since = 0
        self.counters["rows"] += rows
        if self._oldest is not None:
            self.lag, self._oldest = time.monotonic_ns() - self._oldest, None
        if self.trouble is not None:
            self._works_again()
        return True

    def commit_at_last(self, seconds: float) -> None:
        """Write what waits before the end, and give up only after so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.commit():
            if time.monotonic() > deadline:
                service.log(service.WARNING, f"{self.record.waiting} rows could not be written")
                return
            time.sleep(DELAY / 1e9)

    def _failed(self, error: sqlite3.Error) -> None:
        if is_corrupt(error) or not is_transient(error):
            raise error
        now = time.monotonic_ns()
        if is_busy(error):
            self._busy_since = self._busy_since or now
            if now < self._busy_since + PATIENCE:
                self._retry_at = now + DELAY
                return
        self.counters["write_errors"] += 1
        self._retry_at = now + RETRY
        if self.trouble is None:
            self.trouble = str(error)
            service.log(service.WARNING, f"the record cannot be written, rows wait in memory: {error}")
            service.notify(f"STATUS=the record cannot be written: {error}")
        self.bound()
        with suppress(sqlite3.Error):
            self.record.reconnect()

    def bound(self) -> None:
        """Give up rows that are more than fit into memory."""
        if self.record.waiting > HELD_ROWS:
            lost = self.record.drop()
            self._lost += lost
            self.counters["rows_lost"] += lost
            self.has_gap = True

    def _works_again(self) -> None:
        service.log(service.NOTICE, f"the record can be written again; {self._lost} rows were lost")
        service.notify("STATUS=watching")
        self.tell(
            "gap", f"the record could not be written: {self.trouble}; {self._lost} rows were lost", count=self._lost
        )
        self.trouble, self._lost = None, 0

    def prune(self, limits: Mapping[int, Limits], by_age: bool) -> None:
        """Remove some of what is more than an agent may have, and, if asked, of what is older."""
        now = time.time_ns()
        for agent in list(self.record.agents()):
            limit = limits.get(agent, Limits())
            size = self.record.size(agent)
            over = size > limit.max_bytes or agent in self._pruning
            if not over and not by_age:
                continue
            excess = size - int(limit.max_bytes * ENOUGH) if over else 0
            try:
                count, first = self.record.prune(agent, excess, now - limit.max_age_days * DAY)
            except sqlite3.Error as error:
                self._failed(error)
                return
            self._note_pruned(agent, count, first, done=count < PRUNE_STEP)

    def _note_pruned(self, agent: int, count: int, first: int | None, done: bool) -> None:
        """One row for each time that pruning went on until it was enough."""
        before, earliest = self._pruning.pop(agent, (0, first))
        if not done:
            self._pruning[agent] = before + count, earliest
        elif before + count:
            detail = f"{before + count} of the oldest rows were removed"
            self.record.add(Event(agent, time.time_ns(), "prune", first=earliest, count=before + count, detail=detail))
