"""A wire between machines, without privileges and with nothing on disk.

A machine's second network card sends and receives its frames by a datagram socket, one end of a pair that only these
processes hold. The other ends are a hub's: a QEMU with no machine in it, so that the death of any machine leaves the
others connected. It dies with the thread that started it, as every QEMU here.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import IO

from harness.errors import HarnessError
from harness.vm.qemu import find_qemu, how_ended, spawn, wire_backend


@dataclass(frozen=True)
class Wire:
    """``ends`` are for one machine each: ``template.fork(cache, wire.ends[0])``. What one sends, the others get."""

    ends: list[socket.socket]
    hub: Popen[bytes]
    _log: IO[bytes]

    def check(self) -> None:
        """Raise if the hub has ended, and so the wire is none."""
        if (code := self.hub.poll()) is not None:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip()[-2000:]
            raise HarnessError(f"the hub of the wire (pid {self.hub.pid}) has ended {how_ended(code)}\n{said}")


def hub_arguments(sockets: list[socket.socket]) -> list[str]:
    """QEMU's command line for a hub with a port for each socket."""
    arguments = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "none"]
    for number, port in enumerate(sockets):
        arguments += ["-netdev", wire_backend(port, f"wire{number}")]
        arguments += ["-netdev", f"hubport,id=port{number},hubid=0,netdev=wire{number}"]
    return arguments


@contextmanager
def start_wire(machines: int) -> Iterator[Wire]:
    """A wire with that many ends. It is there at once; what is sent meanwhile waits for the hub."""
    with ExitStack() as stack:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(machines)]
        ends = [stack.enter_context(end) for end, _ in pairs]
        log = stack.enter_context(os.fdopen(os.memfd_create("hub"), "w+b"))
        with ExitStack() as given:
            ports = [given.enter_context(port) for _, port in pairs]
            command = [str(find_qemu()), *hub_arguments(ports)]
            hub = spawn(command, Path("/"), log, [port.fileno() for port in ports])
        stack.callback(hub.wait)
        stack.callback(hub.kill)
        yield Wire(ends, hub, log)
