"""One QEMU process: its command line, its monitor (QMP), its death.

What may not differ between a template and its forks (devices, CPU, memory, machine type, QEMU's own
version) is in ``Hardware`` and goes into the cache key; what may (overlay, network back end,
sockets) is given per process.
"""

import asyncio
import ctypes
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

from harness.errors import HarnessError, Untriable
from harness.pace import stretch

CONSOLE_TAIL = 12
MONITOR_TIMEOUT = 120.0
"""Seconds within which a new QEMU greets and an old one answers."""
PANIC = re.compile(rb"Kernel panic - not syncing[^\r\n]*")


class QemuFailed(Untriable):
    """QEMU itself, not its guest, does not do as it is told."""


class GuestDied(HarnessError):
    """QEMU is gone: killed, crashed, or ended by the guest."""


class GuestPanicked(GuestDied):
    """The guest's kernel panicked; the message is its last word."""


class HostDiskFull(HarnessError, OSError):
    """The host's disk is full: QEMU has stopped the machine on a write to its overlay."""


@cache
def find_qemu() -> Path:
    """The QEMU for this architecture, or an error that says what to install."""
    name = f"qemu-system-{os.uname().machine}"
    path = shutil.which(name)
    if path is None:
        raise HarnessError(f"{name} is not installed", hint="run ci/setup, or install qemu-system-x86")
    return Path(path)


@cache
def qemu_version() -> tuple[int, ...]:
    """QEMU's version, e.g. ``(7, 2, 22)``."""
    text = subprocess.run([find_qemu(), "--version"], check=True, capture_output=True, text=True).stdout
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise HarnessError(f"cannot read the version of {find_qemu()} from {text!r}")
    return tuple(int(part) for part in match.groups())


CARD = "romfile=,guest_announce=off"
"""Of a network card: no firmware to boot from, and after a fork its guest is not asked to announce where it is now."""


@dataclass(frozen=True)
class Hardware:
    """What the guest sees of its machine; equal for a template and all its forks.

    ``memory`` is in MiB. ``accelerator`` is ``tcg`` or ``kvm``.
    """

    accelerator: str
    cpus: int = 2
    memory: int = 2048

    def cpu_model(self) -> str:
        if self.accelerator == "kvm":
            return "host"
        # With five levels of page tables, each miss of the emulated TLB takes a fifth step. Where there is ERMS the
        # kernel copies byte by byte, and with AVX the C library takes its widest registers: both slower, emulated.
        model = "max,-la57,-erms,-avx,-avx2"
        # QEMU 7.2's cmpxchg16b leaves broken flags, on which kernel 6.12 panics; 8.0 has it mended.
        return f"{model},-cx16" if qemu_version() < (8, 0) else model

    def kernel_words(self) -> str:
        """More words for the kernel's command line (the kernel's own kernel-parameters.txt), under TCG.

        Without random addresses a program that lies where it lay before needs not be translated anew, and starting
        /bin/true takes a third of the time. All runs on the first of the processors, unless it asks for another:
        two that wake each other take a quarter more of the host's. (Of one alone, Docker would refuse a container that
        may use more.) And pages are small: QEMU empties its whole TLB where it should forget one part of a large page.
        """
        return "norandmaps isolcpus=1 transparent_hugepage=never" if self.accelerator == "tcg" else ""

    def key(self) -> dict[str, Any]:
        """What a template made on this hardware depends on."""
        return {
            "accelerator": self.accelerator,
            "cpus": self.cpus,
            "memory": self.memory,
            "cpu": self.cpu_model(),
            "host_cpu": host_cpu() if self.accelerator == "kvm" else None,
            "qemu": qemu_version(),
            "arguments": self.arguments(Path("ram"), share=False),
            "kernel": self.kernel_words(),
        }

    def arguments(self, ram: Path, *, share: bool) -> list[str]:
        """The part of the command line that template and forks have in common.

        ``share``: guest memory is written back to ``ram`` (a template); else copy-on-write (a fork).
        """
        path = str(ram).replace(",", ",,")  # QEMU's own quoting of a comma
        memory = f"memory-backend-file,id=ram,size={self.memory}M,mem-path={path},share={'on' if share else 'off'}"
        accelerator = "tcg,thread=multi" if self.accelerator == "tcg" else self.accelerator
        return [
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35,memory-backend=ram,vmport=off"),
            *("-accel", accelerator),
            *("-cpu", self.cpu_model(), "-smp", str(self.cpus), "-m", f"{self.memory}M"),
            *("-object", memory),
            *("-device", "vmgenid,guid=auto"),
            *("-device", "virtio-rng-pci"),
            *("-device", "virtio-blk-pci,drive=disk"),
            *("-device", f"virtio-net-pci,netdev=management,mac=52:54:00:12:34:01,{CARD}"),
            *("-device", f"virtio-net-pci,netdev=wire,mac=52:54:00:12:34:02,{CARD}"),
            *("-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=shell,name=tentaflake.shell"),
            *("-serial", "chardev:console"),
            *("-mon", "chardev=qmp,mode=control"),
        ]


