"""`harness fuzz` finds what is there to be found, makes it small, and writes a test that shows it."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, seed, settings
from typer.testing import CliRunner

from harness.cache import CacheUnusable
from harness.cli import app
from harness.contract import ControlFailed
from harness.errors import HarnessError, Untriable
from harness.fuzz import run
from harness.fuzz.live import Live, LiveHost
from harness.fuzz.properties import PROPERTIES, Case, Property, find_property, prove
from harness.fuzz.regressions import write_regression
from harness.host_strategies import NESTED
from harness.lab import Lab
from harness.mistakes import UNKNOWN, WRONG_SETTINGS, WRONG_SPECS
from harness.nix_text import agents_nix, to_nix
from harness.policy import REPOSITORY, PolicyError, evaluate_many
from harness.progress import Step
from harness.shards import Shard
from harness.strategies import FIELDS, SETTINGS, Spec, Written, hosts
from harness.vm.machine import Machine
from harness.vm.qemu import GuestDied, GuestPanicked, HostDiskFull
from harness.vm.shell import CommandFailed


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
    assert finding.message.startswith("too many processes\nagents.nix that reproduces it, with harness plan")
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


# ---- whatever goes wrong is a finding, but for what is this machine's

FINDINGS = [
    PolicyError("the agents cannot be evaluated: stack overflow"),
    subprocess.CalledProcessError(2, ["sh"]),
    KeyError("start"),
    FileNotFoundError(2, "No such file", "etc/hermes"),
]
TROUBLES = [Untriable("setquota is not installed"), CacheUnusable("it is full"), OSError(errno.ENOSPC, "no space left")]


def raising(error: Exception) -> Callable[[Written], None]:
    def check(host: Written) -> None:
        if breaks(host):
            raise error

    return check


def put_check(monkeypatch: pytest.MonkeyPatch, check: Callable[[Written], None]) -> None:
    monkeypatch.setitem(PROPERTIES, "broken", Property("broken", "", hosts(max_agents=2), check, lambda: None))


@pytest.mark.parametrize("error", FINDINGS, ids=lambda error: type(error).__name__)
def test_whatever_a_check_raises_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    put_check(monkeypatch, raising(error))
    [finding] = run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), only=["broken"]).findings
    assert str(error) in finding.message
    assert "agents.nix that reproduces it" in finding.message
    assert "pids = " in finding.message
    assert Path(finding.file).is_file()


@pytest.mark.parametrize("error", TROUBLES, ids=lambda error: type(error).__name__)
def test_what_is_this_machines_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    put_check(monkeypatch, raising(error))
    with pytest.raises(type(error)) as caught:
        run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), only=["broken"])
    assert caught.value is error
    assert not list(tmp_path.glob("test_found_*"))


def test_what_was_found_before_this_machine_fails_is_kept(
    tmp_path: Path, broken: str, tried: list[Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(host: Written) -> None:
        if any(map(breaks, tried)):
            raise CacheUnusable("it is full")

    monkeypatch.setitem(PROPERTIES, "full", Property("full", "", hosts(), fill, lambda: None))
    report = run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), only=[broken, "full"])
    assert [finding.property for finding in report.findings] == [broken]
    assert report.trouble == "it is full"


def test_a_check_that_fails_once_is_a_finding_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[Written] = []

    def check(host: Written) -> None:
        if breaks(host) and not failed:
            failed.append(host)
            raise AssertionError("once")

    put_check(monkeypatch, check)
    [finding] = run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), only=["broken"]).findings
    assert finding.message.startswith("once")
    assert finding.message.endswith(run.ONCE)
    names: dict[str, Any] = {}
    exec(compile(Path(finding.file).read_text(), finding.file, "exec"), names)
    assert names["CASE"] == failed[0]


def test_an_assertion_without_words_is_shown_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROPERTIES, "broken", Property("broken", "", hosts(), check_wordless, lambda: None))
    [finding] = run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), only=["broken"]).findings
    assert "check_wordless" in finding.message
    assert 'host["agents"] == []' in finding.message


def check_wordless(host: Written) -> None:
    if host["agents"] == []:
        return
    raise AssertionError  # for host["agents"] == []


@pytest.fixture
def stopped(tried: list[Written], monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a property at which somebody gives up as soon as the other one is broken."""

    def stop(host: Written) -> None:
        if any(map(breaks, tried)):
            raise KeyboardInterrupt

    monkeypatch.setitem(PROPERTIES, "stopped", Property("stopped", "", hosts(), stop, lambda: None))
    return "stopped"


