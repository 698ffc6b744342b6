"""What `harness verify` does around the tests of the claims, on some that need no machine."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from harness.cache import Cache
from harness.durations import read_recorded
from harness.policy import evaluate_specs
from harness.report import Verdict
from harness.report.collect import Collector, worst_of
from harness.report.merge import merge_verdicts
from harness.verify import describe_source
from tests.faults.support import environment
from tests.unit.support import REPOSITORY

# A lab that makes no machines; what workers have of it is in the conftest.
RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace
import msgspec
from harness.cache import Cache
from harness.lab import Settings
from harness.policy import evaluate
from harness.shards import parse_shard
from harness.verify import Attack

def main():
    here, shard = Path(sys.argv[1]), sys.argv[2]
    lab = SimpleNamespace(
        cache=Cache(here / "cache"),
        settings=Settings(cache=here / "cache"),
        adapt=lambda plan: plan,
        activated=lambda plan: None,
        accelerator=SimpleNamespace(accelerator="tcg", reason="none"),
        image=SimpleNamespace(manifest={"suite": "none"}, has_foreign_kernel=False),
        guest=SimpleNamespace(key=lambda: "none"),
    )
    agents = here / "agents.json"
    attack = Attack(lab, evaluate(agents), agents, workers=2, shard=parse_shard(shard), tests=here)
    print(attack.describe(), file=sys.stderr)
    verdict, code = attack.run()
    print(msgspec.json.encode(verdict).decode())
    sys.exit(code)

if __name__ == "__main__":
    main()
"""
CONFTEST = """
from types import SimpleNamespace
from harness import plugin
plugin.lab_of = lambda config: SimpleNamespace(has_image=False, evaluate=lambda evaluate: evaluate())
plugin.records_of = lambda config: SimpleNamespace(write=lambda *of: None, forget=lambda *of: None)
"""
CLAIMS = """
import time
from pathlib import Path
import pytest
from harness.plugin import plan_of

SOURCE = Path(__file__).with_name("agents.json")

@pytest.mark.claim("D2")
@pytest.mark.parametrize("number", range(3))
def test_directories(pytestconfig, number):
    SOURCE.write_text('[{"name": "another"}]')  # somebody edits it
    assert list(plan_of(pytestconfig).agents) == ["coding"]

@pytest.mark.claim("U1")
@pytest.mark.parametrize("number", range(3))
def test_users(pytestconfig, number):
    assert list(plan_of(pytestconfig).agents) == ["coding"]

@pytest.mark.claim("X4")
@pytest.mark.recorded
def test_long(pytestconfig):
    time.sleep(0.5)
    assert Path(pytestconfig.getoption("vm_agents")) == SOURCE
"""


def verify(directory: Path, shard: str = "", tests: str = CLAIMS) -> tuple[Verdict, str]:
    """The verdict on one agent, and what was said on stderr."""
    (directory / "agents.json").write_text('[{"name": "coding"}]')
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_child.py").write_text(tests)
    (directory / "run.py").write_text(RUN)
    command = [sys.executable, str(directory / "run.py"), str(directory), shard]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Verdict), done.stderr


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {claim.id: claim.verdict for claim in verdict.claims if claim.tests or claim.verdict == "partial"}


def test_the_verdict_names_the_plan_that_was_attacked_whatever_becomes_of_its_source(tmp_path: Path) -> None:
    verdict, _ = verify(tmp_path)
    assert outcomes(verdict) == {"D2": "held", "U1": "held", "X4": "held"}
    assert verdict.plan == evaluate_specs([{"name": "coding"}]).digest
    assert json.loads((tmp_path / "agents.json").read_text()) == [{"name": "another"}]
    assert list((tmp_path / "cache" / "run").iterdir()) == []  # the plan's file is gone


def test_each_claim_is_said_when_it_is_settled_and_what_took_how_long_is_kept(tmp_path: Path) -> None:
    verdict, said = verify(tmp_path)
    lines = said.splitlines()
    assert lines[0].endswith("how long it takes is not known yet")
    assert lines[1].startswith("attacking: 0 done after 0 s")
    settled = [line for line in lines if " held (" in line]
    assert sorted(settled) == ["D2 held (3 tests)", "U1 held (3 tests)", "X4 held (1 test)"]
    assert len(verdict.tests) == 7
    assert 0.5 <= verdict.tests[verdict.slowest()[0][0]].seconds < 60
    known = read_recorded(Cache(tmp_path / "cache"), "debian")
    assert known.runs.keys() == {"prepare", "attack", "total"}


def test_shards_make_one_verdict(tmp_path: Path) -> None:
    parts = {}
    for number in (1, 2):
        parts[str(number)], said = verify(tmp_path, f"{number}/2")
        assert f"shard {number}/2" in said.splitlines()[0]
    assert [len(part.tests) for part in parts.values()] == [1, 6]
    assert outcomes(parts["1"]) == {"D2": "partial", "U1": "partial", "X4": "held"}
    assert outcomes(parts["2"]) == {"D2": "held", "U1": "held", "X4": "partial"}
    merged = merge_verdicts(parts)
    assert outcomes(merged) == {"D2": "held", "U1": "held", "X4": "held"}
    assert merged.plan == evaluate_specs([{"name": "coding"}]).digest


DIES = """
import os
import pytest

@pytest.mark.claim("D2")
def test_kills_its_worker():
    os._exit(1)

@pytest.mark.claim("U1")
def test_users():
    pass
"""


def test_a_test_that_took_its_worker_with_it_is_untried(tmp_path: Path) -> None:
    """Of such a test pytest-xdist knows no claim."""
    verdict, said = verify(tmp_path, tests=DIES)
    assert outcomes(verdict) == {"D2": "untried", "U1": "held"}
    assert verdict.exit_code == 2
    assert "D2 untried (1 test)" in said
    [died] = [result.outcome for test, result in verdict.tests.items() if "kills" in test]
    assert died == "untried"  # by which a merge judges


# --- the parts


def test_the_worst_phase_of_a_test_counts() -> None:
    assert worst_of(["held", "untried"]) == "untried"
    assert worst_of(["broken", "untried"]) == "broken"
    assert worst_of(["inapplicable"]) == "inapplicable"
    assert worst_of([]) == "untried"


def test_a_collector_without_a_list_judges_what_it_has_seen() -> None:
    collector = Collector()
    collector.tests = {"D2": [("a", "held")]}
    assert {claim.id: claim.verdict for claim in collector.claims() if claim.tests} == {"D2": "held"}


def test_the_source_is_the_commit_and_what_is_in_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = describe_source()
    assert before.keys() == {"commit", "dirty", "digest"}
    monkeypatch.setattr("harness.records.ROOT", tmp_path)
    assert describe_source()["digest"] != before["digest"]
    monkeypatch.setattr("harness.verify.REPOSITORY", tmp_path)
    assert describe_source() | {"digest": ""} == {"commit": "unknown", "dirty": "unknown", "digest": ""}
