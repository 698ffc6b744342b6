"""A busy machine is one as long as the command runs, and whatever ends it, nothing is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.busy import PERIOD, Hierarchy, find_hierarchy, limit_cpu, main, run_busily
from harness.errors import Untriable
from tests.unit.support import PATIENCE, REPOSITORY, ends


def obstacle() -> str | None:
    """Why there can be no quota here."""
    try:
        with limit_cpu(find_hierarchy(), PERIOD):
            return None
    except Untriable as error:
        return str(error)


needs_quota = pytest.mark.skipif(obstacle() is not None, reason=f"{obstacle()}")
OPTIONS = ["--loops=1", "--memory=0.001"]


def left_cgroups(pid: int) -> list[Path]:
    return [path for path in find_hierarchy().root.glob(f"tentaflake-busy-{pid}") if path.is_dir()]


@contextmanager
def busy(*command: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A busy machine whose command has begun (it prints its pid first), and the pids of all that runs for it."""
    # env(1): whoever runs the tests in the background, or by nohup, has them ignore some signals.
    with subprocess.Popen(
        ["env", "--default-signal", sys.executable, "-m", "harness.busy", *OPTIONS, *command],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            command_pid = int(process.stdout.readline())
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield process, [command_pid, *map(int, children)]
        finally:
            process.kill()


SLEEP = ("sh", "-c", "echo $$; exec sleep 600")


@needs_quota
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_whatever_ends_it_nothing_is_left(number: signal.Signals) -> None:
    with busy(*SLEEP) as (process, pids):
        assert len(left_cgroups(process.pid)) == 1 and len(set(pids)) == 4  # command, cleaner, loop, memory
        process.send_signal(number)
        code = process.wait(PATIENCE)
        assert code == (-number if number == signal.SIGKILL else 128 + number)
        assert [pid for pid in pids if not ends(pid)] == []
        assert left_cgroups(process.pid) == []


@needs_quota
def test_the_command_has_its_share_of_the_processors_and_no_more() -> None:
    program = "import time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    share = 0.2 / (os.cpu_count() or 1)  # of one processor
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "harness.busy",
            f"--share={share}",
            "--loops=0",
            "--memory=0",
            sys.executable,
            "-c",
            program,
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0 < float(done.stdout) < 0.7, "two seconds at a fifth"


@needs_quota
def test_its_exit_code_is_the_commands(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_busily(["sh", "-c", "exit 3"], loops=0, memory=0.001) == 3
    assert run_busily(["sh", "-c", "kill -USR1 $$"], loops=0, memory=0) == 128 + signal.SIGUSR1
    assert "processors for the tests" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("line", "controllers", "version"),
    [
        ("cgroup {} cgroup rw,relatime,cpu,cpuacct 0 0", None, 1),
        ("cgroup2 {} cgroup2 rw,nsdelegate 0 0", "cpuset cpu io memory", 2),
        ("cgroup2 {} cgroup2 rw,nsdelegate 0 0", "hugetlb", None),
        ("cgroup {} cgroup rw,relatime,cpuset 0 0", None, None),
    ],
)
def test_the_hierarchy_is_the_one_with_the_controller(
    tmp_path: Path, line: str, controllers: str | None, version: int | None
) -> None:
    if controllers:
        (tmp_path / "cgroup.controllers").write_text(controllers)
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n" + line.format(tmp_path) + "\n")
    if version:
        assert find_hierarchy(mounts) == Hierarchy(tmp_path, version)
    else:
        with pytest.raises(Untriable, match="no CPU quota can be set"):
            find_hierarchy(mounts)


def test_each_version_has_its_own_files() -> None:
    assert Hierarchy(Path("/"), 1).settings(50_000) == {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    assert Hierarchy(Path("/"), 2).settings(50_000) == {"cpu.max": "50000 100000"}


def test_where_no_quota_can_be_had_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.busy.find_hierarchy", lambda: Hierarchy(tmp_path / "missing", 1))
    with pytest.raises(Untriable, match=r"no CPU quota can be set: .*missing") as caught:
        run_busily(["true"])
    assert caught.value.hint is not None and "root" in caught.value.hint


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "there is no command" in capsys.readouterr().err
