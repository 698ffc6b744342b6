"""The script that starts an agent again of whose end Docker has not heard; ps(1) and docker(1) are the tests' own."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.policy import Agent, Plan, evaluate_specs

Watch = Callable[..., list[str]]
"""The script's orders to systemctl, with these users at work, and Docker's word on each container."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return evaluate_specs([{"name": "a"}, {"name": "b"}])


@pytest.fixture
def watch(tmp_path: Path, plan: Plan) -> Watch:
    def run(users: list[int], states: dict[str, str], stopped: str = "none") -> list[str]:
        programs = {
            "ps": "".join(f"echo '{user:10}'\n" for user in users) or ":",
            "docker": "\n".join(
                ['for name; do :; done; case "$name" in', *map(answer, states.items()), "*) exit 1;; esac"]
            ),
            "systemctl": f'[ "$1" = is-active ] || {{ echo "$@"; exit; }}; case "$3" in {stopped}) exit 3;; esac',
        }
        for name, text in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-c", plan.watch],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        assert done.stderr.count("has not noticed") == len(done.stdout.splitlines())
        return done.stdout.splitlines()

    return run


def answer(state: tuple[str, str]) -> str:
    name, said = state
    return f"{name}) echo '{said}';;"


@pytest.fixture
def agents(plan: Plan) -> tuple[Agent, Agent]:
    return plan.agents["a"], plan.agents["b"]


def restart(agent: Agent) -> str:
    return f"try-restart --no-block {agent.service.name}.service"


def own_cgroup() -> str:
    return Path("/proc/self/cgroup").read_text().strip().rpartition("/")[2] or "/"


def test_an_agent_whose_process_is_gone_is_started_again(watch: Watch, agents: tuple[Agent, Agent]) -> None:
    one, other = agents
    gone = f"true {2**22 + 1} 0123abcd"  # no pid is so high, see proc(5)
    assert watch([0, one.uid], {other.container.name: gone}) == [restart(other)]
    assert watch([0], {each.container.name: gone for each in agents}) == [restart(one), restart(other)]


def test_an_agent_whose_processes_number_is_anothers_is_started_again(
    watch: Watch, agents: tuple[Agent, Agent]
) -> None:
    one, other = agents
    assert watch([one.uid], {other.container.name: f"true {os.getpid()} 0123abcd"}) == [restart(other)]


def test_who_runs_and_who_is_not_meant_to_is_left_alone(watch: Watch, agents: tuple[Agent, Agent]) -> None:
    """One with processes of another user's, as a runtime may have it, is known by its cgroup."""
    one, other = agents
    gone = f"true {2**22 + 1} 0123abcd"
    assert watch([one.uid, other.uid], {each.container.name: gone for each in agents}) == []
    assert watch([one.uid], {}) == []
    assert watch([one.uid], {other.container.name: gone}, f"{other.service.name}.service") == []
    assert watch([one.uid], {other.container.name: "false 0 0123abcd"}) == []
    assert watch([one.uid], {other.container.name: f"true {os.getpid()} {own_cgroup()}"}) == []