def test_ctrl_c_ends_with_what_there_is(tmp_path: Path, broken: str, stopped: str) -> None:
    report = run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), only=[broken, stopped])
    assert report.interrupted
    assert [finding.property for finding in report.findings] == [broken]


@pytest.mark.parametrize("name", ["anything", "one_mistake"])
def test_the_test_that_is_written_has_the_case_itself(tmp_path: Path, name: str) -> None:
    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(PROPERTIES[name].cases)
    def draw(case: Case) -> None:
        path = write_regression(tmp_path, name, case)
        names: dict[str, Any] = {}
        exec(compile(path.read_text(), path, "exec"), names)
        assert names["CASE"] == case

    draw()


def test_a_seed_gives_the_same_hosts_again(tmp_path: Path, broken: str, tried: list[Written]) -> None:
    for number in (1, 1, 2):
        run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), number, [broken])
        tried.append({})
    first, again, other = (list(group) for end, group in groupby(tried, bool) if end)
    assert first == again != other


Round = tuple[str, int | None]


def rounds_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, shard: Shard | None) -> list[Round]:
    """The first rounds of three properties with the seed 100: of which one, and with which seed of its own."""
    rounds: list[Round] = []
    for name in "abc":
        monkeypatch.setitem(PROPERTIES, name, Property(name, "", hosts(), print, lambda: None))

    def note(self: run.Trial, number: int | None) -> None:
        rounds.append((self.name, number))
        if len(rounds) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.Trial, "round", note)
    report = run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), 100, list("abc"), shard)
    assert report.shard == (str(shard) if shard else None)
    return rounds


@pytest.mark.parametrize("total", [1, 2, 3, 5])
def test_shards_of_a_seed_try_together_what_one_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int
) -> None:
    whole = rounds_of(monkeypatch, tmp_path, 4 * total, None)
    parts = [rounds_of(monkeypatch, tmp_path, 4, Shard(number, total)) for number in range(1, total + 1)]
    assert sorted(each for part in parts for each in part) == sorted(whole)
    assert len(set(whole)) == len(whole)


def test_a_property_that_cannot_be_tried_says_why(tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROPERTIES, broken, Property(broken, "", hosts(), print, lambda: "no such program"))
    report = run.fuzz(5, tmp_path / "corpus", tmp_path, Step("fuzzing"), only=[broken])
    assert (report.tried[0].examples, report.tried[0].obstacle) == (0, "no such program")
    assert report.is_empty


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


@pytest.mark.parametrize(("name", "hint"), [("zzz", "there are invariants"), ("invariant", "did you mean invariants?")])
def test_an_unknown_property_is_told_from_those_that_exist(name: str, hint: str) -> None:
    with pytest.raises(HarnessError, match="there is no property") as caught:
        find_property(name)
    assert (caught.value.hint or "").startswith(hint)
    assert find_property("invariants").name == "invariants"


