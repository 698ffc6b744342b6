"""QEMU itself, without a guest: how it starts, what is known of its death, and that it never stays behind."""

import asyncio
import gc
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.vm import qemu
from harness.vm.qemu import GuestDied, GuestPanicked, Hardware, HostDiskFull, Process, QemuFailed, find_qemu, start_qemu
from tests.unit.support import ends, line_of, open_files, python

TINY = Hardware("tcg", cpus=1, memory=16)
NETDEV = "user,restrict=on"
PANIC_LINE = "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\n"

START = """
import sys
from pathlib import Path
from harness.vm.qemu import Hardware, start_qemu

directory = Path(sys.argv[1])
arguments = [*Hardware("tcg", cpus=1, memory=16).arguments(directory / "ram", share=False), "-S"]
with start_qemu(directory, arguments, disk="file=disk.raw,format=raw", netdev="user,restrict=on") as process:
    print(process.popen.pid, flush=True)
    sys.stdin.read()
"""


@contextmanager
def machine(directory: Path, *extra: str) -> Iterator[Process]:
    """A machine that is powered on and never runs an instruction (``-S``)."""
    directory.mkdir(exist_ok=True)
    (directory / "disk.raw").write_bytes(bytes(1 << 20))
    arguments = [*TINY.arguments(directory / "ram", share=False), "-S", *extra]
    with start_qemu(directory, arguments, disk="file=disk.raw,format=raw", netdev=NETDEV) as process:
        yield process


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    with machine(tmp_path / "run") as running:
        yield running


def print_on_console(process: Process, text: str) -> None:
    with process.console_log.open("a") as log:
        log.write(text)


def report_event(process: Process, monkeypatch: pytest.MonkeyPatch, name: str, **data: object) -> None:
    """Let the next look at QEMU's events find this one, once."""
    events = [[{"event": name, "data": data}]]
    monkeypatch.setattr(process.qmp, "get_events", lambda wait: events.pop() if events else [])


# --- a QEMU that runs


def test_the_monitor_answers(process: Process) -> None:
    assert process.execute("query-status")["status"] == "prelaunch"


def test_a_machine_that_is_well_passes_its_check(process: Process) -> None:
    process.check()


def test_a_refused_command_is_named_with_qemus_own_words(process: Process) -> None:
    with pytest.raises(HarnessError, match=r"QEMU refused no-such-command: .*no-such-command has not been found"):
        process.execute("no-such-command")


def test_an_order_is_executed_without_a_wait(process: Process) -> None:
    process.order("quit")
    assert ends(process.popen.pid)


def test_a_refused_order_is_named_with_qemus_own_words(process: Process) -> None:
    process.order("no-such-command")
    process.execute("query-status")  # it has read the order by then
    with pytest.raises(QemuFailed, match=r"(?s)not 'colo'.*no-such-command has not been found"):
        process.wait_status("colo", 60)


def test_an_order_to_a_dead_qemu_is_no_error(process: Process) -> None:
    process.popen.kill()
    process.popen.wait()
    process.order("cont")
    with pytest.raises(GuestDied):
        process.check()


def test_a_machine_that_does_not_get_there_is_named_with_where_it_is(process: Process) -> None:
    with pytest.raises(HarnessError, match="is 'prelaunch', not 'running'"):
        process.wait_status("running", 0.01)


def test_a_status_that_is_reached_ends_the_wait(process: Process) -> None:
    process.wait_status("prelaunch", 0.0)


def test_a_real_event_reaches_the_check(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    process.execute("system_reset")
    assert process.qmp.get_events(wait=True)[0]["event"] == "RESET"


def test_its_pid_is_on_file(process: Process) -> None:
    assert (process.directory / "qemu.pid").read_text() == str(process.popen.pid)


def test_a_place_with_commas_and_spaces_is_no_obstacle(tmp_path: Path) -> None:
    with machine(tmp_path / "here, there,share=on") as running:
        assert running.execute("query-status")


# --- a QEMU that does not start


def test_a_wrong_argument_is_named_with_qemus_own_words(tmp_path: Path) -> None:
    with (
        pytest.raises(GuestDied, match="'no-such-device' is not a valid device"),
        machine(tmp_path / "run", "-device", "no-such-device"),
    ):
        pass


def test_a_command_line_that_failed_can_be_pasted(tmp_path: Path) -> None:
    with pytest.raises(GuestDied) as caught, machine(tmp_path / "run", "-name", "two words", "-device", "nonsense"):
        pass
    words = shlex.split(str(caught.value.hint).splitlines()[-1])
    assert words[0] == str(find_qemu()) and words[words.index("-name") + 1] == "two words"


def test_a_monitor_that_says_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mute = tmp_path / "qemu"
    mute.write_text("#!/bin/sh\nexec sleep 20\n")
    mute.chmod(0o755)
    monkeypatch.setattr(qemu, "find_qemu", lambda: mute)
    monkeypatch.setattr(qemu, "MONITOR_TIMEOUT", 0.1)
    with pytest.raises(HarnessError, match="has said nothing"), machine(tmp_path / "run"):
        pass
    assert ends(int((tmp_path / "run" / "qemu.pid").read_text()), within=0)


def test_a_missing_qemu_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HarnessError, match=r"(?s)is not installed.*hint: .*install qemu"):
        find_qemu.__wrapped__()


