"""A lab whose machines are broken in the way of a mutant (``pytest --vm-mutant ID``).

Its plan is the mutant's, and so is the policy that any other plan is evaluated with. A mutant of the running host is
made in each machine when a test gets it. One that has to be there before is made in a fork of the sound host, and
what a test does to a host once is then done there too: most tests need one such machine, and a template of it would
cost a snapshot, and a QEMU that translates all programs anew. Who asks for a second one gets forks of a template,
which is removed at the end.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import msgspec

from harness.cache import key_of
from harness.guests import activate
from harness.lab import Lab, Settings
from harness.mutants import InGuest, InPlan, InPolicy, Mutant, patch, script
from harness.policy import POLICY, Agent, Plan, policy_from
from harness.vm.machine import Machine
from harness.vm.template import Template, derived_template

TABLE = "/var/lib/tentaflake/current/nftables.nft"
COMMANDS_TIMEOUT = 300.0
"""Seconds; a mutant that restarts a container takes 10 to 20 under TCG."""


def patch_policy(mutant: Mutant, directory: Path) -> Path:
    """A copy of modules/policy in ``directory``, with the mutant's other text."""
    copy = directory / "policy"
    copy.mkdir()
    for source in POLICY.iterdir():
        (copy / source.name).write_text(source.read_text())
    for beside in ("auditd", "tts"):  # from where the policy reads units
        (directory / beside).symlink_to(POLICY.parent / beside)
    for act in mutant.acts:
        if isinstance(act, InPolicy):
            patch(copy / act.file, act, mutant)
    return copy


def change_plan(mutant: Mutant, plan: Plan) -> Plan:
    for act in mutant.acts:
        if isinstance(act, InPlan):
            plan = act.change(plan)
    return plan


START = """
set -eu
while read -r unit uid; do
  systemctl start --no-block "$unit"
  until pgrep -o -u "$uid"; do sleep 1; done
done"""
"""Units and uids of agents are on standard input."""


def other_starts(sound: Plan, broken: Plan) -> dict[str, str]:
    """The scripts that start containers, by agent, if ``broken`` differs from ``sound`` in nothing else."""
    before, after = (activate.render(msgspec.to_builtins(plan)) for plan in (sound, broken))
    starts = {f"agents/{name}/start": name for name in broken.agents}
    changed = {path for path in after if after[path] != before.get(path)} - {"plan.json"}
    if before.keys() != after.keys() or not changed <= starts.keys():
        return {}
    return {starts[path]: after[path][1] for path in sorted(changed)}


def start(machine: Machine, agents: Sequence[Agent]) -> None:
    """Start agents, which do not run: cheaper than a switch."""
    units = "".join(f"{agent.service.name} {agent.uid}\n" for agent in agents)
    machine.run(START, stdin=units.encode(), timeout=COMMANDS_TIMEOUT).check()


@dataclass(frozen=True)
class Unfinished(Template):
    """A template, and the steps that bring a fork of it to the state that is meant, which ``content`` names."""

    steps: tuple[Callable[[Machine], None], ...] = ()
    title: str = ""
    content: str = ""

    def finish(self, machine: Machine) -> None:
        for step in self.steps:
            step(machine)


