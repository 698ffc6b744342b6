"""Secrets on a machine: a rotated value arrives, and the age files are all that is kept."""

from harness.guests.canaries import canary
from harness.lab import Lab
from harness.policy import Plan
from harness.probes.attempts import order
from harness.secrets import encrypt
from harness.vm.machine import Machine
from tests.contract.conftest import files_with
from tests.machine.test_activation import containers


def test_a_rotated_secret_restarts_its_agent_alone_which_sees_the_new_value(
    machine: Machine, lab: Lab, plan: Plan
) -> None:
    agent = plan.agents["writer"]
    [secret] = agent.secrets
    before = containers(machine)
    key = machine.run(f"cat {plan.host.secrets_identity}.pub").check().text.strip()
    lab.guest.activate(machine, plan, files_with(machine, plan, {secret.file: encrypt(b"rotated", [key])}))
    assert order(machine.host, agent, f"cat {secret.target}") == "rotated"
    after = containers(machine)
    assert {name for name in after if after[name] != before[name]} == {"/hermes-writer"}
    lab.guest.roll_back(machine)
    assert order(machine.host, agent, f"cat {secret.target}").encode() == canary(secret.file)
