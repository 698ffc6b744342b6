"""C6: whatever crashes comes back, with its rules, and its neighbours do not notice."""

from collections.abc import Mapping

import pytest

from harness.contract import ControlFailed
from harness.guests.peers import Network
from harness.pace import stretch_whole
from harness.policy import Agent
from harness.probes.attempts import order
from harness.probes.crashes import OF_AN_AGENT, OF_THE_HOST, SERVICES, Crash, crash, crash_unheard
from harness.vm.machine import Machine

claim = pytest.mark.claim


def check_neighbours(crashed: Crash) -> None:
    """One agent is another process now, and all others are those that they were."""
    before, after = crashed.before.running, crashed.after.running
    if len(before.keys() - set(SERVICES)) < 2:
        raise ControlFailed("there is no neighbour: the host has one agent only")
    assert [name for name in before if before[name] != after[name]] == [crashed.agent]


@claim("C6")
@pytest.mark.recorded
def test_a_killed_agent_restarts_and_its_neighbours_do_not_notice(
    machine: Machine, agents: Mapping[str, Agent]
) -> None:
    agent = next(iter(agents.values()))
    crashed = crash(machine.host, agents, "its first process", agent)
    check_neighbours(crashed)
    assert crashed.after.rules == crashed.before.rules


@claim("C6")
@pytest.mark.recorded
def test_an_agent_of_whose_crash_docker_does_not_hear_restarts(machine: Machine, agents: Mapping[str, Agent]) -> None:
    """The control: containerd, from whom Docker hears of crashes, is another process now; and nobody else is."""
    agent = next(iter(agents.values()))
    crashed = crash_unheard(machine.host, agents, agent)
    before, after = crashed.before.running, crashed.after.running
    assert {name for name in before if before[name] != after[name]} == {agent.name, "containerd"}


@claim("C6")
@pytest.mark.parametrize("what", [what for what in OF_AN_AGENT if what != "its first process"])
def test_an_agent_whose_container_crashes_restarts_alone(crashes: Mapping[str, Crash], what: str) -> None:
    check_neighbours(crashes[what])


@claim("C6")
@pytest.mark.parametrize("what", OF_THE_HOST)
def test_every_agent_runs_after_a_crash_of_the_host(crashes: Mapping[str, Crash], what: str) -> None:
    """The control: what crashed is another process now."""
    before, after = crashes[what].before.running, crashes[what].after.running
    service = "containerd" if what == "containerd" else "docker"
    assert after[service] != before[service]
    assert [name for name in after if not after[name]] == []


@claim("C6")
def test_agents_outlive_containerd(crashes: Mapping[str, Crash]) -> None:
    before, after = crashes["containerd"].before.running, crashes["containerd"].after.running
    assert [name for name in before if before[name] != after[name]] == ["containerd"]


@claim("C6")
@pytest.mark.parametrize("what", [*OF_THE_HOST, "its container's shim", "its docker run"])
def test_every_rule_is_back_after_a_crash(crashes: Mapping[str, Crash], what: str) -> None:
    """The table's, the routing rules and Docker's own."""
    before, after = crashes[what].before.rules, crashes[what].after.rules
    assert any('"hook":"forward"' in rule for rule in before)  # the control: we can see them
    assert any("prohibit" in rule for rule in before)
    assert any("-j MASQUERADE" in rule for rule in before)
    assert after == before


@claim("C6")
def test_an_agent_has_its_way_out_again_after_all_crashes(
    crashed_network: Network, agents: Mapping[str, Agent]
) -> None:
    """By egress internet, and by none none; that the host itself reaches both addresses is the control."""
    host, internet = crashed_network.host.host, crashed_network.internet
    fetch = f"for address in 9.9.9.9 10.1.2.3; do busybox wget -q -T {stretch_whole(3)} -O - http://$address/; done"
    if host.run(fetch).stdout.count(internet.token) != 2:
        raise ControlFailed("the host itself does not reach the world")
    granted = {"none": 0, "internet": 1}
    for agent in agents.values():
        if isinstance(agent.egress, str):
            assert order(host, agent, fetch).count(internet.token) == granted[agent.egress], agent.name
