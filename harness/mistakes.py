"""Hosts that are wrong in exactly one way, each with the error that belongs to it: hypothesis strategies."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.strategies import (
    DIGEST,
    FIELDS,
    SPEECH_PORT,
    Spec,
    Written,
    hostile,
    hosts,
    identity_of,
    json_values,
    matching,
    networks,
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

    ``path`` is where, as the error has it: ``environment.A``; ``None`` in place of a field is an unknown one.
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


def _destination(**fields: Any) -> list[Spec]:
    return [{"network": "192.0.2.0/24", **fields}]


def _secret_with(**fields: Any) -> list[Spec]:
    return [{"name": "wrong", "file": "wrong.age", **fields}]


SIZES = r"(0|[1-9][0-9]{0,15})([kKmMgGtT]([iI]?[bB])?|[bB])?"
WRONG_SPECS = [
    Wrong("image", _no(str), "must be a string"),
    Wrong(
        "image",
        _unlike(r"(?!)", "a/Upper" + DIGEST, "a//b" + DIGEST, "a@sha256:00", "a" * 300 + DIGEST).filter(
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
    Wrong("publish[0]", st.just(SPEECH_PORT), "the speech server's", _in_list),
    Wrong("publish[1]", st.integers(60000, 65535), "already published by agent", lambda value: [value, value]),
    Wrong("image", st.sampled_from(["[00]/a" + DIGEST, "a/" * 120 + "a" + DIGEST]), "must"),
    Wrong("cpus", st.integers(1000001, 1023999).filter(lambda n: n % 1000).map(lambda n: n / 1000), "in whole ones"),
    Wrong("command[0]", st.just("x" * 100001), "at most 100000 bytes", _in_list),
    Wrong("environment.A", st.just("ä" * 50001), "at most 100000 bytes", lambda value: {"A": value}),
    Wrong("command", st.just(["x" * 99000] * 11), "at most 1000000 bytes"),
    Wrong("environment", st.just({f"V{i}": "x" * 99000 for i in range(11)}), "at most 1000000 bytes"),
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


def mistakes(max_agents: int = 4) -> SearchStrategy[Mistake]:
    """Hosts with one mistake, each with the error that belongs to it."""

    @st.composite
    def build(draw: st.DrawFn) -> Mistake:
        host = draw(hosts(min_agents=1, max_agents=max_agents))
        agents: list[Spec] = host["agents"]
        index = draw(st.integers(0, len(agents) - 1))
        spec = agents[index]
        kind = draw(st.sampled_from(["spec"] * 6 + ["settings", "unknown", "name", "pair", "pair"]))

        def with_spec(changed: Spec, field: str, rule: str, who: str | None = None) -> Mistake:
            changed_agents = [changed if i == index else agent for i, agent in enumerate(agents)]
            return Mistake({**host, "agents": changed_agents}, who or changed["name"], field, rule)

        if kind == "settings":
            wrong = draw(st.sampled_from(WRONG_SETTINGS))
            changed = {**host["host"], wrong.field: wrong.wrap(draw(wrong.value))}
            return Mistake({**host, "host": changed}, None, wrong.path, wrong.rule)
        if kind == "unknown":
            field = draw(matching(r"[a-z]{1,12}").filter(lambda field: field not in FIELDS))
            return with_spec({**spec, field: draw(json_values())}, field, "is not a field of an agent spec")
        if kind == "name":
            name = draw(
                _unlike(r"[a-z]([a-z0-9-]{0,22}[a-z0-9])?", "a-", "-a", "1a", "A", "a" * 25) | _no(str) | st.none()
            )
            wrongly = {**spec, "name": name}
            return with_spec(wrongly, "name", "must be", f"agents[{index}]")
        if kind == "pair":
            agents.append(draw(_second(agents[0])))
            index = len(agents) - 1
            field, rule = agents[index].pop("clash")
            return with_spec(agents[index], field, rule)
        wrong = draw(st.sampled_from(WRONG_SPECS))
        changed = {**spec, wrong.field: wrong.wrap(draw(wrong.value))}
        # What depends on another field is judged by it: this one alone is to be wrong.
        if wrong.field == "image":
            changed.pop("allowMutableImage", None)
        if wrong.field == "allowMutableImage":
            changed.pop("image", None)
        return with_spec(changed, wrong.path, wrong.rule)

    return build()


def _second(first: Spec) -> SearchStrategy[Spec]:
    """An agent with something that is the first one's, and in ``clash`` the field and the rule."""
    name = "z" * 24  # an error between two agents is the one's whose name comes later
    state_dir = first.get("stateDir") or f"/var/lib/hermes-{first['name']}"
    choices: list[Spec] = [
        {"name": first["name"], "clash": ("name", "agents[0] has it too")},
        {"name": name, "uid": _uid(first), "clash": ("uid", "has it too")},
        {"name": name, "stateDir": state_dir, "clash": ("stateDir", "must be unique on the host")},
        {"name": name, "stateDir": f"{state_dir}/inside", "clash": ("stateDir", "lies inside")},
    ]
    for port in first.get("publish", [])[:1]:
        again = {"port": port} if isinstance(port, int) else {key: port[key] for key in port if key != "target"}
        choices.append({"name": name, "publish": [again], "clash": ("publish[0]", "is already published")})
    for secret in first.get("secrets", [])[:1]:
        other = {**secret, "file": "elsewhere.age"}
        choices.append({"name": name, "secrets": [other], "clash": ("secrets[0].file", "is another file than")})
        renamed = {**secret, "name": "renamed", **({"variable": "RENAMED"} if secret.get("as") == "env" else {})}
        choices.append({"name": name, "secrets": [renamed], "clash": ("secrets[0].name", "names a file that")})
        if not secret.get("shared"):
            choices.append({"name": name, "secrets": [secret], "clash": ("secrets[0].shared", "must be true")})
    return st.sampled_from(choices).map(dict)


def _uid(spec: Spec) -> int:
    [uid] = [value for key, value in identity_of(spec) if key == "uid"]
    return int(uid)
