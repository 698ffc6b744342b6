"""The machines around a host under test: the world, a neighbour on the LAN, a peer on the tailnet.

All are forks of one template; what makes a fork a peer of its own (its MAC address, its addresses, its part) is given
to it by one short script.
"""

import base64
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import testinfra.host
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from harness.errors import HarnessError
from harness.guests import peer_service
from harness.guests.addresses import (
    AGENTS,
    DECOYS,
    ECHO_PORTS,
    HOST,
    INTERNET,
    LAN,
    LAN_PREFIXES,
    PUBLIC,
    RESOLVERS,
    TAILNET,
    TAILNET_HOST,
    TAILNET_INTERFACE,
    TAILNET_PEER,
    TAILNET_PORT,
    TAILNET_PREFIXES,
    Station,
)
from harness.vm.machine import Machine
from harness.vm.shell import Result

STATIONS = {"internet": INTERNET, "lan": LAN, "tailnet": TAILNET}
SERVICE = Path(peer_service.__file__)
SERVICE_PATH = "/usr/lib/tentaflake/peer_service.py"
TOKEN_PATH = "/run/peer-token"

# What a peer sees of each packet that comes to it, before anything can drop it.
RECORDER = """
table inet recorder {
  set ipv4 {
    typeof iifname . ip saddr . ip daddr . meta l4proto
    size 65535
    flags dynamic
  }
  set ipv6 {
    typeof iifname . ip6 saddr . ip6 daddr . meta l4proto
    size 65535
    flags dynamic
  }
  chain prerouting {
    type filter hook prerouting priority raw; policy accept;
    iifname { "lo", "eth0" } accept
    add @ipv4 { iifname . ip saddr . ip daddr . meta l4proto }
    add @ipv6 { iifname . ip6 saddr . ip6 daddr . meta l4proto }
  }
}
"""


def _records() -> list[str]:
    """dnsmasq(8)'s options for the names of the world."""
    return [f"--host-record={name},{','.join(addresses)}" for name, addresses in {**PUBLIC, **DECOYS}.items()]


PREPARE = f"""
set -e
systemctl stop tentaflake-guard.timer docker.socket docker.service containerd.service \
  systemd-networkd.socket systemd-networkd.service tentaflake-resolver.service
nft flush ruleset
nft -f - <<'END'
{RECORDER}
END
for link in /sys/class/net/docker* /sys/class/net/br-*; do
  [ ! -e "$link" ] || ip link delete "${{link##*/}}"
done
ip address flush dev eth1
ip link set eth1 down
cd /proc/sys/net
echo 1 | tee ipv4/ip_forward ipv6/conf/all/forwarding ipv6/ip_nonlocal_bind > /dev/null
# A peer may be asked under any address, and forge any: no source is checked. Its own are in use at once.
echo 0 | tee ipv4/conf/*/rp_filter ipv6/conf/*/accept_dad ipv6/conf/eth1/addr_gen_mode > /dev/null
echo none > {TOKEN_PATH}
systemd-run --quiet --unit=peer-service --property=Type=notify --property=LimitNOFILE=65536 \\
  /usr/bin/python3 -I {SERVICE_PATH} {TOKEN_PATH} {" ".join(map(str, ECHO_PORTS))}
systemd-run --quiet --unit=peer-dns --property=Type=forking /usr/sbin/dnsmasq --conf-file=/dev/null --user=root \\
  --pid-file --no-resolv --no-hosts --cache-size=0 --local=/test/ {" ".join(_records())}
"""


def prepare(machine: Machine) -> None:
    """Make a booted guest a peer that waits for its part."""
    machine.put(SERVICE.read_bytes(), SERVICE_PATH, 0o755)
    machine.run(PREPARE, timeout=120).check()


def content() -> dict[str, str]:
    """What the peers' template depends on."""
    return {"peer_service": SERVICE.read_text(), "peer_script": PREPARE}


class Packet(NamedTuple):
    """Packets of one kind that a peer was sent: on which interface, from where, to where, by which protocol."""

    interface: str
    source: str
    destination: str
    protocol: str


def read_recorder(listing: bytes) -> set[Packet]:
    """Packets from what ``nft -j list table inet recorder`` prints."""
    sets = [entry["set"] for entry in json.loads(listing)["nftables"] if "set" in entry]
    return {Packet(*map(str, item["concat"])) for found in sets for item in found.get("elem", [])}


