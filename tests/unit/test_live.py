"""What a long run shows: what is done, what runs and how long is left, in a log and on a terminal."""

import io
import time

import pytest
from rich.console import Console
from rich.text import Text

from harness.report import live
from harness.report.live import Board, describe_seconds, shorten, show_board
from tests.unit.support import PATIENCE


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    return clock


@pytest.fixture
def board(clock: Clock) -> Board:
    return Board("attacking", 2, Console(file=io.StringIO(), width=200), started=clock.now)


def test_before_anything_is_known_nothing_is_promised(board: Board) -> None:
    assert board.describe() == "attacking: 0 done after 0 s; starting"
    assert board.find_seconds_left() is None


def test_what_is_done_what_runs_and_what_is_left_is_one_line(board: Board, clock: Clock) -> None:
    board.expect({"t.py::test_a": 10, "t.py::test_b": 100, "t.py::test_c": 110})
    board.begin("t.py::test_a")
    clock.now += 10
    board.finish("t.py::test_a")
    board.begin("t.py::test_b")
    clock.now += 20
    assert board.describe() == "attacking: 1 of 3 done after 30 s, about 2 min left; now test_b (20 s)"


def test_what_is_left_is_shared_by_the_workers_and_never_less_than_the_longest(board: Board, clock: Clock) -> None:
    board.expect(dict.fromkeys("abcd", 30.0))
    assert board.find_seconds_left() == 60
    board.expect({"a": 30, "b": 500})
    assert board.find_seconds_left() == 500
    board.begin("b")
    clock.now += 900  # it takes longer than it did
    assert board.find_seconds_left() == 30
    for name in "ab":
        board.finish(name)
    assert board.find_seconds_left() == 0
    assert board.describe().endswith("2 of 2 done after 15 min, about 0 s left; ending")


def test_long_names_and_times_are_made_short() -> None:
    assert shorten("tests/t.py::test_a[x]") == "test_a[x]"
    assert len(shorten("x" * 100)) == 60
    assert [describe_seconds(each) for each in (0.4, 89, 120, 3000)] == ["0 s", "89 s", "2 min", "50 min"]


def test_a_log_has_the_first_line_at_once_and_others_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "INTERVAL", 0.01)
    output = io.StringIO()
    with show_board("attacking", 2, Console(file=output, width=200)) as board:
        assert output.getvalue() == "attacking: 0 done after 0 s; starting\n"
        board.expect({"a": 1})
        board.begin("a")
        deadline = time.monotonic() + PATIENCE
        while "now a" not in output.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        board.say(Text("D2 held (15 tests)"))
    assert "now a" in output.getvalue()
    assert "\nD2 held (15 tests)\n" in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_a_log_of_a_short_run_is_one_line() -> None:
    output = io.StringIO()
    with show_board("attacking", 2, Console(file=output, width=200)):
        pass
    assert output.getvalue().count("\n") == 1


def test_on_a_terminal_the_line_moves_and_what_is_said_stays() -> None:
    output = io.StringIO()
    with show_board("attacking", 2, Console(file=output, width=200, force_terminal=True)) as board:
        board.expect({"test_a": 1})
        board.begin("test_a")
        board.say(Text("D2 held (15 tests)"))
    assert "D2 held (15 tests)\n" in output.getvalue()
    assert "now test_a" in output.getvalue() and "\x1b[2K" in output.getvalue()
