"""F1 to F5, N1: what the network lets through."""

import re
from collections.abc import Callable

import pytest

from harness.guests.addresses import HOST
from harness.guests.peers import Peer
from harness.policy import Plan
from harness.probes.network import WAYS
from harness.vm.machine import Machine
from tests.contract.conftest import Changed

claim = pytest.mark.claim


@pytest.mark.parametrize(("claimed", "way"), [pytest.param(*way, marks=claim(way[0])) for way in WAYS])
def test_only_what_is_granted_gets_through(
    claimed: str, way: str, network_outcomes: Callable[[str, str], None]
) -> None:
    network_outcomes(claimed, way)


SCAN = "nmap -n -Pn --max-retries 0 --initial-rtt-timeout 200ms --max-rtt-timeout 300ms"
SCANS = f"""
{SCAN} -sS -p- --min-rate 8000 {HOST.ipv4} & {SCAN} -sS -p- --min-rate 8000 -6 {HOST.ipv6} & wait
{SCAN} -sU --top-ports 100 --min-rate 500 {HOST.ipv4} & {SCAN} -sU --top-ports 100 --min-rate 500 -6 {HOST.ipv6} & wait
"""


@claim("F1")
def test_a_scan_of_every_port_finds_only_those_that_the_host_opens(machine: Machine, lan: Peer, plan: Plan) -> None:
    """The control of what was not found: the firewall has seen and dropped a packet for every port."""
    open_ports = set(plan.host.allowed_tcp_ports)
    before = dropped(machine)
    found = lan.run(SCANS, timeout=240).check().text
    assert {int(port) for port in re.findall(r"^(\d+)/tcp +open ", found, re.MULTILINE)} == open_ports
    assert re.findall(r"^\d+/udp +open ", found, re.MULTILINE) == []
    assert dropped(machine) - before >= 2 * (65535 - len(open_ports) + 100)


def dropped(machine: Machine) -> int:
    """How many packets the firewall has dropped on their way to the host or to a published port."""
    rules = machine.run("nft list table inet tentaflake").check().text
    return sum(int(count) for count in re.findall(r"counter packets (\d+) bytes \d+ drop comment \"F[15]: ", rules))


@claim("N1")
def test_without_a_tailnet_no_rule_and_no_listener_is_left_for_it(
    shared_machine: Machine, changed: Changed, plan: Plan
) -> None:
    """The host's agents were changed, and its tailnet disabled; the control is the host as it was."""
    interface = plan.host.tailnet_interface
    if interface is None:
        pytest.skip("the host has no tailnet")
    question = f"nft list ruleset | grep -c '\"{interface}\"'; ss -H -lntu | grep -c -w 41641"
    assert int(shared_machine.run(question).text.split()[0]) > 0
    assert changed.machine.run(question).text.split() == ["0", "0"]
