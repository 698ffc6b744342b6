"""Tests that passed need not run again while nothing has changed: harness.records."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness import records
from harness.cache import Cache
from harness.lab import Lab
from harness.policy import Plan, evaluate_many
from harness.records import Records
from tests.faults.support import run_pytest

TEST = "tests/contract/test_limits.py::test_a_flood"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """As far as records need one."""
    parts: dict[str, Any] = {
        "cache": Cache(tmp_path),
        "image": SimpleNamespace(key="guest-1"),
        "hardware": SimpleNamespace(key=lambda: {"cpus": 2}),
    }
    return cast("Lab", SimpleNamespace(**parts))


@pytest.fixture
def plan() -> Plan:
    return plan_of({"name": "coding"})


def plan_of(spec: dict[str, object]) -> Plan:
    found = evaluate_many([[spec]])[0]
    assert isinstance(found, Plan)
    return found


def test_a_test_that_passed_is_on_record(lab: Lab, plan: Plan) -> None:
    assert Records(lab, plan).find(TEST) is None
    Records(lab, plan).write(TEST, 26.0)
    found = Records(lab, plan).find(TEST)
    assert found is not None and (found.test, found.duration) == (TEST, 26.0)
    assert Records(lab, plan).find(f"{TEST}s") is None


def test_a_test_that_failed_is_not(lab: Lab, plan: Plan) -> None:
    Records(lab, plan).write(TEST, 26.0)
    Records(lab, plan).forget(TEST)
    Records(lab, plan).forget(TEST)
    assert Records(lab, plan).find(TEST) is None


def test_a_record_stands_for_one_plan_one_image_and_one_source(
    lab: Lab, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Records(lab, plan).write(TEST, 26.0)
    assert Records(lab, plan_of({"name": "coding", "pids": 99})).find(TEST) is None
    other = cast("Lab", SimpleNamespace(**vars(lab) | {"image": SimpleNamespace(key="guest-2")}))
    assert Records(other, plan).find(TEST) is None
    assert Records(lab, plan).find(TEST) is not None
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert Records(lab, plan).find(TEST) is None


CHILD = """
import pytest
from harness import plugin
from harness.records import Record

plugin.records_of = lambda config: Shelf
plugin.lab_of = lambda config: Shelf

class Shelf:
    has_image = True
    def find(test):
        return Record(test, 0.0, 1.0) if test.endswith("passed_before") else None
    def write(test, duration):
        print("written", test)
    def forget(test):
        print("forgotten", test)

@pytest.fixture(autouse=True, scope="session")
def planned(pytestconfig):
    pytestconfig.stash[plugin.PLAN] = "a plan"

@pytest.fixture
def costly():
    print("costly")

@pytest.mark.recorded
def test_passed_before(costly):
    assert False

@pytest.mark.recorded
def test_passes_now():
    pass

@pytest.mark.recorded
def test_fails():
    assert False
"""


def test_what_is_on_record_needs_no_fixture_and_what_fails_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import test_child")
    done = run_pytest(tmp_path, CHILD, "--vm-records", "-s", "-v", f"--vm-cache={tmp_path}")
    assert "2 passed, 1 failed" in done.stdout or "1 failed, 2 passed" in done.stdout, done.stdout
    assert "written test_child.py::test_passes_now" in done.stdout
    assert "forgotten test_child.py::test_fails" in done.stdout
    assert "\ncostly" not in done.stdout


def test_without_the_option_all_run(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import test_child")
    done = run_pytest(tmp_path, CHILD, "-s", f"--vm-cache={tmp_path}")
    assert "1 passed" in done.stdout and "2 failed" in done.stdout


WRONG = """
import pytest

@pytest.mark.recorded
def test_never(machine):
    pass
"""


@pytest.mark.parametrize("options", [[], ["--vm-records"]])
def test_a_plan_that_is_wrong_is_an_error_of_the_test(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "agents.json").write_text('[{"name": "UPPER"}]')
    done = run_pytest(tmp_path, WRONG, *options, "--vm-agents=agents.json", f"--vm-cache={tmp_path / 'cache'}")
    assert "1 error" in done.stdout and "INTERNALERROR" not in done.stdout + done.stderr
    assert "must be 1 to 24 lower-case letters" in done.stdout
