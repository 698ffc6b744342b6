#!/usr/bin/env python3
"""Tries to reach many addresses at once, from where it is started, and says what came back.

    prober.py < PROBES.json > ANSWERS.json

Runs inside a guest with its own Python and nothing else. The probes are a list of objects

    {"kind": KIND, "address": ADDRESS, "port": PORT}

with one of these kinds; the answers are a list of texts in the same order, empty where nothing came.

    tcp         connect, say something, read
    udp         a datagram; what is answered is read
    ping        an echo request, from a socket that needs no privilege (icmp(7))
    everybody   a datagram to a broadcast or multicast address; all answers, joined
    fragments   a datagram too large for one packet
    options     a datagram behind extension headers (IPv6), or with a source route through ``via`` (IPv4)
    forged      a datagram that says it comes from ``source``; needs CAP_NET_RAW. Whoever gets it knows
    neighbour   who has the address, asked on the wire itself (ARP, NDP); the answer is a hardware address
"""

import asyncio
import ipaddress
import json
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any

PATIENCE = 4.0
"""Seconds that a probe waits for an answer: a packet that was dropped has none."""
AGAIN = 0.7
"""Seconds after which a datagram is sent once more: one may be lost in a crowd."""
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
LARGE = b"x" * 4000
Probe = dict[str, Any]


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def destination(probe: Probe) -> tuple[str, int]:
    return probe["address"], probe.get("port", 0)


async def try_tcp(probe: Probe) -> bytes:
    reader, writer = await asyncio.open_connection(*destination(probe))
    try:
        writer.write(b"hello\n")
        return await reader.read(200)
    finally:
        writer.close()


async def ask(probe: Probe, sock: socket.socket, message: bytes, *, everybody: bool = False) -> bytes:
    """Send ``message`` until there is an answer; with ``everybody``, gather answers as long as there is patience."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    answers: list[bytes] = []
    end = loop.time() + PATIENCE - 0.1
    with sock:
        while (now := loop.time()) < end:
            sock.sendto(message, destination(probe))
            try:
                async with asyncio.timeout(min(AGAIN, end - now)):
                    while True:
                        data = await loop.sock_recv(sock, 200)
                        if not everybody:
                            return data
                        answers.append(data)
            except TimeoutError:
                pass
    return b" ".join(answers)


async def try_udp(probe: Probe) -> bytes:
    sock = socket.socket(family_of(probe["address"]), socket.SOCK_DGRAM)
    sock.connect(destination(probe))
    return await ask(probe, sock, b"hello\n")


async def try_everybody(probe: Probe) -> bytes:
    sock = socket.socket(family_of(probe["address"]), socket.SOCK_DGRAM)
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return await ask(probe, sock, b"hello\n", everybody=True)


async def try_ping(probe: Probe) -> bytes:
    version6 = ":" in probe["address"]
    protocol = socket.IPPROTO_ICMPV6 if version6 else socket.IPPROTO_ICMP
    sock = socket.socket(family_of(probe["address"]), socket.SOCK_DGRAM, protocol)
    sock.connect(destination(probe))
    nonce = os.urandom(8)  # the kernel fills in checksum and identifier
    answer = await ask(probe, sock, struct.pack("!BBHHH", 128 if version6 else 8, 0, 0, 0, 1) + nonce)
    return b"pong" if answer.endswith(nonce) else b""


async def try_fragments(probe: Probe) -> bytes:
    sock = socket.socket(family_of(probe["address"]), socket.SOCK_DGRAM)
    sock.connect(destination(probe))
    return await ask(probe, sock, LARGE)


async def try_options(probe: Probe) -> bytes:
    sock = socket.socket(family_of(probe["address"]), socket.SOCK_DGRAM)
    if sock.family == socket.AF_INET6:
        # Hop-by-hop and destination options of padding only: eight bytes each, of no effect but to be there.
        for option in (socket.IPV6_HOPOPTS, socket.IPV6_DSTOPTS):
            sock.setsockopt(socket.IPPROTO_IPV6, option, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
        sock.connect(destination(probe))
        return await ask(probe, sock, b"hello\n")
    # RFC 791, loose source and record route: first to ``via``, from there to the address.
    route = bytes([131, 7, 4]) + socket.inet_aton(probe["address"]) + b"\0"
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
    return await ask({**probe, "address": probe["via"]}, sock, b"hello\n")


async def try_forged(probe: Probe) -> bytes:
    sock = socket.socket(family_of(probe["address"]), socket.SOCK_DGRAM)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    with sock:
        sock.bind((probe["source"], 0))
        for _ in range(3):
            sock.sendto(b"forged", destination(probe))
            await asyncio.sleep(AGAIN)
    return b""


async def try_neighbour(probe: Probe) -> bytes:
    interface = probe.get("interface", "eth0")
    target = ipaddress.ip_address(probe["address"])
    frame = (arp_request if target.version == 4 else neighbour_solicitation)(interface, target)
    kind = 0x0806 if target.version == 4 else 0x86DD
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind)) as sock:
        sock.bind((interface, kind))
        sock.setblocking(False)
        while True:
            sock.send(frame)
            try:
                async with asyncio.timeout(AGAIN):
                    while True:
                        found = answered_address(await loop.sock_recv(sock, 2000), target)
                        if found:
                            return found
            except TimeoutError:
                pass


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def hardware_address(interface: str) -> bytes:
    return bytes.fromhex(Path(f"/sys/class/net/{interface}/address").read_text().strip().replace(":", ""))


def arp_request(interface: str, target: Address) -> bytes:
    """RFC 826."""
    own = hardware_address(interface)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.connect((str(target), 9))
        source = socket.inet_aton(sock.getsockname()[0])
    request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + own + source + bytes(6) + target.packed
    return b"\xff" * 6 + own + b"\x08\x06" + request


def neighbour_solicitation(interface: str, target: Address) -> bytes:
    """RFC 4861, from the link-local address that the kernel made of the hardware address."""
    own = hardware_address(interface)
    lines = Path("/proc/net/if_inet6").read_text().splitlines()
    source = next(
        bytes.fromhex(line.split()[0]) for line in lines if line.split()[3] == "20" and line.split()[5] == interface
    )
    group = bytes.fromhex("ff0200000000000000000001ff") + target.packed[-3:]
    message = struct.pack("!BBHI", 135, 0, 0, 0) + target.packed + bytes([1, 1]) + own
    pseudo = source + group + struct.pack("!II", len(message), 58)
    total = sum(struct.unpack(f"!{len(pseudo + message) // 2}H", pseudo + message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), 58, 255) + source + group
    return bytes.fromhex("3333") + group[-4:] + own + b"\x86\xdd" + header + message


def answered_address(frame: bytes, target: Address) -> bytes:
    """The hardware address of whoever says in this frame that the address is its own; or nothing."""
    packet = frame[14:]
    if target.version == 4 and packet[6:8] == b"\0\2" and packet[14:18] == target.packed:
        return packet[8:14].hex(":").encode()
    if target.version == 6 and packet[6:7] == b"\x3a" and packet[40:41] == b"\x88" and packet[48:64] == target.packed:
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


async def attempt(probe: Probe) -> str:
    try:
        async with asyncio.timeout(PATIENCE):
            return (await TRIES[probe["kind"]](probe)).decode(errors="replace")
    except (OSError, TimeoutError):
        return ""


async def main() -> None:
    probes = json.load(sys.stdin)
    answers = await asyncio.gather(*map(attempt, probes))
    print(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main())
