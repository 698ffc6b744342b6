"""Every bad spec is one readable error that names the agent, the field, the value and the rule."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from harness.policy import Plan, PolicyError, SpecError, evaluate, evaluate_many

DIGEST = "@sha256:" + "0" * 64
DEEP: Any = "bottom"
for _ in range(70):
    DEEP = [DEEP]


@dataclass(frozen=True)
class Bad:
    """Fields that are wrong in one way, and what the one error has to say."""

    spec: dict[str, Any]
    field: str
    value: str
    rule: str


TABLE = [
    # unknown fields
    Bad({"imagee": "x"}, "imagee", '"x"', "not a field of an agent spec; did you mean image?"),
    Bad({"mem": 1}, "mem", "1", "did you mean memory?"),
    Bad({"statedir": 1}, "statedir", "1", "did you mean stateDir?"),
    Bad({"zzz": None}, "zzz", "null", "the fields are allowMutableImage, autoStart"),
    Bad({"a b\n": 1}, '"a b\\n"', "1", "is not a field"),
    # image
    Bad({"image": 5}, "image", "5", "must be a string"),
    Bad({"image": "busybox"}, "image", '"busybox"', "must be pinned by digest"),
    Bad({"image": "busybox:1.36"}, "image", '"busybox:1.36"', "allowMutableImage = true"),
    Bad({"image": "Busybox" + DIGEST}, "image", '"Busybox@sha256:', "image reference as Docker reads it"),
    Bad({"image": "busybox@sha256:00"}, "image", '"busybox@sha256:00"', "64 hex digits"),
    Bad({"image": "bus ybox" + DIGEST}, "image", '"bus ybox@', "image reference"),
    Bad({"image": "--privileged", "allowMutableImage": True}, "image", '"--privileged"', "image reference"),
    Bad({"allowMutableImage": "yes"}, "allowMutableImage", '"yes"', "must be true or false"),
    # command and environment
    Bad({"command": "run it"}, "command", '"run it"', "must be a list of strings"),
    Bad({"command": ["a", 1]}, "command[1]", "1", "must be a string"),
    Bad({"environment": ["A=1"]}, "environment", '[ "A=1" ]', "must be an attribute set of strings"),
    Bad({"environment": {"A": 1}}, "environment.A", "1", "must be a string"),
    Bad({"environment": {"A-B": "1"}}, "environment.A-B", '"A-B"', "name of an environment variable"),
    Bad({"environment": {"": "1"}}, 'environment.""', '""', "name of an environment variable"),
    Bad({"environment": {"HOME": "/"}}, "environment.HOME", '"HOME"', "is reserved"),
    Bad({"environment": {"HERMES_UID": "0"}}, "environment.HERMES_UID", '"HERMES_UID"', "is reserved"),
    Bad({"environment": {"outPath": "x"}}, "environment.outPath", '"outPath"', "is reserved"),
    # settings
    Bad({"settings": []}, "settings", "[ ]", "content of Hermes' config.yaml"),
    Bad({"settings": {"a": [{"outPath": "x"}]}}, "settings.a[0]", "«package»", "a package is not"),
    Bad({"settings": {"a": DEEP}}, "settings.a" + "[0]" * 64, '"…"', "deeper than 64 levels"),
    # secrets
    Bad({"secrets": "key"}, "secrets", '"key"', "must be a list of secrets"),
    Bad({"secrets": [{"name": "k"}]}, "secrets[0].file", "(missing)", "is required"),
    Bad({"secrets": [{"name": "../k", "file": "k.age"}]}, "secrets[0].name", '"../k"', "letters, digits"),
    Bad({"secrets": [{"name": "k", "file": "k.age", "as": "tcp"}]}, "secrets[0].as", '"tcp"', 'one of "file", "env"'),
    Bad({"secrets": [{"name": "a-b", "file": "k.age", "as": "env"}]}, "secrets[0]", '"a-b"', "set variable to one"),
    Bad({"secrets": [{"name": "HOME", "file": "k.age", "as": "env"}]}, "secrets[0]", '"HOME"', "free environment"),
    *[
        Bad({"secrets": [{"name": "k", "file": file}]}, "secrets[0].file", f'"{file}"', "relative path of an age file")
        for file in ("/k.age", "../k.age", "a/../k.age", "./k.age", "a//k.age", "k.txt", ".age", "a b.age", "a,b.age")
    ],
    Bad({"secrets": [{"name": "k", "file": 1}]}, "secrets[0].file", "1", "must be a string"),
    Bad({"secrets": [{"name": "k", "file": "k.age", "shared": 1}]}, "secrets[0].shared", "1", "must be true or false"),
    *[
        Bad(
            {"secrets": [{"name": "k", "file": "k.age", "as": "env", "variable": variable}]},
            "secrets[0].variable",
            shown,
            rule,
        )
        for variable, shown, rule in [
            ("A-B", '"A-B"', "name of an environment variable"),
            ("HERMES_HOME", '"HERMES_HOME"', "is reserved"),
            (1, "1", "name of an environment variable"),
        ]
    ],
    Bad({"secrets": [{"name": "k", "file": "k.age", "variable": "K"}]}, "secrets[0]", '"K"', 'because as = "file"'),
    Bad(
        {"environment": {"K": ""}, "secrets": [{"name": "K", "file": "k.age", "as": "env"}]},
        "secrets[0].variable",
        '"K"',
        "set in environment too",
    ),
    Bad(
        {
            "secrets": [
                {"name": "K", "file": "k.age", "as": "env"},
                {"name": "l", "file": "l.age", "as": "env", "variable": "K"},
            ]
        },
        "secrets[1].variable",
        '"K"',
        "the variable of secrets[0] too",
    ),
    Bad(
        {"secrets": [{"name": "k", "file": "k.age"}, {"name": "l", "file": "k.age"}]},
        "secrets[1].name",
        '"l"',
        "names a file that agent coding has as k",
    ),
    Bad(
        {"secrets": [{"name": "k", "file": "a.age"}, {"name": "k", "file": "b.age"}]},
        "secrets[1].name",
        '"k"',
        "already in the list",
    ),
    # state directory
    Bad({"stateDir": 1}, "stateDir", "1", "must be a string"),
    Bad({"stateDir": "hermes"}, "stateDir", '"hermes"', "absolute path below /var/lib"),
    Bad({"stateDir": "/home/x"}, "stateDir", '"/home/x"', "below /var/lib"),
    Bad({"stateDir": "/var/lib"}, "stateDir", '"/var/lib"', "below /var/lib"),
    Bad({"stateDir": "/var/lib/"}, "stateDir", '"/var/lib/"', "empty parts"),
    Bad({"stateDir": "/var/lib/x/"}, "stateDir", '"/var/lib/x/"', "empty parts"),
    Bad({"stateDir": "/var/lib//x"}, "stateDir", '"/var/lib//x"', "empty parts"),
    Bad({"stateDir": "/var/lib/../x"}, "stateDir", '"/var/lib/../x"', "without . or .."),
    Bad({"stateDir": "/var/lib/x/."}, "stateDir", '"/var/lib/x/."', "without . or .."),
    Bad({"stateDir": "/var/lib/x,ro"}, "stateDir", '"/var/lib/x,ro"', "letters, digits"),
    Bad({"stateDir": "/var/lib/x\n"}, "stateDir", '"/var/lib/x\\n"', "letters, digits"),
    Bad({"stateDir": "/var/lib/" + "x" * 200}, "stateDir", '"/var/lib/xxx', "at most 200 characters"),
    Bad({"stateDir": "/var/lib/docker"}, "stateDir", '"/var/lib/docker"', "keep clear of /var/lib/docker"),
    Bad({"stateDir": "/var/lib/private/x"}, "stateDir", '"/var/lib/private/x"', "keep clear of /var/lib/private"),
    # uid and limits
    *[
        Bad({"uid": uid}, "uid", str(uid), "400 to 60000, 65536 to 524287 or 1879048192 to 2147483646")
        for uid in (-1, 0, 399, 60001, 65535, 524288, 1879048191, 2147483647)
    ],
    Bad({"uid": "1000"}, "uid", '"1000"', "must be an integer"),
    Bad({"memory": "lots"}, "memory", '"lots"', "from 16 MiB"),
    Bad({"memory": "1.5g"}, "memory", '"1.5g"', "from 16 MiB"),
    Bad({"memory": 16777215}, "memory", "16777215", "from 16 MiB"),
    Bad({"memory": "999999999999999t"}, "memory", '"999999999999999t"', "to 1 PiB"),
    Bad({"disk": 1000}, "disk", "1000", "from 1 MiB"),
    Bad({"disk": "1x"}, "disk", '"1x"', "from 1 MiB"),
    Bad({"cpus": 0}, "cpus", "0", "from 0.01"),
    Bad({"cpus": "1"}, "cpus", '"1"', "number of CPUs"),
    Bad({"cpus": 0.01234}, "cpus", "0.01234", "steps of 0.001"),
    Bad({"pids": 7}, "pids", "7", "from 8"),
    Bad({"pids": 64.5}, "pids", "64.5", "an integer"),
    # egress
    Bad({"egress": "lan"}, "egress", '"lan"', 'must be "none", "internet" or a list'),
    Bad({"egress": ["10.0.0.0/8"]}, "egress[0]", '"10.0.0.0/8"', "must be an egress destination"),
    Bad({"egress": [{}]}, "egress[0].network", "(missing)", "is required"),
    *[
        Bad({"egress": [{"network": network}]}, "egress[0].network", f'"{network}"', rule)
        for network, rule in {
            "10.0.0.1/8": "host bits set; write 10.0.0.0/8 ",
            "fd00::1/64": "host bits set; write fd00::/64 ",
            "192.0.2.1": "write 192.0.2.1/32 ",
            "2001:db8::1": "write 2001:db8::1/128 ",
            "10.0.0.0/33": "from 0 to 32",
            "::/129": "from 0 to 128",
            "10.0.0.0/": "prefix length",
            "10.0.0.0/08": "prefix length",
            "010.0.0.0/8": "CIDR notation",
            "256.0.0.0/8": "CIDR notation",
            "10.0.0/8": "CIDR notation",
            "1::2::3/128": "CIDR notation",
            "1:2:3:4:5:6:7:8:9/128": "CIDR notation",
            "fe80::%eth0/64": "CIDR notation",
            "2001:DB8::/32": "canonical form; write 2001:db8::/32",
            "0:0::/0": "canonical form; write ::/0",
            "example.org/24": "CIDR notation",
            "10.0.0.0/8/8": "CIDR notation",
            "": "CIDR notation",
        }.items()
    ],
    Bad({"egress": [{"network": "::/0", "ports": 443}]}, "egress[0].ports", "443", "must be a list of ports"),
    Bad({"egress": [{"network": "::/0", "ports": []}]}, "egress[0].ports", "[ ]", "at least one port"),
    Bad({"egress": [{"network": "::/0", "ports": [0]}]}, "egress[0].ports[0]", "0", "from 1 to 65535"),
    Bad({"egress": [{"network": "::/0", "protocol": "icmp"}]}, "egress[0].protocol", '"icmp"', '"tcp", "udp"'),
    Bad(
        {"egress": [{"network": "10.0.0.0/8", "ports": [80, 443]}, {"network": "10.1.0.0/16", "ports": [443, 80]}]},
        "egress[1].network",
        '"10.1.0.0/16"',
        "overlaps egress[0], 10.0.0.0/8",
    ),
    Bad({"egress": [{"network": "::/0"}, {"network": "::/0"}]}, "egress[1].network", '"::/0"', "overlaps egress[0]"),
    # published ports
    Bad({"publish": 80}, "publish", "80", "must be a list of ports"),
    Bad({"publish": [0]}, "publish[0]", "0", "from 1 to 65535"),
    Bad({"publish": [70000]}, "publish[0]", "70000", "from 1 to 65535"),
    Bad({"publish": ["80"]}, "publish[0]", '"80"', "a port"),
    Bad({"publish": [{"target": 80}]}, "publish[0].port", "(missing)", "is required"),
    Bad({"publish": [{"port": 80, "host": "::"}]}, "publish[0].host", '"::"', "not a field of a published port"),
    Bad({"publish": [80, {"port": 80, "target": 8080}]}, "publish[1]", "80", "already published by agent coding"),
    Bad({"publish": [22]}, "publish[0]", "22", "the host's own (allowedTCPPorts)"),
    Bad({"publish": [5001]}, "publish[0]", "5001", "the speech server's"),
    # switches
    Bad({"tts": 1}, "tts", "1", "must be true or false"),
    Bad({"autoStart": None}, "autoStart", "null", "must be true or false"),
]


def errors_of(result: Plan | PolicyError) -> list[SpecError]:
    assert isinstance(result, PolicyError), "the policy accepted it"
    return result.errors


@pytest.fixture(scope="module")
def verdicts() -> list[Plan | PolicyError]:
    return evaluate_many([[{"name": "coding", **bad.spec}] for bad in TABLE])


@pytest.mark.parametrize("index", range(len(TABLE)), ids=[f"{bad.field}={bad.value}"[:60] for bad in TABLE])
def test_one_mistake_is_one_error_that_says_where_and_why(verdicts: list[Plan | PolicyError], index: int) -> None:
    bad = TABLE[index]
    [error] = errors_of(verdicts[index])
    assert (error.agent, error.field) == ("coding", bad.field)
    assert error.value.startswith(bad.value)
    assert bad.rule in error.message
    assert error.message.startswith(f"agent coding: {bad.field} = {error.value}: {error.rule}; ")


BAD_NAMES = [
    "",
    "A",
    "1a",
    "-a",
    "a-",
    "a_b",
    "a b",
    "a\n",
    "a" * 25,
    "ä",
    "a/b",
    "$(id)",
    7,
    None,
    ["a"],
    "audit",
    "auditd",
]


def test_a_bad_name_is_reported_with_the_agents_position() -> None:
    for result in evaluate_many([[{"name": name}] for name in BAD_NAMES]):
        [error] = errors_of(result)
        assert (error.agent, error.field) == ("agents[0]", "name")


def test_a_name_is_required() -> None:
    [error] = errors_of(evaluate_many([[{"tts": True}]])[0])
    assert error.message == "agent agents[0]: name = (missing): is required; add it to an agent spec"


def test_a_spec_that_is_no_set_is_an_error() -> None:
    junk: list[Any] = [None, 1, "coding", ["coding"], True]
    for result in evaluate_many([[spec] for spec in junk]):
        [error] = errors_of(result)
        assert (error.agent, error.field) == ("agents[0]", "")


def secret(name: str, file: str, **fields: Any) -> dict[str, Any]:
    return {"secrets": [{"name": name, "file": file, **fields}]}


PAIRS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"name": "a"}, {"name": "a"}, "name", "agents[0] has it too"),
    ({"name": "a", "uid": 1000}, {"name": "b", "uid": 1000}, "uid", "agent a has it too; set uid on one of them"),
    ({"name": "agent-606"}, {"name": "agent-825"}, "uid", "set uid on one of them"),
    (
        {"name": "a", "stateDir": "/var/lib/x"},
        {"name": "b", "stateDir": "/var/lib/x"},
        "stateDir",
        "agent a has it too",
    ),
    (
        {"name": "a", "stateDir": "/var/lib/x"},
        {"name": "b", "stateDir": "/var/lib/x/y/z"},
        "stateDir",
        "lies inside /var/lib/x, the state directory of agent a",
    ),
    ({"name": "a"}, {"name": "b", "stateDir": "/var/lib/hermes-a/b"}, "stateDir", "lies inside /var/lib/hermes-a"),
    ({"name": "a", "publish": [80]}, {"name": "b", "publish": [80]}, "publish[0]", "already published by agent a"),
    (
        {"name": "a", **secret("k", "k.age")},
        {"name": "b", **secret("k", "k.age")},
        "secrets[0].shared",
        "because agent a has the secret k too; set shared = true on both",
    ),
    (
        {"name": "a", **secret("k", "k.age", shared=True)},
        {"name": "b", **secret("k", "k.age")},
        "secrets[0].shared",
        "because agent a has",
    ),
    (
        {"name": "a", **secret("k", "k.age", shared=True)},
        {"name": "b", **secret("k", "l.age", shared=True)},
        "secrets[0].file",
        "is another file than agent a has for k, k.age",
    ),
    (
        {"name": "a", **secret("k", "k.age", shared=True)},
        {"name": "b", **secret("l", "k.age", shared=True)},
        "secrets[0].name",
        "names a file that agent a has as k",
    ),
]


@pytest.mark.parametrize(("first", "second", "field", "rule"), PAIRS, ids=[f"{p[2]}:{p[3]}" for p in PAIRS])
def test_what_two_agents_share_is_one_error_on_the_second(
    first: dict[str, Any], second: dict[str, Any], field: str, rule: str
) -> None:
    [error] = errors_of(evaluate_many([[first, second]])[0])
    assert (error.agent, error.field) == (second["name"], field)
    assert rule in error.message


def test_a_secret_that_only_the_first_agent_keeps_to_itself_is_an_error_on_the_first() -> None:
    host = [{"name": "a", **secret("k", "k.age")}, {"name": "b", **secret("k", "k.age", shared=True)}]
    [error] = errors_of(evaluate_many([host])[0])
    assert (error.agent, error.field) == ("a", "secrets[0].shared")


def test_bridges_that_collide_are_an_error() -> None:
    long = "abcdef-long-enough-name"
    [plan] = evaluate_many([[{"name": long}]])
    assert isinstance(plan, Plan)
    short = plan.agents[long].network.bridge.removeprefix("h-")
    [error] = errors_of(evaluate_many([[{"name": short}, {"name": long}]])[0])
    assert "gives the bridge h-" in error.rule


def test_two_uids_with_one_subnet_are_an_error() -> None:
    [plan] = evaluate_many([[{"name": "a", "uid": 1000}]])
    assert isinstance(plan, Plan)
    subnet = IPv4Network(plan.agents["a"].network.ipv4.subnet)
    slot = (int(subnet.network_address) - int(IPv4Address("10.128.0.0"))) // 8
    [error] = errors_of(evaluate_many([[{"name": "a", "uid": 1000}, {"name": "b", "uid": 1900000000 + slot}]])[0])
    assert error.field == "uid"
    assert f"gives the subnet {subnet}" in error.rule


def test_one_port_on_two_protocols_is_no_clash() -> None:
    both = [{"name": "a", "publish": [53, {"port": 53, "protocol": "udp"}]}]
    assert isinstance(evaluate_many([both])[0], Plan)


def test_all_errors_of_a_host_are_reported_at_once() -> None:
    host: list[dict[str, Any]] = [
        {"name": "a", "memory": "lots", "tts": "yes"},
        {"name": "b", "egress": [{"network": "x"}, {"network": "10.0.0.1/8", "ports": [0, 70000]}]},
        {"name": "a", "image": "busybox"},
        {"name": "c", "publish": [22], "stateDir": "/var/lib/hermes-a/c"},
    ]
    errors = errors_of(evaluate_many([host])[0])
    assert {(error.agent, error.field) for error in errors} == {
        ("a", "memory"),
        ("a", "tts"),
        ("a", "image"),
        ("a", "name"),
        ("b", "egress[0].network"),
        ("b", "egress[1].network"),
        ("b", "egress[1].ports[0]"),
        ("b", "egress[1].ports[1]"),
        ("c", "publish[0]"),
        ("c", "stateDir"),
    }
    assert len(errors) == 10


BAD_HOSTS: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "Host!"}, "name", "host name"),
    ({"allowedTCPPorts": [0]}, "allowedTCPPorts[0]", "from 1 to 65535"),
    ({"allowedTCPPorts": [5001]}, "allowedTCPPorts[0]", "speech server"),
    ({"allowedUDPPorts": 53}, "allowedUDPPorts", "list of ports"),
    ({"tailnetInterface": "tailscale-is-long"}, "tailnetInterface", "at most 15 characters"),
    ({"tailnetInterface": 'x" accept'}, "tailnetInterface", "name of a network interface"),
    ({"tailnetInterface": "h-tail"}, "tailnetInterface", 'start with "h-"'),
    ({"secretsIdentity": "etc/key"}, "secretsIdentity", "absolute path of a private SSH key"),
    ({"secretsIdentity": "/etc/ssh/my key"}, "secretsIdentity", "absolute path"),
    ({"secretsIdentity": None}, "secretsIdentity", "must be a string"),
    ({"allowedPorts": [1]}, "allowedPorts", "not a field of a host"),
]


@pytest.mark.parametrize(("host", "field", "rule"), BAD_HOSTS, ids=[host[1] for host in BAD_HOSTS])
def test_a_bad_host_setting_is_an_error_of_no_agent(
    tmp_path: Path, host: dict[str, Any], field: str, rule: str
) -> None:
    agents = tmp_path / "agents.json"
    agents.write_text('[{"name": "coding"}]')
    with pytest.raises(PolicyError) as caught:
        evaluate(agents, host=host)
    [error] = caught.value.errors
    assert (error.agent, error.field) == (None, field)
    assert rule in error.message


NIX_JUNK = {
    "x: x": "agents",
    "{ a = 1; }": "agents",
    "[ (x: x) ]": "",
    "[ { name = x: x; } ]": "name",
    '[ { name = "a"; settings.f = x: x; } ]': "settings.f",
    '[ { name = "a"; settings.f = ./x; } ]': "settings.f",
    '[ { name = "a"; stateDir = /var/lib/a; } ]': "stateDir",
    '[ { name = "a"; command = [ (x: x) ]; } ]': "command[0]",
    '[ { name = "a"; environment = { __functor = x: x; }; } ]': "environment.__functor",
    '[ { name = "a"; cpus = 1.0e308 * 10; } ]': "cpus",
    '[ { name = "a"; settings = let x = { inherit x; }; in x; } ]': "settings" + ".x" * 65,
    "{ mkHermesAgent }: [ (mkHermesAgent { }) ]": "name",
    "{ mkHermesAgent, ... }: 5": "agents",
}


@pytest.mark.parametrize(("text", "field"), NIX_JUNK.items(), ids=NIX_JUNK.keys())
def test_what_only_nix_can_get_wrong_is_an_error_too(tmp_path: Path, text: str, field: str) -> None:
    agents = tmp_path / "agents.nix"
    agents.write_text(text)
    with pytest.raises(PolicyError) as caught:
        evaluate(agents)
    assert [error.field for error in caught.value.errors] == [field or ""]


def test_every_error_is_one_printable_line() -> None:
    hostile = ["\x1b[31m\r\n\t", "ä" * 400, "x" * 100_000, '"; rm -rf /', "${builtins.abort 1}", [[[[[[[[1]]]]]]]]]
    fields = ["name", "image", "stateDir", "memory", "egress", "bogus"]
    hosts = [[{"name": "a", field: value}] for field in fields for value in hostile]
    for result in evaluate_many(hosts):
        for error in errors_of(result):
            assert len(error.message) < 500
            assert "\n" not in error.message
            assert "\x1b" not in error.message
