"""Python programs in an agent's place, for what the tools of its container do not do.

They run as the agent's user in its cgroup and in its network namespace, so with its limits, but with the host's files:
its container need not hold an interpreter.
"""

import json
import time
from collections.abc import Callable
from secrets import token_hex
from textwrap import dedent
from typing import Any

from harness.contract import ControlFailed
from harness.pace import stretch
from harness.policy import Agent
from harness.probes.attempts import quote
from harness.probes.containers import main_pid
from harness.vm.machine import Machine

BITE_TIMEOUT = 300.0
"""Seconds within which an attack has reached what it aims at; thirty times what it takes under TCG."""

Answers = Callable[[], list[Any]]
"""Gives the JSON values that a program has printed so far, a line each."""


def cgroup(machine: Machine, agent: Agent) -> str:
    """The directory of the container's cgroup."""
    path = machine.host.check_output("cut -d : -f 3 /proc/%s/cgroup", str(main_pid(machine.host, agent)))
    return f"/sys/fs/cgroup{path}"


def counters(machine: Machine, directory: str, file: str) -> dict[str, int]:
    """A flat keyed file of a cgroup (cgroups(7)), such as memory.events."""
    lines = machine.host.check_output("cat %s/%s", directory, file).splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


# In the agent's place: its cgroup, its network, its user, and no more files than it may open.
ENTER = """
echo $$ > {cgroup}/cgroup.procs && echo 500 > /proc/self/oom_score_adj || exit 1
exec nsenter --target {pid} --net -- prlimit --nofile={files} setpriv --reuid={uid} --regid={gid} --clear-groups \\
  --no-new-privs --bounding-set=-all python3 -I -S {program} > {program}.out 2>&1"""


def start_inside(machine: Machine, agent: Agent, program: str, **words: object) -> Answers:
    """Start a Python program in the agent's place, with ``words`` as its globals."""
    pid, path = main_pid(machine.host, agent), f"/run/program-{agent.name}-{token_hex(4)}.py"
    files = machine.host.check_output("awk '/^Max open files/ { print $5 }' /proc/%s/limits", str(pid))
    lines = [f"{name} = {value!r}" for name, value in words.items()]
    machine.put(b"", f"{path}.out")
    machine.put("\n".join([*lines, dedent(program)]).encode(), path)
    where = cgroup(machine, agent)
    entered = ENTER.format(cgroup=where, pid=pid, files=files, uid=agent.uid, gid=agent.gid, program=path)
    machine.run(f"setsid sh -c {quote(entered)} < /dev/null > /dev/null 2>&1 &").check()

    def answers() -> list[Any]:
        said = machine.run(["cat", f"{path}.out"]).check().text
        try:
            return [json.loads(line) for line in said.splitlines()]
        except ValueError:
            raise ControlFailed(f"a program in {agent.name}'s place has failed:\n{said[-2000:]}") from None

    return answers


def wait_until(
    what: str,
    reached: Callable[[], bool],
    meanwhile: Callable[[], object] = lambda: None,
    *,
    timeout: float = BITE_TIMEOUT,
) -> None:
    """Wait until an attack has come so far (seconds, stretched). If it does not, it proves nothing."""
    started, timeout = time.monotonic(), stretch(timeout)
    while not reached():
        if (waited := time.monotonic() - started) > timeout:
            raise ControlFailed(f"in {timeout:.0f} s, the attack has not come so far: {what}")
        meanwhile()
        time.sleep(min(0.05 + waited / 4, 1))  # each look takes processor time from what it waits for
