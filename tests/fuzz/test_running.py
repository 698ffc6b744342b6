"""`harness fuzz` finds what is there to be found, makes it small, and writes a test that shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, seed, settings

from harness.fuzz import run
from harness.fuzz.live import FIRST, Live, LiveHost
from harness.fuzz.properties import PROPERTIES, Property, prove
from harness.lab import Lab
from harness.mistakes import WRONG_SETTINGS, WRONG_SPECS
from harness.nix_text import agents_nix, to_nix
from harness.policy import REPOSITORY, PolicyError, evaluate_many
from harness.progress import Step
from harness.strategies import FIELDS, SETTINGS, Spec, Written, hosts


@pytest.fixture
def tried() -> list[Written]:
    """The hosts that the property below was checked with."""
    return []


def breaks(host: Written) -> bool:
    return any(spec.get("pids", 0) >= 4000 for spec in host["agents"])


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tried: list[Written]) -> str:
    """The name of a property that any host with an agent of many processes breaks."""

    def check(host: Written) -> None:
        tried.append(host)
        if breaks(host):
            raise AssertionError("too many processes")

    monkeypatch.setitem(PROPERTIES, "broken", Property("broken", "", hosts(max_agents=2), check, lambda: None))
    return "broken"


def test_what_breaks_a_property_is_made_small_kept_and_becomes_a_test(
    tmp_path: Path, broken: str, tried: list[Written]
) -> None:
    report = run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), only=[broken])
    [finding] = report.findings
    assert finding.message.startswith("too many processes\nagents.nix that reproduces it:")
    [path] = tmp_path.glob("test_found_broken_*.py")
    assert finding.file == str(path)
    names: dict[str, Any] = {}
    exec(compile(path.read_text(), path, "exec"), names)
    case = names["CASE"]
    first = next(host for host in tried if breaks(host))
    assert breaks(case) and len(repr(case)) <= len(repr(first))  # hypothesis makes it small, not always the smallest
    assert any(f"pids = {spec['pids']};" in finding.message for spec in case["agents"] if "pids" in spec)
    with pytest.raises(AssertionError, match="too many processes"):
        prove(broken, case)

    tried.clear()
    [again] = run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), only=[broken]).findings
    assert again.message.startswith("too many processes")
    assert tried[0] == case  # it is the corpus' first


def test_a_seed_gives_the_same_hosts_again(tmp_path: Path, broken: str, tried: list[Written]) -> None:
    for number in (1, 1, 2):
        run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), number, [broken])
        tried.append({})
    first, again, other = (list(group) for end, group in groupby(tried, bool) if end)
    assert first == again != other


def test_a_property_that_cannot_be_tried_says_why(tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROPERTIES, broken, Property(broken, "", hosts(), print, lambda: "no such program"))
    report = run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), only=[broken])
    assert (report.tried[0].examples, report.tried[0].obstacle) == (0, "no such program")


def harness(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "harness", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_says_what_it_tried(tmp_path: Path) -> None:
    where = ["--tests", str(tmp_path), "--cache", str(tmp_path)]
    done = harness("fuzz", "--minutes", "0.01", "--json", "-", "--only", "order", *where)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["findings"] == []
    assert report["tried"][0]["examples"] >= 1


def test_an_unknown_property_lists_those_that_exist(tmp_path: Path) -> None:
    done = harness("fuzz", "--only", "bogus", "--tests", str(tmp_path))
    assert done.returncode == 2
    assert "there is no property bogus" in done.stderr
    assert "invariants" in done.stderr


def test_every_field_can_be_wrong() -> None:
    assert {wrong.field for wrong in WRONG_SPECS} | {"name"} == set(FIELDS)
    assert {wrong.field for wrong in WRONG_SETTINGS} == set(SETTINGS)
    [refusal] = evaluate_many([[{"name": "a", "zzz": 1}]])
    assert isinstance(refusal, PolicyError)
    assert str(refusal).partition("the fields are ")[2].split(", ") == sorted(FIELDS)


def test_hosts_have_up_to_two_hundred_agents_with_every_field() -> None:
    seen: list[Written] = []

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @seed(1)
    @given(hosts())
    def draw(host: Written) -> None:
        seen.append(host)

    draw()
    assert {field for host in seen for spec in host["agents"] for field in spec} == set(FIELDS)
    assert {setting for host in seen for setting in host["host"]} == set(SETTINGS)
    assert max(len(host["agents"]) for host in seen) > 100
    assert min(len(host["agents"]) for host in seen) == 1


def test_text_that_no_terminal_keeps_is_written_in_ascii() -> None:
    assert to_nix("a\n${b}\x85") == '(builtins.fromJSON "\\"a\\\\n\\${b}\\\\u0085\\"")'
    assert agents_nix({"agents": [{"name": "a", "cpus": 0.5}], "host": {}}) == (
        '[\n  {\n    name = "a";\n    cpus = 0.5;\n  }\n]\n'
    )


class Pretended(LiveHost):
    """A host without a machine, which is wrong once an agent was restarted and then killed."""

    def __init__(self) -> None:
        self.generations, self.current = [[], FIRST], 1
        self.steps, self.error = [], None

    def check(self, touched: Iterable[str]) -> None:
        names = [name for name, _ in self.steps]
        if "restart" in names and "kill" in names[names.index("restart") :]:
            raise AssertionError("it is down")

    def _switch(self, specs: list[Spec]) -> None:
        self.generations.append(specs)
        self.current = len(self.generations) - 1

    def roll_back(self) -> list[str]:
        self.current -= 1
        return []

    def reboot(self) -> list[str]:
        return []

    def _nothing(self, name: str) -> list[str]:
        return []

    def attack(self, claim: str) -> list[str]:
        return []

    restart = kill = fill = _nothing


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[Pretended]:
    """The hosts that were tried."""
    tried: list[Pretended] = []

    def machine_of(lab: Lab, admit: Callable[[LiveHost], None]) -> type[Live]:
        def start(_: ExitStack) -> LiveHost:
            host = Pretended()
            tried.append(host)
            admit(host)
            return host

        return type("LiveHere", (Live,), {"start": staticmethod(start)})

    monkeypatch.setattr(run, "machine_of", machine_of)
    return tried


def test_steps_that_leave_a_host_wrong_are_made_few_and_become_a_test(
    tmp_path: Path, pretended: list[Pretended]
) -> None:
    report = run.fuzz_live(Mock(spec=Lab), 1, tmp_path / "corpus", tmp_path, Step("fuzzing"))
    [finding] = report.findings
    names: dict[str, Any] = {}
    exec(compile(Path(finding.file).read_text(), finding.file, "exec"), names)
    steps = names["STEPS"]
    assert finding.message == f"it is down\nthe steps: {steps}"
    kinds = [kind for kind, _ in steps]
    assert "kill" in kinds[kinds.index("restart") :]
    first = next(host for host in pretended if host.error)
    assert len(steps) <= len(first.steps)  # hypothesis makes it small, not always the smallest


@pytest.mark.usefixtures("pretended")
def test_the_time_is_up_when_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pretended, "check", lambda self, touched: None)
    report = run.fuzz_live(Mock(spec=Lab), 0.02, tmp_path / "corpus", tmp_path, Step("fuzzing"))
    assert report.findings == []
    assert report.tried[0].examples >= 1
    assert 1.2 <= report.seconds < 15
