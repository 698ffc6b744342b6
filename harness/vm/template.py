"""Templates and forks: boot once, keep the memory in a file, start copies of it copy-on-write.

A template is a cache entry with
    ram             the guest's memory, mapped privately by every fork and never written again
    state           the devices' state (a migration stream without the memory)
    disk.qcow2      the disk as it was then, backed by the layer below
    overlay.qcow2   an empty overlay on it, which a fork copies
    id_ed25519      the private key for root's SSH login

Recipe: ``migrate`` with ``x-ignore-shared`` from a machine whose memory is a shared file; forks map the
same file with ``share=off`` and load the state. See docs/architecture.md.
"""

import errno
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harness.cache import Cache, explain_disk_errors, key_of
from harness.pace import stretch
from harness.progress import step
from harness.vm.image import Image
from harness.vm.machine import Machine
from harness.vm.qemu import Hardware, Process, launch_qemu, start_qemu

FORMAT = 2
"""Part of every key: raise it when templates are made in another way."""
BOOT_TIMEOUT = 600.0
ANSWER_TIMEOUT = 120.0
SNAPSHOT_TIMEOUT = 300.0
NETDEV = "user,restrict=on,hostfwd=tcp:127.0.0.1:0-10.0.2.15:22"
"""User-mode network that leads nowhere: the guest can not reach the host's network or the internet."""


@dataclass(frozen=True)
class Template:
    """A snapshot that machines are forked from."""

    directory: Path
    hardware: Hardware
    image: Image

    @property
    def key(self) -> str:
        return self.directory.name

    @property
    def build(self) -> str:
        """Names this very snapshot: one made anew under the same key is another."""
        return (self.directory / "build").read_text()

    @contextmanager
    def fork(self, cache: Cache, wire: socket.socket | None = None) -> Iterator[Machine]:
        """A new machine in the state of this template; gone at the end, and nothing of it left.

        ``wire`` is its end of a wire (``harness.vm.network``), which is closed here.
        """
        with fork_together(cache, [(self, wire)]) as [machine]:
            yield machine


@contextmanager
def fork_together(cache: Cache, forks: Sequence[tuple[Template, socket.socket | None]]) -> Iterator[Iterator[Machine]]:
    """A fork of each template, with its end of a wire; started together, each given in its turn when it answers."""
    with ExitStack() as stack:
        yield _resume([stack.enter_context(_start_fork(cache, template, wire)) for template, wire in forks])


@contextmanager
def _start_fork(cache: Cache, template: Template, wire: socket.socket | None) -> Iterator["Restoring"]:
    with cache.run_directory() as directory:
        with explain_disk_errors(cache.root):
            shutil.copyfile(template.directory / "overlay.qcow2", directory / "overlay.qcow2")
        with _start_restore(template, directory, template.directory / "ram", share=False, wire=wire) as restoring:
            yield restoring


def boot_arguments(image: Image, hardware: Hardware, words: str = "") -> list[str]:
    """What a machine boots, with ``words`` more on its kernel's command line."""
    line = " ".join(filter(None, (image.command_line, hardware.kernel_words(), words)))
    return [*("-kernel", str(image.kernel), "-initrd", str(image.initrd)), *("-append", line)]


def _drive(file: str) -> str:
    # A test machine's disk needs not survive the host's power cut: never wait for fsync.
    return f"file={file},format=qcow2,cache=unsafe,discard=unmap"


@contextmanager
def power_on(image: Image, hardware: Hardware, directory: Path) -> Iterator[Machine]:
    """Boot cold in ``directory``, with memory in its file ``ram`` and the disk in ``disk.qcow2``."""
    backing = os.path.relpath(image.disk, directory)
    _create_overlay(directory / "disk.qcow2", backing, "raw")
    started = time.monotonic()
    arguments = [*hardware.arguments(directory / "ram", share=True), *boot_arguments(image, hardware)]
    with start_qemu(directory, arguments, disk=_drive("disk.qcow2"), netdev=NETDEV) as process:
        machine = Machine(process)
        machine.wait_shell(BOOT_TIMEOUT, started=started)
        yield machine


