"""A machine is lent again after a test that passed, and not after one that failed."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.recycling import Recycler


@pytest.fixture
def made() -> list[str]:
    return []


@pytest.fixture
def recycler(made: list[str]) -> Recycler[str]:
    @contextmanager
    def make() -> Iterator[str]:
        name = f"machine {len(made)}"
        made.append(name)
        yield name
        made.append(f"{name} is gone")

    return Recycler(make)


def test_what_was_given_back_is_lent_again(recycler: Recycler[str], made: list[str]) -> None:
    with recycler.lend("a test") as first:
        pass
    with recycler.lend("a test") as second:
        pass
    assert first is second and made == ["machine 0"]


def test_what_failed_is_evidence_until_the_next_is_made(recycler: Recycler[str], made: list[str]) -> None:
    with pytest.raises(AssertionError), recycler.lend("a test"):
        raise AssertionError
    assert made == ["machine 0"]
    with recycler.lend("a test") as second:
        assert second == "machine 2" and made[:2] == ["machine 0", "machine 0 is gone"]


def test_the_end_ends_what_there_is(recycler: Recycler[str], made: list[str]) -> None:
    with recycler.lend("a test"):
        pass
    recycler.close()
    assert made == ["machine 0", "machine 0 is gone"]


def test_a_failure_names_who_used_the_machine_before(recycler: Recycler[str]) -> None:
    """And nobody who used another one."""
    for users in (["a", "b"], []):
        for user in users:
            with recycler.lend(user):
                pass
        with pytest.raises(AssertionError) as failed, recycler.lend("c"):
            raise AssertionError
        said = " and brought back, by: a, then b." if users else " and brought back, by: nobody."
        assert failed.value.__notes__[0].endswith(said)
