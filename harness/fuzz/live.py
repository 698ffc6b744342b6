"""A running host that is changed, broken and attacked at random, and looked at after each step.

``LiveHost`` takes the steps, one method each, and says with ``check`` whether the host is what its plan says, and that
no agents were touched but those that the step is about. ``machine_of`` draws steps with hypothesis, ``replay`` takes
given ones. Every example has a fork of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from harness.errors import HarnessError
from harness.lab import Lab
from harness.policy import Agent, Plan, evaluate_many
from harness.probes.attempts import attackers, order, run_attempts
from harness.probes.programs import wait_until
from harness.probes.stage import set_stage
from harness.probes.ways import find_ways, plan_attempts
from harness.strategies import Spec, hostile, variables
from harness.vm.machine import Machine
from harness.vm.template import BOOT_TIMEOUT

FACTS = Path(__file__).with_name("facts.py")
FACTS_TIMEOUT = 120.0
FIRST = [{"name": "a", "egress": "internet", "memory": "64m"}, {"name": "b", "memory": "64m"}]
"""The host of which every example has a fork."""
NAMES = ("a", "b", "c", "longest-name-of-an-agent")
CLAIMS = ("U2", "D2", "C1")
"""What is attacked, each way of it by all agents from within and as their users."""
INDEX = st.integers(0, 2)
Step = tuple[str, dict[str, Any]]
Facts = dict[str, Any]


@cache
def fields() -> st.SearchStrategy[Spec]:
    """What a spec says besides its name. No speech server: to start one takes longer than all else."""
    return st.fixed_dictionaries(
        {"memory": st.sampled_from(["64m", "96m"])},
        optional={
            "cpus": st.sampled_from([1, 0.5, 1.25]),
            "disk": st.sampled_from(["1g", "2g"]),
            "egress": st.sampled_from(
                ["none", "internet", [{"network": "192.0.2.0/24", "ports": [443]}, {"network": "2001:db8::/32"}]]
            ),
            "environment": st.dictionaries(variables().filter(lambda name: name != "PATH"), hostile(), max_size=2),
            "pids": st.sampled_from([64, 100]),
            "settings": st.dictionaries(hostile(10), hostile(), max_size=2),
        },
    )


def plan_of(specs: Sequence[Spec], lab: Lab) -> Plan:
    [result] = evaluate_many([specs])
    assert isinstance(result, Plan), f"a valid host is refused: {result}"
    return lab.adapt(result)


class LiveHost:
    """A machine, the specs of each of its generations, and what it was when it was last looked at."""

    def __init__(self, lab: Lab, machine: Machine) -> None:
        self.lab, self.machine = lab, machine
        self.generations: list[list[Spec]] = [[], FIRST]
        self.current = 1
        self.ever: dict[str, Agent] = {}
        self.steps: list[Step] = []
        self.facts: Facts = {}
        self.error: AssertionError | None = None
        self.check(touched=NAMES)

    @property
    def specs(self) -> list[Spec]:
        return self.generations[self.current]

    @property
    def names(self) -> list[str]:
        return [spec["name"] for spec in self.specs]

    @property
    def plan(self) -> Plan:
        return plan_of(self.specs, self.lab)

    def take(self, step: str, /, **arguments: Any) -> None:
        """Take a step: the method of that name, and a look at what came of it."""
        self.steps.append((step, arguments))
        try:
            touched: Iterable[str] = getattr(self, step)(**arguments)
            self.check(touched)
        except AssertionError as error:
            error.add_note(f"the steps: {self.steps}")
            self.error = error
            raise

    # ---- steps: each returns the agents that may have another container afterwards

    def add(self, spec: Spec) -> list[str]:
        self._switch([*self.specs, spec])
        return [spec["name"]]

    def remove(self, name: str) -> list[str]:
        self._switch([spec for spec in self.specs if spec["name"] != name])
        return [name]

    def change(self, spec: Spec) -> list[str]:
        self._switch([spec if each["name"] == spec["name"] else each for each in self.specs])
        return [spec["name"]]

    def switch(self) -> list[str]:
        """To the same agents."""
        self._switch(list(self.specs))
        return []

    def _switch(self, specs: list[Spec]) -> None:
        plan = plan_of(specs, self.lab)
        self._succeeds(lambda: self.lab.guest.activate(self.machine, plan))
        self.generations.append(specs)
        self.current = len(self.generations) - 1

    def roll_back(self) -> list[str]:
        """To the generation before the current one."""
        former = {spec["name"]: spec for spec in self.specs}
        self._succeeds(lambda: self.lab.guest.roll_back(self.machine))
        self.current -= 1
        now = {spec["name"]: spec for spec in self.specs}
        return [name for name in NAMES if former.get(name) != now.get(name)]

    def _succeeds(self, change: Callable[[], None]) -> None:
        try:
            change()
        except HarnessError as error:
            raise AssertionError(f"a change of the host that should succeed does not: {error}") from error

    def restart(self, name: str) -> list[str]:
        self.machine.run(["systemctl", "restart", f"docker-hermes-{name}.service"], timeout=120).check()
        self._wait_new(name)
        return [name]

    def kill(self, name: str) -> list[str]:
        """The first process of the container, which ends all of them."""
        [_, _, pid] = self.facts["containers"][f"hermes-{name}"]["identity"]
        self.machine.run(["kill", "-KILL", str(pid)]).check()
        self._wait_new(name)
        return [name]

    def _wait_new(self, name: str) -> None:
        """Until the agent has another container than when it was last looked at, and that runs."""
        [former, _, _] = self.facts["containers"][f"hermes-{name}"]["identity"]
        form = "{{.Id}} {{.State.Running}}"

        def is_new() -> bool:
            words = self.machine.run(["docker", "inspect", "--format", form, f"hermes-{name}"]).text.split()
            return len(words) == 2 and words[0] != former and words[1] == "true"

        wait_until(f"{name} runs in another container", is_new)

    def reboot(self) -> list[str]:
        """By a power cut."""
        self.machine.power_cycle(BOOT_TIMEOUT)
        said = self.machine.run("systemctl is-system-running --wait", timeout=BOOT_TIMEOUT).text.strip()
        assert said == "running", f"after a power cut the host is {said}"
        self.lab.guest.wait_agents(self.machine)
        return list(NAMES)

    def fill(self, name: str) -> list[str]:
        """All that the agent may write to its /tmp, which is to end at its limit."""
        agent = self.plan.agents[name]
        said = order(self.machine.host, agent, "dd if=/dev/zero of=/tmp/full bs=1M 2>&1; rm /tmp/full; echo filled")
        assert "No space left" in said and "filled" in said, f"{name} filled /tmp: {said}"
        return []

    def attack(self, claim: str) -> list[str]:
        """Every way of the claim, by every agent on every other and on the host, with their positive controls."""
        host, plan = self.machine.host, self.plan
        everybody = attackers(plan)
        found = run_attempts(host, plan_attempts(find_ways(claim), everybody, set_stage(host, plan, everybody)))
        wrong = [str(outcome) for outcome in found if not outcome.as_expected]
        assert not wrong, "\n".join(wrong)
        return []

    # ---- what is looked at

    def check(self, touched: Iterable[str]) -> None:
        """The host is what its plan says, and agents that were not touched have the container that they had."""
        plan, former = self.plan, self.facts
        self.ever |= plan.agents
        self.facts = look(self.machine, plan)
        problems = [*compare(plan, self.facts), *compare_removed(plan, self.ever.values(), self.facts)]
        for name in plan.agents.keys() - set(touched):
            before, after = (
                facts["containers"].get(f"hermes-{name}", {}).get("identity") for facts in (former, self.facts)
            )
            if before != after:
                problems.append(f"{name} was not touched, and has another container: {before}, {after}")
        assert not problems, "\n".join(problems)


def look(machine: Machine, plan: Plan) -> Facts:
    """All facts in one round trip."""
    wanted = {"family": plan.nftables.family, "table": plan.nftables.table, "content": plan.nftables.content}
    command = ["python3", "-I", "-S", "-c", FACTS.read_text()]
    done = machine.run(command, stdin=json.dumps(wanted).encode(), timeout=FACTS_TIMEOUT).check()
    facts: Facts = json.loads(done.stdout)
    return facts


def expected(plan: Plan) -> Facts:
    """What the plan makes of the facts that follow from it to the letter."""
    agents = plan.agents.values()
    return {
        "users": {a.user: [a.uid, a.gid, a.state_dir, "/usr/sbin/nologin", [], True] for a in agents},
        "directories": {
            path: facts
            for a in agents
            for path, facts in (
                (a.state_dir, ["0700", a.uid, a.gid, 0]),
                (f"/etc/hermes/{a.name}", ["0750", 0, a.gid, 0]),
            )
        },
        "networks": {
            a.network.name: [
                a.network.bridge,
                a.network.internal,
                sorted([a.network.ipv4.subnet, a.network.ipv6.subnet]),
            ]
            for a in agents
        },
        "containers": {
            a.container.name: {
                "running": True,
                "image": a.container.image,
                "user": f"{a.uid}:{a.gid}",
                "mounts": sorted(
                    [[a.state_dir, a.state_dir, True], [a.config.path, f"{a.state_dir}/config.yaml", False]]
                ),
                "networks": [a.network.name],
                "readonly": True,
                "memory": [a.limits.memory, a.limits.memory],
                "pids": a.limits.pids,
                "cpus": round(a.limits.cpus * 10**9),
            }
            for a in agents
        },
    }


def compare(plan: Plan, facts: Facts) -> list[str]:
    """What of the facts is not as the plan says: U1, D1, D4, C1, C2, C4, C5, C6, F2, F3, F6, A1."""
    problems = []
    for kind, wanted in expected(plan).items():
        for name, want in wanted.items():
            found = facts[kind].get(name)
            if isinstance(want, dict) and found is not None:
                found = {key: found[key] for key in want}
            if found != want:
                problems.append(f"{kind} {name}: {found}, and not {want}")
    for agent in plan.agents.values():
        problems += compare_processes(agent, facts["containers"].get(agent.container.name, {}))
    if facts["firewall"]["loaded"] != facts["firewall"]["meant"]:
        problems.append(f"the firewall in force is another one: {difference(**facts['firewall'])}")
    if sorted(facts["rules"].count(priority) for priority in (4700, 4701)) != [2, 2]:
        problems.append(f"the routing rules are others: {facts['rules']}")
    units = {
        "docker.service": "active/running",
        "nftables.service": "active/exited",
        "tentaflake-routing.service": "active/exited",
        **{f"{agent.service.name}.service": "active/running" for agent in plan.agents.values()},
        **({"hermes-auditd.service": "active/running"} if plan.agents else {}),
    }
    found_units = facts["units"]
    guard = found_units.get("tentaflake-guard.timer")
    if guard not in ("active/waiting", "active/running"):  # the latter while it looks
        problems.append(f"tentaflake-guard.timer is {guard}")
    problems += [
        f"{unit} is {found_units.get(unit)}" for unit, state in units.items() if found_units.get(unit) != state
    ]
    problems += [f"{unit} is {state}" for unit, state in found_units.items() if state.startswith("failed")]
    return problems


def difference(loaded: list[Any], meant: list[Any]) -> str:
    more = [each for each in loaded if each not in meant]
    less = [each for each in meant if each not in loaded]
    return f"there is {json.dumps(more)[:600]} instead of {json.dumps(less)[:600]}"


NOTHING = "0000000000000000"


def compare_processes(agent: Agent, container: Facts) -> list[str]:
    """C1, of every process that the container has; and its environment."""
    caps = f"CapEff={NOTHING} CapBnd={NOTHING} CapPrm={NOTHING} NoNewPrivs=1 Seccomp=2"
    uid, gid = (",".join([str(number)] * 4) for number in (agent.uid, agent.gid))
    good = {f"Uid={uid} Gid={gid} Groups={groups} {caps}" for groups in ("", agent.gid)}
    processes, environment = container.get("processes", []), container.get("environment", [])
    problems = [f"a process of {agent.name}: {process}" for process in processes if process not in good]
    if not processes:
        problems.append(f"{agent.name} has no process")
    wanted = {f"{name}={text}" for name, text in agent.container.environment.items()}
    rest = {entry.partition("=")[0] for entry in set(environment) - wanted}
    if not wanted <= set(environment) or not rest <= {"PATH"}:
        problems.append(f"the environment of {agent.name}: {environment}, and not {sorted(wanted)}")
    return problems


def compare_removed(plan: Plan, ever: Iterable[Agent], facts: Facts) -> list[str]:
    """What an agent that is no more has left: its state, which is still its own, and nothing else (X3)."""
    problems = []
    for agent in ever:
        if agent.name in plan.agents:
            continue
        left: dict[str, Any] = {
            "container": facts["containers"].get(agent.container.name),
            "network": facts["networks"].get(agent.network.name),
            "configuration": facts["directories"].get(f"/etc/hermes/{agent.name}"),
            "process": agent.uid in facts["uids"] or None,
            "unit": facts["units"].get(f"{agent.service.name}.service"),
        }
        problems += [
            f"{agent.name} was removed, and has left a {what}: {it}" for what, it in left.items() if it is not None
        ]
        user = facts["users"].get(agent.user)
        if user is not None and user[3:] != ["/usr/sbin/nologin", [], True]:
            problems.append(f"{agent.name} was removed, and could log in: {user}")
        state = facts["directories"].get(agent.state_dir)
        if state is None or state[:2] != ["0700", agent.uid]:
            problems.append(f"{agent.name} was removed, and its state is {state}")
    return problems


# ---- steps at random, and again


def template_of(lab: Lab) -> Plan:
    """The plan that every example starts with; its template is made now, if it is not there."""
    plan = plan_of(FIRST, lab)
    lab.activated(plan)
    return plan


def replay(lab: Lab, steps: Sequence[Step]) -> None:
    """Take these steps on a fork; raises ``AssertionError`` at the one that leaves the host wrong."""
    with lab.machine(template_of(lab)) as machine:
        host = LiveHost(lab, machine)
        for name, arguments in steps:
            host.take(name, **arguments)


class Live(RuleBasedStateMachine):
    """Steps at random; ``start`` gives each example its host."""

    start: ClassVar[Callable[[ExitStack], LiveHost]]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    @initialize()
    def fork(self) -> None:
        self.host = type(self).start(self.stack)

    def teardown(self) -> None:
        self.stack.close()

    @precondition(lambda self: len(self.host.names) < 3)
    @rule(number=INDEX, spec=fields())
    def add(self, number: int, spec: Spec) -> None:
        free = [name for name in NAMES if name not in self.host.names]
        self.host.take("add", spec={"name": free[number % len(free)], **spec})

    @precondition(lambda self: self.host.names)
    @rule(number=INDEX)
    def remove(self, number: int) -> None:
        self.host.take("remove", name=self._one(number))

    @precondition(lambda self: self.host.names)
    @rule(number=INDEX, spec=fields())
    def change(self, number: int, spec: Spec) -> None:
        self.host.take("change", spec={"name": self._one(number), **spec})

    @rule()
    def switch(self) -> None:
        self.host.take("switch")

    @precondition(lambda self: self.host.current > 0)
    @rule()
    def roll_back(self) -> None:
        self.host.take("roll_back")

    @precondition(lambda self: self.host.names)
    @rule(number=INDEX, way=st.sampled_from(["restart", "kill", "fill"]))
    def disturb(self, number: int, way: str) -> None:
        self.host.take(way, name=self._one(number))

    @rule()
    def reboot(self) -> None:
        self.host.take("reboot")

    @precondition(lambda self: self.host.names)
    @rule(claim=st.sampled_from(CLAIMS))
    def attack(self, claim: str) -> None:
        self.host.take("attack", claim=claim)

    def _one(self, number: int) -> str:
        return self.host.names[number % len(self.host.names)]


def machine_of(lab: Lab, admit: Callable[[LiveHost], None] = lambda host: None) -> type[Live]:
    """The state machine, on forks of this lab's; ``admit`` is told of each new host, and may refuse it."""
    plan = template_of(lab)

    def start(stack: ExitStack) -> LiveHost:
        host = LiveHost(lab, stack.enter_context(lab.machine(plan)))
        admit(host)
        return host

    return type("LiveHere", (Live,), {"start": staticmethod(start)})
