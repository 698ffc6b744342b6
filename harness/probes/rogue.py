"""A rogue server of addresses and routes (DHCP, router advertisements), at an agent's end of its wire: F3.

A host that asks on the agents' bridges, or listens there, would believe it. The control is the same server on a wire
of the host's own, on which whatever client the host runs does ask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from harness.policy import Agent
from harness.probes.attempts import quote
from harness.probes.containers import main_pid
from harness.probes.programs import wait_until
from harness.vm.machine import Machine


@dataclass(frozen=True)
class Rogue:
    """A server: its own address and network, and the IPv6 network that it advertises."""

    name: str
    address: str
    network: IPv4Network
    prefix: str

    @property
    def offers(self) -> list[str]:
        """The addresses that it offers: those behind its own."""
        return [str(address) for address in self.network.hosts() if int(address) > int(self.network[2])]

    def serve(self, interface: str, enter: str) -> list[str]:
        """Shell commands that start it on an interface; ``enter`` is the command that enters its network namespace.

        Its answers are from the agent's own address, for the firewall drops all others before a client can see them.
        """
        options = {
            "interface": interface,
            "pid-file": f"/run/rogue-{self.name}.pid",
            "dhcp-leasefile": f"/run/rogue-{self.name}.leases",
            "log-facility": f"/run/rogue-{self.name}.log",
            "dhcp-range": f"{self.offers[0]},{self.offers[-1]},{self.network.netmask},1h",
            "ra-param": f"{interface},high,4",
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        given += [f"--dhcp-range={self.prefix},ra-only,64", "--enable-ra", "--dhcp-authoritative", "--log-dhcp"]
        given += [f"--dhcp-option=option:{what},{self.address}" for what in ("router", "dns-server")]
        server = "dnsmasq --conf-file=/dev/null --port=0 --user=root --bind-dynamic --no-ping"
        return [
            f"{enter} ip address replace {self.address}/{self.network.prefixlen} dev {interface}",
            f"{enter} ip address replace {self.prefix}1/64 dev {interface} nodad",
            f"{enter} {server} {' '.join(map(quote, given))}",
        ]

    def is_believed(self, line: str) -> bool:
        """Whether a line of ``BELIEFS`` is something that the host has of it."""
        words = line.replace("/", " ").split()
        return self.address in words or not {*self.offers}.isdisjoint(words) or self.prefix in line


CONTROL = Rogue("control", "10.66.99.2", IPv4Network("10.66.99.0/24"), "fd66:99::")
# The host's end is ctl0, of which every client of the host is told that it may ask there, and the firewall too.
MAKE_CONTROL = """
ip netns add control
ip link add ctl0 type veth peer name ctl1 netns control
nft insert rule inet tentaflake input iifname ctl0 accept
if systemctl --quiet is-active systemd-networkd.service; then
  mkdir -p /run/systemd/network
  printf '[Match]\\nName=ctl0\\n[Network]\\nDHCP=ipv4\\nIPv6AcceptRA=yes\\n' > /run/systemd/network/10-control.network
  networkctl reload
fi
ip netns exec control ip link set ctl1 up
{serve}
ip link set ctl0 up"""
BELIEFS = "ip -4 address; ip -6 address; ip -4 route; ip -6 route; cat /etc/resolv.conf"


def start_rogues(machine: Machine, agents: Sequence[Agent]) -> list[Rogue]:
    """A server on each agent's wire, which then goes down and up: a client that asks there asks anew."""
    lines, rogues = ["set -e"], []
    for number, agent in enumerate(agents, 1):
        network = agent.network.ipv4
        rogue = Rogue(agent.name, network.address, IPv4Network(network.subnet), f"fd66:{number}::")
        enter = f"nsenter --target {main_pid(machine.host, agent)} --net"
        lines += [f"{enter} ip link set eth0 down", f"{enter} ip link set eth0 up", *rogue.serve("eth0", enter)]
        rogues.append(rogue)
    serve = "\n".join(CONTROL.serve("ctl1", "ip netns exec control"))
    machine.run("\n".join([*lines, MAKE_CONTROL.format(serve=serve)])).check()
    return [*rogues, CONTROL]


def read_beliefs(machine: Machine, rogues: Sequence[Rogue]) -> dict[str, list[str]]:
    """What the host has of each server: lines on addresses, routes and name servers, by the server's name."""
    lines = machine.host.check_output(BELIEFS).splitlines()
    found = {rogue.name: [line.strip() for line in lines if rogue.is_believed(line)] for rogue in rogues}
    return {name: believed for name, believed in found.items() if believed}


def wait_control(machine: Machine) -> None:
    """Until the host has an address of the control's server over IPv4, and a route over IPv6."""

    def believes() -> bool:
        said = "\n".join(read_beliefs(machine, [CONTROL]).get(CONTROL.name, []))
        return f"via {CONTROL.address}" in said and CONTROL.prefix in said

    wait_until("a host that believes a rogue server where it asks", believes)
