"""Hypothesis strategies for hosts that are right, and for hosts of anything at all; see ``harness.strategies``."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from functools import cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Spec = dict[str, Any]
Written = dict[str, Any]
"""A host as its owner writes it: ``agents``, a list of specs, and ``host``, its settings."""

# A strategy is made once: hypothesis looks into each new one for longer than it draws from it.

# ---- text

HOSTILE = [
    "",
    " ",
    "two words",
    "'",
    '"',
    'it\'s "both"',
    "a\nb",
    "a\rb",
    "\n[Service]\nUser=root",
    "$(touch /pwned)",
    "`touch /pwned`",
    "${HOME}",
    "$$",
    "%n %i %%",
    "\\",
    "\\\\n",
    "; reboot",
    "&& reboot",
    "| cat",
    "> /etc/passwd",
    "*",
    "~",
    "--privileged",
    "-v/:/host",
    "{{.Name}}",
    "}; flush ruleset; table inet x {",
    '" accept comment "',
    "ünï©ødé ☂ 🦑",
    "\u202e",
    "\u2028",
    "\x01\x1b[31m",
    "\x7f",
    "\x85",
    "\ufeff",
    "EOF\n",
    "#",
    "a=b=c",
    "key: value",
    "- item",
    "!!python/object/apply:os.system [id]",
    "<<",
    "null",
    "1e3",
    "''${builtins.abort 1}",
]
"""What means something to a shell, systemd, nft, Nix, YAML, a template or a terminal."""


@cache
def hostile(max_size: int = 30) -> SearchStrategy[str]:
    """Free text: any character but NUL, the one that no string of Nix, no argument and no variable can hold."""
    return st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=max_size)


@cache
def matching(pattern: str) -> SearchStrategy[str]:
    return st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)


# ---- the fields of a spec

RESERVED_NAMES = ("audit", "auditd")
RESERVED_VARIABLES = ("HOME", "USER", "LOGNAME", "HOSTNAME", "HERMES_HOME", "HERMES_UID", "HERMES_GID", "outPath")
SPEECH_PORT = 5001
DIGEST = "@sha256:" + "0" * 64
SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,9}"


@cache
def names() -> SearchStrategy[str]:
    return matching(r"[a-z]([a-z0-9-]{0,22}[a-z0-9])?").filter(lambda name: name not in RESERVED_NAMES)


@cache
def variables() -> SearchStrategy[str]:
    return matching(r"[A-Za-z_][A-Za-z0-9_]{0,12}").filter(lambda name: name not in (*RESERVED_VARIABLES, "__toString"))


@cache
def images() -> SearchStrategy[str]:
    """References by digest, as Docker's grammar has them."""
    domain = matching(
        r"(([A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]{0,5}[A-Za-z0-9])(\.[a-z0-9]{1,5}){1,2}|\[[0-9a-f]{0,4}:[0-9a-f:]{0,9}\])(:[0-9]{1,5})?"
    )
    path = matching(r"[a-z0-9]{1,6}((\.|_|__|-{1,2})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}){0,2}")
    tag = matching(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}")
    digest = st.binary(min_size=32, max_size=32).map(lambda data: f"@sha256:{data.hex()}")
    parts = st.tuples(st.just("") | domain.map("{}/".format), path, st.just("") | tag, digest)
    return parts.map("".join)


@cache
def sizes(least: int) -> SearchStrategy[int | str]:
    """Bytes from ``least`` to 1 PiB, as a number or as text with a unit."""
    units = {
        "": 1,
        "b": 1,
        "k": 1 << 10,
        "KiB": 1 << 10,
        "m": 1 << 20,
        "MB": 1 << 20,
        "g": 1 << 30,
        "Gi": 1 << 30,
        "tb": 1 << 40,
    }
    most = 1 << 50

    def written(unit: str) -> SearchStrategy[str]:
        return st.integers(-(-least // units[unit]), most // units[unit]).map(lambda number: f"{number}{unit}")

    return st.integers(least, most) | st.sampled_from([unit for unit in units if unit != "Gi"]).flatmap(written)


@cache
def uids() -> SearchStrategy[int]:
    return st.integers(400, 60000) | st.integers(65536, 524287) | st.integers(1879048192, 2147483646)


@cache
def cpus() -> SearchStrategy[int | float]:
    return st.integers(1, 1024) | st.integers(10, 999999).map(lambda thousandths: thousandths / 1000)


@cache
def json_values() -> SearchStrategy[Any]:
    """Data that JSON holds unchanged; numbers with a fraction have as many digits as any Nix keeps."""
    numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-99999, 99999).map(lambda number: number / 64).map(_short)
    leaves = st.none() | st.booleans() | numbers | hostile()
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys(), inner, max_size=3), max_leaves=6
    )


