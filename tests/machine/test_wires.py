"""Machines on one wire: they reach each other and nobody else, each as itself, and none needs another to live."""

import os
import signal
from collections.abc import Iterator

import pytest

from harness.guests.addresses import DECOYS, HOST, INTERNET, PUBLIC, TAILNET_HOST, TAILNET_PEER
from harness.guests.peers import STATIONS, Network, Packet, Peer
from harness.lab import Lab
from harness.pace import stretch, stretch_whole
from harness.plugin import track_network
from harness.policy import Plan
from harness.vm.machine import Machine
from tests.unit.support import ends

FAMILIES = (4, 6)
CLIENT = """
import socket, sys
kind, address, port, patience = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[kind]) as client:
    client.settimeout(float(patience))
    client.connect((address, int(port)))
    client.send(b"hello")
    print(client.recv(1000).decode())
"""

FLOOD = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for _ in range(3000):
        sender.sendto(bytes(1000), (sys.argv[1], 9))
"""


@pytest.fixture(scope="module")
def whole_network(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Network]:
    with track_network(request.config, lab.network(plan)) as made:
        yield made


def ping(machine: Machine, address: str, patience: int = 5) -> bool:
    command = ["busybox", "ping", "-c", "1", "-W", str(stretch_whole(patience)), address]
    return machine.run(command).stop_if_timed_out().exit == 0


def ask(machine: Machine, address: str, port: int = 443, kind: str = "tcp") -> str:
    """What is said to "hello"; nothing if nobody answers."""
    command = ["python3", "-c", CLIENT, kind, address, str(port), str(stretch(5.0))]
    return machine.run(command).stop_if_timed_out().text.strip()


def on_the_lan(network: Network) -> dict[str, Machine]:
    return {"host": network.host} | {name: peer.machine for name, peer in network.peers.items()}


def test_all_machines_answer_each_other_over_ipv4_and_ipv6(whole_network: Network) -> None:
    machines = on_the_lan(whole_network)
    stations = {"host": HOST, **STATIONS}
    for name, machine in machines.items():
        others = [address for other in machines if other != name for address in stations[other].addresses]
        assert [address for address in others if not ping(machine, address)] == [], f"from {name}"


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("role", STATIONS)
def test_an_echo_tells_which_machine_answered(role: str, kind: str, whole_network: Network) -> None:
    peer = whole_network.peers[role]
    for address in peer.station.addresses:
        assert ask(whole_network.host, address, kind=kind) == f"{peer.token} hello"


def test_every_machine_has_its_own_hardware_and_link_local_address(whole_network: Network) -> None:
    links = "cat /sys/class/net/eth1/address; ip -o -6 address show dev eth1 scope link"
    seen = [machine.run(links).check().text.split() for machine in on_the_lan(whole_network).values()]
    assert len({words[0] for words in seen}) == 4
    assert len({words[4] for words in seen}) == 4


def test_peers_reach_the_ssh_port_of_the_host_and_no_other(whole_network: Network) -> None:
    scan = ["nmap", "-n", "-Pn", "-p", "21-23,80,5001", HOST.ipv4]
    found = whole_network.lan.run(scan).check().text
    assert [line.split()[0] for line in found.splitlines() if " open " in line] == ["22/tcp"]


def test_the_lan_machine_can_send_any_frame(whole_network: Network) -> None:
    """With scapy: an echo request with a forged source, which its recorder shows at the other end."""
    forged = f"Ether()/IP(src='192.168.50.99', dst='{INTERNET.ipv4}')/ICMP()"
    program = f"from scapy.all import *; sendp({forged}, iface='eth1', verbose=False)"
    whole_network.lan.run(["python3", "-c", program]).check()
    assert Packet("eth1", "192.168.50.99", INTERNET.ipv4, "icmp") in whole_network.internet.seen()


# --- the world


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("name", [*PUBLIC, *DECOYS])
def test_the_world_answers_on_public_addresses_and_on_decoys(name: str, kind: str, whole_network: Network) -> None:
    for address in {**PUBLIC, **DECOYS}[name]:
        assert ask(whole_network.host, address, kind=kind) == f"{whole_network.internet.token} hello"


def test_the_world_has_a_web_page(whole_network: Network) -> None:
    page = whole_network.host.run(["busybox", "wget", "-q", "-O", "-", "http://public.test/"]).check().text
    assert page.strip() == whole_network.internet.token


@pytest.mark.parametrize("server", ["", INTERNET.ipv4, INTERNET.ipv6, "9.9.9.9", "2620:fe::fe"])
def test_the_world_knows_names(server: str, whole_network: Network) -> None:
    answer = whole_network.host.run(["busybox", "nslookup", "public.test", *([server] if server else [])]).check().text
    assert all(f"Address: {address}\n" in answer for address in PUBLIC["public.test"])


def test_the_world_has_no_other_names(whole_network: Network) -> None:
    assert whole_network.host.run(["busybox", "nslookup", "nobody.test"]).exit != 0


def test_a_peer_records_who_came(whole_network: Network) -> None:
    before = whole_network.internet.seen()
    packets = {Packet("eth1", HOST.ipv4, "203.0.113.5", "udp"), Packet("eth1", HOST.ipv6, "3fff::5", "tcp")}
    assert not packets & before
    for packet in packets:
        ask(whole_network.host, packet.destination, kind=packet.protocol)
    assert packets <= whole_network.internet.seen()


# --- the tailnet


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tunnel_carries_traffic_both_ways(family: int, whole_network: Network) -> None:
    here, there = TAILNET_HOST[family == 6], TAILNET_PEER[family == 6]
    assert ask(whole_network.host, there) == f"{whole_network.tailnet.token} hello"
    assert ping(whole_network.tailnet.machine, here)
    assert ("tailscale0", here, there) in {packet[:3] for packet in whole_network.tailnet.seen()}


def test_nothing_in_the_tunnel_is_seen_outside(whole_network: Network) -> None:
    """The control: what goes around it is."""
    ask(whole_network.host, TAILNET_PEER[0], 8080)
    ask(whole_network.host, STATIONS["tailnet"].ipv4, 8080)
    outside = {packet[1:] for packet in whole_network.tailnet.seen() if packet.interface == "eth1"}
    assert (HOST.ipv4, STATIONS["tailnet"].ipv4, "tcp") in outside
    assert not {packet for packet in outside if packet[:2] == (TAILNET_HOST[0], TAILNET_PEER[0])}


# --- lives of their own


def test_a_machine_without_a_wire_has_nobody_to_talk_to(machine: Machine) -> None:
    """The control is every other test here: with a wire, the same addresses answer."""
    assert not any(ping(machine, address, patience=2) for address in INTERNET.addresses)


def test_networks_do_not_meet(network: Network, lan: Peer, lab: Lab, plan: Plan) -> None:
    with lab.network(plan, ["lan"]) as other:
        for address in lan.station.addresses:
            assert ask(network.host, address) == f"{lan.token} hello"
            assert ask(other.host, address) == f"{other.lan.token} hello"


def test_a_killed_machine_leaves_the_others_talking(network: Network, lan: Peer, internet: Peer) -> None:
    os.kill(lan.machine.process.popen.pid, signal.SIGKILL)
    assert ends(lan.machine.process.popen.pid)
    for address in internet.station.addresses:
        assert ask(network.host, address) == f"{internet.token} hello"
    assert ask(network.host, lan.station.ipv4) == ""


def test_a_stopped_machine_leaves_the_others_talking(network: Network, lan: Peer, internet: Peer) -> None:
    """Also when more is sent to it than a socket holds."""
    assert ping(internet.machine, lan.station.ipv4), "the control: it is sent to, for its hardware address is known"
    lan.machine.process.execute("stop")
    internet.run(["python3", "-c", FLOOD, lan.station.ipv4]).check()
    assert ask(network.host, internet.station.ipv4) == f"{internet.token} hello"
    lan.machine.process.execute("cont")
    assert ask(network.host, lan.station.ipv4) == f"{lan.token} hello"


def test_ssh_leads_into_a_peer_as_into_any_machine(lan: Peer) -> None:
    with lan.machine.ssh() as client:
        _, stdout, _ = client.exec_command("hostname")
        assert stdout.read() == b"lan\n"
