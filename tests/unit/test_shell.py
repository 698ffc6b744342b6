"""The root shell: the guest's program itself, over a socket instead of a virtio port."""

import fcntl
import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.vm import guest_shell
from harness.vm import shell as shell_module
from harness.vm.guest_shell import GREETING, HEADER, pack
from harness.vm.shell import CommandFailed, CommandTimeout, GuestUnresponsive, Result, Shell
from tests.unit.support import PATIENCE, PROPERTY, ends, unable_to_set_the_clock

Sockets = tuple[socket.socket, socket.socket]
ARGUMENT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def nothing_happens() -> None:
    """A ``watch`` for a guest that lives."""


@contextmanager
def guest_program(port: socket.socket) -> Iterator[Callable[[], None]]:
    """The guest's end on ``port``, unable to change this machine; yields a ``watch`` that knows of its end."""
    # As systemd starts it, with no signal ignored, whatever this process was started by.
    program = ["env", "--default-signal=HUP,INT", sys.executable, "-I", guest_shell.__file__, "--stdio"]
    with subprocess.Popen(unable_to_set_the_clock(program), stdin=port.fileno()) as process:

        def watch() -> None:
            assert process.poll() is None, f"the guest's program has ended with exit code {process.returncode}"

        try:
            yield watch
        finally:
            process.kill()


@contextmanager
def sockets() -> Iterator[Sockets]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


@pytest.fixture
def pair() -> Iterator[Sockets]:
    """The host's and the guest's end, with nobody at the latter."""
    with sockets() as both:
        yield both


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    """One shell for all tests of this file: no command may spoil it for the next."""
    with sockets() as (here, there), guest_program(there) as watch:
        yield Shell(here, watch)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest is held to be hung as soon as a command's time is over."""
    monkeypatch.setattr(shell_module, "GRACE", 0.0)
    monkeypatch.setattr(shell_module, "TICK", 0.01)


# --- what a command said and how it ended


def test_stdout_and_stderr_stay_apart(shell: Shell) -> None:
    result = shell.run("echo out; echo err >&2; echo out again")
    assert (result.stdout, result.stderr) == (b"out\nout again\n", b"err\n")


def test_every_exit_code_arrives(shell: Shell) -> None:
    assert [shell.run(["sh", "-c", f"exit {code}"]).exit for code in range(256)] == list(range(256))


@pytest.mark.parametrize("number", [1, 2, 6, 9, 13, 15, 34, 64])
def test_death_by_a_signal_is_128_and_its_number(shell: Shell, number: int) -> None:
    assert shell.run(f"ulimit -c 0; kill -{number} $$").exit == 128 + number


def test_an_unknown_program_is_127_and_named(shell: Shell) -> None:
    result = shell.run(["/no/such/program"])
    assert (result.exit, result.stderr) == (127, b"/no/such/program: No such file or directory\n")


