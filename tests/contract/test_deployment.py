"""X1 to X4: the agents of a host are changed while it runs, and changed back."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from harness.lab import Lab
from harness.plugin import REPOSITORY, judge_outcomes, track_machine
from harness.policy import Agent, Plan, evaluate_specs
from harness.probes.attempts import Outcome, attackers, run_attempts
from harness.probes.deployment import (
    KEPT_STATE_WAYS,
    PLAN,
    Snapshot,
    differences,
    forbid_recovery,
    kill_switch,
    prepare_kills,
    take_snapshot,
    try_kept_state,
    who_runs,
    with_agents,
)
from harness.probes.stage import Target, set_stage
from harness.recycling import Recycler
from harness.vm.machine import Machine
from harness.vm.shell import CommandFailed
from harness.vm.template import BOOT_TIMEOUT, Template, boot_again
from tests.contract.conftest import Changed, files_with

claim = pytest.mark.claim
activation = pytest.mark.guest("debian")
"""Of tests of the activation program; NixOS has its own (``tests/contract/test_nixos_switch.py``)."""
ACTIVATE = "/usr/lib/tentaflake/activate.py"


# --- a host whose agents come and go


class Fleet(msgspec.Struct):
    """What was seen of the agents of the plan under test, which no switch changes: at first, after a switch that added
    two agents, and after one that removed one of these, changed the other, and added a third.

    ``first`` is the host before the two switches, and ``generation`` the number of what was in force then; ``full`` is
    the host between them, ``targets`` what everybody had then, by name.
    """

    running: list[dict[str, list[str]]]
    generation: int
    first: Snapshot
    full: Snapshot
    targets: dict[str, Target]

    @property
    def left(self) -> Target:
        """What the removed agent has left."""
        return self.targets["leaves"]


FLEET = "/root/fleet.json"
LEAVES = {
    "name": "leaves",
    "egress": "internet",
    "secrets": [{"name": "leaves-key", "file": "secrets/leaves-key.age"}],
}
IDLE = {"name": "idle", "autoStart": False}
COMES = {"name": "comes", "egress": "internet"}


@pytest.fixture(scope="session")
def fleet_plans(lab: Lab, plan: Plan) -> tuple[Plan, Plan]:
    """The plan under test with more agents: first leaves and idle, then comes and another idle."""
    full = with_agents(plan, LEAVES, IDLE)
    other = with_agents(plan, COMES, IDLE | {"settings": {"changed": True}})
    return lab.adapt(full), lab.adapt(other)


def running_only(plan: Plan) -> Plan:
    """The plan with those of its agents that start by themselves."""
    agents = {name: agent for name, agent in plan.agents.items() if agent.auto_start}
    return msgspec.structs.replace(plan, agents=agents)


@pytest.fixture(scope="session")
def fleet_stage(lab: Lab, plan: Plan, fleet_plans: tuple[Plan, Plan]) -> Template:
    full, other = fleet_plans

    def come_and_go(machine: Machine) -> None:
        host, kept = machine.host, running_only(plan).agents.values()
        running = [who_runs(host, kept)]
        number = lab.guest.find_generation(machine)
        first = take_snapshot(host)
        lab.guest.activate(machine, full)
        running.append(who_runs(host, kept))
        snapshot = take_snapshot(host)
        everybody = [*attackers(full), *attackers(other)]
        targets = set_stage(host, running_only(full), everybody)
        lab.guest.activate(machine, other)
        running.append(who_runs(host, kept))
        machine.put(msgspec.json.encode(Fleet(running, number, first, snapshot, targets)), FLEET)

    title = "adding, changing and removing agents"
    return lab.stage(plan, come_and_go, title=title, full=full.digest, other=other.digest)


@pytest.fixture(scope="session")
def fleet_machine(request: pytest.FixtureRequest, lab: Lab, fleet_stage: Template) -> Iterator[Machine]:
    with track_machine(request.config, lab.fork(fleet_stage)) as made:
        yield made


@pytest.fixture(scope="session")
def fleet(fleet_machine: Machine) -> Fleet:
    return fleet_of(fleet_machine)


def fleet_of(machine: Machine) -> Fleet:
    return msgspec.json.decode(machine.run(["cat", FLEET]).check().stdout, type=Fleet)


@claim("X1")
@pytest.mark.parametrize("switch", ["that adds agents", "that adds, changes and removes agents"])
def test_agents_that_a_switch_does_not_change_keep_container_and_processes(
    fleet: Fleet, fleet_machine: Machine, switch: str
) -> None:
    """Number, time of start and container of every process."""
    before, *after = fleet.running
    assert before and all(before.values())  # the control: there is something to compare
    assert after[switch == "that adds, changes and removes agents"] == before
    assert fleet_machine.host.user("hermes-comes").exists  # the control: both switches did happen


@claim("X1")
def test_agents_that_stay_when_another_is_renamed_keep_container_and_processes(changed: Changed) -> None:
    before, after = changed.running
    assert before and all(before.values())  # the control: there is something to compare
    assert after == before
    assert changed.machine.host.user("hermes-newcomer").exists  # the control: the switch did happen


@claim("X1")
def test_an_agent_that_a_switch_does_change_is_another_process(machine: Machine, lab: Lab, plan: Plan) -> None:
    """The control of X1's tests: a restart is seen. The others run on."""
    agent, *others = running_only(plan).agents.values()
    config = msgspec.structs.replace(agent.config, content='{"changed":true}')
    changed = {agent.name: msgspec.structs.replace(agent, config=config)}
    before = who_runs(machine.host, [agent, *others])
    lab.guest.activate(machine, msgspec.structs.replace(plan, agents={**plan.agents, **changed}))
    after = who_runs(machine.host, [agent, *others])
    assert after[agent.name] and not set(before[agent.name]) & set(after[agent.name])
    assert all(after[other.name] == before[other.name] for other in others)
    assert machine.host.file(agent.config.path).content_string == config.content


