"""A running host that is changed, broken and attacked at random, and looked at after each step.

``LiveHost`` takes the steps, one method each, and says with ``check`` whether the host is what its plan says, and that
no agents were touched but those that the step is about. ``machine_of`` draws steps with hypothesis, ``replay`` takes
given ones. Every example has a fork of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from harness.fuzz.blame import describe, is_finding
from harness.guests.canaries import canary
from harness.lab import Lab
from harness.nix_text import agents_nix
from harness.policy import Agent, Plan, evaluate_many
from harness.probes.attempts import attackers, order, quote, run_attempts
from harness.probes.programs import wait_until
from harness.probes.sharing import run_sharing
from harness.probes.stage import set_stage
from harness.probes.ways import find_ways, plan_attempts, writes
from harness.strategies import Spec, hostile, variables
from harness.vm.machine import Machine
from harness.vm.template import BOOT_TIMEOUT

FACTS = Path(__file__).with_name("facts.py")
FACTS_TIMEOUT = 300.0
SETTINGS = {"tailnetInterface": "tailscale0"}
"""The host's: without a tailnet no port is published."""
FIRST = [{"name": "a", "egress": "internet", "memory": "64m"}, {"name": "b", "memory": "64m"}]
"""The host of which every example has a fork."""
NAMES = ("a", "b", "c", "longest-name-of-an-agent")
OWN = {"longest-name-of-an-agent": {"uid": 4242, "stateDir": "/var/lib/agents/longest"}}
"""Who has a uid and a state directory that do not follow from its name. It keeps them: a state has an owner."""
CLAIMS = ("U2", "D2", "D3", "C1", "C2", "C4", "S1")
"""What is attacked, each way of it by all agents from within and as their users."""
INDEX = st.integers(0, 2)
Step = tuple[str, dict[str, Any]]
Facts = dict[str, Any]


@cache
def fields() -> st.SearchStrategy[Spec]:
    """What a spec says besides its name; ``spec_of`` makes one agent's own of ``publish`` and ``secrets``.

    Never ``image`` and ``command``: a test machine has the probe image and no registry. Never ``tts``: to start the
    speech server takes longer than all else.
    """
    published = st.sampled_from([{"target": 80}, {"target": 53, "protocol": "udp"}])
    return st.fixed_dictionaries(
        {"memory": st.sampled_from(["64m", "96m"])},
        optional={
            "autoStart": st.booleans(),
            "cpus": st.sampled_from([1, 0.5, 1.25]),
            "disk": st.sampled_from(["8m", "16m"]),
            "egress": st.sampled_from(
                ["none", "internet", [{"network": "192.0.2.0/24", "ports": [443]}, {"network": "2001:db8::/32"}]]
            ),
            "environment": st.dictionaries(
                variables().filter(lambda name: name not in ("PATH", "TOKEN")), hostile(), max_size=2
            ),
            "pids": st.sampled_from([64, 100]),
            "publish": st.lists(published, min_size=1, max_size=2),
            "secrets": st.lists(st.sampled_from(["file", "env", "shared"]), min_size=1, max_size=3, unique=True),
            "settings": st.dictionaries(hostile(10), hostile(), max_size=2),
        },
    )


def spec_of(name: str, drawn: Spec) -> Spec:
    """A spec of the agent of that name."""
    spec = {"name": name, **OWN.get(name, {}), **drawn}
    if "publish" in drawn:
        first = 10000 + 10 * NAMES.index(name)
        spec["publish"] = [{"port": first + i, **port} for i, port in enumerate(drawn["publish"])]
    if "secrets" in drawn:
        kinds = {
            "file": {"name": f"key-{name}", "file": f"secrets/key-{name}.age"},
            "env": {"name": f"token-{name}", "file": f"secrets/token-{name}.age", "as": "env", "variable": "TOKEN"},
            "shared": {"name": "common", "file": "secrets/common.age", "shared": True},
        }
        spec["secrets"] = [kinds[kind] for kind in drawn["secrets"]]
    return spec


EMPTY: list[Spec] = []
"""The first generation of every host, which the guest has with no settings of its own (``Lab.base``)."""


def settings_of(specs: Sequence[Spec]) -> dict[str, Any]:
    """The host's settings in a generation; one that lost all its agents later keeps them."""
    return {} if specs is EMPTY else SETTINGS