def host_cpu() -> str:
    """The host processor as /proc/cpuinfo names it, with its flags."""
    wanted = ("model name", "flags", "microcode")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))


@dataclass
class Process:
    """A running QEMU in its run directory, with its monitor and the guest's root shell socket."""

    command: list[str]
    directory: Path
    popen: subprocess.Popen[bytes]
    qmp: QEMUMonitorProtocol
    shell: socket.socket
    _monitor: socket.socket
    _orders: socket.socket
    _loop: asyncio.AbstractEventLoop
    _console_seen: int = field(default=0, repr=False)
    _fatal: HarnessError | None = field(default=None, repr=False)

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"

    def connect(self) -> None:
        """Wait for the monitor; raises ``GuestDied`` if QEMU did not start."""
        try:
            greeting = select.poll()
            greeting.register(self._monitor, select.POLLIN)
            if not greeting.poll(MONITOR_TIMEOUT * 1000):  # the end of QEMU would be an event too
                raise QemuFailed(f"QEMU's monitor has said nothing for {MONITOR_TIMEOUT} s")
            self.qmp.connect()
            self.qmp.settimeout(MONITOR_TIMEOUT)
        except (QMPError, OSError, EOFError) as error:
            self._exited(within=2.0)
            self.check()
            raise QemuFailed(f"no answer from QEMU's monitor: {error}") from error

    def check(self) -> None:
        """Raise if the guest can not go on: QEMU dead, kernel panicked, host disk full; every time from then on."""
        if self._fatal is None and (panic := self._find_panic()):
            self._fatal = GuestPanicked(f"the guest's kernel panicked: {panic}\n{self.console_tail()}")
        if self._fatal is not None:
            raise self._fatal
        if (code := self.popen.poll()) is not None:
            raise self._death(code)
        try:
            events = self.qmp.get_events(wait=False)
        except (QMPError, OSError):
            return  # QEMU is on its way out: the next look has its exit code
        for event in events:
            if event["event"] == "BLOCK_IO_ERROR":
                data = event["data"]
                assert isinstance(data, dict)
                if data.get("nospace"):
                    self._fatal = HostDiskFull(
                        f"the disk under {self.directory} is full; QEMU has stopped the machine",
                        hint="free some space, run `harness image prune`, or choose another place with --vm-cache",
                    )
                    raise self._fatal

    def order(self, command: str, **arguments: Any) -> None:
        """Have a QMP command executed as soon as QEMU can, and wait for nothing; ``wait_status`` says what it refused.

        For a QEMU that is starting: it does what it is told while others start too.
        """
        with suppress(OSError):  # it has ended: the next look says how
            self._orders.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")

    def _refusals(self) -> str:
        """What QEMU has refused of its orders."""
        try:
            said = self._orders.recv(1 << 16, socket.MSG_DONTWAIT).decode(errors="replace")
        except OSError:
            return ""
        return "".join(f"\n  {line}" for line in said.splitlines() if '"error"' in line)

    def execute(self, command: str, **arguments: Any) -> Any:
        """A QMP command; raises ``GuestDied`` if QEMU went away under it."""
        try:
            return self.qmp.cmd(command, **arguments)
        except (QMPError, OSError, EOFError) as error:
            if self._exited(within=1.0) is not None:
                self.check()
            raise QemuFailed(f"QEMU refused {command}: {error}") from error

    def wait_status(self, status: str, timeout: float) -> None:
        """Wait for ``query-status`` to say ``status`` (seconds, stretched)."""
        limit = stretch(timeout)
        deadline = time.monotonic() + limit
        while (seen := self.execute("query-status")["status"]) != status:
            self.check()
            if refused := self._refusals():
                raise QemuFailed(f"QEMU is {seen!r}, not {status!r}: it has refused an order{refused}")
            if time.monotonic() > deadline:
                raise QemuFailed(f"QEMU is {seen!r}, not {status!r}, after {limit:g} s")
            time.sleep(0.002)

    def reset(self) -> None:
        """Reset the machine; what is written to it from here on is for the new one."""
        self.execute("system_reset")
        deadline = time.monotonic() + MONITOR_TIMEOUT
        while all(event["event"] != "RESET" for event in self.qmp.get_events(wait=False)):
            if time.monotonic() > deadline:
                raise QemuFailed(f"QEMU has not reset the machine after {MONITOR_TIMEOUT} s")
            time.sleep(0.002)

    def console_tail(self) -> str:
        """The last lines of the console, for an error message."""
        try:
            text = self.console_log.read_bytes()[-8192:].decode(errors="replace")
        except FileNotFoundError:
            text = ""
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        if not lines:
            return "  (nothing was written to its console)"
        return "\n".join(f"  console| {line}" for line in lines[-CONSOLE_TAIL:])

    def close(self) -> None:
        """Kill QEMU; nothing of it is left. Closing twice is fine."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self.shell.close()
        self._orders.close()
        if not self._loop.is_closed():
            with suppress(QMPError, OSError, EOFError):  # the peer is dead, as it should be
                self.qmp.close()
        self._monitor.close()  # the monitor closes it only if it was ever connected
        self._loop.close()

    def _find_panic(self) -> str | None:
        try:
            with self.console_log.open("rb") as file:
                file.seek(max(0, self._console_seen - 200))
                text = file.read()
                self._console_seen = file.tell()
        except FileNotFoundError:
            return None
        match = PANIC.search(text)
        return match[0].decode(errors="replace") if match else None

    def _exited(self, within: float) -> int | None:
        try:
            return self.popen.wait(within)
        except subprocess.TimeoutExpired:
            return None

    def _death(self, code: int) -> GuestDied:
        log = (self.directory / "qemu.log").read_text(errors="replace").strip()[-2000:]
        return GuestDied(
            f"QEMU (pid {self.popen.pid}) ended {how_ended(code)}"
            + (f"\n{log}" if log else "")
            + f"\n{self.console_tail()}",
            hint=f"its command line was:\n  {shlex.join(self.command)}",
        )


def how_ended(code: int) -> str:
    """A process's return code in words."""
    return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _die_with_parent() -> None:
    """In the child: be killed when the thread that started it dies (prctl(2), PR_SET_PDEATHSIG).

    So QEMU is to be started from a thread that outlives it: the main one.
    """
    _libc.prctl(1, signal.SIGKILL)


