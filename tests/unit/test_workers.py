"""With workers, what shares a machine stays together, and what takes long comes first."""

from pathlib import Path

import pytest

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


def test_what_takes_long_comes_first(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, CHILD, "-v", "-n", "1", "-k", "not shared")
    passed = [line for line in done.stdout.splitlines() if "PASSED" in line]
    assert "test_long" in passed[0], done.stdout
