"""Hosts that are wrong in exactly one way, each with the error that belongs to it: hypothesis strategies."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.host_strategies import (
    BASE,
    DIGEST,
    FIELDS,
    RESERVED_NAMES,
    SETTINGS,
    SLOTS,
    SPEECH_PORT,
    Spec,
    Written,
    hostile,
    hosts,
    identity_of,
    json_values,
    matching,
    networks,
    protocols,
    variables,
)


@dataclass(frozen=True)
class Mistake:
    """A host with one mistake, and its error: whose (None: the host's), of which field, and a part of the rule."""

    host: Written
    agent: str | None
    field: str
    rule: str


@dataclass(frozen=True)
class Wrong:
    """A way to get a field wrong: what is written instead, and a part of the rule that it breaks.

    ``path`` is where, as the error has it: ``environment.A``.
    """

    path: str
    value: SearchStrategy[Any]
    rule: str
    wrap: Callable[[Any], Any] = lambda value: value

    @property
    def field(self) -> str:
        return re.split(r"[.\[]", self.path)[0]


def _unlike(pattern: str, *besides: str) -> SearchStrategy[str]:
    compiled = re.compile(pattern, re.ASCII)
    return hostile().filter(lambda text: not compiled.fullmatch(text)) | st.sampled_from(besides or ("\n",))


def _no(*types: type) -> SearchStrategy[Any]:
    """Values of none of the types; never null, which many a field takes."""
    junk: SearchStrategy[Any] = (
        st.booleans() | st.integers(-9, 9) | st.just(2.5) | hostile() | st.just([]) | st.just({})
    )
    return junk.filter(lambda value: type(value) not in types)


def _with_host_bit(network: str) -> str:
    parsed = ipaddress.ip_network(network)
    return f"{parsed.network_address + 1}/{parsed.prefixlen}"


def _in_list(value: Any) -> list[Any]:
    return [value]


def _long(network: str) -> str:
    """The network in a longer form than it has to be: IPv6 with all its zeros."""
    parsed = ipaddress.ip_network(network)
    return f"{parsed.network_address.exploded}/{parsed.prefixlen}"


def _nested(depth: int) -> Any:
    return [_nested(depth - 1)] if depth else "deep"


def _two_secrets(**second: Any) -> list[Spec]:
    first = {"name": "wrong", "file": "wrong.age", "as": "env", "variable": "WRONG"}
    return [first, {**first, "name": "again", "file": "again.age", "variable": "AGAIN", **second}]


def _without(field: str, entry: Spec) -> Callable[[Any], list[Spec]]:
    return lambda _: [{name: value for name, value in entry.items() if name != field}]


def _with(entry: Spec) -> Callable[[str], list[Spec]]:
    return lambda field: [{**entry, field: 1}]


def _destination(**fields: Any) -> list[Spec]:
    return [{"network": "192.0.2.0/24", **fields}]


def _secret_with(**fields: Any) -> list[Spec]:
    return [{"name": "wrong", "file": "wrong.age", **fields}]


SIZES = r"(0|[1-9][0-9]{0,15})([kKmMgGtT]([iI]?[bB])?|[bB])?"
SECRET: Spec = {"name": "wrong", "file": "wrong.age"}
UNKNOWN = "unknown"
DEEP = 65
"""One level more than settings may have, their own set included."""
WRONG_SPECS = [
    Wrong("image", _no(str), "must be a string"),
    Wrong(
        "image",
        _unlike(r"(?!)", "a/Upper" + DIGEST, "a//b" + DIGEST, "a@sha256:00").filter(
            lambda t: not re.fullmatch(r"[a-z0-9./_-]+", t)
        ),
        "image reference",
    ),
    Wrong("image", st.sampled_from(["busybox", "busybox:1.36", "a.b/c", "localhost:5000/a:b"]), "pinned by digest"),
    Wrong("allowMutableImage", _no(bool), "must be true or false"),
    Wrong("command", _no(list), "must be a list of strings"),
    Wrong("command[1]", _no(str), "must be a string", lambda value: ["a", value]),
    Wrong("environment", _no(dict), "must be an attribute set of strings"),
    Wrong("environment.A", _no(str), "must be a string", lambda value: {"A": value}),
    Wrong("environment.HOME", hostile(), "is reserved", lambda value: {"HOME": value}),
    Wrong("environment.outPath", hostile(), "is reserved", lambda value: {"outPath": value}),
    Wrong("environment.A-B", hostile(), "name of an environment variable", lambda value: {"A-B": value}),
    Wrong("settings", _no(dict), "content of Hermes' config.yaml"),
    Wrong("settings.a", st.just({"outPath": "x"}), "a package is not", lambda value: {"a": value}),
    Wrong("secrets", _no(list), "must be a list of secrets"),
    Wrong("secrets[0]", _no(dict), "must be a secret", _in_list),
    Wrong(
        "secrets[0].name",
        _unlike(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", "../k", ".k", "-k", "k" * 65),
        "letters, digits",
        lambda value: _secret_with(name=value),
    ),
    Wrong(
        "secrets[0].file",
        _unlike(r".*\.age", "/k.age", "../k.age", "a/../k.age", "./k.age", "a//k.age", ".age"),
        "relative path of an age file",
        lambda value: _secret_with(file=value),
    ),
    Wrong(
        "secrets[0].as",
        _no().filter(lambda value: value not in ("file", "env")),
        'one of "file", "env"',
        lambda value: _secret_with(**{"as": value}),
    ),
    Wrong("secrets[0].shared", _no(bool), "must be true or false", lambda value: _secret_with(shared=value)),
    Wrong(
        "secrets[0].variable",
        _unlike(r"[A-Za-z_][A-Za-z0-9_]*"),
        "name of an environment variable",
        lambda value: _secret_with(variable=value, **{"as": "env"}),
    ),
    Wrong("secrets[0].name", st.none(), "is required", _without("name", SECRET)),
    Wrong("secrets[0].file", st.none(), "is required", _without("file", SECRET)),
    Wrong(f"secrets[0].{UNKNOWN}", st.just(UNKNOWN), "is not a field of a secret", _with(SECRET)),
    Wrong("secrets[1].name", st.just("wrong"), "names a secret that is already", lambda name: _two_secrets(name=name)),
    Wrong(
        "secrets[1].variable",
        st.just("WRONG"),
        "is the variable of secrets[0] too",
        lambda variable: _two_secrets(variable=variable),
    ),
    Wrong("secrets[0]", variables(), 'because as = "file"', lambda value: _secret_with(variable=value)),
    Wrong("stateDir", _no(str), "must be a string"),
    Wrong(
        "stateDir",
        _unlike(
            r"/var/lib(/[A-Za-z0-9._-]+)+",
            "/var/lib",
            "/var/lib/",
            "/var/lib/../x",
            "/var/lib/x/.",
            "/var/lib/" + "x" * 200,
        ),
        "must be an absolute path below /var/lib",
    ),
    Wrong(
        "stateDir",
        st.sampled_from(["/var/lib/docker", "/var/lib/private/x", "/var/lib/tentaflake/generations"]),
        "keep clear of",
    ),
    Wrong("uid", _no(int), "must be an integer"),
    Wrong(
        "uid",
        st.integers(-(2**63), 399)
        | st.integers(60001, 65535)
        | st.integers(524288, 1879048191)
        | st.integers(2**31 - 1, 2**63 - 1),
        "400 to 60000",
    ),
    Wrong(
        "memory",
        st.integers(-(2**63), (1 << 24) - 1) | st.integers((1 << 50) + 1, 2**63 - 1) | _unlike(SIZES) | _no(int, str),
        "must be a size from 16 MiB",
    ),
    Wrong(
        "disk",
        st.integers(-(2**63), (1 << 20) - 1) | st.integers((1 << 50) + 1, 2**63 - 1) | _unlike(SIZES) | _no(int, str),
        "must be a size from 1 MiB",
    ),
    Wrong(
        "cpus",
        st.integers(-(2**63), 0)
        | st.integers(1025, 2**63 - 1)
        | _no(int, float)
        | st.sampled_from([0.009, 0.0125, 1024.001]),
        "must be a number of CPUs",
    ),
    Wrong(
        "pids", st.integers(-(2**63), 7) | st.integers(4194305, 2**63 - 1) | _no(int), "must be a number of processes"
    ),
    Wrong(
        "egress",
        _no(list).filter(lambda value: value not in ("none", "internet")),
        'must be "none", "internet" or a list',
    ),
    Wrong("egress[0]", _no(dict), "must be an egress destination", _in_list),
    Wrong("egress[0].network", _no(str), "must be a string", lambda value: _destination(network=value)),
    Wrong(
        "egress[0].network",
        _unlike(r"[0-9a-fA-F:.]+(/[0-9]*)?"),
        "CIDR notation",
        lambda value: _destination(network=value),
    ),
    Wrong(
        "egress[0].network",
        networks().filter(lambda n: not n.endswith(("/32", "/128", "/0"))).map(_with_host_bit),
        "must not have host bits set",
        lambda value: _destination(network=value),
    ),
    Wrong(
        "egress[0].network",
        networks().map(lambda network: network.partition("/")[0]),
        "an address without a prefix length",
        lambda value: _destination(network=value),
    ),
    Wrong(
        "egress[0].network",
        st.sampled_from(["192.0.2.0/33", "2001:db8::/129", "192.0.2.0/", "192.0.2.0/024"]),
        "must have a prefix length from 0 to",
        lambda value: _destination(network=value),
    ),
    Wrong(
        "egress[0].network",
        networks().filter(lambda network: ":" in network and "::" in network).map(_long)
        | st.sampled_from(["2001:DB8::/32", "2001:0db8::/32"]),
        "must be in canonical form",
        lambda value: _destination(network=value),
    ),
    Wrong("egress[0].network", st.none(), "is required", lambda _: [{"ports": [443]}]),
    Wrong(
        f"egress[0].{UNKNOWN}",
        st.just(UNKNOWN),
        "is not a field of an egress destination",
        _with({"network": "192.0.2.0/24"}),
    ),
    Wrong("egress[0].ports", st.just([]), "at least one port", lambda value: _destination(ports=value)),
    Wrong(
        "egress[0].ports[0]",
        st.integers(-9, 0) | st.integers(65536, 2**63 - 1) | _no(int),
        "must be a port",
        lambda value: _destination(ports=[value]),
    ),
    Wrong(
        "egress[0].protocol",
        _no().filter(lambda value: value not in ("tcp", "udp")),
        'one of "tcp", "udp"',
        lambda value: _destination(protocol=value),
    ),
    Wrong(
        "egress[1].network", networks(), "overlaps egress[0]", lambda value: [{"network": value}, {"network": value}]
    ),
    Wrong("publish", _no(list), "must be a list of ports"),
    Wrong(
        "publish[0]", st.integers(-9, 0) | st.integers(65536, 2**63 - 1) | _no(int, dict), "must be a port", _in_list
    ),
    Wrong("publish[0].port", st.just(None), "is required", lambda _: [{"target": 80}]),
    Wrong(
        "publish[0].target",
        st.integers(-9, 0) | _no(int),
        "must be a port",
        lambda value: [{"port": 9999, "target": value}],
    ),
    Wrong(
        "publish[0].protocol",
        _no().filter(lambda value: value not in ("tcp", "udp")),
        'one of "tcp", "udp"',
        lambda value: [{"port": 9999, "protocol": value}],
    ),
    Wrong(f"publish[0].{UNKNOWN}", st.just(UNKNOWN), "is not a field of a published port", _with({"port": 9999})),
    Wrong("publish[0]", st.just(SPEECH_PORT), "the speech server's", _in_list),
    Wrong("publish[1]", st.integers(60000, 65535), "already published by agent", lambda value: [value, value]),
    Wrong("image", st.just("[00]/a" + DIGEST), "must be an image reference as Docker reads it"),
    Wrong("image", st.just("a/" * 120 + "a" + DIGEST), "must have at most 237 characters before its digest"),
    Wrong("cpus", st.integers(1000001, 1023999).filter(lambda n: n % 1000).map(lambda n: n / 1000), "in whole ones"),
    Wrong("command[0]", st.just("x" * 100001), "at most 100000 bytes", _in_list),
    Wrong("environment.A", st.just("ä" * 50001), "at most 100000 bytes", lambda value: {"A": value}),
    Wrong("command", st.just(["x" * 99000] * 11), "at most 1000000 bytes"),
    Wrong("environment", st.just({f"V{i}": "x" * 99000 for i in range(11)}), "at most 1000000 bytes"),
    Wrong("settings.a" + "[0]" * (DEEP - 1), st.just(_nested(DEEP)), "must not be nested deeper", lambda v: {"a": v}),
    Wrong("settings.a", st.sampled_from([0.1234567, 1e22, 1234567.5]), "to its last digit", lambda value: {"a": value}),
    Wrong(f'settings.a."{"k" * 59}…', st.just("k" * 1001), "a key of at most 1000", lambda key: {"a": {key: None}}),
    Wrong("tts", _no(bool) | st.none(), "must be true or false"),
    Wrong("autoStart", _no(bool) | st.none(), "must be true or false"),
]
WRONG_SETTINGS = [
    Wrong("name", _unlike(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "x" * 64), "must be a host name"),
    Wrong("allowedTCPPorts", _no(list), "must be a list of ports"),
    Wrong(
        "allowedTCPPorts[0]", st.integers(-9, 0) | st.integers(65536, 2**63 - 1) | _no(int), "must be a port", _in_list
    ),
    Wrong("allowedTCPPorts[0]", st.just(SPEECH_PORT), "must not be the speech server's port", _in_list),
    Wrong(
        "allowedUDPPorts[0]", st.integers(-9, 0) | st.integers(65536, 2**63 - 1) | _no(int), "must be a port", _in_list
    ),
    Wrong(
        "secretsIdentity",
        _unlike(r"(/[A-Za-z0-9_.-]+)+", "etc/key", "/etc//key", "/etc/.key", "/"),
        "absolute path of a private SSH key",
    ),
    Wrong(
        "tailnetInterface",
        _unlike(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", "x" * 16, 'x" accept'),
        "name of a network interface",
    ),
    Wrong("tailnetInterface", st.sampled_from(["lo", "h-", "h-tail"]), 'must not be "lo"'),
]


# Two fields of one spec, which hold all that the rule is about.
WRONG_PAIRS: list[tuple[Spec, str, str]] = [
    (
        {"environment": {"TOKEN": "x"}, "secrets": [{**SECRET, "as": "env", "variable": "TOKEN"}]},
        "secrets[0].variable",
        "is set in environment too",
    ),
    (
        {"environment": {"A": "x" * 90000}, "command": ["x" * 99000] * 10},
        "command",
        "must have at most 1000000 bytes, command and environment together",
    ),
]


def mistakes(max_agents: int = 4) -> SearchStrategy[Mistake]:
    """Hosts with one mistake, each with the error that belongs to it."""

    @st.composite
    def build(draw: st.DrawFn) -> Mistake:
        # What is drawn first is drawn most evenly.
        kind = draw(st.sampled_from(WRONG_SPECS) | st.sampled_from(WRONG_SPECS) | st.sampled_from(KINDS))
        host = draw(hosts(min_agents=1, max_agents=max_agents))
        index = draw(st.integers(0, len(host["agents"]) - 1))
        return draw(mistake_of(kind, host, index))

    return build()


Kind = Callable[[Written, int], SearchStrategy[Mistake]]


def mistake_of(kind: Wrong | Kind, host: Written, index: int) -> SearchStrategy[Mistake]:
    """A right host with a mistake of this kind, which is the agent's of that index unless it is the host's."""
    if not isinstance(kind, Wrong):
        return kind(host, index)
    spec = host["agents"][index]
    # What depends on another field is judged by it: this one alone is to be wrong.
    spec = {name: value for name, value in spec.items() if name != DEPENDENT.get(kind.field)}
    return kind.value.map(
        lambda value: _with_spec(host, index, {**spec, kind.field: kind.wrap(value)}, kind.path, kind.rule)
    )


DEPENDENT = {"image": "allowMutableImage", "allowMutableImage": "image"}


def _with_spec(host: Written, index: int, spec: Spec, field: str, rule: str, who: str | None = None) -> Mistake:
    agents = [*host["agents"][:index], spec, *host["agents"][index + 1 :]]
    return Mistake({**host, "agents": agents}, who or spec["name"], field, rule)


def _setting(host: Written, index: int) -> SearchStrategy[Mistake]:
    """A setting of the host's that is wrong."""

    def build(wrong: Wrong) -> SearchStrategy[Mistake]:
        return wrong.value.map(
            lambda value: _with_setting(host, wrong.field, wrong.wrap(value), wrong.path, wrong.rule)
        )

    return st.sampled_from(WRONG_SETTINGS).flatmap(build)


def _with_setting(host: Written, name: str, value: Any, field: str, rule: str) -> Mistake:
    return Mistake({**host, "host": {**host["host"], name: value}}, None, field, rule)


def _unknown_setting(host: Written, index: int) -> SearchStrategy[Mistake]:
    names = matching(r"[a-z]{1,12}").filter(lambda name: name not in SETTINGS)
    return st.tuples(names, json_values()).map(
        lambda drawn: _with_setting(host, drawn[0], drawn[1], drawn[0], "is not a field of a host")
    )


def _unknown_field(host: Written, index: int) -> SearchStrategy[Mistake]:
    names = matching(r"[a-z]{1,12}").filter(lambda name: name not in FIELDS)

    def build(drawn: tuple[str, Any]) -> Mistake:
        spec = {**host["agents"][index], drawn[0]: drawn[1]}
        return _with_spec(host, index, spec, drawn[0], "is not a field of an agent spec")

    return st.tuples(names, json_values()).map(build)


def _name(host: Written, index: int) -> SearchStrategy[Mistake]:
    """A name that is none; the agent is then called by its place."""

    def build(name: Any) -> Mistake:
        rule = "must be 1 to 24 lower-case letters" if isinstance(name, str) else "must be a string"
        return _with_spec(host, index, {**host["agents"][index], "name": name}, "name", rule, f"agents[{index}]")

    text = _unlike(r"[a-z]([a-z0-9-]{0,22}[a-z0-9])?", "a-", "-a", "1a", "A", "a" * 25)
    return (text | _no(str) | st.none()).map(build)


def _reserved_name(host: Written, index: int) -> SearchStrategy[Mistake]:
    return st.sampled_from(RESERVED_NAMES).map(
        lambda name: _with_spec(
            host, index, {**host["agents"][index], "name": name}, "name", "is reserved", f"agents[{index}]"
        )
    )


def _nameless(host: Written, index: int) -> SearchStrategy[Mistake]:
    spec = {field: value for field, value in host["agents"][index].items() if field != "name"}
    return st.just(_with_spec(host, index, spec, "name", "is required", f"agents[{index}]"))


def _fields(wrong: tuple[Spec, str, str], host: Written, index: int) -> SearchStrategy[Mistake]:
    """Two fields of one spec that do not go together."""
    spec = {name: value for name, value in host["agents"][index].items() if name not in PAIRED}
    return st.just(_with_spec(host, index, {**spec, **wrong[0]}, wrong[1], wrong[2]))


def _open_port(host: Written, index: int) -> SearchStrategy[Mistake]:
    """A published port that the host itself has open."""

    def build(protocol: str) -> Mistake:
        setting = f"allowed{protocol.upper()}Ports"
        spec = {**host["agents"][index], "publish": [{"port": 9999, "protocol": protocol}]}
        opened = {**host, "host": {**host["host"], setting: [9999]}}
        return _with_spec(opened, index, spec, "publish[0]", f"is the host's own ({setting})")

    return protocols.map(build)


PAIRED = ("command", "environment", "secrets")
LONG = "z" * 24
"""A name whose error it is when two agents clash: it comes later than any other."""


def _pair(host: Written, index: int) -> SearchStrategy[Mistake]:
    """The host with one more agent, which has something that is the first one's."""
    agents: list[Spec] = host["agents"]
    first = agents[0]
    state_dir = first.get("stateDir") or f"/var/lib/hermes-{first['name']}"

    def more(second: Spec, field: str, rule: str, first: Spec = first, who: str | None = None) -> Mistake:
        changed = {**host, "agents": [first, *agents[1:], second]}
        return Mistake(changed, who or second["name"], field, rule)

    choices = [
        more({"name": first["name"]}, "name", "agents[0] has it too"),
        more({"name": LONG, "uid": _uid(first)}, "uid", "must be unique on the host, and agent"),
        more({"name": LONG, "stateDir": state_dir}, "stateDir", "must be unique on the host, and agent"),
        more({"name": LONG, "stateDir": f"{state_dir}/inside"}, "stateDir", f"lies inside {state_dir}, the state"),
        more({"name": LONG}, "name", "gives the bridge h-", {**first, "name": _bridge(LONG)}),
        _same_subnet(first, more),
    ]
    for port in first.get("publish", [])[:1]:
        again = {"port": port} if isinstance(port, int) else {key: port[key] for key in port if key != "target"}
        choices.append(more({"name": LONG, "publish": [again]}, "publish[0]", "is already published by agent"))
    for secret in first.get("secrets", [])[:1]:
        other = {**secret, "file": "elsewhere.age"}
        choices.append(more({"name": LONG, "secrets": [other]}, "secrets[0].file", "is another file than agent"))
        renamed = {**secret, "name": "renamed", **({"variable": "RENAMED"} if secret.get("as") == "env" else {})}
        choices.append(more({"name": LONG, "secrets": [renamed]}, "secrets[0].name", "names a file that agent"))
        if not secret.get("shared"):
            choices.append(more({"name": LONG, "secrets": [secret]}, "secrets[0].shared", "must be true, because"))
    return st.sampled_from(choices)


def _same_subnet(first: Spec, more: Callable[..., Mistake]) -> Mistake:
    """Two uids of one slot; the error is the one's whose uid, as text, comes later."""
    uid = _uid(first)
    if BASE <= uid < BASE + SLOTS:
        uid = 40000
    [slot] = [value for key, value in identity_of({**first, "uid": uid}) if key == "slot"]
    numbers = {first["name"]: str(uid), LONG: str(BASE + int(slot))}
    who = max(numbers, key=lambda name: numbers[name])
    second = {"name": LONG, "uid": BASE + int(slot)}
    return more(second, "uid", "gives the subnet 10.", {**first, "uid": uid}, who)


def _bridge(name: str) -> str:
    """What follows ``h-`` in the name of the agent's bridge, which is a name that another could have."""
    [bridge] = [value for key, value in identity_of({"name": name}) if key == "bridge"]
    return str(bridge)


def _uid(spec: Spec) -> int:
    [uid] = [value for key, value in identity_of(spec) if key == "uid"]
    return int(uid)


KINDS: list[Kind] = [
    _setting,
    _unknown_setting,
    _unknown_field,
    _name,
    _reserved_name,
    _nameless,
    *(partial(_fields, wrong) for wrong in WRONG_PAIRS),
    _open_port,
    _pair,
    _pair,
]