def _short(number: float) -> float:
    return float(f"{number:.6g}")


@cache
def keys() -> SearchStrategy[str]:
    """Keys of ``settings``: Nix takes a set with one of two names for something else."""
    return hostile().filter(lambda key: key not in ("outPath", "__toString"))


@cache
def networks() -> SearchStrategy[str]:
    """IPv4 and IPv6 networks in canonical form."""

    def network(family: type[ipaddress.IPv4Network | ipaddress.IPv6Network], bits: int) -> SearchStrategy[str]:
        return st.tuples(st.integers(0, 2**bits - 1), st.integers(0, bits)).map(
            lambda drawn: str(family((drawn[0] >> bits - drawn[1] << bits - drawn[1], drawn[1])))
        )

    return network(ipaddress.IPv4Network, 32) | network(ipaddress.IPv6Network, 128).filter(_is_plain)


def _is_plain(network: str) -> bool:
    """Python writes IPv4-mapped networks with dots from 3.13 on, and the policy does not."""
    return not ipaddress.ip_network(network).overlaps(ipaddress.ip_network("::ffff:0:0/96"))


ports = st.integers(1, 65535)
protocols = st.sampled_from(["tcp", "udp"])


@cache
def egresses() -> SearchStrategy[Any]:
    destination = st.fixed_dictionaries(
        {"network": networks()},
        optional={
            "ports": st.none() | st.lists(ports, min_size=1, max_size=3, unique=True),
            "protocol": st.none() | protocols,
        },
    )
    return st.sampled_from(["none", "internet"]) | st.lists(destination, max_size=4).map(_disjoint)


def _flows(destination: Spec) -> set[tuple[str | None, int | None]]:
    wanted = destination.get("ports")
    protocol = destination.get("protocol") or ("tcp" if wanted else None)
    return {(protocol, port) for port in wanted or [None]}


def _disjoint(destinations: list[Spec]) -> list[Spec]:
    """Those that overlap none before them for the same ports."""
    kept: list[tuple[Any, Spec]] = []
    for destination in destinations:
        network = ipaddress.ip_network(destination["network"])
        if not any(
            network.version == other.version and network.overlaps(other) and _flows(destination) & _flows(before)
            for other, before in kept
        ):
            kept.append((network, destination))
    return [destination for _, destination in kept]


@cache
def specs() -> SearchStrategy[Spec]:
    """A spec with any of its fields; what must differ from agent to agent is as ``_told_apart`` reads it."""
    return st.fixed_dictionaries(
        {"name": names()},
        optional={
            "autoStart": st.booleans(),
            "command": st.lists(hostile(), max_size=4),
            "cpus": cpus(),
            "disk": st.none() | sizes(1 << 20),
            "egress": egresses(),
            "environment": st.dictionaries(variables(), hostile(), max_size=3),
            "image": st.none() | images(),
            "memory": sizes(1 << 24),
            "pids": st.integers(8, 4194304),
            "publish": st.lists(st.tuples(st.none() | ports, st.none() | protocols), max_size=3),
            "secrets": st.lists(st.sampled_from(["file", "env", "variable", "shared"]), max_size=3),
            "settings": st.dictionaries(keys(), json_values(), max_size=3),
            "stateDir": st.none() | st.lists(matching(SEGMENT), max_size=2),
            "tts": st.booleans(),
            "uid": st.none() | uids(),
        },
    ) | st.fixed_dictionaries(
        {
            "name": names(),
            "image": images().map(lambda image: image.partition("@")[0]),
            "allowMutableImage": st.just(True),
        }
    )