# --- X3: the agent that was removed


@claim("X3")
def test_a_removed_agent_has_no_user_and_cannot_log_in(fleet: Fleet, fleet_machine: Machine) -> None:
    host = fleet_machine.host
    assert any(line.startswith("hermes-leaves:") for line in fleet.full["users"])  # the control: there was one
    assert not host.user("hermes-leaves").exists
    assert host.run("su - nobody -s /bin/sh -c 'echo in'").stdout == "in\n"  # the control
    assert host.run("su - hermes-leaves -s /bin/sh -c 'echo in'").stdout == ""


@claim("X3")
def test_a_removed_agent_has_no_process_unit_network_or_rule(
    fleet: Fleet, fleet_machine: Machine, fleet_plans: tuple[Plan, Plan]
) -> None:
    """Where the name, the bridge or an address of it stood before, none does now."""
    agent = fleet_plans[0].agents["leaves"]
    network = agent.network
    words = ("hermes-leaves", "leaves-key", network.bridge, network.ipv4.subnet, network.ipv4.address)
    now = take_snapshot(fleet_machine.host)

    def mentions(snapshot: Snapshot, name: str) -> list[str]:
        return [line for line in snapshot[name] if any(word in line for word in words)]

    for name in ("users", "groups", "table", "Docker's rules", "bridges", "units", "Docker", "secrets"):
        assert mentions(fleet.full, name), f"{name}: nothing was there before"  # the control
        assert mentions(now, name) == []
    assert fleet_machine.host.run("pgrep -u %s", str(agent.uid)).rc == 1
    assert fleet_machine.host.run("systemctl start %s", agent.service.name).rc == 5


@claim("X3")
def test_the_state_of_a_removed_agent_is_kept_as_it_was(fleet: Fleet, fleet_machine: Machine) -> None:
    host, kept = fleet_machine.host, fleet.left
    found = host.check_output("stat -c '%%a %%u %%g' %s", kept.directory).split()
    uid = re.search(r"hermes-leaves:x:(\d+)", "\n".join(fleet.full["users"]))
    assert uid and found == ["700", uid[1], uid[1]]
    assert host.check_output("cat %s/known", kept.directory) == kept.known


@pytest.fixture(scope="session")
def kept_state_outcomes(fleet: Fleet, fleet_machine: Machine, fleet_plans: tuple[Plan, Plan]) -> list[Outcome]:
    """What comes of every attack on the state that was kept, by all agents that are there now."""
    everybody = attackers(running_only(fleet_plans[1]))
    return run_attempts(fleet_machine.host, try_kept_state("leaves", fleet.targets, everybody))


