#!/usr/bin/env python3
"""Tries to reach many addresses at once, as one attacker or as several, and says what came back.

    prober.py < ATTACKERS.json > ANSWERS.json

Runs inside a guest with its own Python and nothing else. Each attacker is an object

    {"pid": PID, "uid": UID, "gid": GID, "probes": PROBES, "patience": SECONDS}

and probes as whoever started the program; in the network namespace of process ``pid``, and with the ids, that are not
null. All attackers try at the same time, each in a process of its own: a Python takes longer to start than to try. The
answers to each are a list of texts, empty where nothing came; or, of an attacker that could not try, a text that says
why. No more is waited for once nothing has come for ``patience`` seconds (default: 4). The probes are a list of objects

    {"kind": KIND, "address": ADDRESS, "port": PORT}

with one of these kinds.

    tcp         connect, say something, read
    udp         a datagram; what is answered is read
    ping        an echo request, from a socket that needs no privilege (icmp(7))
    everybody   a datagram to a broadcast or multicast address; all answers, joined
    fragments   a datagram too large for one packet
    options     a datagram behind extension headers (IPv6), or with a source route through ``via`` (IPv4)
    forged      a datagram that says it comes from ``source``; needs CAP_NET_RAW. Whoever gets it knows
    neighbour   who has the address, asked on the wire itself (ARP, NDP); the answer is a hardware address

It imports little: under TCG, ``dataclasses``, ``ipaddress`` and ``typing`` would make its start half as long again.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Probe = dict[str, Any]

PATIENCE = 4.0
"""Seconds without any answer after which no more is waited for: what is dropped has none. Every run waits them out."""
LONGEST = 15
"""The most that all is waited for, in patiences."""
AGAIN = 0.4
"""Patiences after which a datagram is sent once more: one may be lost in a crowd."""
CLONE_NEWNET = 0x40000000
"""As setns(2) wants it; ``os`` has it from Python 3.12 on."""
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
LARGE = b"x" * 4000


class Try:
    """One probe under way. ``message`` is sent until ``done``; ``read`` makes an answer of what came, or nothing."""

    def __init__(
        self,
        sock: socket.socket,
        message: bytes,
        to: tuple[str, int] | None = None,
        *,
        connecting: bool = False,
        read: Callable[[bytes], bytes] = bytes,
        everybody: bool = False,
    ) -> None:
        self.sock, self.message, self.to = sock, message, to
        self.connecting, self.read, self.everybody = connecting, read, everybody
        self.connected = self.done = False
        self.answer = b""

    def send(self) -> None:
        with suppress(OSError):  # not allowed, no route: then nothing will come
            if self.to is None:
                self.sock.send(self.message)
            else:
                self.sock.sendto(self.message, self.to)

    def receive(self) -> bool:
        """Whether there was an answer, for the first time."""
        try:
            if self.connecting:
                self.connecting = False
                self.sock.send(self.message)  # fails if the connection did
                self.connected = True
                return True
            received = self.sock.recv(2000)
        except BlockingIOError:
            return False
        except OSError:
            self.done = True
            return False
        data = self.read(received)
        first = bool(data) and not self.answer
        self.answer += data[:300]
        is_over = not received and self.sock.type == socket.SOCK_STREAM  # who has closed can be read for ever
        self.done = is_over or (bool(data) and not self.everybody)
        return first


def family_of(probe: Probe) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in probe["address"] else socket.AF_INET


def destination(probe: Probe) -> tuple[str, int]:
    return probe["address"], probe.get("port", 0)


def datagrams(probe: Probe, protocol: int = 0) -> socket.socket:
    sock = socket.socket(family_of(probe), socket.SOCK_DGRAM, protocol)
    sock.setblocking(False)
    return sock


def try_tcp(probe: Probe) -> Try:
    sock = socket.socket(family_of(probe), socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.connect_ex(destination(probe))
    return Try(sock, b"hello\n", connecting=True)


def try_udp(probe: Probe) -> Try:
    return Try(datagrams(probe), b"hello\n", destination(probe))


def try_everybody(probe: Probe) -> Try:
    sock = datagrams(probe)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return Try(sock, b"hello\n", destination(probe), everybody=True)


def try_ping(probe: Probe) -> Try:
    version6 = family_of(probe) == socket.AF_INET6
    nonce = os.urandom(8)  # the kernel fills in checksum and identifier
    message = struct.pack("!BBHHH", 128 if version6 else 8, 0, 0, 0, 1) + nonce
    sock = datagrams(probe, socket.IPPROTO_ICMPV6 if version6 else socket.IPPROTO_ICMP)
    return Try(sock, message, destination(probe), read=lambda data: b"pong" if data.endswith(nonce) else b"")


def try_fragments(probe: Probe) -> Try:
    return Try(datagrams(probe), LARGE, destination(probe))


def try_options(probe: Probe) -> Try:
    sock = datagrams(probe)
    if sock.family == socket.AF_INET6:
        # Hop-by-hop and destination options of padding only: eight bytes each, of no effect but to be there.
        for option in (socket.IPV6_HOPOPTS, socket.IPV6_DSTOPTS):
            sock.setsockopt(socket.IPPROTO_IPV6, option, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
        return Try(sock, b"hello\n", destination(probe))
    # RFC 791, loose source and record route: first to ``via``, from there to the address.
    route = bytes([131, 7, 4]) + socket.inet_aton(probe["address"]) + b"\0"
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
    return Try(sock, b"hello\n", (probe["via"], probe["port"]))


def try_forged(probe: Probe) -> Try:
    sock = datagrams(probe)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    sock.bind((probe["source"], 0))
    return Try(sock, b"forged", destination(probe))


def try_neighbour(probe: Probe) -> Try:
    interface = probe.get("interface", "eth0")
    family = family_of(probe)
    target = socket.inet_pton(family, probe["address"])
    kind = 0x0806 if family == socket.AF_INET else 0x86DD
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
    sock.bind((interface, kind))
    own = sock.getsockname()[4]  # /sys shows the interfaces of whoever mounted it
    frame = (arp_request if family == socket.AF_INET else neighbour_solicitation)(interface, own, target)
    sock.setblocking(False)
    return Try(sock, frame, read=lambda data: answered_address(data, target))


def arp_request(interface: str, own: bytes, target: bytes) -> bytes:
    """RFC 826. ``target`` is the address as it is sent, here and below."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.connect((socket.inet_ntoa(target), 9))
        source = socket.inet_aton(sock.getsockname()[0])
    request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + own + source + bytes(6) + target
    return b"\xff" * 6 + own + b"\x08\x06" + request


