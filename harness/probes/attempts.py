"""Attempts: who tries to reach what, by which way, what should come of it, and what did.

An attempt is a small shell script that runs as an attacker. It has *reached* its target when its output
holds something that it could not know otherwise: a random token that was planted there, or two halves of
a nonce that it joins only after a command has succeeded. It was *refused* when it ran to its end
without. Anything else (a hung shell, a missing tool, a crash) is *unknown*, and proves nothing.

Every way has a positive control: the same script, by someone who may. Attempts go in batches, one
script per attacker, all attackers at once: a batch costs about as much as its slowest attacker.
"""

import base64
import gzip
import secrets
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from testinfra.host import Host

from harness.errors import HarnessError
from harness.policy import Agent, Plan

Origin = Literal["container", "hermes", "uid", "wire", "lan", "tailnet", "root"]
Seen = Literal["reached", "refused", "unknown"]
BATCH_TIMEOUT = 600.0
"""Seconds; 25 times what a batch takes under TCG on two cores."""
ONE_ARGUMENT = 100_000
"""Bytes of scripts that go to the host at once: an argument of a shell, which may have 128 KiB (execve(2))."""
SHOWN = 600
"""Characters of an attempt's output that a failure message shows."""


@dataclass(frozen=True)
class Attacker:
    """Where an attempt comes from: a shell in an agent's container, the real Hermes there, an agent's uid on the host,
    the agent's end of its wire (root of its network namespace, who may send any packet), a machine on the LAN or the
    tailnet, or root.

    Root is nobody's attacker: it is the positive control for targets that no agent may reach.
    """

    origin: Origin
    agent: Agent | None = None

    @property
    def name(self) -> str:
        origin = "hijacked Hermes" if self.origin == "hermes" else self.origin
        return f"{self.agent.name} ({origin})" if self.agent else origin

    @property
    def owner(self) -> str:
        """The agent's name; nothing for who is no agent's."""
        return self.agent.name if self.agent else ""

    @property
    def is_inside(self) -> bool:
        """Whether it is in the agent's container."""
        return self.origin in ("container", "hermes")

    @property
    def slug(self) -> str:
        return f"{self.agent.name}.{self.origin}" if self.agent else self.origin

    def command(self, script: str) -> str:
        """The command line, for root on the host, that runs the script file ``script`` as this attacker."""
        assert self.origin != "hermes", "it does what its model says: see harness.probes.hijack"
        if self.agent is None:
            return f"{SHELL} {script}"
        if self.origin == "container":
            return f"order {quote(self.agent.state_dir)} {self.agent.uid} {script}"
        identity = f"--reuid={self.agent.uid} --regid={self.agent.gid} --clear-groups"
        return f"env -i PATH={PATH} setpriv {identity} {SHELL} < {script}"


PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/run/current-system/sw/bin"
SHELL = "busybox sh"
"""On the host too: its own applets cost a fork, not the loading of a program."""
# Has the probe image's agent run a script: $1 state directory, $2 uid, $3 script (see probe_image.AGENT).
ORDER = """\
order() {
  name=$(basename "$PWD")-${3%.sh}; box=$1/.probe
  install -m 600 -o "$2" -g "$2" "$3" "$box/$name.sh" && echo "$name" > "$box/orders" || return
  while read -r done < "$box/done" && [ "$done" != "$name" ]; do :; done
  cat "$box/$name.out"
  rm -f "$box/$name.sh" "$box/$name.out"
}"""


def attackers(plan: Plan, origins: Sequence[Origin] = ("container", "uid")) -> list[Attacker]:
    """All attackers on the host, agent by agent."""
    return [Attacker(origin, agent) for agent in plan.agents.values() for origin in origins]


@dataclass(frozen=True)
class Attempt:
    """One cell of the isolation matrix.

    ``claim`` is the promise at stake, ``way`` the name of what is tried, ``expected`` what should come of it
    (``reached`` for a positive control). ``token`` in the output means reached; ``None`` stands for the
    function ``won``, which ``script`` calls.
    """

    claim: str
    way: str
    attacker: Attacker
    target: str
    script: str
    expected: Seen
    token: bytes | None = None

    @property
    def is_control(self) -> bool:
        return self.expected == "reached"


Aim = tuple[str, str | None]
"""A claim and a way of attacking it; ``None`` stands for all ways."""


def is_aimed_at(aims: Collection[Aim] | None, claim: str, way: str) -> bool:
    """Whether attacking a claim in this way was asked for; ``None`` asks for all."""
    return aims is None or (claim, way) in aims or (claim, None) in aims