@claim("X3")
@pytest.mark.parametrize("way", [way.name for way in KEPT_STATE_WAYS])
def test_nobody_reaches_the_state_of_a_removed_agent(
    request: pytest.FixtureRequest, kept_state_outcomes: list[Outcome], way: str
) -> None:
    """Neither the agents that were there before, nor the one that came."""
    judge_outcomes(request, way, [each for each in kept_state_outcomes if each.attempt.way == way])


@claim("X3")
@pytest.mark.parametrize("heir", ["uid", "state directory"])
def test_no_agent_inherits_the_state_of_a_removed_one(
    fleet: Fleet, fleet_machine: Machine, lab: Lab, plan: Plan, fleet_plans: tuple[Plan, Plan], heir: str
) -> None:
    """A new agent with the removed one's uid, or with its directory, is refused, and nothing changes."""
    leaves = fleet_plans[0].agents["leaves"]
    spec = {"name": "heir", "autoStart": False}
    spec |= {"uid": leaves.uid} if heir == "uid" else {"stateDir": leaves.state_dir}
    before = take_snapshot(fleet_machine.host)
    hint = "purge leaves" if lab.guest.name == "debian" else f"rm -r {leaves.state_dir}"
    with pytest.raises(CommandFailed, match=hint):
        lab.guest.activate(fleet_machine, lab.adapt(with_agents(fleet_plans[1], spec)))
    assert differences(before, take_snapshot(fleet_machine.host)) == []
    assert fleet_machine.host.file(leaves.state_dir).uid == leaves.uid


@activation
@claim("X3")
def test_purging_deletes_a_removed_agents_state_and_nobody_elses(
    lab: Lab, fleet_stage: Template, agents: Mapping[str, Agent], request: pytest.FixtureRequest
) -> None:
    with track_machine(request.config, lab.fork(fleet_stage)) as machine:
        host, present, fleet = machine.host, next(iter(agents.values())), fleet_of(machine)
        assert host.run(f"{ACTIVATE} purge --yes {present.name}").rc == 2
        assert host.run(f"{ACTIVATE} purge leaves").rc == 2, "nobody was there to be asked"
        assert fleet.left.directory in host.check_output(f"{ACTIVATE} purge")
        host.check_output(f"{ACTIVATE} purge --yes leaves")
        assert not host.file(fleet.left.directory).exists
        assert host.file(present.state_dir).exists
        assert host.run(f"{ACTIVATE} purge --yes leaves").rc == 2


# --- X2: the way back


@claim("X2")
@pytest.mark.recorded
def test_a_rollback_brings_the_former_host_back_exactly(
    request: pytest.FixtureRequest, lab: Lab, fleet_stage: Template, plan: Plan
) -> None:
    """Users, ids, rules, units, configurations, secrets, networks and containers; and nobody else is touched."""
    with track_machine(request.config, lab.fork(fleet_stage)) as machine:
        host, fleet = machine.host, fleet_of(machine)
        assert differences(fleet.full, take_snapshot(host))  # the control: it was another
        lab.guest.roll_back(machine)
        assert differences(fleet.full, take_snapshot(host)) == []
        assert who_runs(host, running_only(plan).agents.values()) == fleet.running[0]
        host.check_output("cat %s/known", fleet.left.directory)


@claim("X2")
def test_a_rollback_goes_to_any_generation_that_is_kept(
    request: pytest.FixtureRequest, lab: Lab, fleet_stage: Template, plan: Plan
) -> None:
    """Not the one before, but the one before that: it knew nothing of the agents that came and went since."""
    with track_machine(request.config, lab.fork(fleet_stage)) as machine:
        fleet = fleet_of(machine)
        assert fleet.first["users"] != fleet.full["users"]  # the control: it is another than the one before
        lab.guest.roll_back(machine, fleet.generation)
        assert differences(fleet.first, take_snapshot(machine.host)) == []
        assert who_runs(machine.host, running_only(plan).agents.values()) == fleet.running[0]


