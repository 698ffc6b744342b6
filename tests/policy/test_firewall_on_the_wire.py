"""What the rules do to real packets, in network namespaces; the virtual machines try the same with real agents."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.policy import Plan, evaluate
from tests.policy.wire import OUTSIDE, PORTS, Probe, Wire

AGENTS = ["coding", "research", "writer"]
LISTED = [
    {"network": "198.51.100.0/24", "ports": [80, 443]},
    {"network": "2001:db8:100::/48", "ports": [443]},
    # Every agent's network: F2 is not for a spec to give away.
    {"network": "10.128.0.0/9"},
    {"network": "fd74:656e:7461::/48"},
]
FLOWS = [(port, protocol) for port in PORTS for protocol in ("tcp", "udp")]
PUBLIC = ["9.9.9.9", "2620:fe::fe"]


def plan_with(directory: Path, coding: str, *, publish: bool = True, tts: bool = True) -> Plan:
    agents = directory / "agents.json"
    specs = [
        {"name": "coding", "egress": coding, "publish": [8080] if publish else []},
        {"name": "research", "egress": LISTED, "tts": tts},
        {"name": "writer"},
    ]
    agents.write_text(json.dumps(specs))
    return evaluate(agents, host={"tailnetInterface": "tailscale0"})


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    missing = [tool for tool in ("ip", "nft", "unshare", "nsenter") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"network namespaces need root{''.join(f' and {tool}' for tool in missing)}")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_with(tmp_path_factory.mktemp("plan"), "internet")


@pytest.fixture(scope="module")
def wire(plan: Plan) -> Iterator[Wire]:
    with Wire(plan) as wire:
        wire.load(plan)
        yield wire


def addresses(plan: Plan, name: str) -> list[str]:
    network = plan.agents[name].network
    return [network.ipv4.address, network.ipv6.address]


def gateways(plan: Plan, name: str) -> list[str]:
    network = plan.agents[name].network
    return [network.ipv4.gateway, network.ipv6.gateway]


def speech_probes(plan: Plan) -> set[Probe]:
    """Everybody, on every address of the host that they have a route to."""
    lan, tailnet = ["192.168.50.1", "fd00:50::1"], ["100.64.1.1", "fd7a:115c:a1e0:1::1"]
    routes = {"lan": lan, "tailnet": tailnet} | dict.fromkeys(AGENTS, lan + tailnet)
    shared = [gateway for name in AGENTS for gateway in gateways(plan, name)]
    return {Probe(where, address, 5001) for where, own in routes.items() for address in [*own, *shared]}


def test_without_rules_everything_answers(plan: Plan) -> None:
    """The positive control of all that follows."""
    with Wire(plan, timeout=30.0) as bare:
        everywhere = [address for family in OUTSIDE.values() for address in family]
        everywhere += [address for name in AGENTS for address in [*addresses(plan, name), *gateways(plan, name)]]
        sources = [*AGENTS, "lan"]
        probes = {Probe(s, address, port, p) for s in sources for address in everywhere for port, p in FLOWS}
        probes |= speech_probes(plan)
        assert probes - bare.reach(probes) == set()
        for source, target in FORGED:
            bare.forge("coding", source, target)
            assert bare.heard("lan", source)
        for source, where in zip(addresses(plan, "research"), ("coding", "writer"), strict=True):
            bare.forge("research", source, addresses(plan, where)[":" in source])
            assert bare.heard(where, source)


def test_no_agent_reaches_another(wire: Wire, plan: Plan) -> None:
    probes = [
        Probe(source, address, port, protocol)
        for source in AGENTS
        for target in AGENTS
        if source != target
        for address in [*addresses(plan, target), *gateways(plan, target)]
        for port, protocol in FLOWS
    ]
    assert wire.reach(probes) == set()


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_not_even_one_packet_reaches_an_agent(wire: Wire, plan: Plan, family: int) -> None:
    """One way is enough for an order over UDP."""
    lan, target = ["192.168.50.2", "fd00:50::2"][family], addresses(plan, "coding")[family]
    research = addresses(plan, "research")[family]
    wire.forge("lan", lan, target)
    wire.forge("research", research, target)
    assert not wire.heard("coding", lan)
    assert not wire.heard("coding", research)


def test_an_agent_reaches_nothing_on_the_host_but_speech(wire: Wire, plan: Plan) -> None:
    hosts = ["192.168.50.1", "fd00:50::1", "100.64.1.1"]
    probes = {
        Probe(name, address, port, protocol)
        for name in AGENTS
        for address in [*gateways(plan, name), *hosts]
        for port, protocol in FLOWS
    }
    assert wire.reach(probes) == {Probe("research", address, 5001) for address in gateways(plan, "research")}


def test_speech_is_for_the_host_and_for_who_is_granted_it(wire: Wire, plan: Plan) -> None:
    """T3, whatever address is asked: another agent's gateway is not one's own."""
    assert wire.reach(speech_probes(plan)) == {Probe("research", own, 5001) for own in gateways(plan, "research")}
    own = {Probe("host", address, 5001) for address in ["127.0.0.1", "::1", *gateways(plan, "research")]}
    assert wire.reach(own) == own


def test_each_way_out_is_as_the_spec_says(wire: Wire) -> None:
    outside = [address for family in OUTSIDE.values() for address in family]
    probes = {Probe(n, a, port, p) for n in AGENTS for a in outside for port in (80, 443) for p in ("tcp", "udp")}
    expected = {probe for probe in probes if probe.where == "coding" and probe.address in PUBLIC}
    expected |= {Probe("research", "198.51.100.7", port) for port in (80, 443)}
    expected |= {Probe("research", "2001:db8:100::7", 443)}
    assert wire.reach(probes) == expected


def test_the_lan_reaches_the_hosts_open_port_and_no_agent(wire: Wire, plan: Plan) -> None:
    host = ["192.168.50.1", "fd00:50::1"]
    agents = [address for name in AGENTS for address in [*addresses(plan, name), *gateways(plan, name)]]
    probes = {Probe("lan", a, port, p) for a in [*host, *agents] for port, p in FLOWS}
    reached = wire.reach(probes)
    own = {address for name in AGENTS for address in gateways(plan, name)} | set(host)
    assert {(probe.port, probe.protocol) for probe in reached} == {(22, "tcp")}
    assert {probe.address for probe in reached} == own


def test_the_tailnet_reaches_published_ports_only(wire: Wire, plan: Plan) -> None:
    agents = [address for name in AGENTS for address in addresses(plan, name)]
    probes = {Probe("tailnet", address, port, p) for address in agents for port, p in FLOWS}
    assert wire.reach(probes) == {Probe("tailnet", address, 8080) for address in addresses(plan, "coding")}


FORGED = [("192.168.50.77", "9.9.9.9"), ("fd00:50::77", "2620:fe::fe")]


@pytest.mark.parametrize(("source", "target"), FORGED, ids=["ipv4", "ipv6"])
def test_a_forged_source_never_leaves_the_host(wire: Wire, source: str, target: str) -> None:
    wire.forge("coding", source, target)
    assert not wire.heard("lan", source)


def test_an_open_connection_follows_the_rules_of_a_reload(wire: Wire, plan: Plan, tmp_path: Path) -> None:
    closed = plan_with(tmp_path, "none", publish=False, tts=False)
    speech = gateways(plan, "research")[0]
    assert wire.open("coding", PUBLIC[0], 80)
    assert wire.open("research", speech, 5001)
    assert wire.open("tailnet", addresses(plan, "coding")[0], 8080)
    wire.load(plan)
    assert [wire.talk(name) for name in ("coding", "research", "tailnet")] == [True, True, True]
    try:
        wire.load(closed)
        assert [wire.talk(name) for name in ("coding", "research", "tailnet")] == [False, False, False]
    finally:
        wire.load(plan)


def test_a_flow_between_agents_from_before_the_rules_ends_with_them(plan: Plan) -> None:
    with Wire(plan) as bare:
        assert bare.open("coding", addresses(plan, "writer")[0], 80)
        bare.load(plan)
        assert not bare.talk("coding")
