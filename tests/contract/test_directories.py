"""D1 to D3: an agent's files are its own, and nothing is shared sideways."""

from collections.abc import Callable, Mapping
from itertools import combinations

import pytest

from harness.policy import Agent
from harness.probes.containers import main_pid, namespaces
from harness.probes.sharing import PLACES
from harness.probes.ways import find_ways
from harness.vm.machine import Machine
from tests.contract.conftest import Restarted

claim = pytest.mark.claim


@claim("D1")
def test_state_directories_are_private_to_their_agents(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    for agent in agents.values():
        directory = shared_machine.host.file(agent.state_dir)
        assert directory.is_directory
        assert (directory.mode, directory.user, directory.group) == (0o700, agent.user, agent.group)
        assert (directory.uid, directory.gid) == (agent.uid, agent.gid)


@claim("D1")
def test_all_in_a_state_directory_is_the_agents_after_use(restarted: Restarted) -> None:
    """After its agent has been at work and was restarted; the control is a file of root's, which is found."""
    host, agent = restarted.machine.host, restarted.agent
    foreign = f"find {agent.state_dir} -xdev ! \\( -user {agent.uid} -group {agent.gid} \\)"
    assert "a/b/c" in host.check_output(f"find {agent.state_dir}")
    assert host.check_output(foreign) == ""
    host.check_output("touch %s/of-root", agent.state_dir)
    assert host.check_output(foreign) == f"{agent.state_dir}/of-root"
    host.check_output("rm %s/of-root", agent.state_dir)


@claim("D2")
@pytest.mark.parametrize("way", [way.name for way in find_ways("D2")])
def test_agent_cannot_reach_the_files_of_others(way: str, outcomes: Callable[..., None]) -> None:
    outcomes(way)


@claim("D3")
@pytest.mark.parametrize("way", [way.name for way in find_ways("D3")])
def test_agent_cannot_use_what_serves_all(way: str, outcomes: Callable[..., None]) -> None:
    outcomes(way)


@claim("D3")
@pytest.mark.parametrize("way", [place.way for place in PLACES])
def test_agent_cannot_leave_anything_that_a_neighbour_finds(way: str, outcomes: Callable[..., None]) -> None:
    outcomes(way)


@claim("D3")
def test_agents_share_no_namespace(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    host = shared_machine.host
    pids = {name: main_pid(host, agent) for name, agent in agents.items()}
    found = dict(zip(["host", *pids], namespaces(host, [1, *pids.values()]), strict=True))
    assert namespaces(host, [1, 1])[0] == found["host"]  # the control: the same process, the same namespaces
    for one, other in combinations(found, 2):
        common = [kind for kind in found[one] if found[one][kind] == found[other][kind]]
        assert common == [], f"{one} and {other} share the namespaces {common}"
