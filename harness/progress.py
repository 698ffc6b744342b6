"""What takes longer than two seconds says so: on stderr, live on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.status import Status


@dataclass
class Step:
    """One long-running step; ``update`` says what it is doing now."""

    title: str
    _status: Status | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def update(self, detail: str) -> None:
        if self._status is not None:
            self._status.update(f"{self.title} [dim]{self.seconds:.0f} s  {detail[:70]}[/dim]")


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show ``title`` while the body runs and how long it took."""
    console = Console(file=sys.__stderr__, highlight=False)
    if console.is_terminal:
        with console.status(title) as status:
            current = Step(title, status)
            yield current
    else:
        console.print(f"{title} ...")
        current = Step(title)
        yield current
    console.print(f"[green]done[/green] {title} [dim]({current.seconds:.1f} s)[/dim]")
