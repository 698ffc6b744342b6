"""Attacks over the network: every agent, and the machines around the host, on everything that has an address.

An agent attacks from its end of its own wire, as root of its network namespace: whatever a process of it can send, and
forged packets too. Its user on the host attacks as well, and so do the machines on the LAN and on the tailnet. Whoever
can be reached serves an echo that says who it is. Root on the host is the control: it reaches all of them.
"""

import json
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import product
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.guests import addresses, peer_service
from harness.guests.peers import RECORDER, SERVICE_PATH, STATIONS, Network, read_recorder
from harness.pace import stretch, stretch_whole
from harness.policy import Agent, Plan
from harness.probes import prober
from harness.probes.attempts import Aim, Attacker, Attempt, Outcome, is_among, quote, run_attempts
from harness.probes.pairs import choose_targets
from harness.probes.stage import HOST
from harness.vm.machine import Machine
from harness.vm.shell import Result

Probe = dict[str, Any]
Way = tuple[str, str]
"""A claim, and what is tried against it."""

PROBER = Path(prober.__file__)
PROBER_PATH = "/usr/lib/tentaflake/prober.py"
HOST_PORTS = (2375, 5001, 9000)
"""Where the host's echo listens: some of what services listen on, Docker's own among them. On 22 there is SSH."""
AGENT_PORTS = (80, 8080)
ANYTHING = ""
"""The token of a server that speaks first and is not ours: SSH, which says another thing when it is too busy."""
ROOT, LAN, TAILNET = Attacker("root"), Attacker("lan"), Attacker("tailnet")
INTERNET, PRIVATE = "internet", "private"
"""Targets: the world's public addresses, and those that are nobody's business."""

WAYS: list[Way] = [
    *((claim, way) for claim in ("F1", "N1") for way in ("connect to the host", "send datagrams to the host")),
    *(
        ("F2", way)
        for way in (
            "connect to the container",
            "send datagrams to the container",
            "ping the container",
            "hide in fragments",
            "hide behind options",
            "ask for a source route",
            "broadcast",
            "forge a source",
            "find the neighbour on the wire",
            "come in by a published port",
        )
    ),
    *(("F3", way) for way in ("connect to the host", "send datagrams to the host", "ping the host")),
    *(("F3", way) for way in ("reach the speech server", "look up a name")),
    *(("F4", f"reach {name}") for name in (*addresses.PUBLIC, *addresses.DECOYS, "the LAN", "the tailnet")),
    *(("F4", way) for way in ("forge a source", "reach by name")),
    *(("F5", way) for way in ("reach a published port", "connect to the container")),
]


@dataclass(frozen=True)
class Trial:
    """An attempt by some probes. It has reached its target when ``token`` is in an answer: of any probe, if it is an
    attack; of all of them, if it is a control. For forged packets, an answer is a recorder's word that they came.
    """

    attempt: Attempt
    probes: tuple[Probe, ...]
    token: str


@dataclass(frozen=True)
class Scene:
    """What attackers aim at: the token by which each target is known, and each agent's first process."""

    plan: Plan
    tokens: dict[str, str]
    pids: dict[str, int]

    @property
    def agents(self) -> list[Agent]:
        return list(self.plan.agents.values())

    def host_addresses(self, agents: Iterable[Agent]) -> list[str]:
        """Every address of the host that anybody could send to: on the wires of these agents, and elsewhere."""
        gateways = [gateway for agent in agents for gateway in gateways_of(agent)]
        return [*gateways, *addresses.HOST.addresses, *addresses.TAILNET_HOST]

    def neighbours(self, way: str, agent: Agent) -> list[Agent]:
        """The agents that one of them has to do with when it attacks in this way."""
        names = list(self.plan.agents)
        return [self.plan.agents[name] for name in choose_targets(way, names.index(agent.name), agent.name, names)]


def addresses_of(agent: Agent) -> tuple[str, str]:
    return agent.network.ipv4.address, agent.network.ipv6.address