REFUSED = {
    "a property of running hosts": (["--live", "--only", "order"], "--only names properties of the policy"),
    "no such property": (["--only", "ordr"], "did you mean order"),
    "no place for the report": (["--json", "/nonexistent/report.json"], "there is no directory /nonexistent"),
    "no place for tests": (["--tests", "/nonexistent"], "/nonexistent is no directory"),
    "nothing may be written there": (["--tests", "/proc"], "no test can be written to /proc"),
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_fail_at_the_end_is_said_at_the_start(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = harness("fuzz", "--cache", str(tmp_path), "--minutes", "60", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["mutate", "bench"])
def test_where_no_report_can_be_written_is_said_before_minutes_have_passed(tmp_path: Path, command: str) -> None:
    done = harness(command, "--cache", str(tmp_path), "--json", "/nonexistent/report.json")
    assert done.returncode == 2
    assert "there is no directory /nonexistent" in " ".join(done.stderr.split())


def test_the_properties_are_listed(tmp_path: Path) -> None:
    done = harness("fuzz", "--list", "--cache", str(tmp_path))
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")] == list(PROPERTIES)


def test_where_nothing_was_tried_nothing_is_known(tmp_path: Path) -> None:
    done = harness("fuzz", "--minutes", "0", "--tests", str(tmp_path), "--cache", str(tmp_path))
    assert done.returncode == 2
    assert "nothing was tried" in done.stderr


def test_ctrl_c_says_what_there_is(tmp_path: Path, broken: str, stopped: str) -> None:
    where = ["--tests", str(tmp_path), "--cache", str(tmp_path), "--json", str(tmp_path / "report.json")]
    done = CliRunner().invoke(app, ["fuzz", "--minutes", "60", "--only", broken, "--only", stopped, *where])
    assert done.exit_code == 130, done.output
    assert "too many processes" in done.output
    assert "1 found, interrupted" in done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["interrupted"]
    assert [finding["property"] for finding in report["findings"]] == [broken]


PLAIN = {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
FEW = """

def test_few_packages_are_needed():
    import sys

    assert not {"qemu", "rich", "typer", "yaml"} & set(sys.modules)
"""


def test_the_strategies_work_elsewhere(tmp_path: Path) -> None:
    """As docs/fuzzing.md has it: this source in PYTHONPATH, and few packages."""
    _, _, example = (REPOSITORY / "docs/fuzzing.md").read_text().partition("```python\n")
    (tmp_path / "test_mine.py").write_text(example.partition("```")[0] + FEW)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), **PLAIN},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_every_field_can_be_wrong() -> None:
    assert {wrong.field for wrong in WRONG_SPECS} | {"name"} == set(FIELDS)
    assert {wrong.field for wrong in WRONG_SETTINGS} == set(SETTINGS)
    assert fields_of({"zzz": 1}) == list(FIELDS)
    wrong = {re.sub(r"\[0\]$", "", each.path) for each in WRONG_SPECS}
    for place, names in NESTED.items():
        assert wrong >= {f"{place}.{name}" for name in [*names, UNKNOWN]}
        assert fields_of({place.removesuffix("[0]"): [{"zzz": 1}]}) == list(names)


def fields_of(spec: Spec) -> list[str]:
    """Those that the policy names where it meets one that it does not know."""
    [refusal] = evaluate_many([[{"name": "a", **spec}]])
    assert isinstance(refusal, PolicyError)
    return str(refusal).partition("the fields are ")[2].partition("\n")[0].split(", ")


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
        '{\n  agents = [\n    {\n      name = "a";\n      cpus = 0.5;\n    }\n  ];\n  host = { };\n}\n'
    )


class Pretended(LiveHost):
    """A host without a machine, which is wrong once an agent was restarted and then killed."""

    def __init__(self) -> None:
        super().__init__(Mock(spec=Lab), Mock(spec=Machine))

    def check(self, touched: Iterable[str]) -> None:
        names = [name for name, _ in self.steps]
        if "restart" in names and "kill" in names[names.index("restart") :]:
            self.complain()

    def complain(self) -> None:
        raise AssertionError("it is down")

    def _switch(self, specs: list[Spec]) -> None:
        self.wanted = specs
        self.generations.append(specs)
        self.current = len(self.generations) - 1

    def roll_back(self, to: int | None = None) -> list[str]:
        self.current = self.current - 1 if to is None else to
        return []

    def reboot(self) -> list[str]:
        return []

    def _nothing(self, name: str) -> list[str]:
        return []

    def attack(self, claim: str) -> list[str]:
        return []

    restart = kill = fill = fill_disk = _nothing


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[Pretended]:
    """The hosts that were tried."""
    tried: list[Pretended] = []

    def machine_of(
        lab: Lab, admit: Callable[[LiveHost], None], guard: Callable[[], AbstractContextManager[None]]
    ) -> type[Live]:
        def start(_: ExitStack) -> LiveHost:
            host = Pretended()
            tried.append(host)
            admit(host)
            return host

        return type("LiveHere", (Live,), {"start": staticmethod(start), "guard": staticmethod(guard)})

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
    assert finding.message.startswith(f"it is down\nthe steps: {steps}\nagents.nix of the host at the last of them:")
    assert 'tailnetInterface = "tailscale0";' in finding.message
    kinds = [kind for kind, _ in steps]
    assert "kill" in kinds[kinds.index("restart") :]
    first = next(host for host in pretended if host.error)
    assert len(steps) <= len(first.steps)  # hypothesis makes it small, not always the smallest


