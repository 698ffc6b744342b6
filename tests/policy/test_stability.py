"""A host's other agents, and the order in which they are written, make no difference to an agent."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.policy import POLICY, Plan, evaluate_many

Specs = list[dict[str, Any]]

# A NUL is the one character that no string of Nix, no argument and no variable can hold.
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
names = st.from_regex(r"[a-z]([a-z0-9-]{0,22}[a-z0-9])?", fullmatch=True)
specs = st.fixed_dictionaries(
    {"name": names},
    optional={
        "egress": st.sampled_from(["none", "internet", [{"network": "192.0.2.0/24", "ports": [443]}]]),
        "memory": st.integers(1 << 24, 1 << 40),
        "pids": st.integers(8, 4096),
        "tts": st.booleans(),
        "settings": st.dictionaries(text, text, max_size=3),
    },
)
hosts = st.lists(specs, min_size=2, max_size=6, unique_by=lambda spec: spec["name"])
quick = settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def agent_plan(plan: Plan, name: str) -> dict[str, Any]:
    """All that the plan says of one agent, outside the firewall's text."""
    whole = json.loads(plan.to_json())
    user = f"hermes-{name}"
    return {
        "agent": whole["agents"][name],
        "user": whole["users"][user],
        "group": whole["groups"][user],
        "directories": [d for d in whole["directories"] if d["group"] == user],
        "audit": [d for d in whole["audit"]["directories"] if d["agent"] == name],
    }


def agent_rules(plan: Plan, name: str) -> list[str]:
    bridge = f'"{plan.agents[name].network.bridge}"'
    return [line.strip(" ,") for line in plan.nftables.content.splitlines() if bridge in line]


@quick
@given(hosts)
def test_adding_or_removing_an_agent_changes_no_other(host: Specs) -> None:
    whole, less = evaluate_many([host, host[1:]])
    assert isinstance(whole, Plan)
    assert isinstance(less, Plan)
    for spec in host[1:]:
        name = spec["name"]
        assert agent_plan(whole, name) == agent_plan(less, name)
        assert agent_rules(whole, name) == agent_rules(less, name)


@quick
@given(hosts, names)
def test_renaming_an_agent_changes_no_other(host: Specs, new: str) -> None:
    renamed = [{**host[0], "name": new}, *(spec for spec in host[1:] if spec["name"] != new)]
    before, after = evaluate_many([host, renamed])
    assert isinstance(before, Plan)
    assert isinstance(after, Plan)
    for spec in renamed[1:]:
        assert agent_plan(before, spec["name"]) == agent_plan(after, spec["name"])


@quick
@given(hosts.flatmap(lambda host: st.tuples(st.just(host), st.permutations(host))))
def test_order_makes_no_difference(orders: tuple[Specs, Specs]) -> None:
    one, other = evaluate_many(orders)
    assert isinstance(one, Plan)
    assert isinstance(other, Plan)
    assert one.to_json() == other.to_json()


@quick
@given(hosts)
def test_what_must_be_unique_is(host: Specs) -> None:
    [plan] = evaluate_many([host])
    assert isinstance(plan, Plan)
    agents = list(plan.agents.values())
    for key in (
        [agent.uid for agent in agents],
        [agent.network.bridge for agent in agents],
        [agent.network.ipv4.subnet for agent in agents],
        [agent.network.ipv6.subnet for agent in agents],
        [agent.state_dir for agent in agents],
    ):
        assert len(set(key)) == len(agents)


def numbered(count: int) -> Specs:
    """Agents with a number for a uid, so that derived ones cannot collide."""
    return [
        {"name": f"agent-{i}", "uid": 1900000000 + i, "publish": [10000 + i], "stateDir": f"/var/lib/agents/{i}"}
        for i in range(count)
    ]


def work(tmp_path: Path, count: int) -> int:
    """How many values Nix allocates to judge `count` agents, as a measure that does not depend on the machine."""
    data = tmp_path / f"{count}.json"
    data.write_text(json.dumps(numbered(count)))
    expression = f"(import {POLICY}).plan {{ agents = builtins.fromJSON (builtins.readFile {data}); }}"
    done = subprocess.run(
        ["nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://", "--expr", expression],
        env={**os.environ, "NIX_SHOW_STATS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    statistics = json.loads(done.stderr[done.stderr.index(b"{") :])
    return int(statistics["values"]["number"])


def test_cost_grows_in_proportion_to_the_agents(tmp_path: Path) -> None:
    none, hundred, thousand = (work(tmp_path, count) for count in (0, 100, 1000))
    assert thousand - none == pytest.approx(10 * (hundred - none), rel=0.1)


def test_a_thousand_agents_fit_on_one_host() -> None:
    [plan] = evaluate_many([numbered(1000)])
    assert isinstance(plan, Plan)
    assert len(plan.agents) == 1000
