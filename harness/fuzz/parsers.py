"""The programs that read what a plan is rendered to, each by itself: what they make of it, or their complaint.

Nothing is started, loaded or pulled: systemd, nft, Docker's client and a shell only read.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml

from harness.errors import Untriable

Files = Mapping[str, tuple[int, str]]


class Refused(AssertionError):
    """A program does not read what was written for it."""


def _run(command: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise Untriable(f"{command[0]} is not installed", hint="run ci/setup") from None


# ---- nftables


def nft_check(text: str) -> subprocess.CompletedProcess[str]:
    """`nft --check` in a network namespace of its own: it asks the kernel, so it needs one where it may."""
    own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    return _run([*own, "nft", "--check", "--file", "-"], text)


@cache
def nft_obstacle() -> str | None:
    """Why nft cannot ask this kernel, if it cannot."""
    if not shutil.which("nft"):
        return "nft is not installed"
    done = nft_check("table inet t { chain c { type filter hook input priority 0; ct state new accept; }; }")
    return f"nft cannot ask this kernel: {done.stderr.strip()}" if done.returncode else None


# ---- systemd

HARMLESS = re.compile(r"\S+: Command /\S+ is not executable: No such file or directory")


def verify_units(directory: Path, units: Mapping[str, str]) -> None:
    """``systemd-analyze verify``; that a program is not on this machine is no complaint. Raises ``Refused``."""
    directory.mkdir()
    for name, text in units.items():
        (directory / name).write_bytes(text.encode())
    for text in units.values():
        for line in re.findall(r"^Requires=(.*)$", text, re.MULTILINE):
            for needed in set(line.split()) - units.keys():  # another package's
                (directory / needed).write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
    paths = [str(directory / name) for name in sorted(units)]
    done = _run(["systemd-analyze", "verify", "--man=no", "--generators=no", *paths])
    complaints = [line for line in done.stderr.splitlines() if not HARMLESS.fullmatch(line)]
    if complaints:
        raise Refused("systemd-analyze verify:\n" + "\n".join(complaints[:10]))


def make_accounts(root: Path, sysusers: str, tmpfiles: str) -> tuple[dict[str, pwd.struct_passwd], dict[str, str]]:
    """Has systemd make users and directories below ``root``, an empty directory: the users by name, and of each
    directory its mode, user and group (``0700 hermes-a hermes-a``). Only root can give a directory away.
    """
    (root / "etc").mkdir(parents=True)
    for name, text in (("sysusers", sysusers), ("tmpfiles", tmpfiles)):
        (root / f"{name}.conf").write_bytes(text.encode())
    done = _run(["systemd-sysusers", f"--root={root}", str(root / "sysusers.conf")])
    if done.returncode or "warning" in done.stderr.lower():
        raise Refused(f"systemd-sysusers: {done.stderr}")
    users = {}
    for line in (root / "etc/passwd").read_text().splitlines():
        name, password, uid, gid, *rest = line.split(":")
        users[name] = pwd.struct_passwd((name, password, int(uid), int(gid), *rest))
    groups = {int(line.split(":")[2]): line.split(":")[0] for line in (root / "etc/group").read_text().splitlines()}
    names = {user.pw_uid: name for name, user in users.items()} | {0: "root"}
    done = _run(["systemd-tmpfiles", f"--root={root}", "--create", str(root / "tmpfiles.conf")])
    if done.returncode or done.stderr:
        raise Refused(f"systemd-tmpfiles: {done.stderr}")
    made = {}
    for line in tmpfiles.splitlines():
        path = line.split()[1]
        status = (root / path.lstrip("/")).lstat()
        made[path] = f"{stat.S_IMODE(status.st_mode):04o} {names[status.st_uid]} {groups[status.st_gid]}"
    return users, made


def systemd_obstacle() -> str | None:
    """Why systemd's programs cannot be asked, if they cannot."""
    return None if shutil.which("systemd-analyze") else "there is no systemd"


def accounts_obstacle() -> str | None:
    """Why systemd cannot make users and directories below a root of its own, if it cannot."""
    if os.geteuid():
        return "only root can give a directory away"
    return None if shutil.which("systemd-sysusers") and shutil.which("systemd-tmpfiles") else "there is no systemd"


# ---- Docker


def docker_obstacle() -> str | None:
    """Why Docker's client cannot be asked, if it cannot."""
    return None if shutil.which("docker") else "there is no docker client"


def docker_run_complaint(arguments: Sequence[str]) -> str | None:
    """What Docker's client has against these arguments of ``docker run``; None if it goes on to call the daemon."""
    done = _run(["docker", "--host=unix:///nonexistent/docker.sock", "run", *arguments])
    return None if "Cannot connect to the Docker daemon" in done.stderr else done.stderr.strip()


# ---- a shell

RECORDER = """#!/bin/sh
printf '%s\\0' "$#" "${0##*/}" "$@" >> "$RECORD"
[ "${0##*/} $1 $2" != "docker network inspect" ] || printf '%s\\n' "$LABEL"
"""


class Stage:
    """A place to run start scripts in, where every program only writes down its arguments."""

    def __init__(self, directory: Path) -> None:
        self.programs = directory / "bin"
        self.record = directory / "record"
        self.environment = {"PATH": str(self.programs), "RECORD": str(self.record)}
        self.programs.mkdir()
        for name in ("docker", "setpriv", "setquota", "findmnt"):
            (self.programs / name).write_text(RECORDER)
            (self.programs / name).chmod(0o755)

    def run(self, script: str, label: str = "", shell: str = "/bin/sh") -> list[list[str]]:
        """The commands that the script ran, each word as the program received it."""
        self.record.write_bytes(b"")
        subprocess.run(
            [shell, "-c", script], env={**self.environment, "LABEL": label}, check=True, stdin=subprocess.DEVNULL
        )
        words = self.record.read_bytes().decode().split("\0")[:-1]
        commands = []
        while words:
            end = int(words[0]) + 2
            commands.append(words[1:end])
            words = words[end:]
        return commands


def run_shell(script: str, shell: str) -> tuple[int, str, str]:
    """A script by itself, with no program at hand: its exit code, and what it said on both streams."""
    done = _run(["env", "-i", shell, "-c", script])
    return done.returncode, done.stdout, done.stderr


# ---- YAML


def read_yaml(text: str) -> object:
    """As Hermes reads its config.yaml; raises ``Refused``."""
    try:
        return yaml.load(text.encode(), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise Refused(f"YAML: {error}") from None
