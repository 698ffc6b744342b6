"""What judging many agents costs. That they make no difference to each other is in tests/fuzz."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.policy import POLICY, Plan, evaluate_many

Specs = list[dict[str, Any]]


def numbered(count: int) -> Specs:
    """Agents of which each has a bit of everything, with a number for a uid, so that derived ones cannot collide."""
    return [
        {
            "name": f"agent-{i}",
            "uid": 1900000000 + i,
            "stateDir": f"/var/lib/agents/{i}",
            "egress": [{"network": "192.0.2.0/24", "ports": [80, 443]}, {"network": "2001:db8::/32"}],
            "publish": [10000 + i],
            "secrets": [
                {"name": f"s{i}", "file": f"secrets/{i}.age"},
                {"name": "all", "file": "all.age", "shared": True},
            ],
            "settings": {"agent": {"max_turns": 20}},
            "environment": {"TZ": "Europe/Vienna"},
            "tts": i % 2 == 0,
        }
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