def plan_of(specs: Sequence[Spec], lab: Lab) -> Plan:
    [result] = evaluate_many([specs], [settings_of(specs)])
    assert isinstance(result, Plan), f"a valid host is refused: {result}"
    return lab.adapt(result)


class LiveHost:
    """A machine, the specs of each of its generations, and what it was when it was last looked at.

    ``wanted``: the specs that it was last switched to, or was to be. ``error``: what was found, with the steps.
    """

    def __init__(self, lab: Lab, machine: Machine) -> None:
        self.lab, self.machine = lab, machine
        self.generations: list[list[Spec]] = [EMPTY, FIRST]
        self.current = 1
        self.wanted: list[Spec] = FIRST
        self.ever: dict[str, Agent] = {}
        self.steps: list[Step] = []
        self.facts: Facts = {}
        self.error: str | None = None

    @property
    def specs(self) -> list[Spec]:
        return self.generations[self.current]

    @property
    def names(self) -> list[str]:
        return [spec["name"] for spec in self.specs]

    @property
    def running(self) -> list[str]:
        """The agents that have a container: those that start by themselves."""
        return [spec["name"] for spec in self.specs if spec.get("autoStart", True)]

    @property
    def limited(self) -> list[str]:
        """The running agents that have a disk quota."""
        return [spec["name"] for spec in self.specs if "disk" in spec and spec["name"] in self.running]

    @property
    def plan(self) -> Plan:
        return plan_of(self.specs, self.lab)

    def begin(self) -> None:
        """A look at the host as it was forked."""
        self._judge(lambda: NAMES)

    def take(self, step: str, /, **arguments: Any) -> None:
        """Take a step: the method of that name, and a look at what came of it.

        Whatever goes wrong is a finding about the host, but for what is this machine's.
        """
        self.steps.append((step, arguments))
        self._judge(lambda: getattr(self, step)(**arguments))

    def _judge(self, act: Callable[[], Iterable[str]]) -> None:
        try:
            self.check(act())
        except Exception as error:
            if is_finding(error):
                error.add_note(f"the steps: {self.steps}")
                host = agents_nix({"agents": self.wanted, "host": settings_of(self.wanted)})
                error.add_note(f"agents.nix of the host at the last of them:\n\n{host}")
                self.error = describe(error)
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
        self.wanted = specs
        self.lab.guest.activate(self.machine, plan_of(specs, self.lab))
        self.generations.append(specs)
        self.current = len(self.generations) - 1

    def roll_back(self, to: int | None = None) -> list[str]:
        """To one of ``generations``; if none is named, to the one before, as the host itself finds it."""
        target = self.current - 1 if to is None else to
        former = {spec["name"]: spec for spec in self.specs}
        self.wanted = self.generations[target]
        # The first one that a host has is number 1.
        self.lab.guest.roll_back(self.machine, None if to is None else to + 1)
        self.current = target
        now = {spec["name"]: spec for spec in self.specs}
        return [name for name in NAMES if former.get(name) != now.get(name)]

    def restart(self, name: str) -> list[str]:
        self.machine.run(["systemctl", "restart", f"docker-hermes-{name}.service"], timeout=300).check()
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

    def fill_disk(self, name: str) -> list[str]:
        """All that the agent may have on the disk, which is to end at its quota."""
        agent = self.plan.agents[name]
        # What dd says comes after there is room again: it goes by a file of the agent's.
        script = f"cd {quote(agent.state_dir)}; s=$(dd if=/dev/zero of=full bs=64k 2>&1); rm full; echo $s; echo filled"
        said = order(self.machine.host, agent, script)
        assert "uota exceeded" in said and "filled" in said, f"{name} filled its disk quota: {said}"
        return []

    def attack(self, claim: str) -> list[str]:
        """Every way of the claim, by every agent on every other and on the host, with their positive controls."""
        host, plan = self.machine.host, self.plan
        running = {name: agent for name, agent in plan.agents.items() if agent.auto_start}
        plan = msgspec.structs.replace(plan, agents=running)
        everybody = attackers(plan)
        attempts = plan_attempts(find_ways(claim), everybody, set_stage(host, plan, everybody))
        found = run_attempts(host, [*attempts, *(writes(everybody) if claim == "C2" else [])]) if attempts else []
        found += run_sharing(host, plan) if claim == "D3" else []
        assert found, f"nothing was tried against {claim}"
        wrong = [str(outcome) for outcome in found if not outcome.as_expected]
        assert not wrong, "\n".join(wrong)
        return []

    # ---- what is looked at

    def check(self, touched: Iterable[str]) -> None:
        """The host is what its plan says, and agents that were not touched have the container that they had."""
        plan, former = self.plan, self.facts
        self.ever |= plan.agents
        ever = list(self.ever.values())
        self.facts = look(self.machine, plan, [agent.state_dir for agent in ever])
        problems = [*compare(plan, self.facts, ever), *compare_removed(plan, ever, self.facts)]
        for name in plan.agents.keys() - set(touched):
            before, after = (
                facts["containers"].get(f"hermes-{name}", {}).get("identity") for facts in (former, self.facts)
            )
            if before != after:
                problems.append(f"{name} was not touched, and has another container: {before}, {after}")
        assert not problems, "\n".join(problems)