FAULTS = [
    ControlFailed("in 90 s, the attack has not come so far: a runs in another container"),
    CommandFailed("in the guest, exit code 1: systemctl restart"),
    HarnessError("the stage could not be set: no such container"),
    GuestPanicked("the guest's kernel panicked"),
]
ACCIDENTS = [GuestDied("QEMU (pid 1) ended by signal SIGKILL"), HostDiskFull("the disk is full"), TROUBLES[1]]


def failing(error: Exception) -> Callable[[Pretended], None]:
    def complain(self: Pretended) -> None:
        raise error

    return complain


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_whatever_a_step_raises_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: HarnessError
) -> None:
    monkeypatch.setattr(Pretended, "complain", failing(error))
    [finding] = run.fuzz_live(Mock(spec=Lab), 1, tmp_path / "corpus", tmp_path, Step("fuzzing")).findings
    assert finding.message.startswith(f"{error}\nthe steps: [(")
    assert "replay(lab, STEPS)" in Path(finding.file).read_text()


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("error", ACCIDENTS, ids=lambda error: type(error).__name__)
def test_what_befalls_this_machine_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: HarnessError
) -> None:
    monkeypatch.setattr(Pretended, "complain", failing(error))
    with pytest.raises(type(error)) as caught:
        run.fuzz_live(Mock(spec=Lab), 1, tmp_path / "corpus", tmp_path, Step("fuzzing"))
    assert caught.value is error
    assert not list(tmp_path.glob("test_found_*"))


def test_a_race_that_shows_once_is_a_finding_that_says_so(
    tmp_path: Path, pretended: list[Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    def complain(self: Pretended) -> None:
        if not any(host.error for host in pretended):
            raise AssertionError("it is down")

    monkeypatch.setattr(Pretended, "complain", complain)
    [finding] = run.fuzz_live(Mock(spec=Lab), 1, tmp_path / "corpus", tmp_path, Step("fuzzing")).findings
    [wrong] = [host for host in pretended if host.error]
    assert finding.message == f"{wrong.error}\n{run.ONCE}"
    names: dict[str, Any] = {}
    exec(compile(Path(finding.file).read_text(), finding.file, "exec"), names)
    assert names["STEPS"] == wrong.steps


@pytest.mark.usefixtures("pretended")
def test_a_host_that_is_wrong_from_the_start_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pretended, "check", lambda self, touched: self.complain())
    report = run.fuzz_live(Mock(spec=Lab), 1, tmp_path / "corpus", tmp_path, Step("fuzzing"))
    [finding] = report.findings
    assert finding.message.startswith("it is down\nthe steps: []")
    assert "STEPS = []" in Path(finding.file).read_text()


@pytest.mark.usefixtures("pretended")
def test_nothing_is_tried_where_the_time_is_up_before_the_first_step(tmp_path: Path) -> None:
    assert run.fuzz_live(Mock(spec=Lab), 0, tmp_path / "corpus", tmp_path, Step("fuzzing")).is_empty


@pytest.mark.usefixtures("pretended")
def test_each_shard_draws_other_changes_of_one_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[object] = []

    def note(value: object) -> Callable[[object], object]:
        seeds.append(value)
        return lambda machine: machine

    monkeypatch.setattr(run, "seed", note)
    for shard in (None, Shard(1, 2), Shard(2, 2)):
        run.fuzz_live(Mock(spec=Lab), 0, tmp_path / "corpus", tmp_path, Step("fuzzing"), 7, shard)
    assert seeds[0] == 7 and len(set(seeds)) == 3


@pytest.mark.usefixtures("pretended")
def test_the_time_is_up_when_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pretended, "check", lambda self, touched: None)
    report = run.fuzz_live(Mock(spec=Lab), 0.02, tmp_path / "corpus", tmp_path, Step("fuzzing"))
    assert report.findings == []
    assert report.tried[0].examples >= 1
    assert 1.2 <= report.seconds < 15
