"""The host of hijacked agents: what differs from the host under test, and what does not."""

from typing import Any

import msgspec
import pytest

from harness.contract import CLAIMS
from harness.policy import Plan, evaluate_specs, host_of, reference_plan, specs_of
from harness.probes import escape
from harness.probes.attempts import Attempt, attackers
from harness.probes.hijack import plan_hijack, script_of
from harness.probes.hijacked import FILE_WAYS, MODEL_ADDRESS, MODEL_PORT, TRIED, checks, hijacked_plan, with_model
from harness.probes.stage import HOST, Secrets, Target
from harness.probes.ways import ROOT, plan_attempts, writes

EVERYTHING: list[dict[str, Any]] = [
    {
        "name": "all",
        "image": "example.org/agent:1",
        "allowMutableImage": True,
        "command": ["--flag", "a b"],
        "environment": {"TZ": "Europe/Vienna"},
        "settings": {"agent": {"max_turns": 3}, "text": "é"},
        "secrets": [{"name": "KEY", "file": "secrets/key.age", "as": "env"}],
        "stateDir": "/var/lib/elsewhere",
        "uid": 1234,
        "memory": "512m",
        "cpus": 0.5,
        "disk": "64m",
        "pids": 99,
        "egress": [{"network": "2001:db8::/32"}, {"network": "198.51.100.0/24", "ports": [53], "protocol": "udp"}],
        "publish": [{"port": 8053, "target": 53, "protocol": "udp"}],
        "tts": True,
        "autoStart": False,
    },
    {"name": "least"},
]
SETTINGS = {"name": "a-host", "allowedTCPPorts": [], "allowedUDPPorts": [60001], "tailnetInterface": "tailscale0"}
MODEL = {"network": f"{MODEL_ADDRESS}/32", "ports": [MODEL_PORT], "protocol": "tcp"}


@pytest.fixture(scope="module", params=["reference", "everything"])
def plan(request: pytest.FixtureRequest) -> Plan:
    return reference_plan() if request.param == "reference" else evaluate_specs(EVERYTHING, host=SETTINGS)


def test_the_specs_of_a_plan_come_to_the_same_plan_byte_for_byte(plan: Plan) -> None:
    assert evaluate_specs(specs_of(plan), host=host_of(plan)).to_json() == plan.to_json()


def test_a_hijacked_agent_differs_in_its_settings_and_in_its_way_to_the_model(plan: Plan) -> None:
    hijacked = hijacked_plan(plan)
    assert (hijacked.host, hijacked.users, hijacked.directories) == (plan.host, plan.users, plan.directories)
    for name, agent in plan.agents.items():
        changed = hijacked.agents[name]
        assert f"/agents/{name}/v1" in changed.config.content
        assert (changed.limits, changed.publish, changed.tts) == (agent.limits, agent.publish, agent.tts)
        if agent.egress == "internet":
            assert changed.egress == "internet"
        else:
            before = [] if agent.egress == "none" else msgspec.to_builtins(agent.egress)
            assert msgspec.to_builtins(changed.egress) == [*before, MODEL]


@pytest.mark.parametrize(
    ("egress", "expected"),
    [
        ("internet", "internet"),
        ("none", [MODEL]),
        ([{"network": "0.0.0.0/0", "ports": None, "protocol": None}], None),
        ([{"network": "9.0.0.0/8", "ports": [MODEL_PORT], "protocol": "tcp"}], None),
    ],
)
def test_who_reaches_the_model_anyway_is_granted_nothing_more(egress: Any, expected: Any) -> None:
    assert with_model(egress) == (egress if expected is None else expected)


@pytest.mark.parametrize(
    "rule",
    [
        {"network": "9.0.0.0/8", "ports": [80], "protocol": "tcp"},
        {"network": "9.0.0.0/8", "ports": None, "protocol": "udp"},
        {"network": "::/0", "ports": None, "protocol": None},
    ],
)
def test_a_rule_that_does_not_lead_to_the_model_is_kept_beside_one_that_does(rule: dict[str, Any]) -> None:
    assert with_model([rule]) == [rule, MODEL]
    assert evaluate_specs([{"name": "a", "egress": with_model([rule])}]).agents["a"].egress != "none"


def test_all_that_is_tried_attacks_a_claim_and_is_tried_once() -> None:
    assert {claim for claim, _ in TRIED} <= set(CLAIMS)
    assert len(set(TRIED)) == len(TRIED)
    assert set(escape.ACTS) <= {way for _, way in TRIED}


def test_what_is_tried_fits_into_commands_and_is_tried_by_every_agent() -> None:
    plan = reference_plan()
    hijacked = attackers(plan, ("hermes",))
    held = Secrets(["/run/agenix/key"], "2" * 24, "3" * 24, "/var/lib/tentaflake/current/secrets")
    targets = {
        name: Target(name, f"/var/lib/hermes-{name}", "0" * 24, "1" * 24, [1000, 1001], [1, 2, 3, 4], held)
        for name in (*plan.agents, HOST)
    }
    attempts: list[Attempt] = [*checks(hijacked), *plan_attempts(FILE_WAYS, hijacked, targets), *writes(hijacked)]
    hijack = plan_hijack(attempt for attempt in attempts if attempt.attacker is not ROOT)
    assert script_of(hijack)
    by_agent = {
        name: {attempt.way for batch in batches for attempt in batch.attempts} for name, batches in hijack.items()
    }
    assert by_agent == dict.fromkeys(plan.agents, {way.name for way in FILE_WAYS} | {"write a file", "escape", "tools"})