def look(machine: Machine, plan: Plan, directories: Sequence[str]) -> Facts:
    """All facts in one round trip."""
    wanted: dict[str, Any] = {name: getattr(plan.nftables, name) for name in ("family", "table", "content", "listing")}
    wanted["directories"] = directories
    command = ["python3", "-I", "-S", "-c", FACTS.read_text()]
    done = machine.run(command, stdin=json.dumps(wanted).encode(), timeout=FACTS_TIMEOUT).check()
    facts: Facts = json.loads(done.stdout)
    return facts


def expected(plan: Plan) -> Facts:
    """What the plan makes of the facts that follow from it to the letter."""
    agents = plan.agents.values()
    running = [agent for agent in agents if agent.auto_start]  # the others have no container, and perhaps no network
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
            for a in running
        },
        "secrets": {
            secret.id: ["0400", a.uid, a.gid, "ramfs", hashlib.sha256(canary(secret.file)).hexdigest()]
            for a in agents
            for secret in a.secrets
        },
        "containers": {
            a.container.name: {
                "running": True,
                "image": a.container.image,
                "user": f"{a.uid}:{a.gid}",
                "mounts": sorted(
                    [
                        [a.state_dir, a.state_dir, True],
                        [a.config.path, f"{a.state_dir}/config.yaml", False],
                        *([secret.path, secret.target, False] for secret in a.secrets),
                    ]
                ),
                "networks": [a.network.name],
                "readonly": True,
                "memory": [a.limits.memory, a.limits.memory],
                "pids": a.limits.pids,
                "cpus": round(a.limits.cpus * 10**9),
                "ports": sorted(a.container.ports),
            }
            for a in running
        },
    }


BESIDES = {
    "directories": {"/var/lib/hermes-auditd"},
    "secrets": {"decoy"},  # what an attack on S1 has planted, for root alone
}
"""What a host has that is no agent's."""


def compare_strangers(plan: Plan, ever: Iterable[Agent], facts: Facts) -> list[str]:
    """What is there and nobody's: neither an agent's of the plan nor one's that was removed (``compare_removed``)."""
    former = [agent for agent in ever if agent.name not in plan.agents]
    known = {kind: {*names, *BESIDES.get(kind, ())} for kind, names in expected(plan).items()}
    for agent in [*former, *plan.agents.values()]:
        known["networks"].add(agent.network.name)
        known["directories"] |= {agent.state_dir, f"/etc/hermes/{agent.name}"}
        known["users"].add(agent.user)
    known["containers"] |= {agent.container.name for agent in former}
    return [
        f"{kind} {name}, which is nobody's: {facts[kind][name]}"
        for kind, names in known.items()
        for name in sorted(facts[kind].keys() - names)
    ]


