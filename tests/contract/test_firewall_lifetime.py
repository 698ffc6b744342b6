"""F6: there is no moment without rules, from the boot on and whatever is done to them. See docs/firewall.md."""

import json
from collections.abc import Iterator, Mapping

import msgspec
import pytest

from harness.contract import ControlFailed
from harness.guests import activate
from harness.guests.addresses import HOST
from harness.guests.peers import Network
from harness.lab import Lab
from harness.pace import stretch, stretch_whole
from harness.plugin import track_network
from harness.policy import Agent, Plan, evaluate_many, reference_plan
from harness.probes import lifetime
from harness.probes.attempts import order
from harness.probes.crashes import Crash
from harness.probes.lifetime import REMOVE_TABLES, STOP_GUARD, Boot, find_table, give_routes
from harness.probes.programs import Answers, start_inside, wait_until
from harness.probes.rules import rules_listing
from harness.vm.machine import Machine

claim = pytest.mark.claim
TABLE_UNIT = "nftables.service"
GUARD = "systemctl start tentaflake-guard.service"


@claim("F6")
def test_every_agent_requires_the_table_and_starts_after_it(
    shared_machine: Machine, agents: Mapping[str, Agent]
) -> None:
    """As systemd has read it; what comes of it, the tests below show. The control is a service that does not."""

    def waits(unit: str) -> list[bool]:
        said = shared_machine.host.check_output("systemctl show --property=Requires,After %s", unit)
        return [TABLE_UNIT in line.split("=")[1].split() for line in said.splitlines()]

    assert waits("systemd-journald.service") == [False, False]
    assert {name: waits(f"{agent.service.name}.service") for name, agent in agents.items()} == {
        name: [True, True] for name in agents
    }


@claim("F6")
def test_no_agent_runs_before_the_table_is_loaded(boot: Boot, agents: Mapping[str, Agent]) -> None:
    """All agents that start by themselves wait; that they run later is the control."""
    started = [agent.name for agent in agents.values() if agent.auto_start]
    assert [boot.held[name] for name in started] == [""] * len(started)
    assert all(boot.mended[name] for name in started)


@claim("F6")
def test_no_agent_runs_when_the_table_cannot_be_loaded(boot: Boot, agents: Mapping[str, Agent]) -> None:
    assert boot.failed["docker"]  # the control: Docker does, so a container could
    assert [name for name in agents if boot.failed[name]] == []
    assert boot.started == []


@claim("F6")
def test_the_journal_has_the_table_before_every_container(booted_machine: Machine, boot: Boot) -> None:
    query = "journalctl --boot --output=json --output-fields=UNIT,MESSAGE,JOB_RESULT _PID=1"
    entries = [json.loads(line) for line in booted_machine.host.check_output(query).splitlines()]
    at = [(int(e["__MONOTONIC_TIMESTAMP"]), e.get("UNIT", ""), e.get("JOB_RESULT")) for e in entries]
    loaded = [time for time, unit, result in at if unit == "nftables.service" and result == "done"]
    containers = [
        time for time, unit, result in at if unit.startswith("docker-") and unit.endswith(".scope") and result
    ]
    assert containers
    assert min(loaded) < min(containers)


@claim("F6")
def test_the_table_outlives_a_restart_of_docker(crashes: Mapping[str, Crash]) -> None:
    before, after = crashes["a restart of Docker"].before, crashes["a restart of Docker"].after
    assert before.running["docker"] != after.running["docker"]
    assert [rule for rule in before.rules if rule not in after.rules] == []


@claim("F6")
def test_a_broken_file_changes_nothing(machine: Machine) -> None:
    """Not even what is right in it; the control is the same file without its last line."""
    host = machine.host
    before = host.check_output("sh -c %s", rules_listing())
    changed = f"cat {find_table(host)} > /run/new.nft && echo 'add chain inet tentaflake added' >> /run/new.nft"
    host.check_output(f"{STOP_GUARD} && {changed} && (cat /run/new.nft; echo broken) > /run/broken.nft")
    assert host.run("nft -f /run/broken.nft").rc != 0
    assert host.check_output("sh -c %s", rules_listing()) == before
    host.check_output("nft -f /run/new.nft")
    assert host.check_output("sh -c %s", rules_listing()) != before


@pytest.fixture
def crossfire(machine: Machine, agents: Mapping[str, Agent]) -> tuple[Answers, Answers]:
    """The first agent sends to the second without an end: what was sent, and what came."""
    if len(agents) < 2:
        raise ControlFailed("there is nobody to attack: the host has one agent only")
    first, second = list(agents.values())[:2]
    for agent in (first, second):
        give_routes(machine.host, agent)
    target = (second.network.ipv4.address, second.network.ipv6.address)
    came = start_inside(machine, second, lifetime.RECEIVER, TARGET=target)
    wait_until("a receiver", lambda: came() != [])
    sent = start_inside(machine, first, lifetime.SENDER, TARGET=target)
    wait_until("a sender", lambda: sent() != [])
    return sent, came


def try_again(sent: Answers) -> None:
    """Until all has been tried anew some hundred times."""
    before = sent()[-1]
    wait_until("some hundred datagrams more", lambda: sent()[-1] >= before + 300)


