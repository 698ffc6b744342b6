"""The serial console: what a person sees who sits before the machine."""

import pexpect
import pytest

from harness.vm.machine import Machine

PROMPT = "root@agent-host:[^#]*# "


def test_a_root_shell_waits_on_the_console(machine: Machine) -> None:
    with machine.console() as console:
        console.send("\r")
        console.expect(PROMPT)
        console.send("echo $((6 * 7))-$(id -u)\r")
        console.expect("42-0\r")  # the echo of what was typed does not hold this


def test_the_console_can_be_left_and_taken_again(machine: Machine) -> None:
    for number in (1, 2):
        with machine.console() as console:
            console.send(f"echo $((6 * 7))-{number}\r")
            console.expect(f"42-{number}\r")


def test_the_kernels_messages_come_to_the_console_and_its_log(machine: Machine) -> None:
    with machine.console() as console:
        machine.run("echo '<0>a word to the console' > /dev/kmsg").check()
        console.expect("a word to the console\r")  # what came before the last byte is in the log
    assert b"a word to the console" in machine.process.console_log.read_bytes()


def test_waiting_for_what_is_not_said_ends(machine: Machine) -> None:
    with machine.console(timeout=0.2) as console, pytest.raises(pexpect.TIMEOUT):
        console.expect("never said")
