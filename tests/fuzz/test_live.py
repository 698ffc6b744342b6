"""Running hosts under random changes, faults and attacks; and that what is looked at is seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from harness.fuzz.live import (
    CLAIMS,
    FIRST,
    NAMES,
    NOTHING,
    OWN,
    SETTINGS,
    Facts,
    LiveHost,
    compare,
    compare_removed,
    expected,
    fields,
    machine_of,
    replay,
    settings_of,
    spec_of,
)
from harness.lab import Lab
from harness.policy import Plan, evaluate_many
from harness.probes.ways import find_ways
from harness.strategies import FIELDS, Spec
from harness.vm.machine import Machine

few = settings(
    max_examples=3,
    stateful_step_count=4,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # no shrinking: each try takes a minute
    suppress_health_check=list(HealthCheck),
)


SHARED = {"name": "common", "file": "common.age", "shared": True}


@pytest.mark.live
def test_every_step_leaves_the_host_as_its_plan_says(lab: Lab) -> None:
    environment = {"TEXT": "a\nb $(id) %n", "EMPTY": ""}
    replay(
        lab,
        [
            (
                "add",
                {
                    "spec": {
                        "name": "c",
                        "memory": "64m",
                        "disk": "8m",
                        "environment": environment,
                        "publish": [{"port": 10020, "target": 80}],
                        "secrets": [{"name": "key", "file": "key.age", "as": "env", "variable": "KEY"}, SHARED],
                        "settings": {"k\x7f": "\u2028"},
                    }
                },
            ),
            ("switch", {}),
            ("kill", {"name": "a"}),
            ("fill", {"name": "c"}),
            ("fill_disk", {"name": "c"}),
            ("change", {"spec": {"name": "b", "memory": "96m", "egress": [{"network": "192.0.2.0/24"}]}}),
            ("attack", {"claim": "D2"}),
            ("attack", {"claim": "S1"}),
            ("roll_back", {}),
            ("change", {"spec": {"name": "b", "memory": "64m", "autoStart": False, "secrets": [SHARED]}}),
            ("attack", {"claim": "C2"}),
            ("roll_back", {"to": 2}),
            ("add", {"spec": {"name": NAMES[3], "memory": "64m", **OWN[NAMES[3]]}}),
            ("remove", {"name": "a"}),
            ("restart", {"name": "b"}),
            ("reboot", {}),
            ("roll_back", {"to": 0}),
        ],
    )


@pytest.mark.live
def test_a_host_stays_what_its_plan_says_whatever_is_done_to_it(lab: Lab) -> None:
    run_state_machine_as_test(machine_of(lab), settings=few)


# ---- what is looked at is seen: each fact wrong once


SPECS = [{**FIRST[0], "secrets": [{"name": "k", "file": "k.age"}], "publish": [8080]}, *FIRST[1:]]
MANUAL = {"name": "m", "autoStart": False}


@pytest.fixture(scope="module")
def plan() -> Plan:
    [plan] = evaluate_many([[*SPECS, MANUAL]], [SETTINGS])
    assert isinstance(plan, Plan)
    return plan


@pytest.fixture
def facts(plan: Plan) -> Facts:
    """Those of a host that is as the plan says."""
    good: Facts = copy.deepcopy(expected(plan))
    running = [agent for agent in plan.agents.values() if agent.auto_start]
    for agent in running:
        uid = ",".join([str(agent.uid)] * 4)
        caps = f"CapEff={NOTHING} CapBnd={NOTHING} CapPrm={NOTHING}"
        good["containers"][agent.container.name] |= {
            "identity": ["id", "start", 1],
            "processes": [f"Uid={uid} Gid={uid} Groups= {caps} NoNewPrivs=1 Seccomp=2"],
            "environment": [*(f"{name}={text}" for name, text in agent.container.environment.items()), "PATH=/bin"],
        }
    units = {f"{agent.service.name}.service": "active/running" for agent in running}
    units |= dict.fromkeys(("nftables.service", "tentaflake-routing.service"), "active/exited")
    units |= {"docker.service": "active/running", "hermes-auditd.service": "active/running"}
    return good | {
        "uids": [0, *(agent.uid for agent in running)],
        "firewall": {"loaded": [["chain", {}]], "meant": [["chain", {}]]},
        "units": units | {"tentaflake-guard.timer": "active/waiting"},
        "rules": [0, 4700, 4701, 0, 4700, 4701],
    }


def test_a_host_that_is_as_it_should_be_has_no_problem(plan: Plan, facts: Facts) -> None:
    facts["directories"]["/var/lib/hermes-auditd"] = ["0700", 999, 999, 0]
    facts["secrets"]["decoy"] = ["0400", 0, 0, "ramfs", ""]
    facts["units"]["docker-hermes-m.service"] = "inactive/dead"
    assert compare(plan, facts) == []
    assert compare_removed(plan, plan.agents.values(), facts) == []


def put(*path: str | int, value: Any) -> Callable[[Facts], None]:
    def change(facts: Facts) -> None:
        inner: Any = facts
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


CONTAINER = ("containers", "hermes-a")
STATE = ("directories", "/var/lib/hermes-a")
WRONG: dict[str, Callable[[Facts], None]] = {
    "another uid": put("users", "hermes-a", 0, value=0),
    "a login shell": put("users", "hermes-a", 3, value="/bin/sh"),
    "a group": put("users", "hermes-a", 4, value=["docker"]),
    "a password": put("users", "hermes-a", 5, value=False),
    "an open directory": put(*STATE, 0, value="0755"),
    "another's file in it": put(*STATE, 3, value=1),
    "no container": lambda facts: facts["containers"].pop("hermes-a"),
    "another image": put(*CONTAINER, "image", value="other"),
    "root": put(*CONTAINER, "user", value="0:0"),
    "a writable root": put(*CONTAINER, "readonly", value=False),
    "one more mount": lambda facts: facts["containers"]["hermes-a"]["mounts"].append(["/", "/host", True]),
    "one more network": lambda facts: facts["containers"]["hermes-a"]["networks"].append("hermes-b"),
    "no memory limit": put(*CONTAINER, "memory", value=[0, 0]),
    "a process of root": lambda facts: facts["containers"]["hermes-a"]["processes"].append("Uid=0,0,0,0"),
    "a variable": lambda facts: facts["containers"]["hermes-a"]["environment"].append("KEY=value"),
    "a missing variable": lambda facts: facts["containers"]["hermes-a"]["environment"].pop(0),
    "another bridge": put("networks", "hermes-a", 0, value="docker0"),
    "another port": put(*CONTAINER, "ports", value=["22:22/tcp"]),
    "a container of one that does not start": put("containers", "hermes-m", value={}),
    "a unit of one that does not start": put("units", "docker-hermes-m.service", value="active/running"),
    "a rogue container": put("containers", "rogue", value={"mounts": [["/", "/host", True]]}),
    "a rogue user": put("users", "hermes-rogue", value=[0, 0, "/root", "/bin/sh", [], False]),
    "Docker's own bridge, which the plan turns off": put("networks", "bridge", value=["docker0", False, []]),
    "a rogue network": put("networks", "rogue", value=["docker1", False, []]),
    "nobody's state": put("directories", "/var/lib/hermes-rogue", value=["0777", 65534, 65534, 0]),
    "nobody's configuration": put("directories", "/etc/hermes/rogue", value=["0755", 0, 0, 0]),
    "nobody's secret": put("secrets", "rogue", value=["0400", 0, 0, "ramfs", ""]),
    "a secret for all": put("secrets", "k", 0, value="0444"),
    "a secret of another": put("secrets", "k", 1, value=0),
    "a secret on a disk": put("secrets", "k", 3, value="ext2/ext3"),
    "another value": put("secrets", "k", 4, value="0" * 64),
    "no secret": lambda facts: facts["secrets"].pop("k"),
    "other rules": put("firewall", "loaded", value=[]),
    "no routing rules": put("rules", value=[0]),
    "a unit that is down": put("units", "docker-hermes-a.service", value="inactive/dead"),
    "no guard": put("units", "tentaflake-guard.timer", value="inactive/dead"),
    "a unit that has failed": put("units", "tentaflake-guard.service", value="failed/failed"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_seen(plan: Plan, facts: Facts, change: Callable[[Facts], None]) -> None:
    change(facts)
    assert compare(plan, facts) != []


def without_a(facts: Facts) -> Facts:
    """As after the removal of a, which leaves its state."""
    for kind, name in (("containers", "hermes-a"), ("networks", "hermes-a"), ("directories", "/etc/hermes/a")):
        del facts[kind][name]
    del facts["units"]["docker-hermes-a.service"], facts["secrets"]["k"]
    facts["uids"] = [uid for uid in facts["uids"] if uid != facts["users"]["hermes-a"][0]]
    return facts


LEFT: dict[str, Callable[[Facts], None]] = {
    "a container": put(*CONTAINER, value={}),
    "a network": put("networks", "hermes-a", value=[]),
    "its configuration": put("directories", "/etc/hermes/a", value=[]),
    "a unit": put("units", "docker-hermes-a.service", value="inactive/dead"),
    "a way to log in": put("users", "hermes-a", 3, value="/bin/sh"),
    "its state to all": put(*STATE, 0, value="0755"),
    "no state": lambda facts: facts["directories"].pop("/var/lib/hermes-a"),
    "a process": lambda facts: facts["uids"].append(facts["users"]["hermes-a"][0]),
}


@pytest.mark.parametrize("change", LEFT.values(), ids=LEFT.keys())
def test_what_a_removed_agent_has_left_is_seen(plan: Plan, facts: Facts, change: Callable[[Facts], None]) -> None:
    [less] = evaluate_many([[*SPECS[1:], MANUAL]], [SETTINGS])
    assert isinstance(less, Plan)
    gone = without_a(facts)
    assert compare(less, gone, plan.agents.values()) == compare_removed(less, plan.agents.values(), gone) == []
    change(gone)
    assert compare_removed(less, plan.agents.values(), gone) != []


def test_what_is_drawn_is_a_host(plan: Plan) -> None:
    seen: set[str] = set()

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(fields(), min_size=4, max_size=4))
    def draw(drawn: list[Spec]) -> None:
        specs = [spec_of(name, each) for name, each in zip(NAMES, drawn, strict=True)]
        [result] = evaluate_many([specs], [SETTINGS])
        assert isinstance(result, Plan), result
        seen.update(field for spec in specs for field in spec)

    draw()
    assert seen == set(FIELDS) - {"image", "allowMutableImage", "command", "tts"}


@pytest.mark.parametrize("claim", CLAIMS)
def test_each_claim_has_attacks(claim: str) -> None:
    assert find_ways(claim) or claim == "D3"  # that is harness.probes.sharing's


def test_only_the_first_generation_has_no_settings() -> None:
    host = LiveHost(Mock(spec=Lab), Mock(spec=Machine))
    assert settings_of(host.generations[0]) == {}
    assert settings_of([]) == settings_of(host.generations[1]) == SETTINGS