# --- the end of a machine


def test_a_killed_qemu_is_named_with_the_signal(process: Process) -> None:
    process.popen.kill()
    assert ends(process.popen.pid)
    with pytest.raises(GuestDied, match=rf"pid {process.popen.pid}\) ended by signal SIGKILL"):
        process.check()


def test_a_qemu_that_ended_by_itself_is_named_with_its_exit_code(process: Process) -> None:
    process.execute("quit")
    assert ends(process.popen.pid)
    with pytest.raises(GuestDied, match="ended with exit code 0"):
        process.check()


def test_a_command_to_a_dead_qemu_says_that_it_is_dead(process: Process) -> None:
    process.popen.kill()
    with pytest.raises(GuestDied, match="SIGKILL"):
        process.execute("query-status")


def test_a_death_comes_with_the_last_lines_of_the_console(process: Process) -> None:
    print_on_console(process, "".join(f"line {number}\n\n" for number in range(100)))
    process.popen.kill()
    assert ends(process.popen.pid)
    with pytest.raises(GuestDied) as caught:
        process.check()
    shown = [line for line in caught.value.what.splitlines() if "console|" in line]
    assert shown == [f"  console| line {number}" for number in range(100 - qemu.CONSOLE_TAIL, 100)]


def test_a_closed_machine_leaves_no_process(tmp_path: Path) -> None:
    with machine(tmp_path / "run") as running:
        pid = running.popen.pid
    assert ends(pid, within=0)


def test_a_failed_test_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), machine(tmp_path / "run"):
        raise RuntimeError
    assert ends(int((tmp_path / "run" / "qemu.pid").read_text()), within=0)


def test_a_machine_may_be_closed_twice(process: Process) -> None:
    process.close()
    process.close()


def test_a_closed_machine_leaves_no_open_file(process: Process, tmp_path: Path) -> None:
    before = open_files()  # with one machine running, so that what is made once is there
    with machine(tmp_path / "another"):
        pass
    assert open_files() == before


async def nothing() -> None: ...


def test_a_closed_machine_leaves_no_event_loop(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with machine(tmp_path / "run"):
        asyncio.run(nothing())  # which takes the thread's loop away
    gc.collect()
    assert [str(each.message) for each in recwarn] == []


def test_qemu_dies_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    with python(START, tmp_path) as parent:
        pid = int(line_of(parent))
        assert not ends(pid, within=0)
    assert parent.returncode == -signal.SIGKILL
    assert ends(pid)


# --- what a running QEMU tells about its guest


def test_a_kernel_panic_is_named_with_its_last_words(process: Process) -> None:
    print_on_console(process, PANIC_LINE)
    with pytest.raises(GuestPanicked, match="Kernel panic - not syncing: VFS: Unable to mount root fs"):
        process.check()


def test_a_panic_printed_in_two_halves_is_seen(process: Process) -> None:
    print_on_console(process, PANIC_LINE[:25])
    process.check()
    print_on_console(process, PANIC_LINE[25:])
    with pytest.raises(GuestPanicked):
        process.check()


def test_a_panicked_guest_stays_panicked(process: Process) -> None:
    print_on_console(process, PANIC_LINE + "a long trace\n" * 100)
    for _ in range(2):
        with pytest.raises(GuestPanicked):
            process.check()


def test_a_panic_is_told_from_a_death_that_follows_it(process: Process) -> None:
    print_on_console(process, PANIC_LINE)
    process.popen.kill()
    assert ends(process.popen.pid)
    with pytest.raises(GuestPanicked):
        process.check()


def test_a_full_disk_of_the_host_is_named(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    report_event(process, monkeypatch, "BLOCK_IO_ERROR", nospace=True, device="disk")
    with pytest.raises(HostDiskFull, match=r"(?s)is full.*hint: free some space"):
        process.check()


def test_a_full_disk_stays_full(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    report_event(process, monkeypatch, "BLOCK_IO_ERROR", nospace=True, device="disk")
    for _ in range(2):
        with pytest.raises(HostDiskFull):
            process.check()


@pytest.mark.parametrize("event", ["BLOCK_IO_ERROR", "RTC_CHANGE"])
def test_another_event_is_no_full_disk(process: Process, monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    report_event(process, monkeypatch, event, nospace=False)
    process.check()


def test_a_silent_console_is_said_to_be_silent(process: Process) -> None:
    process.console_log.unlink()
    assert "nothing was written" in process.console_tail()
