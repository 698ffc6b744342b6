"""What goes wrong with a machine is named within a second of being knowable, and nothing of it is left."""

import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.cache import Cache
from harness.errors import HarnessError
from harness.lab import Lab
from harness.policy import Plan
from harness.vm import shell
from harness.vm.machine import Machine
from harness.vm.qemu import GuestDied, GuestPanicked, HostDiskFull
from harness.vm.shell import GuestUnresponsive
from tests.unit.support import PATIENCE

AT_ONCE = 3.0
"""Seconds: one, and what a busy machine adds. The wait that is cut short would be sixty."""


def fault(machine: Machine, cause: Callable[[], object], expected: type[HarnessError]) -> tuple[str, float]:
    """Cause it while a command runs: the error's text, and how many seconds after the cause it came."""
    caused: list[float] = []

    def strike() -> None:
        caused.append(time.monotonic())
        cause()

    timer = threading.Timer(0.5, strike)
    timer.start()
    try:
        with pytest.raises(expected) as error:
            machine.run("sleep 60")
        return str(error.value), time.monotonic() - caused[0]
    finally:
        timer.join()


def test_the_death_of_qemu_is_named_at_once_with_its_signal(machine: Machine) -> None:
    text, seconds = fault(machine, machine.process.popen.kill, GuestDied)
    assert f"pid {machine.process.popen.pid}" in text and "SIGKILL" in text
    assert seconds < AT_ONCE


def test_the_death_of_qemu_gives_a_command_line_to_paste(machine: Machine) -> None:
    text, _ = fault(machine, machine.process.popen.kill, GuestDied)
    assert shlex.split(text.splitlines()[-1]) == machine.process.command


def test_the_death_of_qemu_shows_the_last_words_of_the_console(machine: Machine) -> None:
    with machine.console() as console:
        machine.run("echo '<0>its last words' > /dev/kmsg").check()
        console.expect("its last words")
    text, _ = fault(machine, machine.process.popen.kill, GuestDied)
    assert re.search(r"console\|.*its last words", text)


def test_what_is_asked_of_a_dead_machine_fails_with_the_same_error(machine: Machine) -> None:
    os.kill(machine.process.popen.pid, signal.SIGKILL)
    machine.process.popen.wait(PATIENCE)
    for ask in (lambda: machine.run("true"), lambda: machine.ssh_port, lambda: machine.host.run("true")):
        with pytest.raises(GuestDied, match="SIGKILL"):
            ask()


def test_a_kernel_panic_is_named_with_its_text(machine: Machine) -> None:
    with pytest.raises(GuestPanicked, match="Kernel panic - not syncing: sysrq triggered crash") as error:
        machine.run("echo c > /proc/sysrq-trigger")
    assert "console| " in str(error.value)


def test_a_kernel_panic_does_not_wait_for_the_commands_time(machine: Machine) -> None:
    started = time.monotonic()
    with pytest.raises(GuestPanicked):
        machine.run("echo c > /proc/sysrq-trigger; sleep 60")
    assert time.monotonic() - started < PATIENCE


def test_a_machine_whose_power_goes_off_is_named(machine: Machine) -> None:
    with pytest.raises(GuestDied, match="exit code 0"):
        machine.run("echo o > /proc/sysrq-trigger; sleep 60")


def test_a_guest_that_never_answers_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "GRACE", 0.5)
    with machine.console() as console:
        machine.run("echo '<0>its last words' > /dev/kmsg").check()
        console.expect("its last words")
    machine.process.execute("stop")
    with pytest.raises(GuestUnresponsive, match="it was asked: true") as error:
        machine.run("true", timeout=0.5)
    assert re.search(r"console\|.*its last words", str(error.value))


def test_a_guest_that_answers_again_is_used_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has to say about the question that was given up is not taken for the answer to the next."""
    with monkeypatch.context() as patch:
        patch.setattr(shell, "GRACE", 0.2)
        machine.process.execute("stop")
        with pytest.raises(GuestUnresponsive):
            machine.run("echo late", timeout=0.2)
    machine.process.execute("cont")
    assert machine.run("echo in time").text == "in time\n"


@pytest.mark.parametrize("cause", ["died", "panicked"])
def test_nothing_is_left_of_a_machine_that_failed(cause: str, lab: Lab, plan: Plan) -> None:
    with lab.machine(plan) as machine:
        process = machine.process
        if cause == "died":
            process.popen.kill()
        with pytest.raises(GuestDied):
            machine.run("echo c > /proc/sysrq-trigger; sleep 60")
    assert process.popen.poll() is not None
    assert not process.directory.exists()


@pytest.fixture
def small_disk(lab: Lab, plan: Plan, tmp_path: Path) -> Iterator[Cache]:
    """A cache with the lab's templates whose machines run on a file system of 6 MiB."""
    lab.activated(plan)
    for kind in ("templates", "images"):
        (tmp_path / kind).symlink_to(lab.cache.root / kind)
    (tmp_path / "run").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tentaflake-test", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield Cache(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path / "run")], check=True)


def test_a_full_disk_on_the_host_is_named(small_disk: Cache, lab: Lab, plan: Plan) -> None:
    with lab.activated(plan).fork(small_disk) as machine:
        with pytest.raises(HostDiskFull, match="is full") as error:
            machine.run("dd if=/dev/urandom of=/root/big bs=1M count=32 conv=fsync")
        assert "--vm-cache" in str(error.value)
    assert list((small_disk.root / "run").iterdir()) == []
