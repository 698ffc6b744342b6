"""Evidence of a failed test, on disk before the machine is gone."""

import hashlib
import re
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.vm.machine import Machine

COMMANDS = {
    "journal.txt": "journalctl -b --no-pager -o short-precise",
    "kernel.txt": "dmesg",
    "nft-ruleset.txt": "nft list ruleset",
    "docker-ps.txt": "docker ps --all --no-trunc",
    "docker-inspect.json": "docker ps --all --quiet | xargs -r docker inspect",
    "failed-units.txt": "systemctl --failed --no-pager --no-legend; systemctl list-jobs --no-pager",
    "processes.txt": "ps -eo user:32,pid,ppid,lstart,args",
    "addresses.txt": "ip address; ip route; ip -6 route",
    "plan.json": "cat /var/lib/tentaflake/current/plan.json",
}
# One round trip for all of it: each command's output goes to a file, and the files come as one archive.
ARCHIVE = 'cd $(mktemp -d) && {commands} tar -czf - . && rm -rf "$PWD"'


PLAIN = re.compile(r"[\w/]+\.py::\w+(\[[\w.-]+\])?", re.ASCII)
"""A test id of which a safe path loses nothing."""


def directory_for(artifacts: Path, test: str) -> Path:
    """``<artifacts>/<test id, made a safe name>``; where that loses something, with a digest of the id behind it."""
    safe = re.sub(r"[^A-Za-z0-9._\[\]-]+", "-", test.replace(".py::", "/")).strip("-")[:150]
    if len(test) > 150 or not PLAIN.fullmatch(test):
        safe += f"-{hashlib.sha256(test.encode()).hexdigest()[:12]}"
    return artifacts / safe


def collect(machines: Sequence[Machine], artifacts: Path, test: str) -> Path:
    """Write what can be had from each machine; returns the directory. Never raises for a dead guest."""
    directory = directory_for(artifacts, test)
    shutil.rmtree(directory, ignore_errors=True)  # what an earlier run left would be taken for this one's
    directory.mkdir(parents=True)
    for number, machine in enumerate(machines):
        place = directory if len(machines) == 1 else directory / f"{machine.name}-{number}"
        place.mkdir(exist_ok=True)
        for name in ("console.log", "qemu.log"):
            source = machine.process.directory / name
            if source.exists():
                (place / name).write_bytes(source.read_bytes())
        try:
            _collect_inside(machine, place)
        except HarnessError as error:
            (place / "guest-did-not-answer.txt").write_text(f"{error}\n")
    last = artifacts / "last"
    new = artifacts / f".last.{directory.name}"
    new.unlink(missing_ok=True)
    new.symlink_to(directory.name)
    new.rename(last)
    return directory


def _collect_inside(machine: Machine, place: Path) -> None:
    commands = "".join(f"( {command} ) > {name} 2>&1 < /dev/null; " for name, command in COMMANDS.items())
    done = machine.run(ARCHIVE.format(commands=commands), timeout=120).check()
    archive = place / "guest.tar.gz"
    archive.write_bytes(done.stdout)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if name in COMMANDS and (file := tar.extractfile(member)):  # nothing else that a guest may have sent
                (place / name).write_bytes(file.read())
    archive.unlink()