@pytest.fixture
def killed_machine(small_machine: Machine, small_plans: tuple[Plan, Plan]) -> Machine:
    """The same, where the other plan is there to be switched to, and killed."""
    prepare_kills(small_machine, small_plans[1])
    return small_machine


@claim("X2")
def test_a_rollback_takes_back_what_a_switch_did_to_agents_that_do_not_run(
    small_machine: Machine, small_plans: tuple[Plan, Plan], lab: Lab
) -> None:
    """All that the test above looks at, but for what starting a container adds: quick, so it always runs."""
    before = take_snapshot(small_machine.host)
    lab.guest.activate(small_machine, small_plans[1])
    assert differences(before, take_snapshot(small_machine.host))  # the control: it was another
    lab.guest.roll_back(small_machine)
    assert differences(before, take_snapshot(small_machine.host)) == []


def check_unchanged(machine: Machine, before: Snapshot, stays: Agent, process: dict[str, list[str]]) -> None:
    """The host is the former one, exactly, and its agent was not touched."""
    assert differences(before, take_snapshot(machine.host)) == []
    assert who_runs(machine.host, [stays]) == process


@activation
@claim("X2")
@pytest.mark.recorded
def test_a_switch_that_is_killed_before_any_of_its_steps_leaves_the_former_host_in_charge(
    killed_machine: Machine, small_plans: tuple[Plan, Plan]
) -> None:
    """It goes back by itself, each time from the host that the last kill and the way back have left.

    On a model, tests/unit/test_activate_on_a_model.py kills it at its writes to files too.
    """
    host, stays = killed_machine.host, [small_plans[0].agents["stays"]]
    before, process = take_snapshot(host), who_runs(host, stays)
    wrong: list[str] = []
    steps: list[str] = []
    while (step := kill_switch(killed_machine, len(steps))) is not None:
        host.check_output(
            "systemctl start tentaflake-recover.service", timeout=BOOT_TIMEOUT
        )  # waits for it, if it is at work already
        found = differences(before, take_snapshot(host))
        if who_runs(host, stays) != process:
            found.append("the agent that both plans have runs as another process")
        wrong += [f"killed before step {len(steps)}, {step}: {each}" for each in found]
        steps.append(step)
    assert wrong == []
    for word in ("systemd-sysusers", "stop", "userdel", "current", "daemon-reload", "nftables", "switching"):
        assert any(word in step for step in steps), f"no step has to do with {word}: {steps}"  # the control
    assert differences(before, take_snapshot(host))  # the control: the switch that nobody killed has done something


class Busy(msgspec.Struct):
    """A host before or after a switch, and the processes of the agent that no switch changes."""

    host: Snapshot
    process: dict[str, list[str]]


BUSY = "/root/busy.json"
KILLS = {
    "systemd-sysusers": "back",
    "systemctl stop docker-hermes": "on",
    "userdel": "back",
    "os.mkdir /run/agenix.d/": "on",
    "os.rename /run/agenix": "back",
    "nftables.service": "on",
    "start --no-block docker-hermes": "back",
    "os.remove": "on",
}
"""A step of each kind that there is, by a word of it, and where the host goes after a kill there."""


@pytest.fixture(scope="session")
def busy_plans(lab: Lab) -> tuple[Plan, Plan]:
    """As ``small_plans``, but the agent that is changed runs, and has a secret that gets another value.

    And there is the speech server.
    """

    def plan_with(*specs: dict[str, object], file: str) -> Plan:
        changes = {"name": "changes", "secrets": [{"name": "key", "file": file}], "settings": {"changed": file}}
        return lab.adapt(evaluate_specs([{"name": "stays", "egress": "internet", "tts": True}, changes, *specs]))

    goes, comes = {"name": "goes", "autoStart": False}, {"name": "comes", "autoStart": False, "publish": [9090]}
    return plan_with(goes, file="secrets/one.age"), plan_with(comes, file="secrets/other.age")


@pytest.fixture(scope="session")
def busy_stage(lab: Lab, busy_plans: tuple[Plan, Plan]) -> Template:
    """The first of ``busy_plans`` is in force, and nobody goes back but who is told to."""
    one, other = busy_plans

    def look_before(machine: Machine) -> None:
        prepare_kills(machine, other, files_with(machine, other, {}))
        forbid_recovery(machine.host)
        found = Busy(take_snapshot(machine.host), who_runs(machine.host, [one.agents["stays"]]))
        machine.put(msgspec.json.encode(found), BUSY)

    return lab.stage(one, look_before, title="a host whose switches are killed", other=other.digest)


