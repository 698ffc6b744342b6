"""Fixtures of the audit daemon's tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.services.auditd.support import Local, Program, program, settings

Locally = Callable[..., Local]
Start = Callable[..., Program]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The state directory of the agent ``a``."""
    return tmp_path / "a"


@pytest.fixture
def locally(tmp_path: Path) -> Iterator[Locally]:
    """``locally("a", maxWatches=5)``: a daemon in this process that watches these agents' state directories."""
    with ExitStack() as stack:

        def start(*agents: str, **more: Any) -> Local:
            local = Local(settings(tmp_path, *(agents or ("a",)), **more))
            stack.callback(local.close)
            return local

        yield start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start("a")``: the program, watching these agents' state directories."""
    with ExitStack() as stack:

        def start(*agents: str, wrapper: list[str] | None = None, ready: bool = True, **more: Any) -> Program:
            data = settings(tmp_path, *(agents or ("a",)), **more)
            return stack.enter_context(program(data, tmp_path, *(wrapper or []), ready=ready))

        yield start
