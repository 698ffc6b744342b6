"""What a long run does just now: what is done, what runs, how long is left, and each claim as soon as it is settled.

On a terminal one line that moves; in a log a plain line now and then. Both on stderr.
"""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

INTERVAL = 15.0
"""Seconds between two lines in a log, but for those of claims."""
NAME = 60
"""Characters of a test's name."""


@dataclass
class Board:
    """Things to do (tests, mutants), of which ``workers`` are done at once. Names are told by whoever does them."""

    title: str
    workers: int
    console: Console
    started: float = field(default_factory=time.monotonic)
    _expected: dict[str, float] = field(default_factory=dict)
    _running: dict[str, float] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, seconds: Mapping[str, float]) -> None:
        """What is to be done, and how long each takes by what is known."""
        with self._lock:
            self._expected = dict(seconds)

    def begin(self, name: str) -> None:
        with self._lock:
            self._running[name] = time.monotonic()

    def finish(self, name: str) -> None:
        with self._lock:
            self._running.pop(name, None)
            self._done.add(name)

    def say(self, text: Text) -> None:
        """A line that stays."""
        self.console.print(text, soft_wrap=True)

    def find_seconds_left(self) -> float | None:
        """Seconds, if what is left takes what it took the last time; None before anything is known."""
        if not self._expected:
            return None
        left = {name: seconds for name, seconds in self._expected.items() if name not in self._done}
        for name, began in self._running.items():
            left[name] = max(0.0, left.get(name, 0.0) - (time.monotonic() - began))
        return max(sum(left.values()) / self.workers, *left.values()) if left else 0.0

    def describe(self) -> str:
        """All of it in one line."""
        with self._lock:
            count = f"{len(self._done)} of {len(self._expected)}" if self._expected else f"{len(self._done)}"
            left = self.find_seconds_left()
            now = time.monotonic()
            running = [f"{shorten(name)} ({now - began:.0f} s)" for name, began in self._running.items()]
        rest = "" if left is None else f", about {describe_seconds(left)} left"
        return f"{self.title}: {count} done after {describe_seconds(now - self.started)}{rest}; " + (
            f"now {', '.join(running)}" if running else "starting" if not self._done else "ending"
        )

    def __rich__(self) -> Text:
        return Text(self.describe(), overflow="ellipsis", no_wrap=True)


def shorten(name: str) -> str:
    """The test's own name, as far as there is room."""
    short = name.rpartition("::")[2]
    return short if len(short) <= NAME else f"{short[: NAME - 1]}…"


def describe_seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextmanager
def show_board(title: str, workers: int, console: Console | None = None) -> Iterator[Board]:
    """A board that is shown from now on, while the body runs."""
    console = console or Console(file=sys.__stderr__, highlight=False, emoji=False)
    board = Board(title, workers, console)
    if console.is_terminal:
        with console.status(board):
            yield board
        return
    console.print(board.describe(), soft_wrap=True)
    ended = threading.Event()
    thread = threading.Thread(target=_print_lines, args=(board, ended), daemon=True)
    thread.start()
    try:
        yield board
    finally:
        ended.set()
        thread.join()


def _print_lines(board: Board, ended: threading.Event) -> None:
    while not ended.wait(INTERVAL):
        board.console.print(board.describe(), soft_wrap=True, markup=False)
