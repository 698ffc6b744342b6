"""Hosts to which something was done once; several claims look at what is left of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harness.contract import ControlFailed
from harness.guests.canaries import canaries
from harness.guests.peers import Network
from harness.lab import Lab
from harness.plugin import track_machine, track_network
from harness.policy import Agent, AgentSecret, Plan, Secret, evaluate_many, evaluate_specs
from harness.probes.attempts import order
from harness.probes.containers import container_id
from harness.probes.crashes import Crash, crash_all
from harness.probes.deployment import who_runs
from harness.probes.lifetime import Boot, boot_in_steps
from harness.secrets import encrypt
from harness.vm.machine import Machine
from harness.vm.shell import CommandFailed
from harness.vm.template import Template


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "guest(name): only where this guest is attacked")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what is about another guest, before anything is made for it."""
    marker = item.get_closest_marker("guest")
    if marker and item.config.getoption("vm_guest") not in marker.args:
        item.user_properties.append(("inapplicable", True))
        pytest.skip(f"it is about the {marker.args[0]} guest")


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
BEFORE, RUNNING = "/root/before", "/root/running.json"
"""What was to be remembered of the host as it was before."""


@pytest.fixture(scope="session")
def restarted_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    """The first agent was used and restarted, while its image's name came to mean another image."""
    agent = next(iter(plan.agents.values()))
    decoy = lab.image.manifest["images"]["decoy"]

    def use(machine: Machine) -> None:
        host = machine.host
        if (said := order(host, agent, USE.format(state=agent.state_dir))) != "lost":
            raise ControlFailed(f"{agent.name} could not be used: {said}")
        machine.put(container_id(host, agent).encode(), BEFORE)
        host.check_output("docker tag %s %s:latest", decoy, agent.container.image.split("@")[0])

    def restart(machine: Machine) -> None:
        machine.host.check_output("systemctl restart %s", agent.service.name)
        lab.guest.wait_agents(machine)

    used = lab.stage(plan, use, title=f"using {agent.name}")
    stage = lab.next_stage(used, restart, title=f"restarting {agent.name}")
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
    """The agents but ``kept`` were renamed, and one came; ``before`` and ``after`` are who the kept ones are.

    ``running`` is every process of those of them that run, before and after (``deployment.who_runs``).
    """

    machine: Machine
    kept: list[Agent]
    before: str
    after: str
    running: list[dict[str, list[str]]]


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
    agents = {**adapted.agents, **{agent.name: agent for agent in kept}}
    users = {agent.user for agent in kept}
    secrets = {name: secret for name, secret in plan.secrets.items() if secret.owner in users}
    changed = msgspec.structs.replace(adapted, agents=agents, secrets=secrets)

    def change(machine: Machine) -> None:
        machine.put(machine.run(identity_of(kept)).check().stdout, BEFORE)
        started = [agent for agent in kept if agent.auto_start]
        running = [who_runs(machine.host, started)]
        lab.guest.activate(machine, changed)
        machine.put(msgspec.json.encode([*running, who_runs(machine.host, started)]), RUNNING)

    stage = lab.stage(plan, change, title="renaming an agent and adding one", changed=changed.digest)
    with track_machine(request.config, lab.fork(stage)) as made:
        yield made


@pytest.fixture(scope="session")
def changed(changed_machine: Machine, plan: Plan) -> Changed:
    kept = kept_agents(plan)
    before = changed_machine.run(["cat", BEFORE]).check().text
    running = msgspec.json.decode(changed_machine.run(["cat", RUNNING]).check().stdout)
    return Changed(changed_machine, kept, before, changed_machine.run(identity_of(kept)).check().text, running)


NEW = "a-secret-that-came"
REFUSAL = "/root/refusal"
SINCE = "/root/since"
"""What the switch said, and since when the machine is as if it had been booted, in seconds of the clock."""


@dataclass(frozen=True)
class Lacking:
    """``agent`` got one more secret, which is encrypted for somebody else, and the machine was as good as rebooted.

    ``said`` is what the switch answered, ``journal`` what each unit logged since.
    """

    machine: Machine
    agent: Agent
    said: str
    journal: str


def with_secret(plan: Plan, agent: Agent, name: str) -> Plan:
    """``plan`` with one more secret for an agent."""
    file = f"secrets/{name}.age"
    listed = AgentSecret(name, name, file, "file", None, False, f"/run/agenix/{name}", f"/run/secrets/{name}")
    mount = f"--mount=type=bind,source={listed.path},target={listed.target},readonly"
    container = msgspec.structs.replace(agent.container, options=[*agent.container.options, mount])
    changed = msgspec.structs.replace(agent, secrets=[*agent.secrets, listed], container=container)
    secret = Secret(file, listed.path, "0400", agent.user, agent.group)
    return msgspec.structs.replace(
        plan, agents={**plan.agents, agent.name: changed}, secrets={**plan.secrets, name: secret}
    )


def files_with(machine: Machine, plan: Plan, changed: Mapping[str, bytes]) -> dict[str, bytes]:
    """The age files of a plan's canaries for this machine, some of them changed."""
    key = machine.run(f"cat {plan.host.secrets_identity}.pub").check().text.strip()
    return {**canaries(plan, key), **changed}


