"""The machine's network leads nowhere but to its own SSH port."""

import select
import socket
from collections.abc import Iterator

import pytest

from harness.lab import Lab
from harness.policy import Plan
from harness.vm import template
from harness.vm.machine import Machine

HOST = "10.0.2.2"  # the host as QEMU's user-mode network shows it: its loopback
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server on the host's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def connects(machine: Machine, listener: socket.socket) -> bool:
    """Whether the guest's root reaches the server on the host."""
    machine.run(["python3", "-c", CONNECT, HOST, str(listener.getsockname()[1])], timeout=120).stop_if_timed_out()
    return bool(select.select([listener], [], [], 0)[0])


def test_the_guest_cannot_reach_the_host(machine: Machine, listener: socket.socket) -> None:
    assert not connects(machine, listener)


def test_control_the_guest_reaches_the_host_if_nothing_restricts_it(
    lab: Lab, plan: Plan, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this, a guest without a route or a firewall of its own would look as well."""
    monkeypatch.setattr(template, "NETDEV", template.NETDEV.replace("restrict=on", "restrict=off"))
    with lab.machine(plan) as machine:
        assert connects(machine, listener)


def test_the_guest_cannot_ask_the_hosts_name_server(shared_machine: Machine) -> None:
    query = "import socket; print(socket.gethostbyname('example.org'))"
    assert shared_machine.run(["timeout", "5", "python3", "-c", query]).exit != 0


def test_the_ssh_port_is_open_on_the_loopback_only(shared_machine: Machine) -> None:
    table = shared_machine.process.execute("human-monitor-command", **{"command-line": "info usernet"})
    forwards = [line.split() for line in table.splitlines() if "HOST_FORWARD" in line]
    assert [fields[2] for fields in forwards] == ["127.0.0.1"]