def neighbour_solicitation(interface: str, own: bytes, target: bytes) -> bytes:
    """RFC 4861, from the link-local address that the kernel made of the hardware address."""
    with open("/proc/net/if_inet6") as file:
        lines = file.readlines()
    source = next(
        bytes.fromhex(line.split()[0]) for line in lines if line.split()[3] == "20" and line.split()[5] == interface
    )
    group = bytes.fromhex("ff0200000000000000000001ff") + target[-3:]
    message = struct.pack("!BBHI", 135, 0, 0, 0) + target + bytes([1, 1]) + own
    pseudo = source + group + struct.pack("!II", len(message), 58)
    total = sum(struct.unpack(f"!{len(pseudo + message) // 2}H", pseudo + message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), 58, 255) + source + group
    return bytes.fromhex("3333") + group[-4:] + own + b"\x86\xdd" + header + message


def answered_address(frame: bytes, target: bytes) -> bytes:
    """The hardware address of whoever says in this frame that the address is its own; or nothing."""
    packet = frame[14:]
    is_ipv4 = len(target) == 4
    if is_ipv4 and packet[6:8] == b"\0\2" and packet[14:18] == target:
        return packet[8:14].hex(":").encode()
    if not is_ipv4 and packet[6:7] == b"\x3a" and packet[40:41] == b"\x88" and packet[48:64] == target:
        return frame[6:12].hex(":").encode()
    return b""


TRIES = {
    "tcp": try_tcp,
    "udp": try_udp,
    "ping": try_ping,
    "everybody": try_everybody,
    "fragments": try_fragments,
    "options": try_options,
    "forged": try_forged,
    "neighbour": try_neighbour,
}


def begin(probe: Probe) -> Try | None:
    try:
        return TRIES[probe["kind"]](probe)
    except PermissionError:
        return None


def run(tries: list[Try], patience: float) -> None:
    """Wait until every try is done, or until nothing has come for a while."""
    selector = selectors.DefaultSelector()
    for each in tries:
        if not each.connecting:
            each.send()
        selector.register(each.sock, selectors.EVENT_WRITE if each.connecting else selectors.EVENT_READ, each)
    started = heard = sent = time.monotonic()
    while selector.get_map() and (now := time.monotonic()) < (
        end := min(heard + patience, started + LONGEST * patience)
    ):
        for key, _ in selector.select(max(min(end, sent + AGAIN * patience) - now, 0)):
            each = key.data
            if each.receive():
                heard = time.monotonic()
            if each.done:
                selector.unregister(each.sock)
            elif key.events == selectors.EVENT_WRITE:
                selector.modify(each.sock, selectors.EVENT_READ, each)
        if time.monotonic() - sent >= AGAIN * patience:
            sent = time.monotonic()
            for key in list(selector.get_map().values()):
                if key.data.sock.type != socket.SOCK_STREAM:
                    key.data.send()


def said(each: Try) -> str:
    """The answer; of a server that takes its time, that it is there."""
    return each.answer.decode(errors="replace") or ("connected" if each.connected else "")


def try_all(probes: list[Probe], patience: float = PATIENCE) -> list[str]:
    """The answer to each probe."""
    tries = [begin(probe) for probe in probes]
    run([each for each in tries if each is not None], patience)
    return [said(each) if each else "" for each in tries]


def become(attacker: dict[str, Any]) -> None:
    """For good: in the namespace first, which takes a privilege, and then with the ids, which gives it up."""
    if attacker["pid"] is not None:
        namespace = os.open(f"/proc/{attacker['pid']}/ns/net", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(namespace)
    if attacker["uid"] is not None:
        os.setgroups([])
        os.setresgid(*[attacker["gid"]] * 3)
        os.setresuid(*[attacker["uid"]] * 3)


def start(attacker: dict[str, Any]) -> int:
    """The attacker's process has begun; what it says, as JSON, comes from this file."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        return reading
    os.close(reading)
    answers: list[str] | str
    try:
        become(attacker)
        answers = try_all(attacker["probes"], attacker.get("patience", PATIENCE))
    except (OSError, LookupError, ValueError) as error:
        answers = f"{type(error).__name__}: {error}"
    with open(writing, "w") as out:
        json.dump(answers, out)
    os._exit(0)


def main() -> None:
    attackers = json.load(sys.stdin)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    started = [start(attacker) for attacker in attackers]
    found = []
    for reading in started:
        with open(reading) as said_by_it:
            found.append(json.load(said_by_it))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