@pytest.fixture(scope="session")
def switched_host(lab: Lab, busy_plans: tuple[Plan, Plan]) -> Snapshot:
    """The host after a switch to the second that nobody killed."""
    one, other = busy_plans

    def look_after(machine: Machine) -> None:
        lab.guest.activate(machine, other)
        machine.put(msgspec.json.encode(take_snapshot(machine.host)), BUSY)

    stage = lab.stage(one, look_after, title="the same after a switch", other=other.digest)
    with lab.fork(stage) as machine:
        return msgspec.json.decode(machine.run(["cat", BUSY]).check().stdout, type=Snapshot)


@dataclass
class KilledHost:
    """A host whose switches are killed: to and fro between its plans, of which the first is in force."""

    machine: Machine
    plans: tuple[Plan, Plan]
    first: Snapshot
    process: dict[str, list[str]]


@pytest.fixture(scope="session")
def killed_hosts(
    request: pytest.FixtureRequest, lab: Lab, busy_stage: Template, busy_plans: tuple[Plan, Plan]
) -> Iterator[Recycler[KilledHost]]:
    @contextmanager
    def make() -> Iterator[KilledHost]:
        with track_machine(request.config, lab.fork(busy_stage)) as machine:
            before = msgspec.json.decode(machine.run(["cat", BUSY]).check().stdout, type=Busy)
            yield KilledHost(machine, busy_plans, before.host, before.process)

    recycler = Recycler(make)
    yield recycler
    recycler.close()


def other_lines(before: Snapshot, after: Snapshot) -> list[str]:
    """The differences of two hosts, but for the age files: each encryption of a value is another one."""
    found = differences(before, after)
    return [each for each in found if not re.match(r"[-+] generation: \w+ +\./secrets/.*\.age$", each)]


@activation
@claim("X2")
@pytest.mark.recorded
@pytest.mark.parametrize("step", KILLS)
def test_after_a_kill_at_a_step_of_any_kind_the_host_can_go_back_or_on(
    lab: Lab, killed_hosts: Recycler[KilledHost], switched_host: Snapshot, step: str
) -> None:
    """A running agent and its secret are changed. The host is a fresh one, or as the test before has left and shown it.

    The first start of a container in a fork costs twice what the next ones cost, and more than a kill: so this is one
    for each kind of step, and the test above has them all.
    """
    with killed_hosts.lend(f"a kill at {step}") as host:
        machine, (one, other) = host.machine, host.plans
        prepare_kills(machine, other, files_with(machine, other, {}))
        before = take_snapshot(machine.host)
        assert kill_switch(machine, step)
        assert machine.host.file("/var/lib/tentaflake/switching").exists  # the control: it was killed at work
        if KILLS[step] == "back":
            machine.host.check_output(f"{ACTIVATE} recover", timeout=BOOT_TIMEOUT)
            check_unchanged(machine, before, one.agents["stays"], host.process)
        else:
            wanted = host.first if host.first["configurations"] != before["configurations"] else switched_host
            assert other_lines(before, wanted)  # the control: it is another host
            lab.guest.activate(machine, other)
            assert other_lines(wanted, take_snapshot(machine.host)) == []
            assert who_runs(machine.host, [one.agents["stays"]]) == host.process
            host.plans = other, one
        assert not machine.host.file("/var/lib/tentaflake/switching").exists


@activation
@claim("X2")
@pytest.mark.recorded
def test_after_a_kill_between_the_hosts_own_services_they_are_as_before(
    request: pytest.FixtureRequest, lab: Lab, busy_stage: Template, busy_plans: tuple[Plan, Plan]
) -> None:
    """Docker was restarted with other settings, and its agents with it; the speech server is about to be stopped."""
    plan = busy_plans[1]
    docker = msgspec.structs.replace(plan.docker, settings={**plan.docker.settings, "debug": True})
    speech = msgspec.structs.replace(plan.speech, units={})
    with track_machine(request.config, lab.fork(busy_stage)) as machine:
        before = msgspec.json.decode(machine.run(["cat", BUSY]).check().stdout, type=Busy)
        machine.put(msgspec.structs.replace(plan, docker=docker, speech=speech).to_json().encode(), PLAN, 0o600)
        assert kill_switch(machine, "systemctl stop tentaflake-tts")
        assert '"debug": true' in machine.host.file("/etc/docker/daemon.json").content_string  # the control
        machine.host.check_output(f"{ACTIVATE} recover", timeout=BOOT_TIMEOUT)
        assert differences(before.host, take_snapshot(machine.host)) == []
        assert machine.host.service("tentaflake-tts.service").is_running