_libc = ctypes.CDLL(None)


def unplugged() -> socket.socket:
    """A machine's end of a wire that has no other end: what the machine sends is lost."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.close()
    return there


def wire_backend(end: socket.socket, name: str) -> str:
    """The value of a ``-netdev`` that sends and receives Ethernet frames by ``end``, a datagram socket."""
    return f"dgram,id={name},local.type=fd,local.str={end.fileno()}"


def spawn(
    command: Sequence[str], directory: Path, output: IO[bytes], inherit: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Start QEMU so that it dies with this process; to be called from the main thread (see ``_die_with_parent``).

    It is so when this returns: by setpriv(1) it would be a moment later, in which this process can be killed.
    """
    return subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=inherit,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 (one system call; from the main thread, see there)
    )


@contextmanager
def launch_qemu(
    directory: Path,
    arguments: Sequence[str],
    *,
    disk: str,
    netdev: str,
    wire: socket.socket | None = None,
    inherit: Sequence[int] = (),
) -> Iterator[Process]:
    """Start QEMU in ``directory`` (its working directory; logs go there); kill it at the end.

    It is to be waited for with ``connect``. ``disk`` and ``netdev`` are the values of ``-drive``/``-netdev`` back
    ends. ``wire`` is where the second network card sends its frames, and is closed here; default: nowhere.
    ``inherit`` are file descriptors that the arguments name. The monitor and the shell are socket pairs: nothing of
    them is on disk. The console is a Unix socket that may be connected and left at will.
    """
    qmp_here, qmp_there = socket.socketpair()
    orders_here, orders_there = socket.socketpair()
    shell_here, shell_there = socket.socketpair()
    wire = wire or unplugged()
    command = [
        str(find_qemu()),
        *arguments,
        *("-drive", f"id=disk,if=none,{disk}"),
        *("-netdev", f"{netdev},id=management"),
        *("-netdev", wire_backend(wire, "wire")),
        *("-chardev", f"socket,id=qmp,fd={qmp_there.fileno()}"),
        *("-chardev", f"socket,id=orders,fd={orders_there.fileno()}", "-mon", "chardev=orders,mode=control"),
        *("-chardev", f"socket,id=shell,fd={shell_there.fileno()}"),
        "-chardev",
        "socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log",
    ]
    with (directory / "qemu.log").open("wb") as log, qmp_there, orders_there, shell_there, wire:
        given = [qmp_there.fileno(), orders_there.fileno(), shell_there.fileno(), wire.fileno(), *inherit]
        popen = spawn(command, directory, log, given)
    (directory / "qemu.pid").write_text(str(popen.pid))
    # The monitor takes the thread's loop, or leaves one behind that nobody closes: it has its own here.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    monitor = QEMUMonitorProtocol(qmp_here)
    asyncio.set_event_loop(None)
    process = Process(command, directory, popen, monitor, shell_here, qmp_here, orders_here, loop)
    process.order("qmp_capabilities")
    try:
        yield process
    finally:
        process.close()


@contextmanager
def start_qemu(
    directory: Path, arguments: Sequence[str], *, disk: str, netdev: str, wire: socket.socket | None = None
) -> Iterator[Process]:
    """``launch_qemu``, and wait for its monitor."""
    with launch_qemu(directory, arguments, disk=disk, netdev=netdev, wire=wire) as process:
        process.connect()
        yield process