def test_a_file_that_is_no_program_is_126(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    assert shell.run([str(tmp_path / "text")]).exit == 126


@pytest.mark.parametrize("argument", ["a\0b", "\ud800"])
def test_an_argument_that_no_program_can_have_is_an_error_of_its_own(shell: Shell, argument: str) -> None:
    assert shell.run(["echo", argument]).exit == 126


def test_a_command_line_goes_through_a_shell(shell: Shell) -> None:
    assert shell.run('for i in 1 2; do printf "$i "; done').text == "1 2 "


@PROPERTY
@given(arguments=st.lists(ARGUMENT, max_size=5))
def test_arguments_arrive_as_they_were(shell: Shell, arguments: list[str]) -> None:
    received = shell.run([sys.executable, "-IXutf8", "-Sc", "import sys; print(ascii(sys.argv[1:]))", *arguments])
    assert received.text.strip() == ascii(arguments)


def test_many_commands_in_a_row_get_their_own_answers(shell: Shell) -> None:
    assert [shell.run(["echo", str(number)]).text for number in range(200)] == [f"{number}\n" for number in range(200)]


def test_a_command_does_not_inherit_the_port(shell: Shell) -> None:
    assert "socket:" not in shell.run("ls -l /proc/self/fd").text


def test_a_failure_that_must_not_be_is_raised_with_its_last_words(shell: Shell) -> None:
    with pytest.raises(CommandFailed, match=r"exit code 3: .*\n.*the disk is on fire"):
        shell.run("echo the disk is on fire >&2; exit 3").check()


def test_a_success_passes_its_check(shell: Shell) -> None:
    assert shell.run("echo fine").check().text == "fine\n"


# --- any bytes, any amount


@PROPERTY
@given(data=st.binary(max_size=4096))
def test_any_bytes_go_in_and_come_out(shell: Shell, data: bytes) -> None:
    assert shell.run(["cat"], stdin=data, timeout=PATIENCE).stdout == data


@PROPERTY
@given(data=st.binary(max_size=4096))
def test_any_bytes_come_out_on_stderr(shell: Shell, data: bytes) -> None:
    assert shell.run("cat >&2", stdin=data, timeout=PATIENCE).stderr == data


@PROPERTY
@given(
    kind=st.sampled_from([b"o", b"e", b"x", b"h", b"H", b"R", b"I"]),
    ahead=st.integers(0, 3),
    payload=st.one_of(st.binary(max_size=64), st.just(b'{"exit": 0, "timed_out": false}')),
)
def test_output_that_looks_like_a_frame_stays_output(shell: Shell, kind: bytes, ahead: int, payload: bytes) -> None:
    hostile = pack(kind, shell._request + ahead, payload)
    result = shell.run("cat; exit 7", stdin=hostile, timeout=PATIENCE)
    assert (result.stdout, result.exit) == (hostile, 7)


def test_a_frame_header_that_promises_too_much_stays_output(shell: Shell) -> None:
    hostile = HEADER.pack(b"x", shell._request + 1, 0xFFFFFFFF)
    assert shell.run(["cat"], stdin=hostile).stdout == hostile


def test_megabytes_go_both_ways_at_once(shell: Shell) -> None:
    data = random.Random(0).randbytes(8 << 20)
    assert shell.run(["cat"], stdin=data).stdout == data


def test_megabytes_on_both_streams_at_once_are_whole(shell: Shell) -> None:
    result = shell.run("head -c 3000000 /dev/zero & head -c 3000000 /dev/zero >&2; wait")
    assert (len(result.stdout), len(result.stderr)) == (3_000_000, 3_000_000)


def test_a_command_that_reads_little_by_little_gets_all_its_input(shell: Shell) -> None:
    data = random.Random(1).randbytes(400_000)
    assert shell.run("dd bs=61 status=none", stdin=data).stdout == data


def test_a_command_that_never_reads_its_input_ends(shell: Shell) -> None:
    assert shell.run("exit 5", stdin=bytes(1 << 20)).exit == 5


def test_a_command_without_input_sees_its_end(shell: Shell) -> None:
    assert not shell.run(["cat"], timeout=PATIENCE).timed_out


def test_input_of_an_abandoned_request_is_not_given_to_the_next(pair: Sockets) -> None:
    here, there = pair
    here.sendall(pack(b"I", 7, b"rm -rf everything\n"))
    with guest_program(there) as watch:
        assert Shell(here, watch).run(["cat"], stdin=b"mine").stdout == b"mine"


# --- commands that do not end as they should


def test_a_background_process_that_holds_the_pipes_does_not_hold_up_the_answer(shell: Shell) -> None:
    result = shell.run("sleep 600 & echo $!", timeout=10)
    heir = int(result.text)
    try:
        assert not result.timed_out and not ends(heir, within=0)
    finally:
        os.kill(heir, 9)


def test_a_background_process_that_never_stops_talking_does_not_hold_up_the_answer(
    pair: Sockets, impatient: None
) -> None:
    here, there = pair
    with guest_program(there) as watch:
        result = Shell(here, watch).run("yes & exit 3", timeout=5)
    assert (result.exit, result.timed_out) == (3, False)


def test_what_was_written_last_is_not_lost(shell: Shell) -> None:
    results = [shell.run("head -c 60000 /dev/zero; echo last >&2") for _ in range(20)]
    assert {(len(result.stdout), result.stderr) for result in results} == {(60_000, b"last\n")}


def test_what_an_enlarged_pipe_still_holds_at_the_end_is_not_lost(pair: Sockets, tmp_path: Path) -> None:
    here, there = pair
    os.mkfifo(tmp_path / "pid")
    ended: list[bool] = []

    class Late(Shell):
        """Reads no answer before the command has ended, by when most of its output is still in the pipe."""

        def _receive(self, request: int, deadline: float, doing: str) -> tuple[bytes, bytes]:
            if not ended:
                assert select.select([pid], [], [], PATIENCE)[0], "the command did not start"
                ended.append(ends(int(pid.read(32))))
            return super()._receive(request, deadline, doing)

    program = "import fcntl, os; fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20); os.write(1, bytes(900_000))"
    script = f"""echo $$ > "$1"; exec "$2" -Sc '{program}'"""
    with guest_program(there) as watch, (tmp_path / "pid").open("rb+", buffering=0) as pid:
        result = Late(here, watch).run(["sh", "-c", script, "sh", str(tmp_path / "pid"), sys.executable])
    assert len(result.stdout) == 900_000


def test_a_timeout_kills_the_process_group(shell: Shell) -> None:
    result = shell.run("sleep 600 & echo $!; wait", timeout=2)
    assert ends(int(result.text))


def test_a_timeout_is_reported_as_one(shell: Shell) -> None:
    result = shell.run(["sleep", "600"], timeout=0.1)
    assert (result.timed_out, result.exit) == (True, 137)


def test_a_timeout_that_must_not_be_is_raised_as_one(shell: Shell) -> None:
    with pytest.raises(CommandTimeout, match="sleep 600"):
        shell.run(["sleep", "600"], timeout=0.1).check()


def test_what_was_said_before_a_timeout_is_kept(shell: Shell) -> None:
    assert shell.run("echo so far; exec sleep 600", timeout=2).text == "so far\n"


def test_a_command_that_talks_for_ever_is_timed_out(shell: Shell) -> None:
    assert shell.run(["yes"], timeout=0.1).timed_out


def test_the_shell_serves_on_after_a_timeout(shell: Shell) -> None:
    shell.run(["sleep", "600"], timeout=0.1)
    assert shell.run("echo on").text == "on\n"


# --- guests that do not answer


def test_a_shell_that_never_answers_is_named(pair: Sockets, impatient: None) -> None:
    with pytest.raises(GuestUnresponsive, match="asked: uname -a"):
        Shell(pair[0], nothing_happens).run("uname -a", timeout=0.05)


def test_a_shell_that_takes_no_input_is_named(pair: Sockets, impatient: None) -> None:
    with pytest.raises(GuestUnresponsive):
        Shell(pair[0], nothing_happens).run("cat", timeout=0.05, stdin=bytes(4 << 20))


def test_a_shell_that_talks_of_something_else_for_ever_is_named(pair: Sockets, impatient: None) -> None:
    here, there = pair
    there.setblocking(False)

    class Chatter(Shell):
        """Whenever the host listens, there is one more frame of a request long abandoned."""

        def _wait(self, event: int, deadline: float, doing: str) -> None:
            if event == select.POLLIN:
                assert time.monotonic() < deadline + PATIENCE, "the host listens for ever"
                there.send(pack(b"o", 1, b"blah"))
            super()._wait(event, deadline, doing)

    with pytest.raises(GuestUnresponsive):
        Chatter(here, nothing_happens).run("true", timeout=0.2)


def test_a_guest_whose_shell_does_not_come_up_is_named(pair: Sockets, impatient: None) -> None:
    with pytest.raises(GuestUnresponsive):
        Shell(pair[0], nothing_happens).hello(0.05)


def test_the_death_of_the_guest_ends_a_wait_at_once(pair: Sockets) -> None:
    def watch() -> None:
        raise HarnessError("the guest has died")

    started = time.monotonic()
    with pytest.raises(HarnessError, match="has died"):
        Shell(pair[0], watch).run("true", timeout=PATIENCE)
    assert time.monotonic() - started < PATIENCE / 2


def test_a_closed_end_is_named(pair: Sockets) -> None:
    pair[1].close()
    with pytest.raises(GuestUnresponsive, match="closed its end"):
        Shell(pair[0], nothing_happens).run("true")


def test_a_closed_end_is_blamed_on_the_guests_death_where_that_is_known(pair: Sockets) -> None:
    reports = iter([None, HarnessError("the guest has died")])

    def watch() -> None:
        if report := next(reports):
            raise report

    pair[1].close()
    with pytest.raises(HarnessError, match="has died"):
        Shell(pair[0], watch).run("true")


def test_a_late_answer_to_an_abandoned_request_is_dropped(pair: Sockets, impatient: None) -> None:
    here, there = pair
    shell = Shell(here, nothing_happens)
    with pytest.raises(GuestUnresponsive):
        shell.run("late", timeout=0.05)
    late, next_one = shell._request, shell._request + 1
    for request, exit_code, text in ((late, 1, b"late"), (next_one, 0, b"in time")):
        there.sendall(pack(b"o", request, text))
        there.sendall(pack(b"x", request, json.dumps({"exit": exit_code, "timed_out": False}).encode()))
    result = shell.run("in time")
    assert (result.exit, result.stdout) == (0, b"in time")


def test_a_request_given_up_half_way_does_not_spoil_the_next(pair: Sockets, impatient: None) -> None:
    here, there = pair
    shell = Shell(here, nothing_happens)
    with pytest.raises(GuestUnresponsive):
        shell.run("cat", timeout=0.05, stdin=bytes(4 << 20))
    with guest_program(there):
        assert shell.run("echo on; cat", timeout=20).text == "on\n"


# --- hello: the clock of this machine is out of its reach


def test_a_guest_that_can_not_set_its_clock_is_no_guest(shell: Shell) -> None:
    with pytest.raises(HarnessError, match="clock"):
        shell.hello(20)


def test_hello_sets_the_clock_before_it_reseeds(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[object, ...]] = []
    monkeypatch.setattr(time, "clock_settime", lambda clock, now: done.append((clock, now)))
    monkeypatch.setattr(fcntl, "ioctl", lambda _device, *request: done.append(request))
    assert guest_shell.hello(GREETING.pack(1234.5, b"\xab" * 64)) == b""
    entropy = (512).to_bytes(4, sys.byteorder) + (64).to_bytes(4, sys.byteorder) + b"\xab" * 64
    assert done == [
        (time.CLOCK_REALTIME, 1234.5),
        (guest_shell.RNDADDENTROPY, entropy),
        (guest_shell.RNDRESEEDCRNG,),
    ]


def test_hello_brings_the_hosts_time_and_fresh_entropy(pair: Sockets, impatient: None) -> None:
    here, there = pair
    shell, messages = Shell(here, nothing_happens), []
    for _ in range(2):
        with pytest.raises(GuestUnresponsive):
            shell.hello(0.02)
        _, _, length = HEADER.unpack(there.recv(HEADER.size))
        messages.append(GREETING.unpack(there.recv(length)))
    assert messages[0][1] != messages[1][1]
    assert abs(messages[1][0] - time.time()) < 60


def test_a_result_shows_bytes_that_are_no_text() -> None:
    assert Result("cat", 0, b"\xff", b"", False, 0.0).text == "\N{REPLACEMENT CHARACTER}"