@activation
@claim("X2")
@pytest.mark.parametrize("breakage", ["a table that nft refuses", "settings that Docker refuses", "a disk that fails"])
def test_a_switch_that_fails_leaves_the_former_host_in_charge(
    small_machine: Machine, small_plans: tuple[Plan, Plan], lab: Lab, breakage: str
) -> None:
    """And the next one works. With the disk, going back fails too: it is done as soon as it can be."""
    host, (one, other) = small_machine.host, small_plans
    stays, obstacle = one.agents["stays"], "/var/lib/tentaflake/.current.new"
    before, process = take_snapshot(host), who_runs(host, [stays])
    broken = other
    if breakage == "a table that nft refuses":
        broken = msgspec.structs.replace(other, nftables=msgspec.structs.replace(other.nftables, content="no rule"))
    elif breakage == "settings that Docker refuses":
        settings = {**other.docker.settings, "no-such-setting": True}
        broken = msgspec.structs.replace(other, docker=msgspec.structs.replace(other.docker, settings=settings))
    else:
        host.check_output("mkdir %s", obstacle)  # where the new link is to be made
    with pytest.raises(CommandFailed, match="exit code 1"):
        lab.guest.activate(small_machine, broken)
    host.check_output("! [ -e %s ] || rmdir %s", obstacle, obstacle)
    host.check_output("systemctl start tentaflake-recover.service", timeout=BOOT_TIMEOUT)
    check_unchanged(small_machine, before, stays, process)
    lab.guest.activate(small_machine, other)
    assert host.user("hermes-comes").exists


def wait_booted(machine: Machine) -> None:
    """All that a boot does of itself is done."""
    machine.run("systemctl is-system-running --wait", timeout=BOOT_TIMEOUT)
    machine.run(f"{ACTIVATE} wait", timeout=BOOT_TIMEOUT).check()


@activation
@claim("X2")
@pytest.mark.recorded
def test_a_boot_after_a_switch_that_was_killed_has_the_former_host(killed_machine: Machine) -> None:
    """The power fails when the link names the new generation already."""
    host = killed_machine.host
    before, current = take_snapshot(host), host.check_output("readlink /var/lib/tentaflake/current")
    forbid_recovery(host)
    assert kill_switch(killed_machine, "daemon-reload")
    assert host.check_output("readlink /var/lib/tentaflake/current") != current  # the control: it is behind that step
    host.check_output("sync")
    killed_machine.power_cycle(BOOT_TIMEOUT)
    wait_booted(killed_machine)
    assert differences(before, take_snapshot(host)) == []


@activation
@claim("X2")
@pytest.mark.recorded
def test_a_generation_can_be_chosen_at_boot(
    request: pytest.FixtureRequest, small_machine: Machine, lab: Lab, small_plans: tuple[Plan, Plan]
) -> None:
    """By a word on the kernel's command line, as a boot menu's entry has it."""
    host = small_machine.host
    before, current = take_snapshot(host), host.check_output("readlink /var/lib/tentaflake/current")
    lab.guest.activate(small_machine, small_plans[1])
    assert differences(before, take_snapshot(host))  # the control: another one is in force now
    host.check_output("sync")
    word = f"tentaflake.generation={current.rpartition('/')[2]}"
    with track_machine(request.config, boot_again(small_machine, lab.image, lab.hardware, word)) as machine:
        wait_booted(machine)
        assert word in machine.host.check_output("cat /proc/cmdline")  # the control
        assert differences(before, take_snapshot(machine.host)) == []


# --- X4: the plan, and what it is made from