def gateways_of(agent: Agent) -> tuple[str, str]:
    """The host's addresses on the agent's own wire."""
    return agent.network.ipv4.gateway, agent.network.ipv6.gateway


RUN = "systemd-run --quiet --property=Type=notify --property=LimitNOFILE=65536"


def build_scene(host: Machine, plan: Plan) -> None:
    """Start an echo with every agent and on the host, and record what comes to every agent."""
    host.put(PROBER.read_bytes(), PROBER_PATH)
    host.put(Path(peer_service.__file__).read_bytes(), SERVICE_PATH, 0o755)
    host.put(RECORDER.replace('{ "lo", "eth0" }', '"lo"').encode(), "/run/recorder.nft")  # eth0 is the agent's own
    # Ping without a privilege, as systemd's own default on a host has it: Docker allows it in containers.
    lines = ["set -e", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"]
    if plan.speech.units:  # the host's echo is in its place
        lines.append(f"systemctl stop {' '.join(plan.speech.units)}")
    lines += [f"echo none > /run/token-{name}" for name in [*plan.agents, HOST]]
    for name, agent in plan.agents.items():
        # A network without a way out has no such routes: its agent could not set them, but we try harder than it can.
        inside = [f"ip route replace default via {gateway}" for gateway in gateways_of(agent)]
        # So that the control of a source route is one: this end accepts it.
        inside.append("for c in all lo eth0; do echo 1 > /proc/sys/net/ipv4/conf/$c/accept_source_route; done")
        inside.append("nft -f /run/recorder.nft")
        lines += [
            f"pid=$(pgrep -o -u {agent.uid})",
            f"nsenter --target $pid --net sh -ec {quote('; '.join(inside))}",
            f"{RUN} --property=NetworkNamespacePath=/proc/$pid/ns/net {_echo(name, AGENT_PORTS)}",
        ]
    lines.append(f"{RUN} {_echo(HOST, HOST_PORTS)}")
    host.run("\n".join(lines), timeout=300).check()


def scene_builder(plan: Plan) -> Callable[[Machine], None]:
    return lambda host: build_scene(host, plan)


def scene_content() -> dict[str, str]:
    """What a scene depends on, besides the plan and the probes."""
    return {"service": Path(peer_service.__file__).read_text(), "recorder": RECORDER}


def _echo(name: str, ports: Sequence[int]) -> str:
    return f"python3 -I {SERVICE_PATH} /run/token-{name} {' '.join(map(str, ports))}"


def set_scene(network: Network, plan: Plan) -> Scene:
    """Give everybody a new token, on a network whose host is as ``build_scene`` leaves it."""
    tokens = {name: f"{name}-{secrets.token_hex(8)}" for name in [*STATIONS, *plan.agents, HOST]}
    lines = [f"echo {tokens[name]} > /run/token-{name}" for name in [*plan.agents, HOST]]
    lines += [f"pgrep -o -u {agent.uid}" for agent in plan.agents.values()]
    pids = network.host.run("\n".join(["set -e", *lines])).check().text.split()
    for role in {LAN.slug, TAILNET.slug} & network.peers.keys():
        network.peers[role].machine.put(PROBER.read_bytes(), PROBER_PATH)
    tokens |= {peer.role: peer.token for peer in network.peers.values()}
    return Scene(plan, tokens, dict(zip(plan.agents, map(int, pids), strict=True)))


# --- what is tried ----------------------------------------------------------------------------------------


def roles_for(plan: Plan, aims: Collection[Aim] | None) -> list[str]:
    """The machines that it takes, besides the host, to try what ``aims`` asks for."""
    nobodys = dict.fromkeys([*plan.agents, HOST, *STATIONS], "")
    scene = Scene(plan, nobodys, {})
    trials = [trial for trial in plan_trials(scene) if is_among(aims, trial.attempt)]
    attempts = [*(trial.attempt for trial in trials), *(each for each in by_name(scene) if is_among(aims, each))]
    named = {name for attempt in attempts for name in (attempt.attacker.slug, attempt.target)}
    if PRIVATE in named:
        named.add(INTERNET)  # which has those addresses too
    if any(probe["address"] in addresses.TAILNET_HOST for trial in trials for probe in trial.probes):
        named.add(TAILNET.slug)  # without it, the host has no such addresses
    return [role for role in STATIONS if role in named]


def tcp(targets: Sequence[str], ports: Sequence[int]) -> tuple[Probe, ...]:
    return _probes("tcp", targets, ports)


def udp(targets: Sequence[str], ports: Sequence[int]) -> tuple[Probe, ...]:
    return _probes("udp", targets, ports)


def ping(targets: Sequence[str]) -> tuple[Probe, ...]:
    return _probes("ping", targets, (0,))


def _probes(kind: str, targets: Sequence[str], ports: Sequence[int]) -> tuple[Probe, ...]:
    return tuple({"kind": kind, "address": address, "port": port} for address, port in product(targets, ports))


def attack(way: Way, attacker: Attacker, target: str, probes: tuple[Probe, ...], token: str) -> Trial:
    return Trial(Attempt(way[0], way[1], attacker, target, "", "refused"), probes, token)


def control(way: Way, attacker: Attacker, target: str, probes: tuple[Probe, ...], token: str) -> Trial:
    return Trial(Attempt(way[0], way[1], attacker, target, "", "reached"), probes, token)


def plan_trials(scene: Scene) -> list[Trial]:
    found = [*on_the_host(scene), *on_neighbours(scene), *on_the_world(scene), *on_what_is_published(scene)]
    return choose_trials(scene, [trial for trial in found if trial.probes])


def choose_trials(scene: Scene, trials: Sequence[Trial]) -> list[Trial]:
    """Those of one agent on another where ``choose_targets`` has chosen the other, and all that are not such."""
    agents = list(scene.plan.agents)
    targets: dict[str, list[str]] = defaultdict(list)
    for attempt in (trial.attempt for trial in trials):
        if attempt.target in scene.plan.agents and attempt.target not in targets[attempt.way]:
            targets[attempt.way].append(attempt.target)

    def is_chosen(attempt: Attempt) -> bool:
        own, possible = attempt.attacker.owner, targets.get(attempt.way, [])
        if not own or attempt.target in (own, HOST) or attempt.target not in possible:
            return True
        return attempt.target in choose_targets(attempt.way, agents.index(own), own, possible)

    return [trial for trial in trials if is_chosen(trial.attempt)]


def on_the_host(scene: Scene) -> Iterator[Trial]:
    """F1, F3, N1: machines outside on every address of the host, agents on those that are near to them."""
    token, everywhere = scene.tokens[HOST], scene.host_addresses(scene.agents)
    loopback = ["127.0.0.1", "::1"]
    published = [port.port for agent in scene.agents for port in agent.publish if port.protocol == "tcp"]
    closed = [port for port in HOST_PORTS if port not in published]
    for claim, attacker in (("F1", LAN), ("N1", TAILNET)):
        seen = [*addresses.HOST.addresses] if attacker is LAN else [*addresses.TAILNET_HOST]
        seen += [gateway for agent in scene.agents for gateway in gateways_of(agent)]
        yield attack((claim, "connect to the host"), attacker, HOST, tcp(seen, closed), token)
        yield control((claim, "connect to the host"), attacker, HOST, tcp(seen[:2], [22]), ANYTHING)
        yield control((claim, "connect to the host"), ROOT, HOST, tcp(seen, closed), token)
        yield attack((claim, "send datagrams to the host"), attacker, HOST, udp(seen, HOST_PORTS), token)
        yield control((claim, "send datagrams to the host"), ROOT, HOST, udp(seen, HOST_PORTS), token)
    for agent in scene.agents:
        gateways = gateways_of(agent)
        near = scene.host_addresses([agent, *scene.neighbours("connect to the host", agent)])
        for attacker, places in ((Attacker("wire", agent), near), (Attacker("uid", agent), near + loopback)):
            granted = tcp(gateways, [5001]) if agent.tts and attacker.origin == "wire" else ()
            connections = tuple(probe for probe in tcp(places, closed) if probe not in granted)
            yield attack(("F3", "connect to the host"), attacker, HOST, connections, token)
            yield attack(("F3", "connect to the host"), attacker, HOST, tcp(places, [22]), ANYTHING)
            yield attack(("F3", "send datagrams to the host"), attacker, HOST, udp(places, HOST_PORTS), token)
            yield attack(("F3", "ping the host"), attacker, HOST, ping(places), "pong")
            yield control(("F3", "reach the speech server"), attacker, HOST, granted, token)
            if not granted:
                yield attack(("F3", "reach the speech server"), attacker, HOST, tcp(gateways, [5001]), token)
    places = everywhere + loopback
    yield control(("F3", "connect to the host"), ROOT, HOST, tcp(places, closed), token)
    yield control(("F3", "connect to the host"), ROOT, HOST, tcp(places, [22]), ANYTHING)
    yield control(("F3", "send datagrams to the host"), ROOT, HOST, udp(places, HOST_PORTS), token)
    yield control(("F3", "ping the host"), ROOT, HOST, ping(places), "pong")
    yield control(("F3", "reach the speech server"), ROOT, HOST, tcp(everywhere, [5001]), token)


def on_neighbours(scene: Scene) -> Iterator[Trial]:
    """F2: every agent on every other, and on itself."""
    for number, agent in enumerate(scene.agents):
        wire, uid = Attacker("wire", agent), Attacker("uid", agent)
        for target in scene.agents:
            token, own = scene.tokens[target.name], target is agent
            make = control if own else attack
            for way, probes in _neighbourly(target, None if own else agent).items():
                if not (own and way == "ask for a source route"):  # a kernel takes none from itself
                    yield make(("F2", way), wire, target.name, probes, "pong" if way.startswith("ping") else token)
                if "container" in way and not own:
                    yield attack(("F2", way), uid, target.name, probes, "pong" if way.startswith("ping") else token)
            yield make(("F2", "broadcast"), wire, target.name, _everybody(agent), token)
            asked = gateways_of(agent) if own else addresses_of(target)
            yield make(
                ("F2", "find the neighbour on the wire"), wire, target.name, _probes("neighbour", asked, (0,)), ":"
            )
            if not own:
                yield attack(("F2", "forge a source"), wire, target.name, _forged(scene, number, agent, target), "came")
            if target.publish and not own:
                places = scene.host_addresses([target, agent, *scene.neighbours("come in by a published port", agent)])
                probes = _published(target, list(dict.fromkeys(places)))
                yield attack(("F2", "come in by a published port"), wire, target.name, probes, token)
    for target in scene.agents:
        token = scene.tokens[target.name]
        for way, probes in _neighbourly(target).items():
            yield control(("F2", way), ROOT, target.name, probes, "pong" if way.startswith("ping") else token)
        strangers = _forge(addresses_of(target), _strangers(100))
        yield control(("F2", "forge a source"), ROOT, target.name, strangers, "came")
        if target.publish:
            probes = _published(target, addresses.TAILNET_HOST)
            yield control(("F2", "come in by a published port"), TAILNET, target.name, probes, token)


def _neighbourly(target: Agent, attacker: Agent | None = None) -> dict[str, tuple[Probe, ...]]:
    """Ways to speak to an agent whose address is known. A neighbour's source route leads over its own gateway."""
    ipv4, ipv6 = addresses_of(target)
    via = attacker.network.ipv4.gateway if attacker else ipv4
    return {
        "connect to the container": tcp([ipv4, ipv6], AGENT_PORTS),
        "send datagrams to the container": udp([ipv4, ipv6], [80]),
        "ping the container": ping([ipv4, ipv6]),
        "hide in fragments": _probes("fragments", [ipv4, ipv6], [80]),
        "hide behind options": _probes("options", [ipv6], [80]),
        "ask for a source route": ({"kind": "options", "address": ipv4, "via": via, "port": 80},),
    }


def _everybody(agent: Agent) -> tuple[Probe, ...]:
    network = ip_network(agent.network.ipv4.subnet)
    return _probes("everybody", ["255.255.255.255", str(network.broadcast_address), "224.0.0.1", "ff02::1%eth0"], [80])


def _published(target: Agent, places: Sequence[str]) -> tuple[Probe, ...]:
    """By these addresses of the host."""
    return tuple(probe for port in target.publish for probe in _probes(port.protocol, places, [port.port]))


def _strangers(number: int) -> tuple[str, str]:
    """Addresses of nobody here, by which a forger is known."""
    return f"203.0.113.{number}", f"2001:db8:f::{number}"


def _forge(targets: tuple[str, str], sources: tuple[str, str]) -> tuple[Probe, ...]:
    return tuple(
        {"kind": "forged", "address": address, "port": 80, "source": source}
        for address, source in zip(targets, sources, strict=True)
    )


def _forged(scene: Scene, number: int, agent: Agent, target: Agent) -> tuple[Probe, ...]:
    """As a stranger, as somebody on the LAN, and as another neighbour; none of whom would send there themselves."""
    others = [addresses_of(other) for other in scene.neighbours("forge a source", agent) if other is not target]
    sources = [_strangers(number + 1), addresses.Station(number + 100).addresses, *others]
    return tuple(probe for source in sources for probe in _forge(addresses_of(target), source))


def may_reach(agent: Agent, name: str, probe: Probe) -> bool:
    """F4, said once more than in the policy: whether the agent's egress grants what this probe tries."""
    if isinstance(agent.egress, str):
        return agent.egress == "internet" and name == "public.test"
    address = ip_address(probe["address"])
    return any(
        address.version == ip_network(rule.network).version
        and address in ip_network(rule.network)
        and rule.protocol in (None, probe["kind"])
        and (rule.ports is None or (probe["kind"] != "ping" and probe["port"] in rule.ports))
        for rule in agent.egress
    )


def on_the_world(scene: Scene) -> Iterator[Trial]:
    """F4: every agent, by its wire and with its user, on public addresses, on decoys, on the LAN and the tailnet."""
    world = {**addresses.PUBLIC, **addresses.DECOYS}
    places = {name: (name, INTERNET if name in addresses.PUBLIC else PRIVATE, "internet") for name in world}
    world |= {"the LAN": addresses.LAN.addresses, "the tailnet": addresses.TAILNET_PEER}
    places |= {"the LAN": ("the LAN", "lan", "lan"), "the tailnet": ("the tailnet", "tailnet", "tailnet")}
    for name, targets in world.items():
        way, (_, column, who) = ("F4", f"reach {name}"), places[name]
        speak = (*tcp(targets, [80, 443, 8080]), *udp(targets, [443]))
        for agent in scene.agents:
            wire, uid = Attacker("wire", agent), Attacker("uid", agent)
            yield control(way, wire, column, tuple(p for p in speak if may_reach(agent, name, p)), scene.tokens[who])
            yield attack(way, wire, column, tuple(p for p in speak if not may_reach(agent, name, p)), scene.tokens[who])
            yield attack(way, wire, column, tuple(p for p in ping(targets) if not may_reach(agent, name, p)), "pong")
            if name in addresses.PUBLIC:
                yield attack(way, uid, column, speak, scene.tokens[who])
        yield control(way, ROOT, column, speak, scene.tokens[who])
        yield control(way, ROOT, column, ping(targets), "pong")
    public = addresses.PUBLIC["public.test"]
    for number, agent in enumerate(scene.agents):
        others = scene.neighbours("forge a source", agent)
        sources = [_strangers(number + 1), *(addresses_of(other) for other in others)]
        probes = tuple(probe for source in sources for probe in _forge(public, source))
        yield attack(("F4", "forge a source"), Attacker("wire", agent), INTERNET, probes, "came")
    yield control(("F4", "forge a source"), ROOT, INTERNET, _forge(public, _strangers(100)), "came")


def on_what_is_published(scene: Scene) -> Iterator[Trial]:
    """F5: the LAN and the tailnet on agents' published ports, and on their containers themselves."""
    for target in scene.agents:
        token, ports = scene.tokens[target.name], {(port.protocol, port.target) for port in target.publish}
        inside = (*tcp(addresses_of(target), AGENT_PORTS), *udp(addresses_of(target), [80]))
        for attacker in (LAN, TAILNET):
            open_to = [p for p in inside if attacker is TAILNET and (p["kind"], p["port"]) in ports]
            closed = tuple(probe for probe in inside if probe not in open_to)
            yield attack(("F5", "connect to the container"), attacker, target.name, closed, token)
        yield control(("F5", "connect to the container"), ROOT, target.name, inside, token)
        if target.publish:
            way = ("F5", "reach a published port")
            places = scene.host_addresses([target, *scene.neighbours("reach a published port", target)])
            yield attack(way, LAN, target.name, _published(target, places), token)
            yield control(way, TAILNET, target.name, _published(target, addresses.TAILNET_HOST), token)


# --- by name, as the agent itself ------------------------------------------------------------------------------


def by_name(scene: Scene) -> Iterator[Attempt]:
    """F3, F4: the agent's own process, by its own resolver, with busybox' tools."""
    token = scene.tokens["internet"]
    names = [*addresses.PUBLIC, *addresses.DECOYS]
    attackers = [Attacker("container", agent) for agent in scene.agents]
    for attacker in (*attackers, ROOT):
        agent = attacker.agent
        resolves = agent is None or agent.egress != "none"
        granted = [name for name in names if agent is None or _granted_by_name(agent, name)]
        others = [name for name in names if name not in granted]
        yield Attempt(
            "F3",
            "look up a name",
            attacker,
            INTERNET,
            "nslookup public.test",
            "reached" if resolves else "refused",
            token=addresses.PUBLIC["public.test"][0].encode(),
        )
        if granted:
            script = f"[ $({_fetch(granted, 30)} | grep -c {token}) = {len(granted)} ] && won"
            yield Attempt("F4", "reach by name", attacker, INTERNET if agent else PRIVATE, script, "reached")
        if others:
            yield Attempt("F4", "reach by name", attacker, PRIVATE, _fetch(others, 3), "refused", token=token.encode())


def _granted_by_name(agent: Agent, name: str) -> bool:
    """A name is reached by any of its addresses."""
    targets = (*addresses.PUBLIC.get(name, ()), *addresses.DECOYS.get(name, ()))
    return any(may_reach(agent, name, probe) for probe in tcp(targets, [80]))


def _fetch(names: Sequence[str], seconds: int) -> str:
    """All pages at once: each that is refused takes its whole time."""
    pages = "".join(f"wget -q -T {stretch_whole(seconds)} -O - http://{name}/ & " for name in names)
    return f"{{ {pages}wait; }} 2> /dev/null"


# --- trying it -----------------------------------------------------------------------------------------------------


def run_network(network: Network, plan: Plan, aims: Collection[Aim] | None = None) -> list[Outcome]:
    """Every attack over the network, or those that ``aims`` asks for, all attackers at once."""
    scene = set_scene(network, plan)
    trials = [trial for trial in plan_trials(scene) if is_among(aims, trial.attempt)]
    answers = run_probes(network, scene, trials)
    arrivals = find_arrivals(network, scene)
    outcomes = [judge(trial, answers, arrivals) for trial in trials]
    return outcomes + run_attempts(network.host.host, [each for each in by_name(scene) if is_among(aims, each)])


Asked = dict[tuple[str, str], str]
"""The answer to each probe of each attacker; the attacker as its slug, the probe as JSON."""


def run_probes(network: Network, scene: Scene, trials: Sequence[Trial]) -> Asked:
    """All probes, each once, by all attackers at the same time."""
    attackers_by_slug = {trial.attempt.attacker.slug: trial.attempt.attacker for trial in trials}
    by_attacker: dict[str, dict[str, Probe]] = {slug: {} for slug in attackers_by_slug}
    for trial in trials:
        by_attacker[trial.attempt.attacker.slug] |= {key_of(probe): probe for probe in trial.probes}
    outside = [slug for slug in (LAN.slug, TAILNET.slug) if slug in attackers_by_slug]
    at_host = [attacker for slug, attacker in attackers_by_slug.items() if slug not in outside]
    places = [(network.peers[slug].machine, [attackers_by_slug[slug]]) for slug in outside]
    waiting: list[tuple[list[Attacker], Callable[[], Result]]] = []
    for machine, attackers in [*places, (network.host, at_host)]:
        work = [person(scene.pids, each, list(by_attacker[each.slug].values())) for each in attackers]
        start = machine.shell.start(["python3", "-I", "-S", PROBER_PATH], stdin=json.dumps(work).encode(), timeout=300)
        waiting.append((attackers, start))
    found: Asked = {}
    for attackers, finish in waiting:
        for attacker, answers in zip(attackers, json.loads(finish().check().stdout), strict=True):
            if isinstance(answers, str):
                raise HarnessError(f"{attacker.name} could not try anything: {answers}")
            asked = by_attacker[attacker.slug]
            found |= {(attacker.slug, probe): said for probe, said in zip(asked, answers, strict=True)}
    return found


def key_of(probe: Probe) -> str:
    return json.dumps(probe, sort_keys=True)


def person(pids: Mapping[str, int], attacker: Attacker, probes: Sequence[Probe]) -> dict[str, Any]:
    """An attacker for the prober. On an agent's own wire it is root, which can send what no agent can."""
    agent = attacker.agent
    pid = pids[agent.name] if agent and attacker.origin == "wire" else None
    user = agent if attacker.origin == "uid" else None
    ids = {"pid": pid, "uid": user and user.uid, "gid": user and user.gid}
    return {**ids, "probes": probes, "patience": stretch(prober.PATIENCE)}


Arrivals = set[tuple[str, str]]
"""Pairs of source and destination, of all that came to an agent or to the world."""


def find_arrivals(network: Network, scene: Scene) -> Arrivals:
    packets = network.internet.seen() if INTERNET in network.peers else set()
    lines = [f"nsenter --target {pid} --net nft -j list table inet recorder" for pid in scene.pids.values()]
    for listing in network.host.run("\n".join(["set -e", *lines])).check().stdout.splitlines():
        packets |= read_recorder(listing)
    return {(packet.source, packet.destination) for packet in packets}


def judge(trial: Trial, answers: Asked, arrivals: Arrivals) -> Outcome:
    """What came of a trial; the output names the probes that decided it."""
    attempt = trial.attempt
    reached: list[str] = []
    refused: list[str] = []
    for probe in trial.probes:
        if probe["kind"] == "forged":
            said = "came" if (probe["source"], probe["address"]) in arrivals else ""
        else:
            said = answers[attempt.attacker.slug, key_of(probe)]
        (reached if said and trial.token in said else refused).append(
            f"{_describe(probe)}: {said.strip() or 'no answer'}"
        )
    is_reached = not refused if attempt.is_control else bool(reached)
    decisive = refused if attempt.is_control else reached or refused
    return Outcome(attempt, "reached" if is_reached else "refused", "\n".join(decisive).encode())


def _describe(probe: Probe) -> str:
    port = f" port {probe['port']}" if probe.get("port") else ""
    source = f" from {probe['source']}" if "source" in probe else ""
    return f"{probe['kind']} {probe['address']}{port}{source}"
