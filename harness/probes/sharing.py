"""Claim D3, nothing is shared sideways: A leaves something in every common place; does B find it?

Two steps: every attacker leaves a token of its own; then every agent, in its container, looks.
The positive control is the attacker itself, looking by the same command from where it left it.
"""

import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from testinfra.host import Host

from harness.errors import HarnessError
from harness.policy import Plan
from harness.probes.attempts import Aim, Attacker, Attempt, Origin, Outcome, attackers, is_aimed_at, quote, run_attempts
from harness.probes.ways import BOTH, UID


@dataclass(frozen=True)
class Place:
    """Somewhere that processes can meet. ``leave`` makes the token, ``look`` prints all that is there."""

    name: str
    leave: Callable[[str], str]
    look: str
    origins: tuple[Origin, ...] = BOTH

    @property
    def way(self) -> str:
        return f"leave something in {self.name}"


# What has no command of its own, by system calls, all of it in one program. A child stays, because some
# things go with their maker. SysV keys are numbers: the token is eight hex digits, below 2^31.
PROGRAM = """\
import ctypes, os, socket, sys, time
token = {token!r}
libc = ctypes.CDLL(None, use_errno=True)
if libc.shmget(int(token, 16), 4096, 0o1666) < 0:
    sys.exit("shmget")
ADD_KEY, USER_KEYRING = 248, -4
if libc.syscall(ADD_KEY, b"user", token.encode(), b"x", 1, USER_KEYRING) < 0:
    sys.exit("add_key")
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0" + token)
if os.fork() == 0:
    null = os.open("/dev/null", os.O_RDWR)
    for stream in 0, 1, 2:
        os.dup2(null, stream)
    time.sleep(600)
"""


def _by_program(token: str) -> str:
    return f"python3 -I -S -c {quote(PROGRAM.format(token=token))} && won"


PLACES = [
    Place("/tmp", lambda token: f": > /tmp/{token} && won", "ls -a /tmp"),
    Place("/dev/shm", lambda token: f": > /dev/shm/{token} && won", "ls -a /dev/shm"),
    Place("/var/tmp", lambda token: f": > /var/tmp/{token} && won", "ls -a /var/tmp", UID),
    Place("POSIX message queues", lambda token: f": > /dev/mqueue/{token} && won", "ls -a /dev/mqueue"),
    Place("SysV shared memory", _by_program, "awk '{ printf \"%08x\\n\", $1 }' /proc/sysvipc/shm", UID),
    Place("abstract sockets", _by_program, "grep -o '@[0-9a-f]*$' /proc/net/unix", UID),
    Place("kernel keyrings", _by_program, "cat /proc/keys", UID),
]


def _traces(plan: Plan, places: Sequence[Place]) -> Iterator[tuple[Attacker, Place, str]]:
    """Who leaves what where: every attacker its own token in every place that it can use."""
    for attacker in attackers(plan):
        token = f"{secrets.randbits(31):08x}"
        for place in places:
            if attacker.origin in place.origins:
                yield attacker, place, token


def run_sharing(host: Host, plan: Plan, aims: Collection[Aim] | None = None) -> list[Outcome]:
    """Leave, look, compare, in every place or those that ``aims`` asks for.

    Raises ``HarnessError`` where something could not even be left.
    """
    places = [place for place in PLACES if is_aimed_at(aims, "D3", place.way)]
    traces = list(_traces(plan, places))
    left = run_attempts(
        host,
        [
            Attempt("D3", place.way, attacker, attacker.name, place.leave(token), "reached")
            for attacker, place, token in traces
        ],
    )
    if wrong := [outcome for outcome in left if not outcome.as_expected]:
        raise HarnessError(f"the attack on D3 could not be set up: {wrong[0]}")
    looks = run_attempts(
        host,
        [
            Attempt("D3", place.name, looker, looker.name, f"{place.look}; won", "reached")
            for looker in attackers(plan)
            for place in places
            if looker.origin in place.origins or looker.origin == "container"
        ],
    )
    found = {(look.attempt.attacker.slug, look.attempt.way): look for look in looks}
    return [
        _judge(attacker, place, token, looker, found[looker.slug, place.name])
        for attacker, place, token in traces
        for looker in attackers(plan)
        if looker == attacker or (looker.origin == "container" and looker.agent != attacker.agent)
    ]


def _judge(attacker: Attacker, place: Place, token: str, looker: Attacker, look: Outcome) -> Outcome:
    """Whether ``looker`` found what ``attacker`` left; unknown where it could not look to the end."""
    assert looker.agent is not None
    attempt = Attempt(
        claim="D3",
        way=place.way,
        attacker=attacker,
        target=looker.agent.name,
        script=look.attempt.script,
        expected="reached" if looker == attacker else "refused",
    )
    if look.seen != "reached":
        return Outcome(attempt, "unknown", look.output)
    return Outcome(attempt, "reached" if token.encode() in look.output else "refused", look.output)
