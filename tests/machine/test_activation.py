"""Activation in the machine: nothing is restarted in vain, a bad plan changes nothing, and there is a way back."""

from collections.abc import Iterator, Mapping

import msgspec
import pytest

from harness.lab import Lab
from harness.plugin import track_machine
from harness.policy import Plan
from harness.vm.machine import Machine
from harness.vm.shell import CommandFailed

REGISTRY = "tentaflake.invalid"
UNKNOWN = f"{REGISTRY}/nobody-has-this"


def containers(machine: Machine) -> dict[str, str]:
    """Name to id, time of start and image of every container."""
    form = "{{.Name}} {{.Id}} {{.State.StartedAt}} {{.Config.Image}}"
    listing = machine.run(f"docker inspect --format '{form}' $(docker ps --all --quiet)").check().text
    return dict(line.split(" ", 1) for line in listing.splitlines())


def generation(machine: Machine) -> str:
    return machine.run("readlink /var/lib/tentaflake/current").check().text.strip()


def with_container(plan: Plan, name: str, **changes: object) -> Plan:
    """``plan`` with another container for one agent."""
    agent = plan.agents[name]
    container = msgspec.structs.replace(agent.container, **changes)
    return msgspec.structs.replace(
        plan, agents={**plan.agents, name: msgspec.structs.replace(agent, container=container)}
    )


def test_switching_to_the_same_plan_restarts_nothing(machine: Machine, lab: Lab, plan: Plan) -> None:
    before = containers(machine)
    assert len(before) == len(plan.agents)
    lab.guest.activate(machine, plan)
    assert containers(machine) == before


class Refused(msgspec.Struct):
    """What a switch to a plan with an image that nobody has left behind."""

    agent: str
    message: str
    generations: tuple[str, str]
    containers: tuple[dict[str, str], dict[str, str]]


@pytest.fixture(scope="module")
def refusing_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    with track_machine(request.config, lab.machine(plan)) as made:
        yield made


@pytest.fixture(scope="module")
def refused(refusing_machine: Machine, lab: Lab, plan: Plan) -> Refused:
    machine, name = refusing_machine, next(iter(plan.agents))
    # A registry that refuses at once: with no answer at all, each of Docker's attempts takes a minute.
    machine.run(f"echo 127.0.0.1 {REGISTRY} >> /etc/hosts").check()
    before = generation(machine), containers(machine)
    with pytest.raises(CommandFailed) as failed:
        lab.guest.activate(machine, with_container(plan, name, image=f"{UNKNOWN}@sha256:{'0' * 64}"))
    after = generation(machine), containers(machine)
    return Refused(name, str(failed.value), (before[0], after[0]), (before[1], after[1]))


def test_a_plan_whose_image_nobody_has_is_refused_with_the_agents_name(refused: Refused) -> None:
    assert "exit code 1" in refused.message
    assert f"hermes-{refused.agent}" in refused.message


def test_the_refusal_says_what_the_agent_lacks(refused: Refused) -> None:
    assert UNKNOWN in refused.message


def test_after_a_refused_plan_the_former_generation_is_in_force(refused: Refused) -> None:
    before, after = refused.generations
    assert after == before


def test_after_a_refused_plan_the_other_agents_were_not_touched(refused: Refused) -> None:
    before, after = refused.containers
    own = f"/hermes-{refused.agent}"
    assert {name: it for name, it in after.items() if name != own} == {k: v for k, v in before.items() if k != own}


def test_after_a_refused_plan_the_agent_runs_its_former_image(refused: Refused) -> None:
    before, after = (found[f"/hermes-{refused.agent}"].split()[-1] for found in refused.containers)
    assert after == before


def test_a_rollback_brings_the_former_plan_back(machine: Machine, lab: Lab, plan: Plan) -> None:
    name = next(iter(plan.agents))
    environment = plan.agents[name].container.environment
    changed = with_container(plan, name, environment={**environment, "NEW": "in the second plan"})
    former = generation(machine)
    assert "NEW" not in environment_of(machine, name)
    lab.guest.activate(machine, changed)
    assert environment_of(machine, name)["NEW"] == "in the second plan"
    lab.guest.roll_back(machine)
    assert "NEW" not in environment_of(machine, name)
    assert generation(machine) == former


def environment_of(machine: Machine, agent: str) -> Mapping[str, str]:
    form = "{{range .Config.Env}}{{println .}}{{end}}"
    text = machine.run(["docker", "inspect", "--format", form, f"hermes-{agent}"]).check().text
    return dict(line.split("=", 1) for line in text.splitlines() if line)
