"""Floods: nothing is lost, and what the kernel throws away is found again.

`AUDITD_FILES` sets how many files the floods make (default: 100,000).
"""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.auditd.conftest import Start
from tests.services.auditd.support import Program, told, verdicts

FILES = int(os.environ.get("AUDITD_FILES", "100000"))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A place in memory, where there is one: making files fast is the attack, and not what is tested."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as directory:
        yield Path(directory)


@pytest.fixture
def swift(memory: Path, tmp_path: Path) -> None:
    """Two agents' state directories are in memory."""
    for agent in ("a", "b"):
        (memory / agent).mkdir()
        (tmp_path / agent).symlink_to(memory / agent)


def flood(home: Path, count: int) -> None:
    """Files in a tight loop, a thousand in each directory."""
    for number in range(count):
        if number % 1000 == 0:
            os.mkdir(home / f"{number // 1000}")  # noqa: PTH102 - as fast as it goes
        os.close(os.open(f"{home}/{number // 1000}/{number}", os.O_CREAT | os.O_WRONLY))


def created(running: Program, home: Path) -> list[str]:
    return sorted(line.removeprefix("create ") for line in told(running.rows(kinds=("create",)), home))


@pytest.mark.auditd
@pytest.mark.usefixtures("swift")
def test_a_flood_is_recorded_whole_and_nothing_twice(start: Start, home: Path) -> None:
    running = start(maxBytes=2**30)
    flood(home, FILES)
    running.wait_row(300, path=f"*/{FILES - 1}")
    running.stop()
    expected = [f"{number // 1000}/{number}" for number in range(FILES)] + [str(n) for n in range(-(-FILES // 1000))]
    found = created(running, home)
    assert found == sorted(expected), f"{running.log} {running.rows()[-3:]} {running.rows(agent='')}"
    assert [fault for verdict in verdicts(running.data["database"]) for fault in verdict.faults] == []


@pytest.fixture
def queue_size() -> int:
    """Notifications that the kernel holds for one watcher."""
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


@pytest.mark.auditd
@pytest.mark.usefixtures("swift")
def test_another_agent_does_not_wait_for_the_end_of_a_flood(
    start: Start, home: Path, tmp_path: Path, queue_size: int
) -> None:
    running = start("a", "b", maxBytes=2**30)
    running.signal(signal.SIGSTOP)
    for number in range(queue_size // 2 - 100):
        (home / f"flood{number}").touch()
    (tmp_path / "b/file").touch()
    running.signal(signal.SIGCONT)
    running.wait_row(path=f"*/flood{number}")
    [row] = running.rows(agent="b", kinds=("create",))
    assert row["id"] < running.rows(agent="a", kinds=("create",))[4000]["id"]


@pytest.mark.usefixtures("swift")
def test_what_overflows_the_kernels_queue_is_found_again_and_marked(start: Start, home: Path, queue_size: int) -> None:
    running = start("a", "b", maxBytes=2**30)
    for name in ("changed", "deleted", "moved"):
        (home / name).write_text(name)
    (home / "directory").mkdir()
    (home / "directory/kept").touch()
    running.wait_row(path="*/kept")
    running.wait_row(path="*/moved", kinds=("write",))  # those are told a moment later
    running.signal(signal.SIGSTOP)
    try:
        for number in range(queue_size // 2 + 1000):
            (home / f"flood{number}").touch()  # a creation, and a closing after writing
        (home / "changed").write_text("changed meanwhile")
        (home / "changed").chmod(0o600)
        (home / "deleted").unlink()
        (home / "directory").rename(home / "other")
        (home / "new").mkdir()
        (home / "new/file").touch()
    finally:
        running.signal(signal.SIGCONT)
    running.wait_row(kinds=("rescan",), origin="overflow")
    running.stop()
    marked = told([row for row in running.rows(agent="a") if row["origin"] == "overflow"], home)
    for line in ("write changed", "chmod changed", "delete deleted", "rename directory other", "create new/file"):
        assert line in marked, line
    expected = ["changed", "deleted", "directory", "directory/kept", "moved", "new", "new/file"]
    assert created(running, home) == sorted(expected + [f"flood{number}" for number in range(queue_size // 2 + 1000)])
    [gap] = running.rows(kinds=("overflow",))
    assert gap["agent"] == "a" and gap["first"] < gap["time"]


def test_what_happened_while_the_daemon_was_down_is_found_and_marked(start: Start, home: Path) -> None:
    running = start()
    for name in ("changed", "deleted"):
        (home / name).touch()
    running.wait_row(path="*/deleted")
    running.stop()
    (home / "changed").write_text("meanwhile")
    (home / "deleted").unlink()
    (home / "new/sub").mkdir(parents=True)
    running.start()
    running.stop()
    found = [row for row in running.rows() if row["origin"] == "start" and row["kind"] not in ("watch", "rescan")]
    assert sorted(told(found, home)) == ["create new", "create new/sub", "delete deleted", "write changed"]
    assert all(row["first"] < row["time"] for row in found)  # since when nobody watched
