"""The claims: what a host built from this flake promises. docs/contract.md lists the same, and a test compares them.

``to_come`` names the claims whose tests a later issue delivers; the suite fails if any other has none.
"""

from dataclasses import dataclass

from harness.errors import HarnessError


@dataclass(frozen=True)
class Claim:
    """One promise. ``text`` is one sentence; A and B are any two different agents."""

    id: str
    text: str
    to_come: bool = False


CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in [
        Claim(
            "U1",
            "Each agent has its own system user: own uid and gid, no login shell, no password, no other group.",
        ),
        Claim(
            "U2", "A cannot see the environment of, signal, trace or read the memory of a process of B, or of the host."
        ),
        Claim("U3", "Adding, removing or renaming an agent changes no other agent's uid, gid or files."),
        Claim("D1", "The state directory is 0700 and the agent's, and so is all that it holds after a day's use."),
        Claim(
            "D2", "A can neither list, read, write, rename nor stat anything under B's state directory, by any path."
        ),
        Claim(
            "D3", "Nothing is shared sideways: no common temporary files, shared memory, queues, sockets or keyrings."
        ),
        Claim("D4", "A cannot exhaust what B needs: pids, memory, CPU and disk are capped per agent."),
        Claim(
            "C1",
            "Every process of a container has the agent's uid, no capability, NoNewPrivs and a seccomp filter.",
        ),
        Claim(
            "C2", "The root filesystem is read-only; a write outside the state directory and the tmpfs mounts fails."
        ),
        Claim("C3", "Containers are stateless: after a restart all but the state directory is as in the image."),
        Claim(
            "C4",
            "Mounted are the agent's own state, configuration and secrets: no socket, no other path, no device.",
        ),
        Claim("C5", "The image is the one pinned by digest."),
        Claim(
            "C6",
            "A crashed agent restarts, the others do not notice; a restart of Docker brings back agents and rules.",
        ),
        Claim("S1", "A secret is 0400, owned by its agent, in memory and on no disk, and readable by no other agent."),
        Claim("S2", "A secret's value occurs nowhere else."),
        Claim(
            "S3",
            "A secret that cannot be decrypted keeps its agent from starting, by name; the others start.",
        ),
        Claim("F1", "From the LAN, every port is closed but those that the host's settings open."),
        Claim("F2", "A cannot open a connection to B, by any way."),
        Claim("F3", "A reaches on the host only what its spec grants."),
        Claim("F4", "A's way out follows its spec."),
        Claim("F5", "Agents' published ports are reachable on the tailnet interface and on nothing else."),
        Claim("F6", "There is no moment without rules."),
        Claim("T1", "The speech server answers the official openai client."),
        Claim("T2", "Bad input gets an OpenAI-shaped error, and the server goes on serving."),
        Claim("T3", "The speech server is reachable from the host and from agents granted it, and from nowhere else."),
        Claim("T4", "The speech server runs unprivileged and sandboxed."),
        Claim("A1", "What happens under a state directory is recorded within a second of what a bare watcher needs."),
        Claim("A2", "Nothing is lost: an overflow is found again by a rescan and marked."),
        Claim("A3", "The audit database survives a kill and a power cut."),
        Claim("A4", "No agent can read, change, delete or stall the record."),
        Claim("A5", "Old events are pruned as configured; a full disk stops no agent and is reported."),
        Claim("X1", "Switching to a plan leaves the agents that it does not change running."),
        Claim("X2", "A rollback brings back the former host exactly; a failed switch leaves it in charge."),
        Claim("X3", "A removed agent cannot log in or run; its state is kept and nobody else can read it."),
        Claim("X4", "The same sources give the same plan, byte for byte; every flake input is locked."),
        Claim(
            "N1",
            "Only the tailnet interface is trusted as the specs say; without tailscale nothing listens for it.",
        ),
        Claim(
            "I1", "The installer gives a machine that boots from its disk and keeps every claim above.", to_come=True
        ),
        Claim(
            "I2",
            "Wrong answers to the installer are refused, and no disk is written before the last confirmation.",
            to_come=True,
        ),
    ]
}


class ClaimBroken(AssertionError):
    """An attack on a claim succeeded: the host does not keep this promise."""


class ControlFailed(HarnessError):
    """A positive control failed, or an attack did not run to its end: the claim is untried, not held.

    The tool is missing, the target is down, or the attack itself is broken; look at the output shown.
    """


class Inapplicable(HarnessError):
    """The host has nothing that this test could attack: a single agent has no neighbour, say."""


def find_claim(name: str) -> Claim:
    """The claim of that id; an unknown id lists those that exist."""
    if name not in CLAIMS:
        raise HarnessError(f"there is no claim {name!r}", hint=f"the claims are {', '.join(CLAIMS)}")
    return CLAIMS[name]


def missing_mutants(broken: set[str]) -> list[str]:
    """Claims that should have a mutant (``harness.mutants``), given those that have one."""
    return [claim.id for claim in CLAIMS.values() if not claim.to_come and claim.id not in broken]


def missing_tests(tested: set[str]) -> list[str]:
    """Claims that should have a test, given those that have one."""
    return [claim.id for claim in CLAIMS.values() if not claim.to_come and claim.id not in tested]
