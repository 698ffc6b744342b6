"""A run that is ended, however, leaves no process and, at the latest after the next run's sweep, no directory."""

import signal

import pytest

from harness.lab import Lab
from tests.faults.support import Child
from tests.unit.support import ends


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: str(number.name))
def test_a_killed_run_leaves_nothing_after_the_next_sweep(number: signal.Signals, child: Child, lab: Lab) -> None:
    assert child.end(number) == -number
    assert ends(child.qemu)
    lab.cache.sweep_runs()
    assert not child.run.exists()


def test_the_machine_of_another_run_survives_a_sweep(child: Child, lab: Lab) -> None:
    lab.cache.sweep_runs()
    assert child.run.exists()
    assert not ends(child.qemu, within=0)


def test_an_interrupted_run_ends_with_2_and_leaves_nothing(child: Child) -> None:
    assert child.end(signal.SIGINT) == 2
    assert ends(child.qemu)
    assert not child.run.exists()
