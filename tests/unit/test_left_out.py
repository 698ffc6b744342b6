"""What is left out of a run is named at its end, with its reason, and run when it is asked for."""

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from harness.left_out import RARE, describe_left_out, find_left_out
from tests.faults.support import run_pytest
from tests.unit.support import REPOSITORY

CHILD = """
import pytest

@pytest.mark.power
def test_cut():
    pass

@pytest.mark.live
@pytest.mark.parametrize("number", range(3))
def test_live(number):
    pass

def test_quick():
    pass
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_what_is_left_out_is_named_at_the_end_with_its_reason(tmp_path: Path, workers: list[str]) -> None:
    done = run_pytest(tmp_path, CHILD, *workers)
    assert "1 passed" in done.stdout, done.stdout
    assert re.findall(r"left out: (\d+ tests? marked \w+) \(.+: .+\); ci/test --all runs", done.stdout) == [
        "3 tests marked live",
        "1 test marked power",
    ]


def test_what_other_options_take_away_is_not_counted_as_left_out(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, CHILD, "-k", "live or quick", "--vm-with=power")
    assert "1 passed" in done.stdout, done.stdout
    assert re.findall(r"left out: .+ marked (\w+)", done.stdout) == ["live"]


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ("", "hermes live power nixos auditd"),
        ("--vm-all", ""),
        ("--vm-with=power --vm-with=hermes", "live nixos auditd"),
        ("-m power", "hermes live nixos auditd"),
        ("-m 'power or auditd'", "hermes live nixos"),
        ("-m 'not power'", "hermes live nixos auditd"),
    ],
)
def test_what_is_asked_for_is_not_left_out(pytestconfig: pytest.Config, options: str, left_out: str) -> None:
    parser = pytestconfig._parser
    asked = parser.parse(shlex.split(options), namespace=None)

    class Config:
        getoption = staticmethod(lambda name: getattr(asked, name))

    assert find_left_out(cast(pytest.Config, Config)) == left_out.split()


def test_nothing_is_said_where_nothing_is_left_out() -> None:
    assert describe_left_out(Counter()) == []


def test_every_marker_that_is_left_out_is_one_of_some_test() -> None:
    sources = "".join(path.read_text() for path in REPOSITORY.glob("tests/*/**/*.py") if path != Path(__file__))
    assert [rare.marker for rare in RARE if f"pytest.mark.{rare.marker}" not in sources] == []