@dataclass(frozen=True)
class Peer:
    """A machine that plays a part. ``token`` is what its services answer with, and nobody else's do."""

    role: str
    station: Station
    machine: Machine
    token: str

    @property
    def host(self) -> testinfra.host.Host:
        """A testinfra ``Host`` on it."""
        return self.machine.host

    def run(self, command: str | Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> Result:
        """Run a command as root; see ``Machine.run``."""
        return self.machine.run(command, timeout=timeout, stdin=stdin)

    def seen(self) -> set[Packet]:
        """All that was ever sent to it over IP, whether or not it was answered."""
        return read_recorder(self.run("nft -j list table inet recorder").check().stdout)


@dataclass(frozen=True)
class Network:
    """A host under test and its peers on one wire. A peer that was not asked for is not there."""

    host: Machine
    peers: dict[str, Peer] = field(default_factory=dict)

    @property
    def machines(self) -> list[Machine]:
        return [self.host, *(peer.machine for peer in self.peers.values())]

    @property
    def internet(self) -> Peer:
        return self._peer("internet")

    @property
    def lan(self) -> Peer:
        return self._peer("lan")

    @property
    def tailnet(self) -> Peer:
        return self._peer("tailnet")

    def _peer(self, role: str) -> Peer:
        if role not in self.peers:
            there = ", ".join(self.peers) or "none"
            raise HarnessError(f"this network has no {role!r} machine (its peers: {there})", hint="ask for it by name")
        return self.peers[role]


def connect(host: Machine, machines: dict[str, Machine]) -> Network:
    """Give each fork its part, by role, and the host its side of it. All are on one wire."""
    peers = {
        role: Peer(role, STATIONS[role], machine, f"{role}-{secrets.token_hex(8)}")
        for role, machine in machines.items()
    }
    for name, machine in {"host": host, **machines}.items():
        machine.name = name
    keys = {name: X25519PrivateKey.generate() for name in ("host", "tailnet")}
    orders = [peer.machine.shell.start(peer_script(peer, keys)) for peer in peers.values()]
    orders.append(host.shell.start(host_script(peers, keys)))
    for finish in orders:
        finish().check()
    if "tailnet" in peers:
        # Only now is there somebody to shake hands with: WireGuard tries again after five seconds only.
        host.run(f"ip link set {TAILNET_INTERFACE} up && busybox ping -c 1 -W 10 {TAILNET_PEER[0]}").check()
    return Network(host, peers)


def peer_script(peer: Peer, keys: dict[str, X25519PrivateKey]) -> str:
    """A peer's part. Each process costs a tenth of a second under emulation, so there is one for all of ip(8)."""
    batch = [f"link set eth1 address {peer.station.mac} up", *_addresses("eth1", peer.station.addresses, LAN_PREFIXES)]
    lines = ["set -e", f"echo {peer.role} > /proc/sys/kernel/hostname", f"echo {peer.token} > {TOKEN_PATH}"]
    if peer.role == "internet":
        # The kernel takes all the world's addresses for its own, but for those of the LAN.
        batch += ["route add local 0.0.0.0/0 dev lo", "route add local ::/0 dev lo table main"]
        return "\n".join([*lines, *_ip(batch)])
    if peer.role == "lan":
        batch += [f"route add {network} via {via}" for network, via in zip(AGENTS, HOST.addresses, strict=True)]
        return "\n".join([*lines, *_ip(batch)])
    batch += [*_tunnel(TAILNET_PEER), f"link set {TAILNET_INTERFACE} up"]
    batch += [f"route add {network} dev {TAILNET_INTERFACE}" for network in AGENTS]
    return "\n".join([*lines, *_ip(batch), *_keys(keys["tailnet"], keys["host"])])


def host_script(peers: dict[str, Peer], keys: dict[str, X25519PrivateKey]) -> str:
    """The host's part: whom to ask for names, and its end of the tunnel, not yet up."""
    lines = ["set -e"]
    if "internet" in peers:
        lines.append(f"echo nameserver {INTERNET.ipv4} > {RESOLVERS}")
    if "tailnet" in peers:
        far_end = (f"Endpoint = {TAILNET.ipv4}:{TAILNET_PORT}", "PersistentKeepalive = 5")
        lines += [*_ip(_tunnel(TAILNET_HOST)), *_keys(keys["host"], keys["tailnet"], *far_end)]
    return "\n".join(lines)


def _addresses(interface: str, addresses: tuple[str, str], prefixes: tuple[int, int]) -> list[str]:
    return [f"address add {a}/{prefix} dev {interface}" for a, prefix in zip(addresses, prefixes, strict=True)]


def _tunnel(addresses: tuple[str, str]) -> list[str]:
    return [
        f"link add {TAILNET_INTERFACE} mtu 1280 type wireguard",
        *_addresses(TAILNET_INTERFACE, addresses, TAILNET_PREFIXES),
    ]


def _ip(batch: list[str]) -> list[str]:
    return ["ip -batch - <<'END'", *batch, "END"]


def _keys(own: X25519PrivateKey, other: X25519PrivateKey, *far_end: str) -> list[str]:
    """Whatever comes through the tunnel is let in: to keep sources honest is no part of its here."""
    private = base64.b64encode(own.private_bytes_raw()).decode()
    public = base64.b64encode(other.public_key().public_bytes_raw()).decode()
    return [
        f"wg setconf {TAILNET_INTERFACE} /dev/stdin <<'END'",
        *("[Interface]", f"PrivateKey = {private}", f"ListenPort = {TAILNET_PORT}"),
        *("[Peer]", f"PublicKey = {public}", "AllowedIPs = 0.0.0.0/0, ::/0", *far_end),
        "END",
    ]
