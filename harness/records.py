"""Passed tests that are not run again while nothing that they depend on has changed.

Some attacks take tens of seconds: to fill a memory, to search a disk. What comes of them follows from the guest's
image, the plan, the machine and the test's own code, all of which are in the key of a record. A test that is marked
``recorded`` is put on record when it passes, and taken off when it fails; ``--vm-records`` (``harness verify`` gives
it) leaves it out while its record stands, and reports when it passed.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from harness.cache import key_of
from harness.lab import Lab
from harness.policy import Plan

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    *("harness/**/*.py", "harness/guests/files/**/*", "modules/policy/*.nix", "*.nix", "ci/requirements.txt"),
    *("tests/contract/*.py", "tests/services/*/support.py"),
)


def read_sources() -> dict[str, str]:
    """The text of each file that a verdict follows from, by path."""
    files = (path for glob in SOURCES for path in ROOT.glob(glob) if path.is_file())
    return {str(path.relative_to(ROOT)): path.read_text() for path in files}


class Record(msgspec.Struct, frozen=True):
    """A test that passed: when (seconds since 1970), and how long it took (seconds)."""

    test: str
    passed: float
    duration: float


@dataclass(frozen=True)
class Records:
    """The records of the tests of one plan (adapted) in one lab, whose image has been made."""

    lab: Lab
    plan: Plan

    @cached_property
    def _subject(self) -> str:
        """All that a recorded test's result follows from."""
        return key_of(
            image=self.lab.image.key, hardware=self.lab.hardware.key(), plan=self.plan.digest, sources=read_sources()
        )

    def find(self, test: str) -> Record | None:
        """The record of the test with this id, if it has one."""
        found = self.lab.cache.find("records", self._key(test))
        return msgspec.json.decode((found / "record.json").read_bytes(), type=Record) if found else None

    def write(self, test: str, duration: float) -> None:
        """Put a test on record that has just passed, in place of an earlier record."""
        self.forget(test)
        record = msgspec.json.encode(Record(test, time.time(), duration))

        def build(directory: Path) -> None:
            (directory / "record.json").write_bytes(record)

        self.lab.cache.make("records", self._key(test), build)

    def forget(self, test: str) -> None:
        """Take a test off the record: it failed."""
        self.lab.cache.remove("records", self._key(test))

    def _key(self, test: str) -> str:
        return key_of(subject=self._subject, test=test)
