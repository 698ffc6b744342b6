"""The firewall's text: nft takes it, whoever is on the host."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.fuzz.parsers import nft_check, nft_obstacle
from harness.policy import Plan, evaluate

Specs = list[dict[str, Any]]
LIST = [
    {"network": "192.0.2.0/24", "ports": [80, 443]},
    {"network": "192.0.2.0/25"},
    {"network": "192.0.0.0/16", "protocol": "udp"},
    {"network": "0.0.0.0/0", "ports": [53], "protocol": "udp"},
    {"network": "2001:db8::/32", "ports": [443]},
    {"network": "::/0"},
    {"network": "2001:db8::1/128", "protocol": "tcp"},
]

HOSTS: dict[str, Specs] = {
    "none": [],
    "egress-none": [{"name": "a"}],
    "egress-internet": [{"name": "a", "egress": "internet"}, {"name": "b", "egress": "internet"}],
    "egress-list": [{"name": "a", "egress": LIST}, {"name": "b", "egress": LIST}],
    "speech": [{"name": "a", "tts": True}],
    "published": [{"name": "a", "publish": [80, {"port": 81, "target": 80}, {"port": 80, "protocol": "udp"}]}],
    "long-names": [{"name": "a" * 24}, {"name": "a" * 23 + "b", "egress": LIST}],
    "two-hundred": [{"name": f"a{i}", "uid": 1900000000 + i, "egress": LIST} for i in range(200)],
}


def plan_of(directory: Path, specs: Specs, **host: Any) -> Plan:
    agents = directory / "agents.json"
    agents.write_text(json.dumps(specs))
    return evaluate(agents, host=host)


def table(plan: Plan) -> str:
    return f"table {plan.nftables.family} {plan.nftables.table} {{\n{plan.nftables.content}}}\n"


@pytest.fixture(scope="module", autouse=True)
def _kernel_takes_any_rule() -> None:
    if reason := nft_obstacle():
        pytest.skip(reason)


@pytest.mark.parametrize("tailnet", [None, "tailscale0"])
@pytest.mark.parametrize("specs", HOSTS.values(), ids=HOSTS.keys())
def test_nft_takes_it(tmp_path: Path, specs: Specs, tailnet: str | None) -> None:
    plan = plan_of(tmp_path, specs, tailnetInterface=tailnet, allowedUDPPorts=[53, 41641, 53])
    done = nft_check(table(plan))
    assert done.returncode == 0, done.stderr


def test_nft_takes_it_with_every_port_closed(tmp_path: Path) -> None:
    assert nft_check(table(plan_of(tmp_path, HOSTS["egress-list"], allowedTCPPorts=[]))).returncode == 0


def test_the_number_of_rules_does_not_grow_with_the_agents(tmp_path: Path) -> None:
    few, many = (plan_of(tmp_path, HOSTS[key]).nftables.content for key in ("egress-list", "two-hundred"))
    assert few[few.index("chain ") :] == many[many.index("chain ") :]


def test_every_verdict_names_its_claim(tmp_path: Path) -> None:
    content = plan_of(tmp_path, HOSTS["published"], tailnetInterface="tailscale0").nftables.content
    chains = content[content.index("chain ") :].splitlines()
    verdicts = [line.strip() for line in chains if re.search(r"\b(accept|drop|goto \w+)( |$)", line)]
    assert len(verdicts) > 20
    assert [line for line in verdicts if not re.search(r'comment "[A-Z]\d', line)] == []
