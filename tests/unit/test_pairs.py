"""Who attacks whom where there are many agents: nobody and no way is left out, and it stays the same."""

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.guests.peers import STATIONS
from harness.policy import Plan, evaluate_specs
from harness.probes.attempts import Attacker, Attempt, attackers
from harness.probes.network import Scene, plan_trials
from harness.probes.pairs import TARGETS, choose_targets
from harness.probes.stage import HOST, Secrets, Target
from harness.probes.ways import WAYS, plan_attempts
from tests.unit.support import PROPERTY

Pairs = dict[tuple[str, str, str], set[tuple[str, str]]]
"""Pairs of attacker and target, by claim, way and the attacker's origin."""


@given(agents=st.integers(2, 60), way=st.text(max_size=20), first=st.integers(0, 59))
@PROPERTY
def test_everybody_attacks_and_is_attacked(agents: int, way: str, first: int) -> None:
    """Also where not all have what is sought."""
    names = [f"agent-{number}" for number in range(agents)]
    targets = names[min(first, agents - 2) :]
    chosen = {own: choose_targets(way, number, own, targets) for number, own in enumerate(names)}
    for own, others in chosen.items():
        assert own not in others and len(others) == len(set(others))
        assert len(others) == min(TARGETS, len(set(targets) - {own}))
    assert {target for others in chosen.values() for target in others} == set(targets)


@pytest.mark.parametrize("agents", [2, 3, TARGETS + 1])
def test_few_agents_attack_all_others(agents: int) -> None:
    names = [f"agent-{number}" for number in range(agents)]
    for number, own in enumerate(names):
        assert choose_targets("way", number, own, names) == [name for name in names if name != own]


@pytest.fixture(scope="module")
def many() -> Plan:
    """Thirty agents, of every kind."""
    kinds: list[dict[str, Any]] = [
        {"egress": "internet", "publish": [9000], "tts": True},
        {"egress": "none"},
        {"secrets": [{"name": "key", "file": "secrets/key.age"}]},
    ]
    specs = []
    for number in range(30):
        spec = {"name": f"agent-{number}", **kinds[number % 3]}
        if spec.get("publish"):
            spec["publish"] = [9000 + number]
        if spec.get("secrets"):
            spec["secrets"] = [{"name": f"key-{number}", "file": f"secrets/key-{number}.age"}]
        specs.append(spec)
    return evaluate_specs(specs)


def pairs_of(attempts: list[Attempt], plan: Plan) -> Pairs:
    found: Pairs = defaultdict(set)
    for attempt in attempts:
        attacker = attempt.attacker
        if attacker.owner in plan.agents and attempt.target in plan.agents and attacker.owner != attempt.target:
            found[attempt.claim, attempt.way, attacker.origin].add((attacker.owner, attempt.target))
    return found


def check_pairs(found: Pairs, plan: Plan) -> None:
    """In each way everybody attacks a few others, all that are attacked at all are so by others, and all ways together
    are nearly all pairs."""
    for way, pairs in found.items():
        targets = [target for _, target in pairs]
        assert {own for own, _ in pairs} == set(plan.agents), way
        assert len(pairs) <= TARGETS * len(plan.agents), way
        assert max(map(targets.count, targets)) <= 4 * TARGETS, way  # nobody bears it all
    assert len(set().union(*found.values())) > 0.8 * len(plan.agents) * (len(plan.agents) - 1)


def test_each_way_to_files_and_processes_is_tried_by_and_on_every_agent(many: Plan) -> None:
    stage = {
        name: Target(name, f"/{name}", "known", "listed", [1], [1], Secrets(["/path"], "value", "variable"))
        for name in [HOST, *many.agents]
    }
    attempts = plan_attempts(WAYS.values(), attackers(many), stage)
    found = pairs_of(attempts, many)
    check_pairs(found, many)
    assert all({target for _, target in pairs} == set(many.agents) for pairs in found.values())
    own = [each for each in attempts if each.attacker.owner == each.target]
    assert own and all(each.is_control for each in own)
    on_host = {each.attacker.slug for each in attempts if each.target == HOST}
    assert on_host == {each.slug for each in [*attackers(many), Attacker("root")]}


def test_each_way_over_the_network_is_tried_by_and_on_every_agent(many: Plan) -> None:
    scene = Scene(many, {name: name for name in [*many.agents, *STATIONS, HOST]}, {})
    trials = plan_trials(scene)
    found = pairs_of([trial.attempt for trial in trials], many)
    check_pairs(found, many)
    publish = {name for name, agent in many.agents.items() if agent.publish}
    for (_, way, _), pairs in found.items():
        assert {target for _, target in pairs} == (publish if "published" in way else set(many.agents)), way
    probes = sum(len(trial.probes) for trial in trials)
    assert probes < 1000 * len(many.agents)  # no square of them