class MutatedLab(Lab):
    """``close`` it at the end."""

    def __init__(self, settings: Settings, mutant: Mutant) -> None:
        super().__init__(settings)
        self.mutant = mutant
        self.sound: Plan | None = None
        self.broken: Plan | None = None
        self._forked: set[str] = set()
        self._made: dict[str, Template] = {}
        self._stack = ExitStack()

    @cached_property
    def base(self) -> Template:
        with policy_from(POLICY):  # the machine on which every plan is put in force, the sound one first
            return super().base

    def evaluate(self, evaluate: Callable[[], Plan]) -> Plan:
        """The mutant's plan (adapted), where ``evaluate`` gives the sound one."""
        self.sound = super().evaluate(evaluate)
        if any(isinstance(act, InPolicy) for act in self.mutant.acts):
            directory = self._stack.enter_context(self.cache.run_directory())
            self._stack.enter_context(policy_from(patch_policy(self.mutant, directory)))
        self.broken = change_plan(self.mutant, super().evaluate(evaluate))
        return self.broken

    def activated(self, plan: Plan) -> Template:
        template = super().activated(self.sound if self.sound and plan == self.broken else plan)
        if self.mutant.moment in ("running", "between"):
            return template
        is_other = self.sound is not None and plan == self.broken and plan != self.sound
        starts = other_starts(self.sound, plan) if self.sound and is_other else {}
        names = starts or ([*plan.agents][:1] if self.mutant.moment == "stopped" else [])
        stopped = [plan.agents[name] for name in names]
        if stopped:
            template = self._stopped(template, stopped)

        def break_host(machine: Machine) -> None:
            for name, text in starts.items():
                machine.put(text.encode(), f"/var/lib/tentaflake/current/agents/{name}/start", 0o700)
            if is_other and not starts:
                self.guest.activate(machine, plan)
            self._run_commands(machine, plan)
            if stopped:
                start(machine, stopped)

        title = f"breaking a host: {self.mutant.text}"
        return Unfinished(
            template.directory, template.hardware, template.image, (break_host,), title, key_of(plan=plan.digest)
        )

    def _stopped(self, template: Template, agents: Sequence[Agent]) -> Template:
        """The same host without these agents' containers: several mutants start the same one in another way."""
        units = [agent.service.name for agent in agents]

        def stop(machine: Machine) -> None:
            machine.run(["systemctl", "stop", *units], timeout=COMMANDS_TIMEOUT).check()

        title = f"stopping {', '.join(agent.name for agent in agents)}"
        return derived_template(self.cache, template, stop, title=title, stopped=units)

    def next_stage(
        self, former: Template, prepare: Callable[[Machine], None], *, title: str, **content: str
    ) -> Template:
        if self.mutant.moment == "between" and self.broken:
            step = partial(self._run_commands, plan=self.broken)
            former = Unfinished(former.directory, former.hardware, former.image, (step,), content=former.key)
        return super().next_stage(former, prepare, title=title, **content)

    def derive(self, former: Template, prepare: Callable[[Machine], None], *, title: str, **content: str) -> Template:
        if not isinstance(former, Unfinished):
            return super().derive(former, prepare, title=title, **content)
        made_of = key_of(host=former.content, stage=prepare.__qualname__, **content)
        return replace(former, steps=(*former.steps, prepare), title=title, content=made_of)

    def to_fork(self, template: Template) -> Template:
        """The template itself at first, and one that is finished from the second fork on."""
        if not isinstance(template, Unfinished):
            return template
        content = template.content
        if content not in self._forked:
            self._forked.add(content)
        elif content not in self._made:
            self._made[content] = derived_template(
                self.cache, template, template.finish, title=template.title, content=content, process=os.getpid()
            )
        return self._made.get(content, template)

    def make_ready(self, machine: Machine, template: Template) -> None:
        if isinstance(template, Unfinished):
            template.finish(machine)
        if self.mutant.moment != "running":
            return
        if self.broken and self.sound and self.broken.nftables != self.sound.nftables:
            machine.put(activate.firewall(msgspec.to_builtins(self.broken)).encode(), TABLE, 0o600)
            machine.run("systemctl reload nftables.service").check()
        if self.broken:
            self._run_commands(machine, self.broken)

    def _run_commands(self, machine: Machine, plan: Plan) -> None:
        for act in self.mutant.acts:
            if isinstance(act, InGuest):
                machine.run(script(act.commands, plan), timeout=COMMANDS_TIMEOUT).check()

    def close(self) -> None:
        """Remove the templates of the broken host: nobody needs them again."""
        for template in self._made.values():
            self.cache.remove("templates", template.key)
        self._stack.close()
