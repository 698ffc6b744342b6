"""F1 to F5, N1: what the network lets through."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from itertools import groupby

import pytest

from harness.contract import ControlFailed
from harness.guests.addresses import HOST
from harness.guests.peers import Peer
from harness.pace import stretch
from harness.policy import Agent, Plan
from harness.probes.network import WAYS
from harness.probes.rogue import CONTROL, read_beliefs, start_rogues, wait_control
from harness.vm.machine import Machine
from tests.contract.conftest import Changed

claim = pytest.mark.claim


@pytest.mark.parametrize(("claimed", "way"), [pytest.param(*way, marks=claim(way[0])) for way in WAYS])
def test_only_what_is_granted_gets_through(
    claimed: str, way: str, network_outcomes: Callable[[str, str], None]
) -> None:
    network_outcomes(claimed, way)


SCAN = "nmap -n -Pn --max-retries 0 --initial-rtt-timeout {first}ms --max-rtt-timeout {most}ms"
FAMILIES = {"4": ("", HOST.ipv4), "6": ("-6", HOST.ipv6)}
# Notes every port that is tried on the host's side of the LAN, before any rule of ours.
WATCH = """
table inet watch {
  set tcp4 { type inet_service; size 65536; flags dynamic; }
  set tcp6 { type inet_service; size 65536; flags dynamic; }
  set udp4 { type inet_service; size 65536; flags dynamic; }
  set udp6 { type inet_service; size 65536; flags dynamic; }
  chain tried {
    type filter hook prerouting priority -400;
    iifname != "eth1" return
    meta nfproto ipv4 tcp flags syn add @tcp4 { tcp dport }
    meta nfproto ipv6 tcp flags syn add @tcp6 { tcp dport }
    meta nfproto ipv4 meta l4proto udp add @udp4 { udp dport }
    meta nfproto ipv6 meta l4proto udp add @udp6 { udp dport }
  }
}"""
TCP_PORTS = frozenset(range(1, 65536))
UDP_PORTS = 100


def scan(lan: Peer, ports: Mapping[str, Collection[int]]) -> str:
    """Try TCP ports, by family, and the usual UDP ones; what nmap prints. One packet a port: all may be refused."""
    scan = SCAN.format(first=round(stretch(200)), most=round(stretch(300)))
    tcp = [
        f"{scan} -sS -p {ranges(ports[family])} --min-rate 8000 {flag} {address} &"
        for family, (flag, address) in FAMILIES.items()
        if ports[family]
    ]
    udp = [
        f"{scan} -sU --top-ports {UDP_PORTS} --min-rate 500 {flag} {address} &" for flag, address in FAMILIES.values()
    ]
    return lan.run("\n".join([*tcp, "wait", *udp, "wait"]), timeout=600).check().text


def ranges(ports: Collection[int]) -> str:
    """As nmap takes them: ``1-3,7``."""
    runs = [list(group) for _, group in groupby(enumerate(sorted(ports)), key=lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0][1]}-{run[-1][1]}" for run in runs)


def tried(machine: Machine, kind: str) -> set[int]:
    """The ports that were tried so far, as the host has seen it."""
    listing = json.loads(machine.run(f"nft -j list set inet watch {kind}", timeout=300).check().text)
    [found] = [entry["set"] for entry in listing["nftables"] if "set" in entry]
    return set(found.get("elem", []))


@claim("F1")
@pytest.mark.recorded
def test_a_scan_of_every_port_finds_only_those_that_the_host_opens(machine: Machine, lan: Peer, plan: Plan) -> None:
    """The control of what was not found: a packet for every port has come to the host, over IPv4 and over IPv6.

    Some are lost on the way, as on any network; those ports are tried again.
    """
    machine.run(["nft", "-f", "-"], stdin=WATCH.encode()).check()
    said, left, usual = "", dict.fromkeys(FAMILIES, TCP_PORTS), 0
    for _ in range(4):
        said += scan(lan, left)
        left = {family: TCP_PORTS - tried(machine, f"tcp{family}") for family in FAMILIES}
        usual = min(len(tried(machine, f"udp{family}")) for family in FAMILIES)
        if not any(left.values()) and usual >= UDP_PORTS:
            break
    else:
        raise ControlFailed(f"no packet came to the host for these TCP ports: {left}; {usual} of {UDP_PORTS} UDP ports")
    assert {int(port) for port in re.findall(r"^(\d+)/tcp +open ", said, re.MULTILINE)} == set(
        plan.host.allowed_tcp_ports
    )
    assert re.findall(r"^\d+/udp +open ", said, re.MULTILINE) == []


@claim("F3")
@pytest.mark.recorded
def test_an_agent_gives_the_host_no_address_route_or_name_server(machine: Machine, agents: Mapping[str, Agent]) -> None:
    """By DHCP and router advertisements, as root of its network namespace. On another wire the host believes both."""
    rogues = start_rogues(machine, list(agents.values()))
    wait_control(machine)
    assert read_beliefs(machine, rogues).keys() == {CONTROL.name}


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