def is_among(aims: Collection[Aim] | None, attempt: Attempt) -> bool:
    """Whether an attempt, or one whose control it is, was asked for."""
    return is_aimed_at(aims, attempt.claim, attempt.way)


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt; ``output`` is its output, both streams together."""

    attempt: Attempt
    seen: Seen
    output: bytes

    @property
    def as_expected(self) -> bool:
        return self.seen == self.attempt.expected

    def cell(self) -> dict[str, str]:
        """The cell as the report has it."""
        attempt = self.attempt
        return {
            "claim": attempt.claim,
            "attacker": attempt.attacker.name,
            "target": attempt.target,
            "way": attempt.way,
            "expected": attempt.expected,
            "seen": self.seen,
        }

    def __str__(self) -> str:
        attempt = self.attempt
        said = self.output.decode(errors="replace").strip().replace("\n", "\n      ") or "(no output)"
        return (
            f"{attempt.attacker.name} -> {attempt.target}, {attempt.way}: "
            f"expected {attempt.expected}, seen {self.seen}\n      {said[:SHOWN]}"
        )


def batch_script(attempts: Sequence[Attempt], nonce: str) -> str:
    """The script of one attacker: each attempt in a subshell, its output between lines with the nonce."""
    half, other = nonce[:8], nonce[8:]
    lines = [
        f"won() {{ echo {half}''{other}; }}",
        "cd /",
    ]
    for number, script in enumerate(_scripts(attempts)):
        lines += [
            f"echo; echo {half}'' begin {number}",
            f"( {script}\n) 2>&1 < /dev/null",
            f"echo; echo {half}'' end {number} $?",
        ]
    return "\n".join(lines) + "\n"


def _scripts(attempts: Sequence[Attempt]) -> list[str]:
    """Each script once: what an attacker sees of all targets at once, it needs to look at only once."""
    return list(dict.fromkeys(attempt.script for attempt in attempts))


def read_outcomes(attempts: Sequence[Attempt], nonce: str, output: bytes) -> list[Outcome]:
    """Outcomes from what a batch printed; an attempt without its end line is unknown."""
    half = nonce[:8].encode()
    numbers = {script: number for number, script in enumerate(_scripts(attempts))}
    outcomes = []
    for attempt in attempts:
        number = numbers[attempt.script]
        _, begun, rest = output.partition(b"\n%s begin %d\n" % (half, number))
        said, ended, _ = rest.partition(b"\n%s end %d " % (half, number))
        token = attempt.token if attempt.token is not None else nonce.encode()
        seen: Seen = "unknown"
        if begun and ended:
            seen = "reached" if token in said else "refused"
        outcomes.append(Outcome(attempt, seen, said))
    return outcomes


def run_attempts(host: Host, attempts: Iterable[Attempt]) -> list[Outcome]:
    """Run attempts on the host, batched by attacker, attackers in parallel."""
    by_attacker = sorted(attempts, key=lambda attempt: attempt.attacker.slug)
    batches = [list(group) for _, group in groupby(by_attacker, key=lambda attempt: attempt.attacker.slug)]
    if not batches:
        return []
    nonces = [secrets.token_hex(8) for _ in batches]
    directory = f"/tmp/attempts-{secrets.token_hex(8)}"
    lines = [f"mkdir -m 711 {directory} && cd {directory} || exit 1"]
    for number, (batch, nonce) in enumerate(zip(batches, nonces, strict=True)):
        script = base64.b64encode(gzip.compress(batch_script(batch, nonce).encode())).decode()
        if sum(map(len, lines)) + len(script) > ONE_ARGUMENT:
            host.check_output("sh -c %s", "\n".join(lines))
            lines = [f"cd {directory} || exit 1"]
        lines.append(f"base64 -d << 'END' | gzip -d > {number}.sh\n{script}\nEND")
    lines.append(ORDER)
    for number, batch in enumerate(batches):
        lines.append(f"{batch[0].attacker.command(f'{number}.sh')} > {number}.out 2> {number}.err &")
    lines.append("wait")
    for number in range(len(batches)):
        lines.append(f"base64 -w0 {number}.out; echo; tail -c 2000 {number}.err | base64 -w0; echo")
    lines.append('rm -rf "$PWD"')
    done = host.run("sh -c %s", "\n".join(lines), timeout=BATCH_TIMEOUT)
    printed = done.stdout.split("\n")
    if done.rc != 0 or len(printed) < 2 * len(batches):
        raise HarnessError(f"a batch of attempts ended with {done.rc}: {done.stderr[-1000:]}")
    outcomes: list[Outcome] = []
    for number, (batch, nonce) in enumerate(zip(batches, nonces, strict=True)):
        output = base64.b64decode(printed[2 * number])
        result = read_outcomes(batch, nonce, output)
        if all(outcome.seen == "unknown" for outcome in result):
            said = base64.b64decode(printed[2 * number + 1]).decode(errors="replace")
            raise HarnessError(f"{batch[0].attacker.name} could not be tried at all: {said.strip()}")
        outcomes += result
    return outcomes


def order(host: Host, agent: Agent, script: str) -> str:
    """Have the agent's own process, in its container, run a shell script; returns what it printed."""
    lines = [ORDER, 'cd "$(mktemp -d)"', f"echo {quote(script)} > o.sh", Attacker("container", agent).command("o.sh")]
    return host.check_output("sh -c %s", "\n".join([*lines, 'rm -r "$PWD"']))


def quote(value: object) -> str:
    """One shell word."""
    return shlex.quote(str(value))