def for_somebody_else(value: bytes) -> bytes:
    """``value`` in an age file that nobody can decrypt."""
    key = Ed25519PrivateKey.generate().public_key()
    encoding, kind = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return encrypt(value, [key.public_bytes(encoding, kind).decode()])


@pytest.fixture(scope="session")
def lacking_stage(lab: Lab, plan: Plan) -> Template:
    agent = next(iter(plan.agents.values()))
    wanted = with_secret(plan, agent, NEW)

    def switch_and_boot(machine: Machine) -> None:
        broken = {wanted.secrets[NEW].file: for_somebody_else(b"whatever")}
        files = files_with(machine, wanted, broken)
        with pytest.raises(CommandFailed) as failed:
            lab.guest.activate(machine, wanted, files)
        machine.put(str(failed.value).encode(), REFUSAL)
        machine.run(f"date +%s > {SINCE}").check()
        lab.guest.boot_with(machine, wanted, files)

    return lab.stage(plan, switch_and_boot, title=f"a secret that {agent.name} cannot have", wanted=wanted.digest)


@pytest.fixture(scope="session")
def lacking_machine(request: pytest.FixtureRequest, lab: Lab, lacking_stage: Template) -> Iterator[Machine]:
    with track_machine(request.config, lab.fork(lacking_stage)) as made:
        yield made


@pytest.fixture
def repaired_machine(
    request: pytest.FixtureRequest, lab: Lab, plan: Plan, lacking_stage: Template
) -> Iterator[Machine]:
    """The same machine after a switch to the former plan, whose secrets can all be decrypted."""
    with track_machine(request.config, lab.fork(lacking_stage)) as made:
        lab.guest.activate(made, plan)
        yield made


@pytest.fixture(scope="session")
def lacking(lacking_machine: Machine, plan: Plan) -> Lacking:
    said = lacking_machine.run(f"cat {REFUSAL}").check().text
    journal = lacking_machine.run(f"journalctl --no-pager --since=@$(cat {SINCE})").check().text
    return Lacking(lacking_machine, next(iter(plan.agents.values())), said, journal)


def kept_agents(plan: Plan) -> list[Agent]:
    everybody = list(plan.agents.values())
    return everybody[:-1] or everybody


def identity_of(agents: list[Agent]) -> str:
    """A script that prints uid, gid and files, inode for inode."""
    return IDENTITY.format(users=" ".join(agent.user for agent in agents))


@pytest.fixture(scope="session")
def small_plans(lab: Lab) -> tuple[Plan, Plan]:
    """An agent runs in both and stays. Of those that do not run one goes, one comes and one is changed.

    The host under test is not asked: containers and the speech server take their time to start, and here there are many
    switches.
    """
    stays = {"name": "stays", "egress": "internet"}
    goes, comes = {"name": "goes", "autoStart": False}, {"name": "comes", "autoStart": False, "publish": [9090]}
    changes = {"name": "changes", "autoStart": False}
    one = evaluate_specs([stays, goes, changes])
    other = evaluate_specs([stays, comes, changes | {"settings": {"changed": True}}])
    return lab.adapt(one), lab.adapt(other)


@pytest.fixture
def small_machine(request: pytest.FixtureRequest, lab: Lab, small_plans: tuple[Plan, Plan]) -> Iterator[Machine]:
    """The first of ``small_plans`` is in force."""
    with track_machine(request.config, lab.machine(small_plans[0])) as made:
        yield made


CRASHES = "/root/crashes.json"


@pytest.fixture(scope="session")
def crashed_network(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Network]:
    """A host on which all that runs an agent has crashed, one after the other, and came back; and the world."""

    def crash_and_wait(machine: Machine) -> None:
        done = crash_all(machine.host, plan.agents, lambda: lab.guest.wait_agents(machine))
        machine.put(msgspec.json.encode(done), CRASHES)

    stage = lab.stage(plan, crash_and_wait, title="crashing containers, containerd and Docker")
    with track_network(request.config, lab.network(plan, ["internet"], stage=stage)) as made:
        yield made


@pytest.fixture(scope="session")
def crashes(crashed_network: Network) -> Mapping[str, Crash]:
    """What crashed, by name."""
    text = crashed_network.host.run(["cat", CRASHES]).check().stdout
    return {each.what: each for each in msgspec.json.decode(text, type=list[Crash])}


BOOT = "/root/boot.json"


@pytest.fixture(scope="session")
def booted_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    """It was powered off and on; the unit of the firewall's table waited, and failed."""

    def boot_and_wait(machine: Machine) -> None:
        done = boot_in_steps(machine, plan, lambda: lab.guest.wait_agents(machine))
        machine.put(msgspec.json.encode(done), BOOT)

    stage = lab.stage(plan, boot_and_wait, title="booting without the firewall's table")
    with track_machine(request.config, lab.fork(stage)) as made:
        yield made


@pytest.fixture(scope="session")
def boot(booted_machine: Machine) -> Boot:
    return msgspec.json.decode(booted_machine.run(["cat", BOOT]).check().stdout, type=Boot)
