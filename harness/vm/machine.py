"""A running machine: its root shell, SSH, console and testinfra host."""

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import testinfra.host
from pexpect.socket_pexpect import SocketSpawn
from testinfra.backend.base import BaseBackend, CommandResult

from harness.errors import HarnessError
from harness.pace import stretch
from harness.vm.qemu import Process
from harness.vm.shell import RUN_TIMEOUT, Result, Shell

if TYPE_CHECKING:
    import paramiko

SSH_HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"


class ShellBackend(BaseBackend):
    """testinfra over the root shell; each command is one round trip."""

    NAME = "tentaflake"

    def __init__(self, shell: Shell, name: str) -> None:
        super().__init__(name)
        self._shell = shell
        self._encoding = "utf-8"

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        line = self.get_command(command, *args)
        result = self._shell.run(line, timeout=kwargs.get("timeout", RUN_TIMEOUT)).stop_if_timed_out()
        return self.result(result.exit, line.encode(), result.stdout, result.stderr)


@dataclass
class Machine:
    """A machine whose root shell answers.

    ``timings`` are seconds since its QEMU was started: ``restored`` (forks) and ``first_answer``.
    ``ssh_key`` is the file of the private key that root's login takes. ``name`` tells it from others in the evidence.
    ``companions`` are the machines on the same wire: they pause and go on together.
    """

    process: Process
    ssh_key: Path | None = None
    name: str = "machine"
    timings: dict[str, float] = field(default_factory=dict)
    companions: Sequence["Machine"] = ()
    is_paused: bool = False

    @cached_property
    def shell(self) -> Shell:
        return Shell(self.process.shell, self.process.check, self.process.console_tail, self.resume)

    def pause(self) -> None:
        """Let it stand still until its root shell is needed again: idle, it takes a tenth of a processor under TCG."""
        if not self.is_paused:
            self.process.execute("stop")
            self.is_paused = True

    def resume(self) -> None:
        """Let it go on, and its companions; its own clock has stood still, and is set by nobody."""
        for machine in (self, *self.companions):
            if machine.is_paused:
                machine.process.execute("cont")
                machine.is_paused = False

    @cached_property
    def host(self) -> testinfra.host.Host:
        """A testinfra ``Host`` on this machine."""
        return testinfra.host.Host(ShellBackend(self.shell, self.process.directory.name))

    def run(self, command: str | Sequence[str], *, timeout: float = RUN_TIMEOUT, stdin: bytes = b"") -> Result:
        """Run a shell command line or an argument vector as root; see ``Shell.run``."""
        return self.shell.run(command, timeout=timeout, stdin=stdin)

    def put(self, content: bytes, path: str, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        self.run(["sh", "-c", 'cat > "$1" && chmod "$2" "$1"', "sh", path, f"{mode:o}"], stdin=content).check()

    @property
    def ssh_port(self) -> int:
        """The port on this host's loopback that leads to the guest's port 22; whoever asks, wants an answer there."""
        self.resume()
        table = self.process.execute("human-monitor-command", **{"command-line": "info usernet"})
        match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", table)
        if match is None:
            raise HarnessError(f"QEMU forwards no port to the guest's SSH:\n{table}")
        return int(match[1])

    @contextmanager
    def ssh(self, user: str = "root", timeout: float = 120.0) -> Iterator["paramiko.SSHClient"]:
        """An SSH connection, with the guest's host key checked against the one the guest has on disk."""
        import paramiko

        kind, key = self.run(["cat", SSH_HOST_KEY]).check().text.split()[:2]
        timeout = stretch(timeout)
        port = self.ssh_port
        client = paramiko.SSHClient()
        entry = paramiko.hostkeys.HostKeyEntry.from_line(f"[127.0.0.1]:{port} {kind} {key}")
        assert entry is not None and entry.key is not None
        client.get_host_keys().add(f"[127.0.0.1]:{port}", kind, entry.key)
        with client:
            client.connect(
                "127.0.0.1",
                port,
                user,
                key_filename=str(self.ssh_key),
                timeout=timeout,
                banner_timeout=timeout,
                auth_timeout=timeout,
                allow_agent=False,
                look_for_keys=False,
            )
            yield client

    @contextmanager
    def console(self, timeout: float = 120.0) -> Iterator["SocketSpawn[bytes]"]:
        """The serial console as a pexpect object; a root shell waits there."""
        directory = os.open(self.process.directory, os.O_PATH)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:  # by way of the descriptor: a Unix socket's path holds at most 107 bytes (unix(7))
            connection.connect(f"/proc/self/fd/{directory}/console.sock")
            yield SocketSpawn(connection, timeout=timeout)
        finally:
            connection.close()
            os.close(directory)

    def wait_shell(self, timeout: float, *, started: float) -> None:
        """Wait for the root shell; its clock and randomness are right from here on."""
        self.shell.hello(timeout)
        self.timings["first_answer"] = time.monotonic() - started

    def power_cycle(self, timeout: float) -> None:
        """Off and on again, as after a power cut, until the root shell answers (seconds); what was synced is there."""
        started = time.monotonic()
        self.process.reset()
        self.wait_shell(timeout, started=started)
