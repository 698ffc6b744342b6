"""U1 to U3: who an agent is, and what it can do to the processes of others."""

from collections.abc import Callable, Mapping

import pytest

from harness.policy import Agent
from harness.vm.machine import Machine
from tests.contract.conftest import Changed

claim = pytest.mark.claim


@claim("U1")
def test_each_agent_has_its_own_system_user_and_group(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    host = shared_machine.host
    for agent in agents.values():
        user = host.user(f"hermes-{agent.name}")
        assert (user.uid, user.gid, user.groups) == (agent.uid, agent.gid, [f"hermes-{agent.name}"])
        assert user.home == agent.state_dir
    assert len({agent.uid for agent in agents.values()}) == len(agents)
    assert host.user("root").groups == ["root"]  # the control: the same question has an answer for root


@claim("U1")
def test_no_agent_is_in_a_privileged_group(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    members = {
        line.split(":")[0]: line.split(":")[3].split(",")
        for line in shared_machine.host.check_output("getent group").splitlines()
    }
    assert "docker" in members  # the control: the group that would matter most is there
    for agent in agents.values():
        assert [group for group, users in members.items() if agent.user in users] == []


@claim("U1")
def test_no_agent_has_a_password_or_a_login_shell(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    host = shared_machine.host
    for agent in agents.values():
        assert host.user(agent.user).shell.rpartition("/")[2] == "nologin"  # wherever the host has it
        password = host.check_output("getent shadow %s", agent.user).split(":")[1]
        assert password.startswith(("!", "*")), f"{agent.user} has the password field {password!r}"


@claim("U1")
def test_no_agent_can_log_in(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    """By su as root, who needs no password; the control is a user with a shell."""
    host = shared_machine.host
    assert host.run("su - nobody -s /bin/sh -c 'echo in'").stdout == "in\n"
    for agent in agents.values():
        refused = host.run("su - %s -c 'echo in'", agent.user)
        assert refused.rc != 0
        assert "in\n" not in refused.stdout
        assert "not available" in refused.stdout + refused.stderr


@claim("U2")
@pytest.mark.parametrize("way", ["read the environment", "read the memory", "send a signal", "trace with ptrace"])
def test_agent_cannot_touch_the_processes_of_others(way: str, outcomes: Callable[..., None]) -> None:
    outcomes(way)


@claim("U3")
def test_changing_the_agents_leaves_the_others_as_they_are(changed: Changed) -> None:
    """The last agent was renamed, and one came; the others keep uid, gid and files, inode for inode."""
    assert all(str(agent.uid) in changed.before for agent in changed.kept)  # the control: there is something to compare
    assert changed.machine.host.user("hermes-newcomer").exists  # the control: the switch did happen
    assert changed.after == changed.before
