"""What of a host follows from its plan, and who runs: what a switch may change, and what not (X1 to X3)."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
from testinfra.host import Host

from harness.errors import HarnessError
from harness.guests.debian import SWITCH_TIMEOUT
from harness.policy import Agent, Plan, evaluate_specs, host_of, specs_of
from harness.probes.attempts import Attacker, Attempt, quote
from harness.probes.rules import rules_listing
from harness.probes.stage import HOST, Target
from harness.probes.ways import find_ways
from harness.vm.machine import Machine

Snapshot = dict[str, list[str]]
"""Lines by what they are about; sorted, where their order says nothing."""
# What Docker answers on its socket: its own client takes seconds of processor time under emulation. It keeps some
# lists, that of ulimits for one, in no order.
DOCKER = """
import json, socket
def get(path):  # by HTTP/1.0, where an answer ends with the connection
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("/run/docker.sock")
        connection.sendall(f"GET {path} HTTP/1.0\\r\\nHost: docker\\r\\n\\r\\n".encode())
        with connection.makefile("rb") as answer:
            return json.loads(answer.read().partition(b"\\r\\n\\r\\n")[2])
def flat(name, value):
    if isinstance(value, dict):
        for key, inner in value.items():
            flat(name + " " + key, inner)
    elif isinstance(value, list):
        for inner in value:
            print(name, json.dumps(inner, sort_keys=True))
    else:
        print(name, value)
for network in get("/networks?filters=%7B%22label%22%3A%5B%22tentaflake%22%5D%7D"):
    flat("network " + network["Name"], network["Labels"])
for each in get("/containers/json?all=1"):
    found = get("/containers/" + each["Id"] + "/json")
    for what in ("Config", "HostConfig"):
        flat("container" + found["Name"], found[what])
    print("container" + found["Name"], "command", found["Path"], found["Args"], found["State"]["Running"])
"""
# Nothing here says when something was started, nor as which process.
QUESTIONS = {
    "users": "getent passwd | grep ^hermes-",
    "groups": "getent group | grep ^hermes-",
    "table": "list_rules",
    # Docker makes its chain for an administrator's rules, which we leave empty, when it makes a network, not at boot.
    "Docker's rules": "for family in ip ip6; do ${family}tables-save | grep -v DOCKER-USER | "
    "awk -v family=$family '/^\\*/ { table = $1 } /^-A/ { print family, table, $0 }'; done",
    "routing rules": "ip -4 rule; ip -6 rule",
    "bridges": "ip -o link show type bridge | awk '{print $2}'; ip -o -4 address show | awk '{print $2, $4}'",
    "generation": "readlink -f /run/current-system; cd /var/lib/tentaflake/current/ && "
    "find . -type f ! -name switched -exec sha256sum {} + && find . -printf '%p %M %U %G\\n'",
    "unfinished": "cat /var/lib/tentaflake/switching",
    "units": "for place in /run/systemd/generator /etc/systemd/system; do "
    "cd $place && sha256sum *.service *.timer *.target *.socket *.slice; done; "
    "systemctl list-units --plain --no-legend 'docker-hermes-*' 'tentaflake-guard.timer' 'tentaflake-routing.service' "
    "nftables.service | awk '{print $1, $2, $3}'",
    "configurations": "cd /etc/hermes && find . -printf '%p %M %U %G\\n'; find . -type f -exec sha256sum {} +",
    "secrets": "cd /run/agenix/ && find . -printf '%p %M %U %G\\n'; find . -type f -exec sha256sum {} +",
    "Docker's settings": "sha256sum /etc/docker/daemon.json /etc/tentaflake/container-init",
    "Docker": f"python3 -I -S -c {quote(DOCKER)}",
}
ORDERED = ("table", "Docker's rules")
"""Where the first line that fits a packet decides."""
HEAD = "======== "
# Another process of the same number has another time of start, the 22nd field. The cgroup's name is the container's id.
PROCESSES = """
for pid in $(pgrep -u {uid}); do
  echo $pid $(sed 's/(.*)/-/' /proc/$pid/stat | cut -d ' ' -f 22) $(cat /proc/$pid/cgroup)
