"""What the unit tests share."""

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
"""Seconds after which a test gives up; never what a test measures."""
PROPERTY = settings(
    deadline=None,
    database=None,
    max_examples=60,
    phases=[Phase.explicit, Phase.generate],  # no shrinking: an example may fail by a timeout
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def ends(pid: int, within: float = PATIENCE) -> bool:
    """Whether the process is gone, now or within so many seconds."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], within)[0])
    finally:
        os.close(process)


def open_files() -> int:
    """How many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextmanager
def sleeper(directory: Path) -> Iterator[int]:
    """The pid of a process that does nothing, in ``directory``."""
    with subprocess.Popen(["sleep", "600"], cwd=directory) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@contextmanager
def python(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python that runs ``program`` with the harness on its path; killed at the end."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that the process prints, which is how it says how far it is."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def unable_to_set_the_clock(command: Sequence[str]) -> list[str]:
    """``command`` without the privilege to set this machine's clock, and killed when its parent dies."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv (util-linux) is not installed"
    dropped = ["--bounding-set=-sys_time,-sys_admin", "--inh-caps=-sys_time,-sys_admin"] if os.geteuid() == 0 else []
    return [setpriv, f"--pdeathsig={signal.SIGKILL.name.removeprefix('SIG')}", *dropped, *command]