Subject = tuple[Path | None, str | None]
"""The file of agents, or the flake, that is under test."""
PLACES = {
    "one": {"TZ": "UTC", "LC_ALL": "C", "HOME": "/nonexistent", "USER": "root"},
    "another place": {"TZ": "Pacific/Chatham", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "USER": "somebody"},
}
"""Names of directories, and the environment that a plan is evaluated in there."""


@pytest.fixture(scope="module")
def subject(pytestconfig: pytest.Config) -> Subject:
    agents, flake = pytestconfig.getoption("vm_agents"), pytestconfig.getoption("vm_flake")
    return agents and Path(agents), flake


def copy_of(source: Path, target: Path) -> Path:
    """The same files with other times, in another place."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "result*")
    copied = Path(shutil.copytree(source, target, ignore=ignored, copy_function=shutil.copyfile))
    for number, path in enumerate(sorted(copied.rglob("*"))):
        os.utime(path, (1e9 + number, 1e9 + number))
    return copied


def written_plan(source: Path, environment: Mapping[str, str], *arguments: str) -> str:
    """The plan as ``harness plan --json`` of the sources in a directory writes it, in a process of its own."""
    variables = {name: text for name, text in os.environ.items() if name.startswith(("NIX", "PATH"))}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness", "plan", "--json", *arguments],
        env=variables | {"PYTHONPATH": str(source), "PYTHONHASHSEED": str(len(str(source)))} | dict(environment),
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@claim("X4")
def test_the_same_sources_give_the_same_plan_wherever_they_are(
    request: pytest.FixtureRequest, tmp_path: Path, subject: Subject
) -> None:
    """In two places, with other times, in another time zone, language and home, by file and by flake."""
    agents, flake = subject
    if flake and not Path(flake.partition("#")[0]).is_dir():
        skip_inapplicable(request, f"{flake} is not on this disk")
    plans = []
    for name, environment in PLACES.items():
        source = copy_of(REPOSITORY, tmp_path / name / "tentaflake")
        if flake:
            place, _, host = flake.partition("#")
            given = ["--flake", f"{copy_of(Path(place), tmp_path / name.replace(' ', '-') / 'flake')}#{host}"]
        elif agents:
            given = ["--agents", str(shutil.copy(agents, tmp_path / name / f"agents{agents.suffix}"))]
        else:
            given = []
            here = copy_of(REPOSITORY, tmp_path / name.replace(" ", "-") / "flake")
            plans.append(written_plan(source, environment, "--flake", f"{here}#agent-host"))
        plans.append(written_plan(source, environment, *given))
    assert len(plans) >= 2 and '"agents"' in plans[0]  # the control: these are plans
    assert len(set(plans)) == 1


@claim("X4")
def test_another_source_gives_another_plan(tmp_path: Path) -> None:
    """The control: it is read from the copy, and not from here."""
    source = copy_of(REPOSITORY, tmp_path / "tentaflake")
    before = written_plan(source, PLACES["one"])
    (source / "host.nix").write_text('{ name = "another"; }')
    assert written_plan(source, PLACES["one"]) != before


@claim("X4")
def test_every_input_is_locked_by_revision_and_hash(request: pytest.FixtureRequest, subject: Subject) -> None:
    """In the lock file of the flake under test."""
    place = Path((subject[1] or "").partition("#")[0] or REPOSITORY)
    if not (place / "flake.lock").is_file():
        skip_inapplicable(request, f"{place} has no flake.lock on this disk")
    nodes: dict[str, Any] = json.loads((place / "flake.lock").read_text())["nodes"]
    locked = {name: node["locked"] for name, node in nodes.items() if name != "root"}
    assert set(nodes["root"].get("inputs", {}).values()) <= nodes.keys()
    unlocked = {
        name: found
        for name, found in locked.items()
        if found["type"] != "path"
        and not (
            re.fullmatch(r"[0-9a-f]{40}", found.get("rev", ""))
            and re.fullmatch(r"sha256-[A-Za-z0-9+/]{43}=", found.get("narHash", ""))
        )
    }
    assert unlocked == {}


def skip_inapplicable(request: pytest.FixtureRequest, why: str) -> NoReturn:
    request.node.user_properties.append(("inapplicable", True))
    pytest.skip(why)