done"""


def take_snapshot(host: Host) -> Snapshot:
    """All of the host that follows from its plan, but for the state of agents."""
    lines = [f"echo {quote(HEAD + name)}; ( {question} ) 2> /dev/null" for name, question in QUESTIONS.items()]
    lists = f"list_rules() {{\n{rules_listing()}}}"
    text = host.check_output("sh -c %s", "\n".join([lists, *lines, "true"]))
    found: Snapshot = {}
    for part in text.split(HEAD)[1:]:
        name, _, said = part.partition("\n")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        found[name] = lines if name in ORDERED else sorted(lines)
    found["Docker's rules"].sort(key=network_of_rule)
    for name in ("users", "table", "generation", "units"):
        if not found[name]:
            raise HarnessError(f"the snapshot of the host has nothing on {name}")
    return found


def network_of_rule(line: str) -> tuple[list[str], list[str]]:
    """The chain that a rule of iptables-save(8) is in, and the bridges and addresses that it is about.

    Docker writes the networks' rules after each other in no order: what is about the same ones, or about none, keeps
    its order.
    """
    words = line.split()
    return words[:4], [word for flag, word in pairwise(words) if flag in ("-i", "-o", "-s", "-d")]


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """The lines that one of the two has more often, and the first that is in another place where order matters."""
    found = []
    for name in QUESTIONS:
        one, other = Counter(before[name]), Counter(after[name])
        found += [f"- {name}: {line}" for line in (one - other).elements()]
        found += [f"+ {name}: {line}" for line in (other - one).elements()]
        if one == other and before[name] != after[name]:
            was, now = next(pair for pair in zip(before[name], after[name], strict=True) if pair[0] != pair[1])
            found.append(f"~ {name}: {now}, where there was {was}")
    return found


def who_runs(host: Host, agents: Iterable[Agent]) -> dict[str, list[str]]:
    """Every process of each agent: its number, its time of start, and its container."""
    scripts = [f"echo '{HEAD}{agent.name}'; {PROCESSES.format(uid=agent.uid)}" for agent in agents]
    parts = host.check_output("sh -c %s", "\n".join(scripts)).split(HEAD)[1:]
    return {part.splitlines()[0]: sorted(part.splitlines()[1:]) for part in parts}


def with_agents(plan: Plan, *specs: Mapping[str, object]) -> Plan:
    """The plan of the same host with more agents; those that it has are the very same."""
    evaluated = evaluate_specs([*specs_of(plan), *specs], host=host_of(plan))
    return msgspec.structs.replace(evaluated, agents={**evaluated.agents, **plan.agents})


KEPT_STATE_WAYS = [way for way in find_ways("D2") if not way.host_only and "/proc/" not in way.name]
"""Ways to another's files that need no process of the other's."""


def try_kept_state(kept: str, targets: dict[str, Target], attackers: Iterable[Attacker]) -> list[Attempt]:
    """Every way to another's files, on what the removed agent ``kept`` has left, with the controls that the way has."""
    everybody, alone = list(attackers), {HOST: targets[HOST], kept: targets[kept]}
    found: list[Attempt] = []
    for way in KEPT_STATE_WAYS:
        found += (attempt for attempt in way.attempts(everybody, alone) if attempt.target == kept)
        found += (attempt for attempt in way.attempts(everybody, targets) if attempt.is_control)
    return [replace(attempt, claim="X3") for attempt in found]


KILLED_SWITCH = "/root/killed_switch.py"
PLAN = "/root/plan.json"
AGE_FILES = "/root/age-files"


def kill_switch(machine: Machine, step: int | str) -> str | None:
    """Switch to the plan in ``PLAN``, killed before the step of this number, or the first that mentions this word.

    Returns which one that is, or None if there is none, and all was done.
    """
    switch = f"python3 {KILLED_SWITCH} {quote(str(step))} switch --files {AGE_FILES} {PLAN}"
    done = machine.run(f"{switch}; echo $?", timeout=SWITCH_TIMEOUT).check()
    *said, code = done.text.splitlines()
    if code == "0":
        return None
    if code != "137":
        raise HarnessError(f"the switch that was to be killed before its step {step} ended with {code}:\n{done.text}")
    return said[-1]


def forbid_recovery(host: Host) -> None:
    """Until the next boot nobody goes back but who is told to."""
    place = "/run/systemd/system/tentaflake-recover.service.d"
    host.check_output(f"mkdir -p {place} && echo '[Unit]\nConditionPathExists=/nowhere' > {place}/off.conf")
    host.check_output("systemctl daemon-reload")


def prepare_kills(machine: Machine, plan: Plan, files: Mapping[str, bytes] | None = None) -> None:
    """Have what ``kill_switch`` needs; ``files`` are the age files of the plan."""
    machine.put((Path(__file__).with_name("killed_switch.py")).read_bytes(), KILLED_SWITCH)
    machine.put(plan.to_json().encode(), PLAN, 0o600)
    for name, data in (files or {}).items():
        machine.run(["mkdir", "-p", str(Path(AGE_FILES, name).parent)]).check()
        machine.put(data, f"{AGE_FILES}/{name}", 0o600)
