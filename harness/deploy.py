"""Carries a plan to a host that runs, by SSH, and has the activation program there switch to it.

A host is one on which ``harness/guests/activate.py`` is installed, or the machine of a ``harness shell``: that leaves
the way in to it in its run directory. NixOS has ``nixos-rebuild`` for this.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harness.cache import Cache
from harness.errors import HarnessError
from harness.guests.debian import ACTIVATION, switch_script, tar_of
from harness.policy import Plan
from harness.vm.machine import Machine

WAY_IN = "ssh.json"
"""In a run directory: how to get into the machine by SSH."""
NO_PROGRAM = 90
"""The exit code of a remote command for want of the activation program; ssh's own is 255."""
NO_ROOT = 91
"""Likewise where the login is not root's, and sudo does not let it be root without a password."""
AS_ROOT = """
if [ "$(id -u)" = 0 ]; then exec sh -c {script}; fi
sudo -n sh -c : 2> /dev/null || exit {no_root}
exec sudo -n sh -c {script}"""


class WayIn(msgspec.Struct, frozen=True):
    """``port`` is on this machine's loopback, ``key`` the file of root's private key."""

    port: int
    key: str

    def command(self) -> list[str]:
        """An ``ssh`` command line (host key unchecked: loopback, and gone in a minute)."""
        return [
            "ssh",
            *("-p", str(self.port), "-i", self.key, "-o", "StrictHostKeyChecking=no"),
            *("-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "root@127.0.0.1"),
        ]


def way_into(machine: Machine) -> WayIn:
    return WayIn(machine.ssh_port, str(machine.ssh_key))


def publish_way_in(machine: Machine) -> None:
    """Let other commands find the machine for as long as it lives."""
    (machine.process.directory / WAY_IN).write_bytes(msgspec.json.encode(way_into(machine)))


@dataclass(frozen=True)
class Remote:
    """A host that is reached by the program ``ssh``, with the settings that the user has for it (ssh_config(5)).

    ``is_machine``: it is a test machine, which has neither the agents' images nor a key for their secrets.
    """

    name: str
    ssh: tuple[str, ...]
    is_machine: bool = False

    def run(self, script: str, stdin: bytes = b"", *, capture: bool = False) -> subprocess.CompletedProcess[bytes]:
        """Run a shell script there as root, by sudo where the login is not root's; what it says is shown.

        Raises ``HarnessError`` if the host cannot be reached, does not let us be root, or lacks the activation program.
        """
        quoted = shlex.quote(f"[ -x {ACTIVATION} ] || exit {NO_PROGRAM}\n{script}")
        command = f"sh -c {shlex.quote(AS_ROOT.format(script=quoted, no_root=NO_ROOT))}"
        try:
            done = subprocess.run(
                [*self.ssh, command], input=stdin, stdout=subprocess.PIPE if capture else None, check=False
            )
        except FileNotFoundError:
            raise HarnessError("ssh is not installed", hint="apt-get install openssh-client, or run ci/setup") from None
        except KeyboardInterrupt:
            raise HarnessError(
                f"interrupted: the connection is closed, but what was begun on {self.name} goes on there",
                hint="harness generations shows what came of it, and harness rollback undoes it",
            ) from None
        if done.returncode == 255:
            raise HarnessError(f"{self.name} cannot be reached", hint=f"try it by itself: {shlex.join(self.ssh)}")
        if done.returncode == NO_ROOT:
            raise HarnessError(
                f"{self.name}: the login is not root's, and sudo does not make it root without a password",
                hint="log in as root (--to root@HOST), or allow that login sudo without one (NOPASSWD in sudoers(5))",
            )
        if done.returncode == NO_PROGRAM:
            raise HarnessError(
                f"{self.name} has no {ACTIVATION}",
                hint=f"on NixOS: nixos-rebuild switch --flake .#HOST --target-host {self.name} (docs/deployment.md)",
            )
        return done


def find_remote(to: str | None, cache: Cache) -> Remote:
    """The host ``[user@]host``, or without one the machine that a ``harness shell`` holds; raises ``HarnessError``."""
    if to is not None:
        if to.startswith("-"):
            raise HarnessError(f"--to is {to!r}: not [user@]host")
        return Remote(to, ("ssh", to))
    found = [path for run in cache.live_runs() if (path := run / WAY_IN).exists()]
    if len(found) != 1:
        machines = "none is open" if not found else f"{len(found)} are open"
        raise HarnessError(
            f"which host? There is no --to, and of the machines of `harness shell` {machines}",
            hint="open one in another terminal: harness shell. Or name a host: --to root@HOST",
        )
    way_in = msgspec.json.decode(found[0].read_bytes(), type=WayIn)
    return Remote("the machine of harness shell", tuple(way_in.command()), is_machine=True)


def read_plan_file(file: Path) -> Plan | list[Any]:
    """What is in a JSON file, or for ``-`` on standard input: a plan as ``harness plan --json`` writes it, or specs.

    Raises ``HarnessError``.
    """
    what = "standard input" if str(file) == "-" else str(file)
    try:
        data = json.loads(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise HarnessError(f"{what} cannot be read as a plan: {error}", hint=PLAN_HINT) from None
    if isinstance(data, list):
        return data
    if not isinstance(data, dict) or "version" not in data:
        raise HarnessError(f"{what} is neither a plan nor a list of agents", hint=PLAN_HINT)
    try:
        return msgspec.convert(data, Plan)
    except msgspec.ValidationError as error:
        raise HarnessError(f"{what} is no plan that this harness knows: {error}", hint=PLAN_HINT) from None


def read_plan(file: Path) -> Plan:
    """The plan in a JSON file, as ``harness plan --json`` writes it; raises ``HarnessError``."""
    found = read_plan_file(file)
    if isinstance(found, list):
        raise HarnessError(f"{file} is a list of agents, and no plan of a host", hint=PLAN_HINT)
    return found


PLAN_HINT = "harness plan --json > plan.json writes one; agents are an agents.nix, or a JSON list of specs"


def read_files(plan: Plan, root: Path) -> dict[str, bytes]:
    """The age files of the plan's secrets that are there, by name; ``root`` is where the agents are listed."""
    names = sorted({secret.file for secret in plan.secrets.values()})
    return {name: (root / name).read_bytes() for name in names if (root / name).is_file()}


def switch(remote: Remote, plan: Plan, files: Mapping[str, bytes], *options: str) -> int:
    """Switch the host to a plan; returns activate.py's exit code."""
    archive = tar_of({"plan.json": plan.to_json().encode(), **files})
    return remote.run(switch_script(*options), archive).returncode


def activate(remote: Remote, *arguments: str) -> int:
    """Run the activation program there; returns its exit code."""
    return remote.run(shlex.join([ACTIVATION, *arguments])).returncode
