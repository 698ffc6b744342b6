"""A machine that stands still: what halts it says so to all, and what needs it lets it go on."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from harness.plugin import _quiet_disk
from harness.probes.search import stopped
from harness.vm.machine import Machine
from harness.vm.qemu import GuestDied, Process


class Recorder:
    """In place of a QEMU and a root shell: notes what they are told, in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.machine = Machine(Mock(spec=Process, directory=Path("nowhere")))
        self.machine.process.execute.side_effect = self.execute  # type: ignore[attr-defined]
        monkeypatch.setattr(self.machine, "run", self.run)

    def execute(self, command: str, **_: Any) -> None:
        self.told.append(command)

    def run(self, command: str, **_: Any) -> Mock:
        self.machine.resume()  # as the root shell does before each order
        self.told.append(command)
        return Mock()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.mark.parametrize("halted", [stopped, _quiet_disk])
def test_what_is_written_is_on_disk_before_it_stands_still(halted: Any, recorder: Recorder) -> None:
    with halted(recorder.machine):
        assert recorder.told == ["sync", "stop"]
        assert recorder.machine.is_paused
    assert recorder.told == ["sync", "stop", "cont"]
    assert not recorder.machine.is_paused


@pytest.mark.parametrize("halted", [stopped, _quiet_disk])
def test_one_that_stands_still_already_goes_on_to_write(halted: Any, recorder: Recorder) -> None:
    recorder.machine.pause()
    with halted(recorder.machine):
        assert recorder.told == ["stop", "cont", "sync", "stop"]


@pytest.mark.parametrize("halted", [stopped, _quiet_disk])
def test_a_command_in_between_is_answered(halted: Any, recorder: Recorder) -> None:
    with halted(recorder.machine):
        recorder.run("true")
    assert recorder.told == ["sync", "stop", "cont", "true"]


def test_a_search_that_fails_lets_the_machine_go_on(recorder: Recorder) -> None:
    with pytest.raises(OSError, match="no room"), stopped(recorder.machine):
        raise OSError("no room")
    assert recorder.told[-1] == "cont"


def test_the_disk_of_a_dead_machine_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(Mock(spec=Process, execute=Mock(side_effect=GuestDied("gone"))))
    monkeypatch.setattr(machine, "run", Mock(side_effect=GuestDied("gone")))
    with _quiet_disk(machine):
        pass
