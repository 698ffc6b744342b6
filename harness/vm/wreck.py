"""What is left of a machine whose power was cut: files out of its dead disk, without booting it and without root.

QEMU passes the guest's flushes on to this host's kernel, whatever its cache mode: what the guest had synced is in the
overlay's file when QEMU is killed; of what it had not, some is and some is not, as with a disk that has a cache.
"""

import subprocess
from pathlib import Path

from harness.errors import HarnessError
from harness.vm.machine import Machine

REPLAYED = (0, 1)
"""Exit codes of e2fsck(8): nothing to do, and done."""


def cut_power(machine: Machine) -> None:
    """Kill its QEMU, at once."""
    machine.process.popen.kill()
    machine.process.popen.wait()


def salvage(machine: Machine, source: str, target: Path) -> Path:
    """Copy a directory of a dead machine into ``target``, after its file system's journal was replayed."""
    disk = target / "disk.raw"
    _run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(machine.process.directory / "overlay.qcow2"), str(disk))
    try:
        _run("e2fsck", "-E", "journal_only", "-p", str(disk), allowed=REPLAYED)
        _run("debugfs", "-R", f"rdump {source} {target}", str(disk))
    finally:
        disk.unlink()
    found = target / Path(source).name
    if not found.is_dir():
        raise HarnessError(f"the dead machine's disk has no directory {source}")
    return found


def _run(*command: str, allowed: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise HarnessError(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-1000:]}")
