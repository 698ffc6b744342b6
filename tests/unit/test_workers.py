"""With workers, what shares a machine stays together, cheap claims come first, and what takes long last."""

from pathlib import Path

import pytest

from harness.cache import Cache
from harness.durations import Durations, record_durations
from tests.faults.support import run_pytest

CHILD = """
import pytest

@pytest.fixture(params=range(4))
def number(request):
    return request.param

@pytest.fixture
def restarted():  # a name that marks what is expensive and shared
    pass

def test_shared(restarted, number):
    pass

def test_other(number):
    pass

@pytest.mark.recorded
def test_long():
    pass
"""


@pytest.mark.parametrize(
    ("options", "how"), [([], "LoadGroupScheduling"), (["--dist=worksteal"], "WorkStealingScheduling")]
)
def test_tests_that_share_a_machine_go_to_one_worker_unless_told_otherwise(
    tmp_path: Path, options: list[str], how: str
) -> None:
    done = run_pytest(tmp_path, CHILD, "-v", "-n", "2", *options)
    assert f"scheduling tests via {how}" in done.stdout, done.stdout
    assert "9 passed" in done.stdout
    if not options:
        workers = {
            line.split("]")[0] for line in done.stdout.splitlines() if "PASSED" in line and "test_shared" in line
        }
        assert len(workers) == 1


CLAIMS = """
import pytest

@pytest.mark.claim("D2")
@pytest.mark.recorded
def test_long():
    pass

@pytest.mark.claim("U1")
def test_cheap():
    pass

@pytest.mark.claim("D4")
@pytest.mark.parametrize("number", range(9))
def test_others(number):
    pass
"""


def test_the_cheapest_claim_is_settled_first_and_what_takes_long_comes_last(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, CLAIMS, "-v", "-n", "1", f"--vm-cache={tmp_path}")
    passed = [line for line in done.stdout.splitlines() if "PASSED" in line]
    assert len(passed) == 11, done.stdout
    assert "test_cheap" in passed[0] and "test_long" in passed[-1], done.stdout


def test_recorded_durations_decide_what_is_cheap(tmp_path: Path) -> None:
    record_durations(Cache(tmp_path), "debian", Durations({"test_child.py::test_cheap": 500.0}))
    done = run_pytest(tmp_path, CLAIMS, "-v", "-n", "1", f"--vm-cache={tmp_path}")
    passed = [line for line in done.stdout.splitlines() if "PASSED" in line]
    assert "test_others" in passed[0] and "test_cheap" in passed[-1], done.stdout


def test_without_workers_the_order_is_that_of_the_file(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, CLAIMS, "-v", f"--vm-cache={tmp_path}")
    assert "test_long" in next(line for line in done.stdout.splitlines() if "PASSED" in line)
