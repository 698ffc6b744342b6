"""How long tests, fixtures, mutants and whole runs took: for what is left, for the order, and for shards.

Each run writes what it took into ``<cache>/durations.json``. What is shared by all machines, and so decides what each
shard does, is ``harness/durations.json`` in the repository: `harness durations --write` makes it from the former.
Both hold the same, by guest.
"""

import os
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from harness.cache import Cache, explain_disk_errors
from harness.errors import HarnessError

COMMITTED = Path(__file__).with_name("durations.json")
UNKNOWN, UNKNOWN_LONG = 1.0, 30.0
"""Seconds of a test of which nothing is known: of any, and of one that is marked to take long (``recorded``)."""
LEAST = 1.0
"""Seconds; what takes less is not committed."""
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Durations(msgspec.Struct):
    """Seconds. Of a test without the fixtures that it shares with others, which are on their own, by name."""

    tests: dict[str, Seconds] = {}
    fixtures: dict[str, Seconds] = {}
    mutants: dict[str, Seconds] = {}
    runs: dict[str, Seconds] = {}
    """Parts of a command, such as ``verify prepare``."""

    def update(self, newer: "Durations") -> None:
        """Take over what ``newer`` knows."""
        for name in self.__struct_fields__:
            getattr(self, name).update(getattr(newer, name))


class Estimator:
    """What tests are expected to take, by what is known of them or of others."""

    def __init__(self, known: Durations) -> None:
        self._tests = known.tests
        functions: dict[str, list[float]] = defaultdict(list)
        for test, seconds in known.tests.items():
            functions[_function_of(test)].append(seconds)
        self._functions = {name: sum(found) / len(found) for name, found in functions.items()}

    def estimate(self, test: str, *, is_long: bool = False) -> float:
        """Seconds of a test: its own, or those of the same function with other parameters, or a guess."""
        guess = UNKNOWN_LONG if is_long else UNKNOWN
        return self._tests.get(test, self._functions.get(_function_of(test), guess))


def _function_of(test: str) -> str:
    return test.partition("[")[0]


def read_durations(file: Path, guest: str) -> Durations:
    """What a file that decides about shards says of a guest; raises ``HarnessError`` if it is none."""
    return _decode_file(file).get(guest, Durations())


def _decode_file(file: Path) -> dict[str, Durations]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Durations])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HarnessError(
            f"{file} has no durations: {error}", hint="`harness durations --write FILE` writes such a file"
        ) from None


def recorded_file(cache: Cache) -> Path:
    return cache.root / "durations.json"


def read_recorded(cache: Cache, guest: str) -> Durations:
    """What former runs took here; where they have recorded nothing, what is committed. Garbage counts as nothing."""
    known = Durations()
    for file in (COMMITTED, recorded_file(cache)):
        with suppress(HarnessError):
            known.update(read_durations(file, guest))
    return known


def record_durations(cache: Cache, guest: str, newer: Durations) -> None:
    """Add what a run took to the cache; others may do so at the same time. Raises ``CacheUnusable``."""
    file = recorded_file(cache)
    with explain_disk_errors(cache.root), cache.lock("durations"):
        known: dict[str, Durations] = {}
        with suppress(HarnessError):
            known = _decode_file(file)
        known.setdefault(guest, Durations()).update(newer)
        _write_file(file, known)


def commit_durations(cache: Cache, target: Path) -> int:
    """Write what is recorded here to ``target``, in place of what it said of the same guests; returns how many tests.

    Raises ``HarnessError`` if nothing is recorded.
    """
    recorded = _decode_file(recorded_file(cache))
    known = _decode_file(target) if target.exists() else {}
    for guest, durations in recorded.items():
        known[guest] = Durations(*(_round(getattr(durations, name)) for name in ("tests", "fixtures", "mutants")))
    _write_file(target, known)
    return sum(len(durations.tests) for durations in known.values())


def _round(seconds: Mapping[str, float]) -> dict[str, float]:
    """Those that matter, in order."""
    return {name: round(value, 1) for name, value in sorted(seconds.items()) if value >= LEAST}


def _write_file(file: Path, durations: dict[str, Durations]) -> None:
    """Whole or not at all."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(durations), indent=1) + b"\n")
    partial.rename(file)
