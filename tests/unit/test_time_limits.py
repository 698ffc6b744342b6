"""docs/time-limits.md lists every time limit in the sources, and no other."""

from tests.unit.support import REPOSITORY
from tests.unit.time_limits import find_limits, limits_in, read_table

PAGE = REPOSITORY / "docs" / "time-limits.md"


def test_every_time_limit_is_listed_with_its_reason_and_none_that_is_not_there() -> None:
    assert read_table(PAGE) == find_limits()


def test_a_limit_is_found_wherever_it_is_written() -> None:
    source = """
READ_TIMEOUT: float = 5.0
PATIENCE = 100 * MILLISECOND
TIMEOUT = other.TIMEOUT
COUNT = 3
def wait(what, timeout=60.0, *, within: float = 1): ...
wait("it", timeout=7)
wait("it", timeout=PATIENCE)
"""
    assert set(limits_in(source)) == {
        ("READ_TIMEOUT", "5.0"),
        ("PATIENCE", "100 * MILLISECOND"),
        ("timeout=", "60.0"),
        ("within=", "1"),
        ("timeout=", "7"),
    }