@cache
def host_settings() -> SearchStrategy[dict[str, Any]]:
    """A host's own settings; agents publish ports from 10000 on, so here they are below."""
    low = st.lists(st.integers(1, 9999).filter(lambda port: port != SPEECH_PORT), max_size=3)
    tailnet = matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}").filter(
        lambda name: not name.startswith("h-") and name != "lo"
    )
    return st.fixed_dictionaries(
        {},
        optional={
            "name": matching(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"),
            "allowedTCPPorts": low,
            "allowedUDPPorts": low,
            "secretsIdentity": st.lists(matching(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,9}"), min_size=1, max_size=3).map(
                lambda parts: "/" + "/".join(parts)
            ),
            "tailnetInterface": st.none() | tailnet,
        },
    )


# ---- hosts


@cache
def hosts(min_agents: int = 1, max_agents: int = 200) -> SearchStrategy[Written]:
    """Hosts that the policy takes. Of many agents, most are as another but for what has to be their own."""

    @st.composite
    def build(draw: st.DrawFn) -> Written:
        kinds = draw(st.lists(specs(), min_size=min(min_agents, 1), max_size=min(max_agents, 5)))
        count = len(kinds)
        if kinds and (count < min_agents or draw(st.booleans())):
            count = draw(st.integers(max(min_agents, count), max_agents))
        agents: list[Spec] = []
        taken: set[tuple[str, str | int]] = set()
        for index in range(count):
            spec = _told_apart(index, kinds[index % len(kinds)], copy=index >= len(kinds))
            for again in range(1000):  # two names may come to one uid: one in ten thousand does
                identity = identity_of(spec)
                if not taken & identity:
                    break
                spec = _told_apart(
                    index, {**kinds[index % len(kinds)], "name": f"other-{index}-{again}", "uid": None}, copy=False
                )
            taken |= identity_of(spec)
            agents.append(spec)
        return {"agents": agents, "host": draw(host_settings())}

    return build()


def _told_apart(index: int, kind: Spec, *, copy: bool) -> Spec:
    """The spec with what has to be one agent's own: ports, secrets, a state directory; a copy's name and uid."""
    spec = dict(kind)
    if copy:
        spec["name"] = f"{kind['name'][:16].rstrip('-')}-{index}"
        spec.pop("uid", None)
    if "publish" in spec:
        spec["publish"] = [
            _published(10000 + 8 * index + i, target, protocol) for i, (target, protocol) in enumerate(spec["publish"])
        ]
    if "secrets" in spec:
        spec["secrets"] = [_secret(index, i, way) for i, way in enumerate(spec["secrets"])]
    if spec.get("stateDir") is not None:
        # No name has a dot, and so no agent's own directory does; the number keeps one agent's out of another's.
        spec["stateDir"] = "/".join([f"/var/lib/at.{index}", *spec["stateDir"], spec["name"]])
    return spec


def _published(port: int, target: int | None, protocol: str | None) -> int | Spec:
    if target is None and protocol is None:
        return port
    return {"port": port, **({"target": target} if target else {}), **({"protocol": protocol} if protocol else {})}


def _secret(index: int, i: int, way: str) -> Spec:
    secret: Spec = {"name": f"S{index}_{i}", "file": f"secrets/of-{index}/{i}.age"}
    if way == "shared":  # whoever has as many shares the file
        return {"name": f"common.{i}", "file": f"secrets/common-{i}.age", "shared": True}
    if way == "variable":
        return {**secret, "name": f"s-{index}.{i}", "as": "env", "variable": f"SECRET_{index}_{i}"}
    return secret if way == "file" else {**secret, "as": way}


BASE = 1900000000
SLOTS = 1 << 20


def identity_of(spec: Spec) -> set[tuple[str, str | int]]:
    """What no other agent of the host may have: name, uid, number of the network, bridge (docs/agents.md)."""
    name, uid = spec["name"], spec.get("uid")
    if uid is None:
        uid = BASE + _slot(name)
    slot = uid - BASE if BASE <= uid < BASE + SLOTS else _slot(f"uid-{uid}")
    bridge = name if len(name) <= 13 else f"{name[:6].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return {("name", name), ("uid", uid), ("slot", slot), ("bridge", bridge)}


def _slot(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:5], 16)


# ---- anything at all


FIELDS = (
    "allowMutableImage",
    "autoStart",
    "command",
    "cpus",
    "disk",
    "egress",
    "environment",
    "image",
    "memory",
    "name",
    "pids",
    "publish",
    "secrets",
    "settings",
    "stateDir",
    "tts",
    "uid",
)
NESTED = {
    "egress[0]": ("network", "ports", "protocol"),
    "publish[0]": ("port", "protocol", "target"),
    "secrets[0]": ("as", "file", "name", "shared", "variable"),
}
"""The fields of what stands in a spec's lists."""
SETTINGS = ("allowedTCPPorts", "allowedUDPPorts", "name", "secretsIdentity", "tailnetInterface")


@cache
def junk() -> SearchStrategy[Any]:
    """Any JSON, with numbers that no program counts to."""
    return json_values() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)


@cache
def hostile_hosts() -> SearchStrategy[Written]:
    """Hosts with junk and hostile text where anything may stand; hardly any of them is right."""
    spec = st.fixed_dictionaries(
        {}, optional={field: junk() | st.lists(junk(), max_size=2) for field in FIELDS}
    ) | st.builds(lambda spec, field, value: {**spec, field: value}, specs(), st.sampled_from(FIELDS), junk())
    options = st.dictionaries(st.sampled_from(SETTINGS) | hostile(), junk(), max_size=2)
    return st.fixed_dictionaries({"agents": st.lists(spec | junk(), max_size=3) | junk(), "host": options})
