"""The properties notice: each plan below is broken once, in a way that its own check has to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from harness.fuzz.properties import check_agent, check_whole
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
