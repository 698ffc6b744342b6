"""Hosts to which something was done once; several claims look at what is left of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
import pytest

from harness.lab import Lab
from harness.plugin import track_machine
from harness.policy import Agent, Plan, evaluate_many
from harness.probes.attempts import order
from harness.probes.containers import container_id
from harness.vm.machine import Machine


@dataclass(frozen=True)
class Restarted:
    """``agent`` was restarted after a day's use; ``before`` and ``after`` are the ids of its container.

    ``decoy`` is the digest of another image, to which the pinned image's name was moved meanwhile.
    """

    machine: Machine
    agent: Agent
    before: str
    after: str
    decoy: str


USE = """
cd {state} && mkdir -p a/b && echo x > a/b/c && ln -s /etc/passwd link && mkfifo fifo && echo kept > kept
echo lost > /tmp/lost && echo lost > /dev/shm/lost && cat /tmp/lost"""
BEFORE = "/root/before"
"""What was to be remembered of the host as it was before."""


@pytest.fixture(scope="session")
def restarted_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    """The first agent was used and restarted, while its image's name came to mean another image."""
    agent = next(iter(plan.agents.values()))
    decoy = lab.image.manifest["images"]["decoy"]

    def use_and_restart(machine: Machine) -> None:
        host = machine.host
        assert order(host, agent, USE.format(state=agent.state_dir)) == "lost"
        machine.put(container_id(host, agent).encode(), BEFORE)
        host.check_output("docker tag %s %s:latest", decoy, agent.container.image.split("@")[0])
        host.check_output("systemctl restart %s", agent.service.name)
        lab.guest.wait_agents(machine)

    stage = lab.stage(plan, use_and_restart, title=f"using and restarting {agent.name}")
    with track_machine(request.config, lab.fork(stage)) as made:
        yield made


@pytest.fixture(scope="session")
def restarted(restarted_machine: Machine, lab: Lab, agents: Mapping[str, Agent]) -> Restarted:
    host, agent = restarted_machine.host, next(iter(agents.values()))
    before = host.file(BEFORE).content_string
    decoy = lab.image.manifest["images"]["decoy"].split("@")[1]
    return Restarted(restarted_machine, agent, before, container_id(host, agent), decoy)


@dataclass(frozen=True)
class Changed:
    """The agents but ``kept`` were renamed, and one came; ``before`` and ``after`` are who the kept ones are."""

    machine: Machine
    kept: list[Agent]
    before: str
    after: str


IDENTITY = """
for user in {users}; do
  getent passwd $user; getent group $user
  find "$(getent passwd $user | cut -d: -f6)" -xdev ! -type p -printf '%p %i %U %G %m\\n' | sort
done"""


@pytest.fixture(scope="session")
def changed_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    """The last agent was renamed, and one came."""
    kept = kept_agents(plan)
    names = [f"{name[:18]}-new" for name in plan.agents if name not in {agent.name for agent in kept}] + ["newcomer"]
    specs: list[dict[str, object]] = [{"name": agent.name, "uid": agent.uid} for agent in kept]
    evaluated = evaluate_many([specs + [{"name": name, "autoStart": False} for name in names]])[0]
    assert isinstance(evaluated, Plan)
    adapted = lab.adapt(evaluated)
    # The kept agents are those of the plan under test, whatever else their specs say.
    changed = msgspec.structs.replace(adapted, agents={**adapted.agents, **{agent.name: agent for agent in kept}})

    def change(machine: Machine) -> None:
        machine.put(machine.run(identity_of(kept)).check().stdout, BEFORE)
        lab.guest.activate(machine, changed)

    stage = lab.stage(plan, change, title="renaming an agent and adding one", changed=changed.digest)
    with track_machine(request.config, lab.fork(stage)) as made:
        yield made


@pytest.fixture(scope="session")
def changed(changed_machine: Machine, plan: Plan) -> Changed:
    kept = kept_agents(plan)
    before = changed_machine.run(["cat", BEFORE]).check().text
    return Changed(changed_machine, kept, before, changed_machine.run(identity_of(kept)).check().text)


def kept_agents(plan: Plan) -> list[Agent]:
    everybody = list(plan.agents.values())
    return everybody[:-1] or everybody


def identity_of(agents: list[Agent]) -> str:
    """A script that prints uid, gid and files, inode for inode."""
    return IDENTITY.format(users=" ".join(agent.user for agent in agents))