@contextmanager
def boot_again(machine: Machine, image: Image, hardware: Hardware, words: str) -> Iterator[Machine]:
    """Switch a fork off for good, and the same machine on again, with more words on its kernel's command line.

    ``image`` and ``hardware`` are its own; what was synced is there.
    """
    directory = machine.process.directory
    machine.process.close()
    for name in ("console.sock", "qemu.pid"):
        (directory / name).unlink(missing_ok=True)
    arguments = [
        *hardware.arguments(directory / "ram", share=True),
        *boot_arguments(image, hardware, words),
    ]
    started = time.monotonic()
    with start_qemu(directory, arguments, disk=_drive("overlay.qcow2"), netdev=NETDEV) as process:
        again = Machine(process, ssh_key=machine.ssh_key)
        again.wait_shell(BOOT_TIMEOUT, started=started)
        yield again


@dataclass(frozen=True)
class Restoring:
    """A QEMU that loads a template's state, and stands still then; ``started`` is when somebody asked for it."""

    template: Template
    process: Process
    started: float


@contextmanager
def _start_restore(
    template: Template, directory: Path, ram: Path, *, share: bool, wire: socket.socket | None = None
) -> Iterator[Restoring]:
    """Start a machine in ``directory`` from ``template``, with its memory from ``ram``; ``_resume`` lets it run."""
    started = time.monotonic()
    arguments = [
        *template.hardware.arguments(ram, share=share),
        *boot_arguments(template.image, template.hardware),
        *("-incoming", "defer"),
    ]
    disk = _drive("disk.qcow2" if share else "overlay.qcow2")
    with (template.directory / "state").open("rb") as state:
        given = state.fileno()
        with launch_qemu(directory, arguments, disk=disk, netdev=NETDEV, wire=wire, inherit=[given]) as process:
            process.order("migrate-set-capabilities", capabilities=IGNORE_SHARED_MEMORY)
            # Nobody on a wire has to learn where a fork is: QEMU would say it five times, and wake who listens.
            process.order("migrate-set-parameters", **{"announce-rounds": 0})
            process.order("migrate-incoming", uri=f"fd:{given}")
            yield Restoring(template, process, started)


def _resume(restoring: Sequence[Restoring]) -> Iterator[Machine]:
    """Let the machines go on, and give each when its root shell answers. No step of one waits for another's."""
    machines = []
    for one in restoring:
        one.process.order("cont")
        machine = Machine(one.process, ssh_key=one.template.directory / "id_ed25519")
        machine.shell.greet(ANSWER_TIMEOUT)
        machines.append(machine)
    for one, machine in zip(restoring, machines, strict=True):
        one.process.connect()
        one.process.wait_status("running", ANSWER_TIMEOUT)
        machine.timings["restored"] = time.monotonic() - one.started
    for one, machine in zip(restoring, machines, strict=True):
        machine.wait_shell(ANSWER_TIMEOUT, started=one.started)
        yield machine


IGNORE_SHARED_MEMORY = [{"capability": "x-ignore-shared", "state": True}]


SETTLE = """
sync; fstrim -a 2> /dev/null; sync
for second in 1 2 3 4 5; do
  read -r _ _ _ _ before _ < /proc/stat; sleep 1; read -r _ _ _ _ after _ < /proc/stat
  [ $((after - before)) -lt 180 ] || break
done"""
"""Ends when the guest has been idle for nearly a second (100 ticks for each processor, proc_stat(5)), or after five.

Every fork would do again what the guest has put off. Its page cache stays: forks share it, and read no disk.
"""


