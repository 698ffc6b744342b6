"""The hash chain: each of an agent's rows binds the one before it."""

import hashlib
import json
from typing import NamedTuple

START = bytes(32)
"""What the first row of an agent binds."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Event(NamedTuple):
    """One row of the record, but for its id and its hash."""

    agent: int
    time: int
    """Nanoseconds since 1970, when it was seen; of several acts, the last."""
    kind: str
    path: str = ""
    """Escaped (`hermes_auditd.text`)."""
    origin: str = "live"
    """How it was learnt: notified of (``live``), or found by looking, and why there was a look."""
    old_path: str | None = None
    first: int | None = None
    """If it stands for several acts or a span of time: when that began."""
    count: int = 1  # type: ignore[assignment] # a field, and not the method of tuples
    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    detail: str | None = None


COLUMNS = ("id", *Event._fields)


def digest(previous: bytes, number: int, event: Event) -> bytes:
    """SHA-256 over the hash of the agent's row before this one and this row, a JSON array in the order of `COLUMNS`."""
    return hashlib.sha256(previous + _encode((number, *event)).encode()).digest()
