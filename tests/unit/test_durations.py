"""What former runs took: recorded whole, by many at once, and never in the way."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import durations
from harness.cache import Cache
from harness.cli import app
from harness.durations import (
    COMMITTED,
    UNKNOWN,
    UNKNOWN_LONG,
    Durations,
    Estimator,
    commit_durations,
    read_durations,
    read_recorded,
    record_durations,
    recorded_file,
)
from harness.errors import HarnessError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(durations, "COMMITTED", tmp_path / "committed.json")
    return Cache(tmp_path / "cache")


def test_the_last_run_counts_and_what_it_did_not_run_stays(cache: Cache) -> None:
    record_durations(cache, "debian", Durations({"a": 1, "b": 2}, {"stage": 9}, {"m": 5}, {"verify": 7}))
    record_durations(cache, "debian", Durations({"b": 3}))
    assert read_recorded(cache, "debian") == Durations({"a": 1, "b": 3}, {"stage": 9}, {"m": 5}, {"verify": 7})
    assert read_recorded(cache, "nixos") == Durations()


def test_what_is_committed_stands_in_for_what_is_not_recorded(cache: Cache) -> None:
    durations.COMMITTED.write_text('{"debian": {"tests": {"a": 10, "b": 20}}}')
    record_durations(cache, "debian", Durations({"b": 3}))
    assert read_recorded(cache, "debian").tests == {"a": 10, "b": 3}


GARBAGE = [
    "",
    "{",
    "[]",
    '{"debian": 7}',
    '{"debian": {"tests": {"a": "x"}}}',
    '{"debian": {"tests": {"a": -1}}}',
    "\xff",
]


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_in_the_cache_is_nothing_and_does_not_stay(cache: Cache, content: str) -> None:
    file = recorded_file(cache)
    file.parent.mkdir()
    file.write_text(content, encoding="latin-1")
    assert read_recorded(cache, "debian") == Durations()
    record_durations(cache, "debian", Durations({"a": 1}))
    assert read_recorded(cache, "debian").tests == {"a": 1}


@pytest.mark.parametrize("content", [*GARBAGE, None])
def test_garbage_in_a_file_that_decides_about_shards_is_an_error(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "durations.json"
    if content is not None:
        file.write_text(content, encoding="latin-1")
    with pytest.raises(HarnessError, match=r"durations\.json has no durations"):
        read_durations(file, "debian")


def test_many_can_record_at_once(cache: Cache) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: record_durations(cache, "debian", Durations({f"t{n}": n})), range(40)))
    assert len(read_recorded(cache, "debian").tests) == 40
    assert [path.name for path in cache.root.iterdir() if "partial" in path.name] == []


def test_an_estimate_is_the_tests_own_or_its_functions_or_a_guess() -> None:
    known = Estimator(Durations({"t.py::a": 4, "t.py::b[1]": 6, "t.py::b[2]": 8}))
    assert known.estimate("t.py::a", is_long=True) == 4
    assert known.estimate("t.py::b[3]") == 7
    assert known.estimate("t.py::c") == UNKNOWN
    assert known.estimate("t.py::c", is_long=True) == UNKNOWN_LONG


def test_what_is_committed_is_what_takes_long_in_order(cache: Cache, tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    target.write_text('{"nixos": {"tests": {"kept": 5.0}}, "debian": {"tests": {"gone": 5.0}}}')
    record_durations(cache, "debian", Durations({"b": 2.345, "a": 7.0, "short": 0.2}, {"stage": 9.99}))
    assert commit_durations(cache, target) == 3
    assert json.loads(target.read_text()) == {
        "nixos": {"tests": {"kept": 5.0}, "fixtures": {}, "mutants": {}, "runs": {}},
        "debian": {"tests": {"a": 7.0, "b": 2.3}, "fixtures": {"stage": 10.0}, "mutants": {}, "runs": {}},
    }
    assert list(read_durations(target, "debian").tests) == ["a", "b"]


def test_nothing_recorded_is_nothing_to_commit(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="has no durations"):
        commit_durations(cache, tmp_path / "target.json")


def test_the_command_lists_them_and_writes_what_is_to_be_committed(cache: Cache, tmp_path: Path) -> None:
    record_durations(cache, "debian", Durations({"t.py::test_a[x y]": 7.0}, {"stage": 9.0}))
    target = tmp_path / "target.json"
    shown = CliRunner().invoke(app, ["durations", f"--cache={cache.root}"])
    assert shown.output.splitlines() == ["     9.0 s  fixture stage", "     7.0 s  test    t.py::test_a[x y]"]
    written = CliRunner().invoke(app, ["durations", "--write", str(target), f"--cache={cache.root}"])
    assert written.output == f"{target}: 1 tests\n"
    assert read_durations(target, "debian").fixtures == {"stage": 9.0}


def test_what_is_committed_can_be_read() -> None:
    read_durations(COMMITTED, "debian")
