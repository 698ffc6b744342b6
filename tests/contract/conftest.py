"""One restart of an agent, after a day's use; several claims look at what is left of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from harness.lab import Lab
from harness.plugin import track_machine
from harness.policy import Agent, Plan
from harness.probes.attempts import order
from harness.probes.containers import container_id
from harness.vm.machine import Machine


@dataclass(frozen=True)
class Restarted:
    """``agent`` was restarted; ``before`` and ``after`` are the ids of its container.

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


@pytest.fixture(scope="session")
def restarted(restarted_machine: Machine, lab: Lab, agents: Mapping[str, Agent]) -> Restarted:
    host, agent = restarted_machine.host, next(iter(agents.values()))
    assert order(host, agent, USE.format(state=agent.state_dir)) == "lost"
    decoy = lab.image.manifest["images"]["decoy"]
    host.check_output("docker tag %s %s:latest", decoy, agent.container.image.split("@")[0])
    before = container_id(host, agent)
    host.check_output("systemctl restart %s", agent.service.name)
    lab.guest.wait_agents(restarted_machine)
    return Restarted(restarted_machine, agent, before, container_id(host, agent), decoy.split("@")[1])


@pytest.fixture(scope="session")
def restarted_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    with track_machine(request.config, lab, plan) as made:
        yield made
