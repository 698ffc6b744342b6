"""A rogue server of addresses and routes (DHCP, router advertisements), at an agent's end of its wire: F3.

A host that asks on the agents' bridges, or listens there, would believe it. The control is the same server on a wire
of the host's own, on which whatever client the host runs does ask.
"""

from collections.abc import Sequence

from harness.policy import Agent
from harness.probes.containers import main_pid
from harness.probes.programs import wait_until
from harness.vm.machine import Machine

CONTROL = 99
"""The number of the control's networks; those of agents are counted from 1."""
# $1 number, $2 interface; what follows is the command that enters the network namespace.
SERVE = """
serve() {
  number=$1 interface=$2; shift 2
  "$@" ip address add 10.66.$number.1/24 dev $interface
  "$@" ip address add fd66:$number::1/64 dev $interface nodad
  "$@" dnsmasq --conf-file=/dev/null --port=0 --user=root --interface=$interface --bind-dynamic --no-ping \\
    --pid-file=/run/rogue-$number.pid --dhcp-leasefile=/run/rogue-$number.leases --dhcp-authoritative \\
    --dhcp-range=10.66.$number.10,10.66.$number.50,255.255.255.0,1h --dhcp-option=option:router,10.66.$number.1 \\
    --dhcp-option=option:dns-server,10.66.$number.1 --enable-ra --dhcp-range=fd66:$number::,ra-only,64 \\
    --ra-param=$interface,high,4 --log-facility=/run/rogue-$number.log --log-dhcp
}"""
# The host's end is ctl0, of which every client of the host is told that it may ask there, and the firewall too.
MAKE_CONTROL = f"""
ip netns add control
ip link add ctl0 type veth peer name ctl1 netns control
nft insert rule inet tentaflake input iifname ctl0 accept
if systemctl --quiet is-active systemd-networkd.service; then
  mkdir -p /run/systemd/network
  printf '[Match]\\nName=ctl0\\n[Network]\\nDHCP=ipv4\\nIPv6AcceptRA=yes\\n' > /run/systemd/network/10-control.network
  networkctl reload
fi
ip netns exec control ip link set ctl1 up
serve {CONTROL} ctl1 ip netns exec control
ip link set ctl0 up"""
BELIEFS = "ip -4 address; ip -6 address; ip -4 route show table all; ip -6 route show table all; cat /etc/resolv.conf"


def start_rogues(machine: Machine, agents: Sequence[Agent]) -> None:
    """A server on each agent's wire, which then goes down and up: a client that asks there asks anew."""
    lines = ["set -e", SERVE]
    for number, agent in enumerate(agents, 1):
        enter = f"nsenter --target {main_pid(machine.host, agent)} --net"
        lines += [f"serve {number} eth0 {enter}", f"{enter} ip link set eth0 down", f"{enter} ip link set eth0 up"]
        # What goes with a link that goes down.
        lines.append(f"{enter} ip address add fd66:{number}::1/64 dev eth0 nodad 2> /dev/null || :")
    lines.append(MAKE_CONTROL)
    machine.run("\n".join(lines)).check()


def read_beliefs(machine: Machine) -> dict[int, list[str]]:
    """What the host has of each rogue's networks: lines on addresses, routes and name servers, by number."""
    found: dict[int, list[str]] = {}
    for line in machine.host.check_output(BELIEFS).splitlines():
        for number in [CONTROL, *range(1, CONTROL)]:
            if f"10.66.{number}." in line or f"fd66:{number}:" in line:
                found.setdefault(number, []).append(line.strip())
    return found


def wait_control(machine: Machine) -> None:
    """Until the host has an address of the control's server over IPv4, and a route over IPv6."""

    def believes() -> bool:
        said = "\n".join(read_beliefs(machine).get(CONTROL, []))
        return f"inet 10.66.{CONTROL}." in said and f"fd66:{CONTROL}:" in said

    wait_until("a host that believes a rogue server where it asks", believes)
