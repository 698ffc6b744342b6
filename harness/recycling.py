"""One machine for several tests, each of which brings it back to a state that the next one knows.

A fork translates anew every program that it runs, and the first start of a container in it costs twice what the next
ones cost. A test that shows that its machine is as it was leaves it to the next test; after a failure the next one gets
a fresh machine.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Recycler(Generic[T]):
    """Lends what ``make`` makes; ``close`` it at the end."""

    def __init__(self, make: Callable[[], AbstractContextManager[T]]) -> None:
        self._make = make
        self._stack = ExitStack()
        self._made: T | None = None
        self._users: list[str] = []

    @contextmanager
    def lend(self, user: str) -> Iterator[T]:
        """What the last one gave back, or a new one. Whoever fails does not give it back: it is evidence until the next
        one comes, and the failure names who used it before ``user``."""
        made, self._made = self._made, None
        if made is None:
            self.close()
            made = self._stack.enter_context(self._make())
        try:
            yield made
        except BaseException as error:
            before = ", then ".join(self._users)
            error.add_note(f"The machine was used before, and brought back, by: {before or 'nobody'}.")
            raise
        self._users.append(user)
        self._made = made

    def close(self) -> None:
        """End what there is."""
        self._made = None
        self._users.clear()
        self._stack.close()
