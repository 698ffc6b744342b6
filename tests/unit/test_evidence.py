"""Where the evidence of a test goes: a place of its own, whatever its id."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.evidence import directory_for
from tests.unit.support import PROPERTY

ARTIFACTS = Path("artifacts")
IDS = st.text("ab/-.:[] @\n\0ä", min_size=1, max_size=8).map(lambda name: f"tests/t.py::test_{name}")


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ("tests/contract/test_users.py::test_agent", "tests-contract-test_users-test_agent"),
        ("test_child.py::test_that_fails[a-1.5]", "test_child-test_that_fails[a-1.5]"),
    ],
)
def test_the_place_can_be_told_from_a_plain_id(test: str, name: str) -> None:
    assert directory_for(ARTIFACTS, test) == ARTIFACTS / name


ALIKE = [
    *("t.py::test[a/b]", "t.py::test[a-b]", "t.py::test[a b]", "t.py::test[a//b]", "t.py::test[a\nb]", "t.py::test-"),
    *("t.py::test", "t.py::Test::a", "t.py::Test-a", "a/t.py::test", "a-t.py::test", "t.py::test[ä]", "t.py::test[ö]"),
    *("a.py::b_c", "a/b.py::c", "a.py::b-c", "a-b.py::c", "a.py::b/c", "a.py::b::c"),
    *(f"t.py::test[{'x' * 200}{end}]" for end in "ab"),
]


def test_no_two_tests_have_one_place() -> None:
    assert len({directory_for(ARTIFACTS, test) for test in ALIKE}) == len(ALIKE)


@PROPERTY
@given(IDS, IDS)
def test_the_place_is_one_safe_name_and_another_for_another_id(one: str, other: str) -> None:
    place = directory_for(ARTIFACTS, one)
    assert place.parent == ARTIFACTS and place.name.isascii() and place.name.isprintable() and len(place.name) < 200
    assert (place == directory_for(ARTIFACTS, other)) == (one == other)