REMOVE_ROUTING = "ip -4 rule del priority 4701 && ip -6 rule del priority 4701"


@claim("F6")
@pytest.mark.recorded
def test_without_any_rule_agents_do_not_reach_each_other_until_the_guard_loads_the_table(
    machine: Machine, crossfire: tuple[Answers, Answers]
) -> None:
    """The controls: without the routing rules they do, and with the table alone they do not."""
    host, (sent, came) = machine.host, crossfire
    host.check_output(f"{STOP_GUARD} && {REMOVE_TABLES}")
    try_again(sent)
    assert came() == [[0, 0]]
    host.check_output(REMOVE_ROUTING)
    wait_until("an agent that reaches another", lambda: min(came()[-1]) > 0)
    host.check_output(GUARD)
    try_again(sent)  # what was on its way has come
    before = came()[-1]
    try_again(sent)
    assert came()[-1] == before


@claim("F6")
@pytest.mark.recorded
def test_nothing_gets_through_while_the_table_is_loaded_again(
    machine: Machine, crossfire: tuple[Answers, Answers]
) -> None:
    """Again and again, by hand and as a switch does it, with nothing else that would refuse it.

    The control is what comes without the table.
    """
    host, (sent, came) = machine.host, crossfire
    load = f"nft -f {find_table(host)}"
    host.check_output(f"{STOP_GUARD} && {REMOVE_TABLES} && {load} && {REMOVE_ROUTING}")
    before = sent()[-1]
    host.check_output(f"for i in $(seq 15); do {load} || exit; done")
    host.check_output("for i in $(seq 5); do systemctl reload nftables.service || exit; done")
    assert sent()[-1] > before
    assert came() == [[0, 0]]
    host.check_output("nft delete table inet tentaflake")
    wait_until("an agent that reaches another", lambda: min(came()[-1]) > 0)


@pytest.fixture(scope="session")
def open_plan(lab: Lab, plan: Plan) -> Plan:
    """The plan under test if an agent of it is on the internet, else the reference host's."""
    online = any(agent.egress == "internet" for agent in plan.agents.values())
    return plan if online else lab.adapt(reference_plan())


@pytest.fixture
def open_network(request: pytest.FixtureRequest, lab: Lab, open_plan: Plan) -> Iterator[Network]:
    with track_network(request.config, lab.network(open_plan, ["internet"])) as made:
        yield made


@pytest.fixture
def online(open_plan: Plan) -> Agent:
    return next(agent for agent in open_plan.agents.values() if agent.egress == "internet")


@claim("F6")
def test_the_guard_is_called_every_half_minute(shared_machine: Machine) -> None:
    """What it does when it is called, the tests below show."""
    timer = shared_machine.host.check_output("systemctl list-timers --no-pager tentaflake-guard.timer")
    assert "tentaflake-guard.service" in timer
    every = shared_machine.host.check_output("systemctl show -P TimersMonotonic tentaflake-guard.timer")
    assert "OnUnitActiveUSec=30s" in every


@claim("F6")
@pytest.mark.recorded
def test_a_flushed_table_lets_nothing_out_or_in_until_the_guard_loads_it(open_network: Network, online: Agent) -> None:
    """Not even SSH, which the host's settings open."""
    host, internet = open_network.host.host, open_network.internet

    def passes() -> tuple[bool, bool]:
        fetched = order(host, online, f"busybox wget -q -T {stretch_whole(5)} -O - http://9.9.9.9/")
        greeted = internet.run(f"busybox nc -w {stretch_whole(5)} {HOST.ipv4} 22 < /dev/null").text
        return internet.token in fetched, greeted.startswith("SSH-")

    assert passes() == (True, True)
    host.check_output(f"{STOP_GUARD} && nft flush table inet tentaflake")
    assert passes() == (False, False)
    host.check_output(GUARD)
    assert passes() == (True, True)


@claim("F6")
@pytest.mark.recorded
def test_an_open_connection_ends_with_the_grant_that_it_had(
    open_network: Network, open_plan: Plan, online: Agent
) -> None:
    """Reloading the same table is the control: the connection goes on."""
    host = open_network.host
    host.run(STOP_GUARD).check()
    answered = start_inside(host, online, lifetime.SPEAKER, TARGET=("9.9.9.9", 80), PATIENCE=stretch(3.0))
    wait_until("an open connection", lambda: len(answered()) > 1)
    host.run(["nft", "-f", find_table(host.host)]).check()
    before = len(answered())
    wait_until("an answer", lambda: len(answered()) > before + 1)
    assert all(answered())
    without = evaluate_many([[{"name": agent.name, "uid": agent.uid} for agent in open_plan.agents.values()]])[0]
    assert isinstance(without, Plan)
    host.run(["nft", "-f", "-"], stdin=activate.firewall(msgspec.to_builtins(without)).encode()).check()
    before = len(answered())
    wait_until("a last word, or twenty more", lambda: not answered()[-1] or len(answered()) > before + 20)
    assert not answered()[-1], "the connection goes on"
