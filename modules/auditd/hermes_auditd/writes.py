"""Writes to one file, many a second, as few rows: the first ones soon, the next together once a window is over."""

from dataclasses import dataclass

from hermes_auditd.record import Key
from hermes_auditd.tree import Directory

FIRST = 25_000_000
"""Nanoseconds that the first writes wait for their next."""


@dataclass
class Writes:
    """What was written to one file since its last row."""

    directory: Directory
    name: bytes
    path: str
    first: int
    last: int
    count: int = 1


class Coalescer:
    """Holds writes back; each file's, from its second row on, for a window. Due times are of the monotonic clock."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._first: dict[Key, tuple[int, Writes]] = {}
        self._later: dict[Key, tuple[int, Writes | None]] = {}
        # Both are in the order in which they fall due, since all in one wait equally long.

    def add(self, directory: Directory, name: bytes, path: str, now: int, monotonic: int) -> None:
        """A write, at a time of the clock and of the monotonic one."""
        key = directory.number, name
        due, held = self._first.get(key) or self._later.get(key) or (0, None)
        if held is not None:
            held.count += 1
            held.last = now
        elif due:
            self._later[key] = due, Writes(directory, name, path, now, now)
        else:
            self._first[key] = monotonic + FIRST, Writes(directory, name, path, now, now)

    def holds(self, key: Key) -> bool:
        return key in self._first or self._later.get(key, (0, None))[1] is not None

    def take(self, key: Key) -> Writes | None:
        """What is held for one file, now: something else is about to be told of it."""
        found = self._first.pop(key, None) or self._later.pop(key, None)
        return found[1] if found else None

    def due(self, monotonic: int) -> list[Writes]:
        """What is to become rows now."""
        ready: list[Writes] = []
        for waiting in (self._first, self._later):
            while waiting and waiting[key := next(iter(waiting))][0] <= monotonic:
                held = waiting.pop(key)[1]
                if held is not None:
                    ready.append(held)
        for held in ready:
            self._later[held.directory.number, held.name] = monotonic + self._window, None
        return ready

    def everything(self) -> list[Writes]:
        """What is held, whether it is due or not."""
        ready = [held for waiting in (self._first, self._later) for _, held in waiting.values() if held is not None]
        self._first.clear()
        self._later.clear()
        return ready

    def next_due(self) -> int | None:
        """When `due` has something to do."""
        heads = [next(iter(waiting.values()))[0] for waiting in (self._first, self._later) if waiting]
        return min(heads, default=None)
