"""The root shell through the real virtio-serial port (its framing is tested without a guest in tests/unit)."""

import os
import shlex

import pytest

from harness.vm.machine import Machine
from harness.vm.shell import CommandTimeout


def test_output_error_output_and_exit_code_come_apart(shared_machine: Machine) -> None:
    result = shared_machine.run("printf out; printf err >&2; exit 7")
    assert (result.stdout, result.stderr, result.exit) == (b"out", b"err", 7)


def test_a_mebibyte_of_any_bytes_goes_in_and_out_unchanged(shared_machine: Machine) -> None:
    data = os.urandom(1 << 20)
    assert shared_machine.run("cat", stdin=data).check().stdout == data


def test_a_mebibyte_arrives_in_a_file_with_its_mode(machine: Machine) -> None:
    machine.put(bytes(range(256)) * 4096, "/root/every byte", 0o640)
    file = machine.host.file("/root/every byte")
    assert (file.size, file.mode) == (1 << 20, 0o640)
    assert file.content == bytes(range(256)) * 4096


def test_a_command_that_takes_too_long_is_killed_with_its_children(shared_machine: Machine) -> None:
    result = shared_machine.run("sleep 7654 & sleep 7654", timeout=0.5)
    assert result.timed_out
    assert shared_machine.run("pgrep -x -f 'sleep 7654'").exit == 1  # there is none


def test_the_shell_answers_after_a_timeout(shared_machine: Machine) -> None:
    with pytest.raises(CommandTimeout, match="sleep 7655"):
        shared_machine.run("sleep 7655", timeout=0.2).check()
    assert shared_machine.run("echo still here").text == "still here\n"


def test_a_command_runs_in_the_whole_machine_as_root(shared_machine: Machine) -> None:
    """Not in a sandbox of the service that runs it: it is pid 1's user and name spaces."""
    namespaces = "readlink /proc/{0}/ns/mnt /proc/{0}/ns/net /proc/{0}/ns/pid /proc/{0}/ns/user"
    own, init = (shared_machine.run(namespaces.format(pid)).check().text for pid in ("self", "1"))
    assert own == init
    assert shared_machine.run("id -u").text == "0\n"


def test_testinfra_reads_a_file(shared_machine: Machine) -> None:
    file = shared_machine.host.file("/etc/hostname")
    assert (file.content_string, file.user, file.mode) == ("agent-host\n", "root", 0o644)


def test_testinfra_quotes_what_it_is_given(shared_machine: Machine) -> None:
    hostile = "a'b\"c $(id) `id` ; | \\ *"
    assert shared_machine.host.run("printf %%s %s", hostile).stdout == hostile
    assert shared_machine.run(["printf", "%s", hostile]).text == hostile
    assert shared_machine.run(f"printf %s {shlex.quote(hostile)}").text == hostile


def test_testinfra_knows_the_services(shared_machine: Machine) -> None:
    assert shared_machine.host.service("docker").is_running
    assert not shared_machine.host.service("no-such-service").is_running
