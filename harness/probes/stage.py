"""Sets the stage for attempts: plants what may not be found, and finds out what an attacker aims at."""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from testinfra.host import Host

from harness.errors import HarnessError
from harness.policy import Plan
from harness.probes.attempts import Attacker, quote

HOST = "host"
"""The name of the host itself as a target: a root process and a root directory that stand for all of them."""
ENCRYPTED = "/var/lib/tentaflake/current/secrets"
NIX_DAEMON = "/nix/var/nix/daemon-socket/socket"
"""nix-daemon(8)."""


@dataclass(frozen=True)
class Secrets:
    """A target's secrets: ``paths`` on the host and in its container. ``value`` is one that it shares with nobody,
    empty when it has none; ``variable`` likewise, of one that is in its environment. ``encrypted`` is where the host
    has them as age files, if it keeps those from its users.
    """

    paths: Sequence[str] = ()
    value: str = ""
    variable: str = ""
    encrypted: str = ""


@dataclass(frozen=True)
class Target:
    """Somebody to be attacked: an agent, or the host.

    ``known`` is the content of the file ``<directory>/known``, ``listed`` the name of an empty file in it.
    ``pids`` are its processes as the host numbers them, the first one first; ``all_pids`` the first
    process of every target on this stage. ``nix_daemon`` is the socket of the host's Nix daemon, if it has one.
    """

    name: str
    directory: str
    known: str
    listed: str
    pids: Sequence[int]
    all_pids: Sequence[int]
    secrets: Secrets = Secrets()
    nix_daemon: str = ""


def set_stage(host: Host, plan: Plan, attackers: Sequence[Attacker]) -> dict[str, Target]:
    """Plant tokens with every agent and on the host, as their owners; returns the targets by name.

    Raises ``HarnessError`` when an agent's container does not run: then there is nothing to attack.
    """
    owners = {agent.name: (agent.state_dir, agent.uid) for agent in plan.agents.values()}
    decoy, secret = f"/root/decoy-{secrets.token_hex(4)}", secrets.token_hex(12)
    tokens = {name: (secrets.token_hex(12), secrets.token_hex(12)) for name in [*owners, HOST]}
    decoy_process = f"exec env -i HERMES_HOME={decoy} SECRET={secret} sleep infinity"
    slugs = " ".join(attacker.slug for attacker in [*attackers, Attacker("root")])
    plant = (
        'cd "$1"; umask 077; echo "$2" > known; : > "$3"; '
        f'for s in {slugs}; do echo "$2" > movable-$s; : > removable-$s; done'
    )
    lines = [
        "set -eu",
        f"plant={quote(plant)}",
        f"mkdir -m 700 {decoy}",
        f'sh -euc "$plant" sh {decoy} {" ".join(tokens[HOST])}',
        f"sh -c 'cd {decoy}; exec 9> held; {decoy_process}' > /dev/null 2>&1 &",
        "echo $!",
    ]
    for name, (directory, uid) in owners.items():
        as_agent = f"setpriv --reuid={uid} --regid={uid} --clear-groups"
        lines += [
            f'{as_agent} sh -euc "$plant" sh {quote(directory)} {" ".join(tokens[name])}',
            f"echo $(pgrep -o -u {uid}) $(pgrep -u {uid})",
        ]
    lines.append(f"ls {NIX_DAEMON} 2> /dev/null || echo -")
    done = host.run("sh -c %s", "\n".join(lines))
    *printed, daemon = done.stdout.splitlines() or [""]
    rows = [[int(pid) for pid in line.split()] for line in printed]
    if done.rc != 0 or len(rows) != len(tokens) or not all(row and row[0] > 0 for row in rows):
        raise HarnessError(f"the stage could not be set: {done.stderr.strip() or done.stdout}")
    directories = {HOST: decoy} | {name: owner[0] for name, owner in owners.items()}
    hidden = _find_secrets(host, plan, secret)
    return {
        name: Target(
            name,
            directories[name],
            *tokens[name],
            pids=row,
            all_pids=[each[0] for each in rows],
            secrets=hidden[name],
            nix_daemon=daemon.strip("-") if name == HOST else "",
        )
        for name, row in zip([HOST, *owners], rows, strict=True)
    }


def _find_secrets(host: Host, plan: Plan, planted: str) -> dict[str, Secrets]:
    """Each target's secrets. The host gets one of its own beside the agents': ``planted``."""
    names = " ".join(quote(name) for name in plan.secrets)
    lines = [
        "set -eu; cd /run/agenix; umask 277; pwd -P",
        f"echo {planted} > decoy",
        f'for name in {names}; do base64 -w 0 "$name"; echo; done',
        f"ls -d {ENCRYPTED} 2> /dev/null || echo -",
    ]
    directory, *values, encrypted = host.check_output("sh -c %s", "\n".join(lines)).splitlines()
    value = dict(zip(plan.secrets, (base64.b64decode(text).decode() for text in values), strict=True))
    own = ["/run/agenix/decoy", f"{directory}/decoy", plan.host.secrets_identity]
    found = {HOST: Secrets(own, planted, planted, encrypted.strip("-"))}
    for agent in plan.agents.values():
        unshared = [secret for secret in agent.secrets if not secret.shared]
        paths = [path for each in agent.secrets for path in (each.path, f"{directory}/{each.id}")]
        found[agent.name] = Secrets(
            paths + [secret.target for secret in unshared],
            next((value[secret.id] for secret in unshared), ""),
            next((value[secret.id] for secret in unshared if secret.as_ == "env"), ""),
        )
    return found
