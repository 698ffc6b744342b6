"""A hijacked agent's attempts: in as a script for its model, back as outcomes."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.policy import Plan, evaluate
from harness.probes.attempts import Attacker, Attempt, Seen
from harness.probes.hijack import PER_COMMAND, check_run, hijack_outcomes, plan_hijack, script_of
from harness.probes.model import Play, Transcript, parse_script
from tests.unit.support import REPOSITORY

CANARY = b"c4na7y"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return evaluate(REPOSITORY / "agents.nix")


@pytest.fixture
def attempt(plan: Plan) -> Callable[..., Attempt]:
    """``attempt(script, …)`` by the agent ``coding``, with a canary as its token."""

    def make(script: str, by: str = "coding", way: str = "a way", token: bytes | None = CANARY) -> Attempt:
        return Attempt("D2", way, Attacker("container", plan.agents[by]), "host", script, "refused", token)

    return make


Terminal = Callable[[str], dict[str, Any] | str | None]


def bash(command: str) -> dict[str, Any]:
    """Hermes' terminal: bash, and one stream."""
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        check=False,
    )
    return {"output": done.stdout.decode(errors="replace").strip(), "exit_code": done.returncode, "error": None}


def play(script: str, terminal: Terminal) -> str:
    """The transcript of a script, every agent's terminal being ``terminal``; None is an answer that never comes."""
    conversations = {}
    for agent, commands in parse_script(script).items():
        current = Play(commands)
        messages: list[dict[str, Any]] = []
        while calls := current.next_calls(messages):
            for call in calls:
                answer = terminal(json.loads(call["function"]["arguments"])["command"])
                if answer is not None:
                    content = answer if isinstance(answer, str) else json.dumps(answer)
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
        conversations[agent] = current.conversation()
    return json.dumps(asdict(Transcript(conversations, ())))


def seen(attempts: list[Attempt], terminal: Terminal = bash) -> list[Seen]:
    hijack = plan_hijack(attempts)
    return [outcome.seen for outcome in hijack_outcomes(hijack, play(script_of(hijack), terminal))]


def test_what_prints_the_canary_has_reached_it_and_what_cannot_was_refused(attempt: Callable[..., Attempt]) -> None:
    attempts = [attempt(f"echo {CANARY.decode()}"), attempt("cat /nonexistent"), attempt("won", token=None)]
    assert seen(attempts) == ["reached", "refused", "reached"]


def test_what_was_never_run_is_unknown(attempt: Callable[..., Attempt]) -> None:
    assert seen([attempt(f"echo {CANARY.decode()}"), attempt("true")], lambda _: None) == ["unknown", "unknown"]


@pytest.mark.parametrize(
    "answer",
    [
        {"output": "", "exit_code": -1, "error": f"BLOCKED: echo {CANARY.decode()}"},
        {"output": "", "exit_code": 0, "error": None},
        {"output": "H4sIAAAA", "exit_code": 0, "error": None},
        "Unknown tool: terminal",
    ],
    ids=["refused by Hermes", "nothing", "half of it", "no terminal"],
)
def test_an_answer_that_is_not_whole_is_unknown(attempt: Callable[..., Attempt], answer: dict[str, Any] | str) -> None:
    assert seen([attempt("true")], lambda _: answer) == ["unknown"]


def test_an_answer_that_was_edited_is_unknown(attempt: Callable[..., Attempt]) -> None:
    def redacting(command: str) -> dict[str, Any]:
        answer = bash(command)
        output = answer["output"]
        return answer | {"output": output[:40] + "***" + output[43:]}

    assert seen([attempt("seq 1000")], redacting) == ["unknown"]


def test_an_attempt_that_ends_its_shell_costs_none_before_it(attempt: Callable[..., Attempt]) -> None:
    attempts = [attempt("exit 3"), attempt(f"echo {CANARY.decode()}; exit"), attempt("kill -9 $$"), attempt("true")]
    assert seen(attempts) == ["refused", "reached", "unknown", "unknown"]


def test_output_that_is_no_text_comes_through(attempt: Callable[..., Attempt]) -> None:
    assert seen([attempt(rf"printf '\377\000\033[31m{CANARY.decode()}'")]) == ["reached"]


def test_every_script_runs_once_whatever_its_targets(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    log = tmp_path / "log"
    attempts = [attempt(f"echo {n % 30} >> {log}", way=str(n)) for n in range(60)]
    hijack = plan_hijack(attempts)
    assert len(hijack["coding"]) == -(-30 // PER_COMMAND)
    outcomes = hijack_outcomes(hijack, play(script_of(hijack), bash))
    assert log.read_text().split() == [str(n) for n in range(30)]
    assert sorted(outcome.attempt.way for outcome in outcomes) == sorted(str(n) for n in range(60))


def test_each_agent_is_told_its_own(attempt: Callable[..., Attempt], plan: Plan) -> None:
    attempts = [attempt(f"echo {name}", by=name, token=name.encode()) for name in plan.agents]
    hijack = plan_hijack(attempts)
    assert list(parse_script(script_of(hijack))) == list(plan.agents)
    outcomes = hijack_outcomes(hijack, play(script_of(hijack), bash))
    assert [(outcome.attempt, outcome.seen) for outcome in outcomes] == [(each, "reached") for each in attempts]


def test_the_command_names_no_target_that_a_guard_could_find(attempt: Callable[..., Attempt]) -> None:
    script = script_of(plan_hijack([attempt("rm -rf / --no-preserve-root")]))
    assert "rm " not in script


def test_root_cannot_be_hijacked() -> None:
    with pytest.raises(HarnessError, match="'a way' is tried by root, which is no agent"):
        plan_hijack([Attempt("D2", "a way", Attacker("root"), "host", "true", "reached")])


@pytest.mark.parametrize(
    "usage",
    [
        '{"completed": false, "failed": true, "failure": "Connection error."}',
        '{"completed": true, "failed": true}',
        '{"completed": null, "failed": false}',
        "{}",
        "",
        "[]",
    ],
)
def test_a_run_that_did_not_finish_is_an_error(usage: str) -> None:
    with pytest.raises(HarnessError, match="Hermes"):
        check_run(usage)


def test_a_run_that_finished_is_none() -> None:
    check_run('{"completed": true, "failed": false, "api_calls": 4, "model": "m"}')
