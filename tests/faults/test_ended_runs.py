"""A run that is ended, however, leaves no process and, at the latest after the next run's sweep, no directory."""

import signal
from pathlib import Path

import pytest

from harness.lab import Lab
from tests.faults.conftest import wait_for
from tests.faults.support import READY, Child, child_with_machine, children
from tests.unit.support import ends


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: str(number.name))
def test_a_killed_run_leaves_nothing_after_the_next_sweep(number: signal.Signals, child: Child, lab: Lab) -> None:
    assert child.end(number) == -number
    assert ends(child.qemu)
    lab.cache.sweep_runs()
    assert not child.run.exists()


def test_a_killed_run_leaves_no_process_of_a_network(tmp_path: Path, options: list[str], lab: Lab) -> None:
    """Neither a machine nor the hub of their wire."""
    lab.peer("lan")
    test = READY.replace("(machine)", "(machine, lan)")
    with child_with_machine(tmp_path, wait_for, *options, test=test) as child:
        processes = children(child.process.pid)
        assert len(processes) == 3 and child.qemu in processes, "the control: two machines and a hub"
        child.end(signal.SIGKILL)
        assert all(ends(process) for process in processes)


def test_the_machine_of_another_run_survives_a_sweep(child: Child, lab: Lab) -> None:
    lab.cache.sweep_runs()
    assert child.run.exists()
    assert not ends(child.qemu, within=0)


def test_an_interrupted_run_ends_with_2_and_leaves_nothing(child: Child) -> None:
    assert child.end(signal.SIGINT) == 2
    assert ends(child.qemu)
    assert not child.run.exists()
