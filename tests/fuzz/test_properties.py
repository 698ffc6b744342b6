"""The properties notice: each plan below is broken once, in a way that its own check has to see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.fuzz.parsers import Stage
from harness.fuzz.properties import check_agent, check_condition, check_units, check_whole, check_words, texts
from harness.policy import Plan, evaluate_many

SPECS: list[dict[str, Any]] = [
    {
        "name": "a",
        "cpus": 0.5,
        "egress": "internet",
        "secrets": [{"name": "k", "file": "k.age"}],
        "settings": {"key": 1},
        "tts": True,
    },
    {"name": "b", "egress": [{"network": "192.0.2.0/24"}], "publish": [8080], "environment": {"A": "1"}},
]
Data = dict[str, Any]


@pytest.fixture
def data() -> Data:
    [plan] = evaluate_many([SPECS], [{"tailnetInterface": "tailscale0"}])
    assert isinstance(plan, Plan)
    builtins: Data = msgspec.to_builtins(plan)
    return builtins


def check(data: Data) -> None:
    plan = msgspec.convert(data, Plan)
    check_whole(plan)
    for spec in SPECS:
        check_agent(plan, plan.agents[spec["name"]], spec)


def test_a_plan_as_it_should_be_passes(data: Data) -> None:
    check(data)


def put(*path: str | int, value: Any) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        inner: Any = data
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


def option(old: str, new: str) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        options = data["agents"]["a"]["container"]["options"]
        assert any(each.startswith(old) for each in options)
        options[:] = [new if each.startswith(old) else each for each in options]

    return change


def rules(old: str, new: str) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        assert old in data["nftables"]["content"]
        data["nftables"]["content"] = data["nftables"]["content"].replace(old, new, 1)

    return change


def same(key: str) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        data["agents"]["b"][key] = data["agents"]["a"][key]

    return change


BROKEN: dict[str, Callable[[Data], None]] = {
    "one uid for two": same("uid"),
    "one state for two": same("stateDir"),
    "one network for two": same("network"),
    "a state within another": put("agents", "b", "stateDir", value="/var/lib/hermes-a/b"),
    "a login shell": put("users", "hermes-a", "shell", value="/bin/sh"),
    "another uid than the user's": put("users", "hermes-a", "uid", value=1000),
    "an open directory": put("directories", 0, "mode", value="0755"),
    "one more directory": lambda data: data["directories"].append({**data["directories"][0], "path": "/home"}),
    "root": put("agents", "a", "container", "user", value="0:0"),
    "a writable root": option("--read-only", "--init"),
    "a capability": option("--cap-drop", "--cap-add=SYS_ADMIN"),
    "privileges": option("--security-opt", "--privileged"),
    "another mount": option("--shm-size", "--volume=/:/host"),
    "twice the memory": option("--memory=", "--memory=2147483648"),
    "swap": option("--memory-swap", "--memory-swap=-1"),
    "another number of CPUs": option("--cpus", "--cpus=0.51"),
    "another's network": put("agents", "a", "container", "networks", value=["hermes-b"]),
    "a variable": put("agents", "a", "container", "environment", "KEY", value="v"),
    "other settings": put("agents", "a", "config", "content", value='{"key": 2}'),
    "a secret for all": put("secrets", "k", "mode", value="0444"),
    "a secret of another": put("secrets", "k", "owner", value="hermes-b"),
    "no firewall needed": put("agents", "a", "service", "requires", value=["docker.service"]),
    "a bridge in no set": rules('"h-a"', '"h-x"'),
    "one more on the internet": rules(
        "set on_internet {\n  type ifname\n", 'set on_internet {\n  type ifname\n    "h-b"\n'
    ),
    "a rule of one agent's": rules("chain input {\n", 'chain input {\n  iifname "h-a" accept\n'),
    "one more speaks": put("speech", "agents", value=["a", "b"]),
    "nobody watches": put("audit", "directories", value=[]),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plan_is_noticed(data: Data, change: Callable[[Data], None]) -> None:
    change(data)
    with pytest.raises(AssertionError):
        check(data)


# ---- what is rendered is broken once: plan and file no longer say the same


@pytest.fixture
def plan(data: Data) -> Plan:
    return msgspec.convert(data, Plan)


def broken(text: str, old: str, new: str) -> str:
    assert old in text, text
    return text.replace(old, new, 1)


def test_scripts_and_units_as_they_should_be_pass(plan: Plan, tmp_path: Path) -> None:
    files = texts(plan)
    check_units(plan, units_of(files))
    for agent in plan.agents.values():
        (tmp_path / agent.name).mkdir()
        check_words(Stage(tmp_path / agent.name), agent, files[f"agents/{agent.name}/start"])
    check_condition(tmp_path, plan.agents["a"], files["agents/a/condition"])


def units_of(files: dict[str, str]) -> dict[str, str]:
    return {path.removeprefix("units/"): text for path, text in files.items() if path.startswith("units/")}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("target=/var/lib/hermes-a ", "target=/var/lib "),
        ("target=/var/lib/hermes-a/config.yaml,readonly", "target=/var/lib/hermes-a/config.yaml"),
        ("--subnet=10.", "--subnet=11."),
        ("--network=hermes-a", "--network=hermes-b"),
        ("--user=", "--user=0"),
        ("--read-only", "--init"),
        ("setquota -u ", "setquota -u 1"),
        ("--clear-groups", "--keep-groups"),
        ("docker rm --force hermes-a", "docker rm --force hermes-b"),
        ('[ "$found" != "$wanted" ]', "false"),
        ('[ "$found" != "$wanted" ]', "true"),
        ("exec docker run", "docker ps; exec docker run"),
    ],
)
def test_a_broken_start_script_is_noticed(plan: Plan, tmp_path: Path, old: str, new: str) -> None:
    script = broken(texts(plan)["agents/a/start"], old, new)
    with pytest.raises(AssertionError):
        check_words(Stage(tmp_path), plan.agents["a"], script)


@pytest.mark.parametrize(
    ("unit", "old", "new"),
    [
        ("docker-hermes-a.service", "Requires=", "Wants="),
        ("docker-hermes-a.service", "nftables.service ", ""),
        ("docker-hermes-a.service", "ExecCondition=", "ExecStartPre="),
        ("docker-hermes-a.service", "agents/a/start", "agents/b/start"),
        ("docker-hermes-a.service", "Restart=always", "Restart=no"),
        ("docker-hermes-a.service", "StartLimitIntervalSec=0", "StartLimitIntervalSec=10"),
        ("docker-hermes-a.service", "Type=exec", "Type=exec\nUser=nobody"),
        ("tentaflake.target", "Wants=docker-hermes-a.service\n", ""),
        ("hermes-auditd.service", "NoNewPrivileges=yes\n", ""),
    ],
)
def test_a_broken_unit_is_noticed(plan: Plan, unit: str, old: str, new: str) -> None:
    found = units_of(texts(plan))
    found[unit] = broken(found[unit], old, new)
    with pytest.raises(AssertionError):
        check_units(plan, found)


@pytest.mark.parametrize(
    ("old", "new"), [("exit 1", "exit 0"), ("[ -e", "[ ! -e"), ("||", "||:||"), ("secret k", "secret"), (">&2", "")]
)
def test_a_broken_condition_is_noticed(plan: Plan, tmp_path: Path, old: str, new: str) -> None:
    script = broken(texts(plan)["agents/a/condition"], old, new)
    with pytest.raises(AssertionError):
        check_condition(tmp_path, plan.agents["a"], script)
