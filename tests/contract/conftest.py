"""One restart of an agent, after a day's use; several claims look at what is left of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from harness.lab import Lab
from harness.plugin import track_machine
from harness.policy import Agent, Plan
from harness.vm.machine import Machine


@dataclass(frozen=True)
class Restarted:
    """``agent`` was restarted; ``before`` and ``after`` are the ids of its container.

    ``retagged`` is the digest of another image that got the pinned image's name and tags meanwhile.
    """

    machine: Machine
    agent: Agent
    before: str
    after: str
    retagged: str


USE = """
cd {state} && mkdir -p a/b && echo x > a/b/c && ln -s /etc/passwd link && mkfifo fifo && echo kept > kept
echo lost > /tmp/lost && echo lost > /dev/shm/lost && cat /tmp/lost"""


@pytest.fixture(scope="session")
def restarted(restarted_machine: Machine, lab: Lab, agents: Mapping[str, Agent]) -> Restarted:
    host, agent = restarted_machine.host, next(iter(agents.values()))
    name, container = agent.container.image.split("@")[0], agent.container.name
    inspect = "docker inspect --format {{.Id}} %s"
    assert host.check_output("docker exec %s sh -c %s", container, USE.format(state=agent.state_dir)) == "lost"
    retagged = host.check_output(
        "docker export $(docker create %s) | docker import --change 'CMD [\"/bin/agent\"]' - %s:pinned",
        agent.container.image,
        name,
    )
    host.check_output("docker tag %s %s:latest", f"{name}:pinned", name)
    before = host.check_output(inspect, container)
    host.check_output("systemctl restart %s", agent.service.name)
    lab.guest.wait_agents(restarted_machine)
    return Restarted(restarted_machine, agent, before, host.check_output(inspect, container), retagged)


@pytest.fixture(scope="session")
def restarted_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    with track_machine(request.config, lab, plan) as made:
        yield made