def compare(plan: Plan, facts: Facts, ever: Iterable[Agent] = ()) -> list[str]:
    """What of the facts is not as the plan says: U1, D1, D4, C1, C2, C4, C5, C6, S1, F2, F3, F6, A1.

    ``ever``: all agents that the host has had.
    """
    problems = compare_strangers(plan, ever, facts)
    for kind, wanted in expected(plan).items():
        for name, want in wanted.items():
            found = facts[kind].get(name)
            if isinstance(want, dict) and found is not None:
                found = {key: found[key] for key in want}
            if found != want:
                problems.append(f"{kind} {name}: {found}, and not {want}")
    running = [agent for agent in plan.agents.values() if agent.auto_start]
    for agent in running:
        problems += compare_processes(agent, facts["containers"].get(agent.container.name, {}))
    if facts["firewall"]["loaded"] != facts["firewall"]["meant"]:
        problems.append(f"the firewall in force is another one: {difference(**facts['firewall'])}")
    if sorted(facts["rules"].count(priority) for priority in (4700, 4701)) != [2, 2]:
        problems.append(f"the routing rules are others: {facts['rules']}")
    units = {
        "docker.service": "active/running",
        "nftables.service": "active/exited",
        "tentaflake-routing.service": "active/exited",
        **{f"{agent.service.name}.service": "active/running" for agent in running},
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
    for agent in plan.agents.values():
        state = found_units.get(f"{agent.service.name}.service", "inactive/dead")
        if not agent.auto_start and state != "inactive/dead":
            problems.append(f"{agent.name} does not start by itself, and its unit is {state}")
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
    """Take these steps on a fork; raises what was found at the one that leaves the host wrong."""
    with lab.machine(template_of(lab)) as machine:
        host = LiveHost(lab, machine)
        host.begin()
        for name, arguments in steps:
            host.take(name, **arguments)


class Live(RuleBasedStateMachine):
    """Steps at random; ``start`` gives each example its host, and all happens within ``guard``."""

    start: ClassVar[Callable[[ExitStack], LiveHost]]
    guard: ClassVar[Callable[[], AbstractContextManager[None]]]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    @initialize()
    def fork(self) -> None:
        with type(self).guard():
            self.host = type(self).start(self.stack)
            self.host.begin()

    def teardown(self) -> None:
        self.stack.close()

    def _take(self, step: str, /, **arguments: Any) -> None:
        with type(self).guard():
            self.host.take(step, **arguments)

    @precondition(lambda self: len(self.host.names) < 3)
    @rule(number=INDEX, drawn=fields())
    def add(self, number: int, drawn: Spec) -> None:
        free = [name for name in NAMES if name not in self.host.names]
        self._take("add", spec=spec_of(_one(free, number), drawn))

    @precondition(lambda self: self.host.names)
    @rule(number=INDEX)
    def remove(self, number: int) -> None:
        self._take("remove", name=_one(self.host.names, number))

    @precondition(lambda self: self.host.names)
    @rule(number=INDEX, drawn=fields())
    def change(self, number: int, drawn: Spec) -> None:
        self._take("change", spec=spec_of(_one(self.host.names, number), drawn))

    @rule()
    def switch(self) -> None:
        self._take("switch")

    @precondition(lambda self: self.host.current > 0)
    @rule()
    def roll_back(self) -> None:
        self._take("roll_back")

    @rule(number=INDEX)
    def roll_back_to(self, number: int) -> None:
        others = [to for to in range(len(self.host.generations)) if to != self.host.current]
        self._take("roll_back", to=_one(others, number))

    @precondition(lambda self: self.host.running)
    @rule(number=INDEX, way=st.sampled_from(["restart", "kill", "fill"]))
    def disturb(self, number: int, way: str) -> None:
        self._take(way, name=_one(self.host.running, number))

    @precondition(lambda self: self.host.limited)
    @rule(number=INDEX)
    def fill_disk(self, number: int) -> None:
        self._take("fill_disk", name=_one(self.host.limited, number))

    @precondition(lambda self: ("reboot", {}) not in self.host.steps)  # one takes longer than all else
    @rule()
    def reboot(self) -> None:
        self._take("reboot")

    @precondition(lambda self: self.host.running)
    @rule(claim=st.sampled_from(CLAIMS))
    def attack(self, claim: str) -> None:
        self._take("attack", claim=claim)


def _one(things: Sequence[Any], number: int) -> Any:
    return things[number % len(things)]


def machine_of(
    lab: Lab,
    admit: Callable[[LiveHost], None] = lambda host: None,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> type[Live]:
    """The state machine, on forks of this lab's; ``admit`` is told of each new host, and may refuse it."""
    plan = template_of(lab)

    def start(stack: ExitStack) -> LiveHost:
        host = LiveHost(lab, stack.enter_context(lab.machine(plan)))
        admit(host)
        return host

    return type("LiveHere", (Live,), {"start": staticmethod(start), "guard": staticmethod(guard)})
