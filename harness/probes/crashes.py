"""Kills what runs an agent, and tells who is still the one it was: C6."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle

import msgspec
from testinfra.host import Host

from harness.contract import ClaimBroken
from harness.errors import HarnessError
from harness.pace import stretch
from harness.policy import Agent
from harness.probes.rules import rules_listing

BACK_TIMEOUT = 600.0
"""Seconds in which what was killed is back: ten times what Docker takes under TCG to bring back three agents."""
OF_AN_AGENT = {
    "its first process": "kill -9 $(pgrep -o -u {uid})",
    "its container's shim": "kill -9 $(ps -o ppid= -p $(pgrep -o -u {uid}))",
    "its docker run": "kill -9 $(systemctl show --property=MainPID --value {unit}.service)",
}
# Docker starts a containerd of its own where there is no unit of one, as on NixOS.
OF_THE_HOST = {
    "containerd": "kill -9 $(pgrep -o -x containerd)",
    "dockerd": "kill -9 $(pgrep -o -x dockerd)",
    "a restart of Docker": "systemctl restart docker.service",
}
UNHEARD = "agent=$(pgrep -o -u {uid}) && kill -9 $(pgrep -o -x containerd) $(ps -o ppid= -p $agent) $agent"
"""An agent, its shim and containerd, of whom Docker would hear that the agent has ended: nobody is left to say so."""
UNHEARD_TIMEOUT = 180.0
"""Seconds in which such an agent is back: three of the guard's looks and a stop and start under TCG."""
SERVICES = {"containerd": "containerd", "docker": "dockerd"}
"""The processes of the host's that run agents, by the names of their programs."""


class Seen(msgspec.Struct, frozen=True):
    """A host at one moment: who runs (pid and time of start, so that a number used again is another), and its rules."""

    running: dict[str, str]
    rules: list[str]


class Crash(msgspec.Struct, frozen=True):
    """What was killed (of one agent, or of the host), and the host before and after."""

    what: str
    agent: str | None
    before: Seen
    after: Seen


# Docker's own rules, and the routing rules, each line for itself: Docker may write its own in another order.
OTHER_RULES = """
iptables-save | grep '^-A'
ip6tables-save | grep '^-A'
ip -4 rule
ip -6 rule"""


def look(host: Host, agents: Mapping[str, Agent]) -> Seen:
    """Who runs, and which rules are in force."""
    rules = host.check_output("sh -c %s", rules_listing() + OTHER_RULES).splitlines()
    return Seen(who_runs(host, agents), sorted(line.strip() for line in rules if line.strip()))


def who_runs(host: Host, agents: Mapping[str, Agent], services: Iterable[str] = SERVICES) -> dict[str, str]:
    """The first process of each agent and of each service; of whoever does not run, an empty text."""
    pids = {name: f"$(pgrep -o -u {agent.uid})" for name, agent in agents.items()}
    pids |= {name: f"$(pgrep -o -x {SERVICES[name]})" for name in services}
    # After the name: a program has one with spaces in brackets, in the field before the others.
    who = "who() { echo $1: $(sed 's/(.*)/-/' \"/proc/${2:-none}/stat\" 2> /dev/null | cut -d ' ' -f 1,22); }"
    found = host.check_output("sh -c %s", "\n".join([who, *(f"who {name} {pid}" for name, pid in pids.items())]))
    return {name: process.strip() for name, _, process in (line.partition(":") for line in found.splitlines())}


def crash(
    host: Host, agents: Mapping[str, Agent], what: str, agent: Agent | None, ready: Callable[[], None] = lambda: None
) -> Crash:
    """Kill it, and wait until it is back; ``ready`` waits for more, as that Docker says that all agents run."""
    before = look(host, agents)
    if agent:
        host.check_output(OF_AN_AGENT[what].format(uid=agent.uid, unit=agent.service.name))
        replaced = [agent.name]
    else:
        host.check_output(OF_THE_HOST[what], timeout=BACK_TIMEOUT)
        replaced = ["containerd"] if what == "containerd" else ["docker", *agents]
    wait_replaced(host, agents, before, replaced, agent.service.name if agent else None)
    ready()
    return Crash(what, agent.name if agent else None, before, look(host, agents))


def crash_unheard(host: Host, agents: Mapping[str, Agent], agent: Agent) -> Crash:
    """Kill an agent's shim and containerd at once; raises ``ClaimBroken`` when the agent does not come back."""
    before = look(host, agents)
    host.check_output(UNHEARD.format(uid=agent.uid))
    wait_replaced(host, agents, before, ["containerd"], None)
    try:
        wait_replaced(host, agents, before, [agent.name], None, timeout=UNHEARD_TIMEOUT)
    except HarnessError as error:
        raise ClaimBroken(f"C6 is broken: {agent.name} has crashed, and nobody has noticed: {error}") from error
    return Crash("its container's shim, and containerd", agent.name, before, look(host, agents))


def wait_replaced(
    host: Host,
    agents: Mapping[str, Agent],
    before: Seen,
    names: Sequence[str],
    unit: str | None,
    *,
    timeout: float = BACK_TIMEOUT,
) -> None:
    """Until each of ``names`` runs again, as another process than before (seconds, stretched).

    Raises ``ClaimBroken`` when ``unit`` is one that systemd will not start again.
    """
    deadline = time.monotonic() + stretch(timeout)
    wanted = {name: agents[name] for name in names if name in agents}  # each look at more costs processor time
    services = [name for name in names if name in SERVICES]
    while True:
        now = who_runs(host, wanted, services)
        waited = [name for name in names if now[name] in ("", before.running[name])]
        if not waited:
            return
        if unit and host.check_output("systemctl show --property=SubState --value %s", unit) in ("dead", "failed"):
            raise ClaimBroken(f"C6 is broken: {unit} has crashed, and systemd does not start it again")
        if time.monotonic() > deadline:
            journal = host.run("journalctl -n 30 --no-pager -o cat").stdout
            raise HarnessError(f"not back {timeout:.0f} s after the crash: {', '.join(waited)}\n{journal}")
        time.sleep(1.0)  # each look takes processor time from what it waits for


def crash_all(host: Host, agents: Mapping[str, Agent], ready: Callable[[], None]) -> list[Crash]:
    """One after the other. After containerd's, so that it is seen whether agents' crashes are still noticed."""
    victims = cycle(agents.values())
    done = [crash(host, agents, "containerd", None, ready)]
    done += [crash(host, agents, what, next(victims), ready) for what in ("its container's shim", "its docker run")]
    return done + [crash(host, agents, what, None, ready) for what in ("dockerd", "a restart of Docker")]
