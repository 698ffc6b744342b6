"""Who has which address on the wires between machines: the one place where they are written."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Station:
    """A machine's place on the LAN, by its number there."""

    number: int

    @property
    def mac(self) -> str:
        return f"52:54:00:50:00:{self.number:02x}"

    @property
    def ipv4(self) -> str:
        return f"192.168.50.{self.number}"

    @property
    def ipv6(self) -> str:
        return f"fd00:50::{self.number}"

    @property
    def addresses(self) -> tuple[str, str]:
        return self.ipv4, self.ipv6


# The host keeps the card's own MAC address (harness.vm.qemu); the others have theirs.
HOST, INTERNET, LAN, TAILNET = map(Station, (1, 2, 3, 4))
LAN_PREFIXES = (24, 64)

TAILNET_INTERFACE = "tailscale0"
TAILNET_PORT = 41641
TAILNET_PREFIXES = (24, 64)
TAILNET_HOST = ("100.64.1.1", "fd7a:115c:a1e0:1::1")
TAILNET_PEER = ("100.64.1.2", "fd7a:115c:a1e0:1::2")

AGENTS = ("10.128.0.0/9", "fd74:656e:7461::/48")
"""All agents' networks (modules/policy); an attacker has a route to them."""

# The names that the world's DNS knows. The world answers on these addresses, and on all others.
PUBLIC = {
    "public.test": ("9.9.9.9", "2620:fe::fe"),
    "listed.test": ("198.51.100.7", "2001:db8:100::7"),  # in the egress list of an agent in agents.nix
}
DECOYS = {
    "private-10.test": ("10.1.2.3",),
    "private-172.test": ("172.16.0.1",),
    "private-192.test": ("192.168.77.7",),
    "metadata.test": ("169.254.169.254",),
    "carrier-grade.test": ("100.64.0.9",),
    "other-tailnet.test": ("100.100.0.1", "fd7a:115c:a1e0::1"),
    "unique-local.test": ("fd12:3456::7",),
    "nat64.test": ("64:ff9b::a01:203",),  # 10.1.2.3 in other clothes, as the next one
    "6to4.test": ("2002:a01:203::1",),
}
ECHO_PORTS = (80, 443, 5001, 8080)
"""TCP and UDP, on every peer; on 22 there is SSH, on 53 DNS."""
RESOLVERS = "/etc/resolv.upstream"
"""A resolv.conf(5) of the servers that the host's own resolver asks; empty until the host is on a network."""
