"""pytest plugins that measure: shared fixtures where they are made, and every test where the reports arrive."""

import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.cache import Cache, CacheUnusable
from harness.durations import Durations, record_durations
from harness.selection import test_id

LEAST = 0.2
"""Seconds; a fixture that takes less is part of the test."""


@dataclass(eq=False)  # pytest keeps its plugins in sets
class FixtureClock:
    """Notes with each report what the fixtures took that were made in that phase and are kept for other tests."""

    _found: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _inner: list[float] = field(default_factory=list)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        if fixturedef.scope not in ("session", "package", "module"):
            return (yield)
        started = time.monotonic()
        self._inner.append(0.0)
        try:
            return (yield)
        finally:
            took, inner = time.monotonic() - started, self._inner.pop()
            self._found[fixturedef.argname] += took - inner
            if self._inner:  # it was asked for by name (getfixturevalue) while another was made
                self._inner[-1] += took

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if found := {name: round(seconds, 2) for name, seconds in self._found.items() if seconds >= LEAST}:
            report.user_properties.append(("fixtures", found))
        self._found.clear()
        return report


@dataclass(eq=False)
class Recorder:
    """Records in the cache, when the run is over, what its tests and their shared fixtures took."""

    cache: Cache
    guest: str
    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _fixtures: dict[str, float] = field(default_factory=dict)
    _left_out: set[str] = field(default_factory=set)
    """Tests of which nothing can be learned: they failed, or were not run."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = test_id(report.nodeid)
        names = {name for name, _ in report.user_properties}
        if report.failed or report.skipped or "recorded" in names:
            self._left_out.add(test)
        self._seconds[test] += own_seconds(report)
        for name, seconds in fixtures_of(report).items():  # of several workers one makes it, the others wait or copy
            self._fixtures[name] = max(seconds, self._fixtures.get(name, 0.0))

    def pytest_sessionfinish(self) -> None:
        tests = {name: round(value, 2) for name, value in self._seconds.items() if name not in self._left_out}
        if tests:
            with suppress(CacheUnusable):  # a run is as good without
                record_durations(self.cache, self.guest, Durations(tests, self._fixtures))


def fixtures_of(report: pytest.TestReport) -> dict[str, float]:
    """Seconds of the shared fixtures that were made in a phase, by name."""
    properties: list[tuple[str, Any]] = report.user_properties
    return {fixture: seconds for name, found in properties if name == "fixtures" for fixture, seconds in found.items()}


def own_seconds(report: pytest.TestReport) -> float:
    """Seconds of a phase without the shared fixtures that were made in it."""
    return max(0.0, report.duration - sum(fixtures_of(report).values()))
