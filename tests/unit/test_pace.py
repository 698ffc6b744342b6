"""Deadlines are stretched by what the machine was measured to be, and never shortened."""

import os
from collections.abc import Iterator

import pytest

from harness import pace
from harness.errors import HarnessError


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(pace.VARIABLE, raising=False)
    pace.measure_pace.cache_clear()
    yield
    pace.measure_pace.cache_clear()


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(0.2, 1.0), (1.0, 1.0), (3.0, 3.0), (1000.0, pace.MOST)],
    ids=["fast", "as", "slow", "stuck"],
)
def test_a_deadline_is_stretched_and_never_shortened(
    monkeypatch: pytest.MonkeyPatch, factor: float, expected: float
) -> None:
    monkeypatch.setattr(pace, "measure_work", lambda: factor * pace.REFERENCE)
    assert pace.stretch(10.0) == pytest.approx(10 * expected)
    assert pace.stretch_whole(3) == 3 * expected


def test_it_is_measured_once_and_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "measure_work", lambda: 2 * pace.REFERENCE)
    assert pace.measure_pace() == 2.0
    assert os.environ[pace.VARIABLE] == "2.0"
    pace.measure_pace.cache_clear()
    monkeypatch.setattr(pace, "measure_work", lambda: 5 * pace.REFERENCE)
    assert pace.measure_pace() == 2.0
    assert pace.describe_pace().startswith("2.0 times")


def test_what_is_measured_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the work takes longer."""
    little = pace.measure_work()
    monkeypatch.setattr(pace, "WORK", pace.WORK.replace("3_000_000", "30_000_000"))
    assert pace.measure_work() > little > 0


def test_a_wrong_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pace.VARIABLE, "quick")
    with pytest.raises(HarnessError, match="TENTAFLAKE_PACE is 'quick'"):
        pace.measure_pace()
