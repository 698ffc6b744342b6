"""A host made of network namespaces, for tests of what the rules do without a virtual machine.

`Wire` needs root: bridges as the plan says with a namespace behind each, a LAN that also plays the outside world, and
a tailnet. Every namespace has a worker that serves TCP and UDP echo on `PORTS` and tries to reach others when told.
All of it lives in a namespace of its own and ends with the process that made it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from harness.pace import stretch
from harness.policy import Plan

PORTS = (22, 53, 80, 443, 5001, 8080)
TIMEOUT = 1.0
"""Seconds, stretched; an answer takes under a millisecond, and a fifth of a second in a crowd of a thousand."""
OUTSIDE = {  # what the LAN's machine answers to
    4: ["192.168.50.2", "9.9.9.9", "198.51.100.7", "10.1.2.3", "169.254.169.254", "100.100.0.1", "172.16.0.1"],
    6: ["fd00:50::2", "2620:fe::fe", "2001:db8:100::7", "fd7a:115c:a1e0::1", "64:ff9b::a01:203", "2002:a01:203::1"],
}
# Else an address is not to be used for its first second, and neighbours are not found.
NO_DAD = "for c in all default; do echo 0 >/proc/sys/net/ipv6/conf/$c/accept_dad; done"
# Agents' networks, and how the LAN and the tailnet get there.
ROUTES = [
    ("10.128.0.0/9", "192.168.50.1", "100.64.1.1"),
    ("fd74:656e:7461::/48", "fd00:50::1", "fd7a:115c:a1e0:1::1"),
]


@dataclass(frozen=True)
class Probe:
    """One attempt of a namespace to get an echo from an address."""

    where: str
    address: str
    port: int
    protocol: str = "tcp"


class Wire:
    """The namespaces of one plan. `load` loads a plan's rules, `reach` tells which probes got an answer."""

    def __init__(self, plan: Plan, timeout: float = TIMEOUT) -> None:
        self._plan, self._timeout = plan, timeout
        self._stack = ExitStack()
        self._workers: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        # A process that does nothing but hold the namespaces: when it ends, they are gone.
        command = ["unshare", "--net", "--mount", "--kill-child", "sh", "-c", "echo; exec cat"]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stack.callback(_end, holder)
        assert holder.stdout is not None
        holder.stdout.readline()
        self._enter = ["nsenter", f"--target={_only_child(holder.pid)}", "--net", "--mount"]
        self._build()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def load(self, plan: Plan) -> None:
        """Replace the table, atomically, as an activation does."""
        table = f"{plan.nftables.family} {plan.nftables.table}"
        text = f"table {table}\ndelete table {table}\ntable {table} {{\n{plan.nftables.content}}}\n"
        self._run(["nft", "-f", "-"], text)

    def reach(self, probes: Iterable[Probe]) -> set[Probe]:
        """The probes that got an answer; all are tried at the same time."""
        wanted = list(probes)
        for probe in wanted:
            self._tell(probe.where, op="probe", probe=[probe.address, probe.port, probe.protocol])
        return {probe for probe in wanted if self._answer(probe.where)}

    def forge(self, where: str, source: str, address: str) -> None:
        """Send a UDP packet with a source that is not the sender's."""
        self._tell(where, op="forge", forged=[source, address])
        assert self._answer(where)

    def heard(self, where: str, source: str) -> bool:
        """Whether a UDP packet from `source` has come to `where`; waits a moment for it."""
        self._tell(where, op="heard", source=source)
        return self._answer(where)

    def open(self, where: str, address: str, port: int) -> bool:
        """Open the one connection that `where` keeps, and exchange a message."""
        self._tell(where, op="open", address=[address, port])
        return self._answer(where)

    def talk(self, where: str) -> bool:
        """Exchange another message over the connection that is open."""
        self._tell(where, op="talk")
        return self._answer(where)

    def _build(self) -> None:
        lines = ["set -e", "mount -t tmpfs tmpfs /run", "ip link set lo up"]
        lines += ["for f in ipv4 ipv6; do echo 1 >/proc/sys/net/$f/conf/all/forwarding; done", NO_DAD]
        for agent in self._plan.agents.values():
            bridge, network = agent.network.bridge, agent.network
            lines += [
                f"ip link add {bridge} type bridge",
                f"ip link set {bridge} up",
                f"ip addr add {network.ipv4.gateway}/29 dev {bridge}",
                f"ip addr add {network.ipv6.gateway}/80 dev {bridge} nodad",
                *_wire(agent.name, f"v-{agent.name}", [f"{network.ipv4.address}/29", f"{network.ipv6.address}/80"]),
                f"ip link set v-{agent.name} master {bridge}",
                f"ip -n {agent.name} route add default via {network.ipv4.gateway}",
                f"ip -n {agent.name} route add default via {network.ipv6.gateway}",
            ]
        lines += _wire("lan", "lan0", ["192.168.50.2/24", "fd00:50::2/64"])
        lines += ["ip addr add 192.168.50.1/24 dev lan0", "ip addr add fd00:50::1/64 dev lan0 nodad"]
        lines += ["ip route add default via 192.168.50.2", "ip route add default via fd00:50::2"]
        lines += [f"ip -n lan addr add {address}/32 dev lo" for address in OUTSIDE[4][1:]]
        lines += [f"ip -n lan addr add {address}/128 dev lo" for address in OUTSIDE[6][1:]]
        lines += _wire("tailnet", "tailscale0", ["100.64.1.2/24", "fd7a:115c:a1e0:1::2/64"])
        lines += ["ip addr add 100.64.1.1/24 dev tailscale0", "ip addr add fd7a:115c:a1e0:1::1/64 dev tailscale0 nodad"]
        for routed, lan, tailnet in ROUTES:
            lines += [f"ip -n lan route add {routed} via {lan}", f"ip -n tailnet route add {routed} via {tailnet}"]
        self._run(["sh", "-s"], "\n".join(lines))
        self._start("host", [])
        for name in [*self._plan.agents, "lan", "tailnet"]:
            self._start(name, ["ip", "netns", "exec", name])

    def _start(self, name: str, inside: list[str]) -> None:
        command = [*self._enter, *inside, sys.executable, "-c", WORKER, str(stretch(self._timeout)), *map(str, PORTS)]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stack.callback(_end, worker)
        self._workers[name] = worker
        assert self._answer(name)

    def _run(self, command: list[str], text: str) -> None:
        done = subprocess.run([*self._enter, *command], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def _tell(self, where: str, **message: Any) -> None:
        pipe = _pipe(self._workers[where].stdin)
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    def _answer(self, where: str) -> bool:
        return bool(json.loads(_pipe(self._workers[where].stdout).readline()))


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


def _only_child(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return int(children.read().split()[0])


def _wire(namespace: str, outside: str, addresses: list[str]) -> list[str]:
    """A namespace with one interface, eth0, whose other end is `outside`."""
    return [
        f"ip netns add {namespace}",
        f"ip netns exec {namespace} sh -c '{NO_DAD}'",
        f"ip link add {outside} type veth peer name eth0 netns {namespace}",
        f"ip link set {outside} up",
        f"ip -n {namespace} link set lo up",
        f"ip -n {namespace} link set eth0 up",
        *[f"ip -n {namespace} addr add {a} dev eth0{' nodad' if ':' in a else ''}" for a in addresses],
    ]


# Runs in a namespace, with nothing but Python's own library. Answers in the order in which it was asked.
WORKER = """
import json, queue, socket, sys, threading, time

sources = set()
timeout, ports = float(sys.argv[1]), list(map(int, sys.argv[2:]))

def echo(connection):
    while data := connection.recv(4096):
        connection.sendall(data)

def serve_tcp(port):
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    def loop():
        while True:
            threading.Thread(target=echo, args=server.accept()[:1], daemon=True).start()
    return loop

def serve_udp(port, family, any_address):
    # The answer comes from the address that was asked, not from the one that the route prefers.
    server = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        server.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    server.bind((any_address, port))
    def loop():
        while True:
            data, asked, _, peer = server.recvmsg(4096, 256)
            sources.add(peer[0])
            try:
                server.sendmsg([data], asked, 0, peer)
            except OSError:
                pass
    return loop

def exchange(connection):
    try:
        connection.sendall(b"ping")
        return connection.recv(16) == b"ping"
    except OSError:
        return False

def connect(address, port, protocol="tcp"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    connection.settimeout(timeout)
    try:
        connection.connect((address, port))
    except OSError:
        connection.close()
        return None
    return connection

def forge(source, address):
    v6 = ":" in address
    sender = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    # IPV6_TRANSPARENT, IP_TRANSPARENT: any source will do
    sender.setsockopt(*((socket.IPPROTO_IPV6, 75, 1) if v6 else (socket.IPPROTO_IP, 19, 1)))
    sender.bind((source, 0))
    sender.sendto(b"forged", (address, ports[0]))

def is_heard(source):
    deadline = time.monotonic() + timeout
    while source not in sources and time.monotonic() < deadline:
        time.sleep(0.01)
    return source in sources

def probe(arguments, result):
    connection = connect(*arguments)
    result.put(connection is not None and exchange(connection))

def say(answer):
    print(json.dumps(answer), flush=True)

def report():
    while True:
        say(results.get().get())

for port in ports:
    for loop in (serve_tcp(port), serve_udp(port, socket.AF_INET, "0.0.0.0"), serve_udp(port, socket.AF_INET6, "::")):
        threading.Thread(target=loop, daemon=True).start()
results = queue.Queue()
threading.Thread(target=report, daemon=True).start()
ready = queue.Queue()
ready.put(True)
results.put(ready)
kept = None
for line in sys.stdin:
    message, result = json.loads(line), queue.Queue()
    results.put(result)
    if message["op"] == "probe":
        threading.Thread(target=probe, args=(message["probe"], result), daemon=True).start()
    elif message["op"] == "forge":
        forge(*message["forged"])
        result.put(True)
    elif message["op"] == "heard":
        result.put(is_heard(message["source"]))
    else:
        if message["op"] == "open":
            kept = connect(*message["address"])
        result.put(kept is not None and exchange(kept))
"""
