"""Fixtures of the speech server's tests."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import pytest
import tone_voice

from tests.services.tts.support import Server, server

Start = Callable[..., Server]


@pytest.fixture(scope="session")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the voice ``tone``, and ``low`` at another rate."""
    directory = tmp_path_factory.mktemp("voices")
    tone_voice.make(directory, "tone")
    tone_voice.make(directory, "low", rate=16_000)
    return directory


@pytest.fixture(scope="package")
def speech(tmp_path_factory: pytest.TempPathFactory, voices: Path) -> Iterator[Server]:
    """A server for tests that leave it as it was."""
    with server(tmp_path_factory.mktemp("speech"), voices, default="tone", aliases={"echo": "low"}) as running:
        yield running


@pytest.fixture
def start(tmp_path: Path, voices: Path) -> Iterator[Start]:
    """``start(queue=2)``: a server of the test's own with these settings."""
    with ExitStack() as stack:

        def start(voices: Path = voices, **settings: object) -> Server:
            manager: Callable[..., AbstractContextManager[Server]] = partial(server, tmp_path / "server", voices)
            return stack.enter_context(manager(**settings))

        yield start


@pytest.fixture
def heavy(tmp_path: Path) -> Path:
    """A voice that takes its time: tens of milliseconds for each sentence."""
    tone_voice.make(tmp_path / "voices", "heavy", work=8)
    return tmp_path / "voices"
