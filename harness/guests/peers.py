"""The machines around a host under test: the world, a neighbour on the LAN, a peer on the tailnet.

Each has a template of its own, in which it has its MAC address, its addresses and its part already: under emulation a
process that a fork runs for the first time costs a tenth of a second, and four machines share two processors.
"""

import base64
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
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
from harness.vm.shell import RUN_TIMEOUT, Result

STATIONS = {"internet": INTERNET, "lan": LAN, "tailnet": TAILNET}
SERVICE = Path(peer_service.__file__)
SERVICE_PATH = "/usr/lib/tentaflake/peer_service.py"
TOKEN_PATH = "/run/peer-token"
HOSTS_KEYS = "hosts-tunnel.conf"

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
systemctl list-units --plain --no-legend --state=active tentaflake-guard.timer tentaflake-routing.service \\
  'docker.*' containerd.service 'systemd-networkd.*' tentaflake-resolver.service dnsmasq.service |
  cut -d ' ' -f 1 | xargs systemctl stop
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
  python3 -I {SERVICE_PATH} {TOKEN_PATH} {" ".join(map(str, ECHO_PORTS))}
systemd-run --quiet --unit=peer-dns --property=Type=forking dnsmasq --conf-file=/dev/null --user=root \\
  --pid-file --no-resolv --no-hosts --cache-size=0 --local=/test/ {" ".join(_records())}
"""


def role_script(role: str) -> str:
    """What makes a peer the one that it is."""
    station = STATIONS[role]
    batch = [f"link set eth1 address {station.mac} up", *_addresses("eth1", station.addresses, LAN_PREFIXES)]
    if role == "internet":
        # The kernel takes all the world's addresses for its own, but for those of the LAN.
        # (An IPv4 address is one's own by the table `local` only, which is asked before `main` once there was a rule.)
        batch += ["route add throw 192.168.50.0/24 table local", "route add local 0.0.0.0/0 dev lo"]
        batch += ["route add local ::/0 dev lo table main"]
    elif role == "lan":
        batch += [f"route add {network} via {via}" for network, via in zip(AGENTS, HOST.addresses, strict=True)]
    else:
        batch += [*_tunnel(TAILNET_PEER), *(f"route add {network} dev {TAILNET_INTERFACE}" for network in AGENTS)]
    return "\n".join(["set -e", f"echo {role} > /proc/sys/kernel/hostname", *_ip(batch)])


def prepare(machine: Machine, role: str) -> None:
    """Make a booted guest a peer. What the host must know of it is kept in its template's directory."""
    machine.put(SERVICE.read_bytes(), SERVICE_PATH, 0o755)
    machine.run(PREPARE, timeout=300).check()
    machine.run(role_script(role)).check()
    if role == "tailnet":
        own, hosts = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        machine.run(["wg", "setconf", TAILNET_INTERFACE, "/dev/stdin"], stdin=_keys(own, hosts).encode()).check()
        far_end = (f"Endpoint = {TAILNET.ipv4}:{TAILNET_PORT}", "PersistentKeepalive = 5")
        (machine.process.directory / HOSTS_KEYS).write_text(_keys(hosts, own, *far_end))


def content(role: str) -> dict[str, str]:
    """What a peer's template depends on: all that is written about peers."""
    here = Path(__file__)
    return {
        "role": role,
        "sources": "".join(path.read_text() for path in (here, here.with_name("addresses.py"), SERVICE)),
    }


def _addresses(interface: str, addresses: tuple[str, str], prefixes: tuple[int, int]) -> list[str]:
    return [f"address add {a}/{prefix} dev {interface}" for a, prefix in zip(addresses, prefixes, strict=True)]


def _tunnel(addresses: tuple[str, str]) -> list[str]:
    return [
        f"link add {TAILNET_INTERFACE} mtu 1280 type wireguard",
        *_addresses(TAILNET_INTERFACE, addresses, TAILNET_PREFIXES),
        f"link set {TAILNET_INTERFACE} up",
    ]


def _ip(batch: list[str]) -> list[str]:
    """One process of ip(8) for all."""
    return ["ip -batch - <<'END'", *batch, "END"]


def _keys(own: X25519PrivateKey, other: X25519PrivateKey, *far_end: str) -> str:
    """A configuration for wg(8). The tunnel lets in whatever comes: to keep sources honest is not its part here."""
    private = base64.b64encode(own.private_bytes_raw()).decode()
    public = base64.b64encode(other.public_key().public_bytes_raw()).decode()
    interface = ["[Interface]", f"PrivateKey = {private}", f"ListenPort = {TAILNET_PORT}"]
    return "\n".join([*interface, "[Peer]", f"PublicKey = {public}", "AllowedIPs = 0.0.0.0/0, ::/0", *far_end, ""])


class Packet(NamedTuple):
    """Packets of one kind that a peer was sent: on which interface, from where, to where, by which protocol ("tcp")."""

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

    def run(self, command: str | Sequence[str], *, timeout: float = RUN_TIMEOUT, stdin: bytes = b"") -> Result:
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


def connect(forks: Iterator[Machine], templates: Mapping[str, Path]) -> Network:
    """A network of forks on one wire: each peer gets its token, the host its side of things.

    ``templates`` gives what each fork is, "host" first, with the directory of its template.
    """
    machines: dict[str, Machine] = {}
    orders: list[Callable[[], Result]] = []
    peers: dict[str, Peer] = {}
    for name, machine in zip(templates, forks, strict=True):
        machine.name = name
        machines[name] = machine
        if name == "host":
            keys = (templates["tailnet"] / HOSTS_KEYS).read_bytes() if "tailnet" in templates else b""
            orders.append(machine.shell.start(host_script(templates), stdin=keys))
        else:
            peers[name] = Peer(name, STATIONS[name], machine, f"{name}-{token_hex(8)}")
            orders.append(machine.shell.start(f"echo {peers[name].token} > {TOKEN_PATH}"))
    for finish in orders:
        finish().check()
    for machine in machines.values():
        machine.companions = [other for other in machines.values() if other is not machine]
    return Network(machines["host"], peers)


def host_script(names: Container[str]) -> str:
    """The host's part: whom to ask for names, and its end of the tunnel.

    It speaks first there, for its firewall lets in nothing but answers; what it sends before its peer is up, waits.
    """
    lines = ["set -e"]
    if "internet" in names:
        lines.append(f"echo nameserver {INTERNET.ipv4} > {RESOLVERS}")
    if "tailnet" in names:
        lines += [*_ip(_tunnel(TAILNET_HOST)), f"wg setconf {TAILNET_INTERFACE} /dev/stdin"]
        lines.append(f"busybox ping -c 1 -W 10 {TAILNET_PEER[0]} > /dev/null")
    return "\n".join(lines)