def _snapshot(machine: Machine, directory: Path) -> None:
    """Stop the machine for good and write ``state``; ``ram`` and ``disk.qcow2`` are complete then."""
    process = machine.process
    machine.run(SETTLE).stop_if_timed_out()
    process.execute("stop")
    process.execute("migrate-set-capabilities", capabilities=IGNORE_SHARED_MEMORY)
    process.execute("migrate", uri="exec:cat > state")
    deadline = time.monotonic() + stretch(SNAPSHOT_TIMEOUT)
    while (status := process.execute("query-migrate").get("status")) != "completed":
        process.check()
        if status == "failed" or time.monotonic() > deadline:
            raise RuntimeError(f"the snapshot was not written: migration {status}")
        time.sleep(0.01)
    process.execute("quit")
    process.popen.wait(30)


def _create_overlay(path: Path, backing: str, backing_format: str, size: str | None = None) -> None:
    """An empty qcow2 on ``backing`` (relative to it); with ``size`` the backing file need not be there yet."""
    unchecked = ["-u"] if size else []
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *unchecked, "-b", backing, "-F", backing_format, path.name]
        + ([size] if size else []),
        cwd=path.parent,
        check=True,
    )


def _finish(machine: Machine, directory: Path, key: str, image: Image) -> None:
    _snapshot(machine, directory)
    size = str(image.disk.stat().st_size)
    _create_overlay(directory / "overlay.qcow2", f"../../templates/{key}/disk.qcow2", "qcow2", size)
    (directory / "build").write_text(f"{key}-{secrets.token_hex(8)}")
    for name in ("console.sock", "qemu.pid"):
        (directory / name).unlink(missing_ok=True)


def _authorize_ssh(machine: Machine, directory: Path) -> None:
    """Make a key pair for root's login; the private half stays in the template."""
    key = Ed25519PrivateKey.generate()
    private = directory / "id_ed25519"
    private.touch(mode=0o600)
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    machine.run("mkdir -p -m 700 /root/.ssh").check()
    machine.put(public + b" tentaflake\n", "/root/.ssh/authorized_keys", 0o600)


def cold_template(
    cache: Cache,
    image: Image,
    hardware: Hardware,
    prepare: Callable[[Machine], None],
    *,
    title: str,
    **content: Any,
) -> Template:
    """Boot the image and ``prepare`` it; made once for the same image, hardware and ``content``."""
    key = key_of(layer="cold", image=image.key, hardware=hardware.key(), format=FORMAT, **content)

    def build(directory: Path) -> None:
        with step(title), power_on(image, hardware, directory) as machine:
            prepare(machine)
            _authorize_ssh(machine, directory)
            _finish(machine, directory, key, image)

    return Template(cache.make("templates", key, build), hardware, image)


def copy_sparsely(source: Path, target: Path) -> None:
    """Copy a file but for its zeros; raises ``OSError``, as what is written by Python itself does."""
    command = ["cp", "--sparse=always", "--reflink=auto", str(source), str(target)]
    done = subprocess.run(command, env=os.environ | {"LC_ALL": "C"}, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        reasons = (errno.ENOSPC, errno.EDQUOT)
        reason = next((each for each in reasons if os.strerror(each) in done.stderr), errno.EIO)
        raise OSError(reason, done.stderr.strip())


def derived_template(
    cache: Cache, base: Template, prepare: Callable[[Machine], None], *, title: str, **content: Any
) -> Template:
    """A template on top of ``base``, which stays as it is; made once for the same ``content``."""
    key = key_of(layer="derived", base=base.build, format=FORMAT, **content)

    def build(directory: Path) -> None:
        with step(title):
            copy_sparsely(base.directory / "ram", directory / "ram")
            shutil.copy(base.directory / "id_ed25519", directory / "id_ed25519")
            _create_overlay(directory / "disk.qcow2", f"../{base.key}/disk.qcow2", "qcow2")
            with _start_restore(base, directory, directory / "ram", share=True) as restoring:
                [machine] = _resume([restoring])
                prepare(machine)
                _finish(machine, directory, key, base.image)

    return Template(cache.make("templates", key, build), base.hardware, base.image)
