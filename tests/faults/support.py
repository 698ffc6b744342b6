"""Runs pytest as a user does: in a process of its own, that can be killed, on a test written for the occasion."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.lab import Settings
from tests.unit.support import PATIENCE, REPOSITORY, ends

BOOT_PATIENCE = 1200.0
"""Seconds in which a child has its machine; long, in case its template must be made first."""
READY = """
from pathlib import Path
from time import sleep

def test_that_waits(machine):
    place = Path(__file__).with_name("ready")
    place.with_suffix(".new").write_text(f"{machine.process.popen.pid} {machine.process.directory}")
    place.with_suffix(".new").rename(place)
    sleep(600)
"""


def environment() -> dict[str, str]:
    """This process' environment without what would change a child's settings, and with the harness on its path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TENTAFLAKE_", "PYTEST_"))}
    return kept | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]), "PYTHONSAFEPATH": "1"}


def pytest_command(directory: Path, test: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command line of a pytest with the plugin, on a file in ``directory`` that holds ``test``."""
    (directory / "test_child.py").write_text(test)
    (directory / "pytest.ini").write_text("[pytest]\n")
    # hypothesis' plugin imports all of hypothesis at the end of any run, which takes as long as the rest.
    plugins = ("-p", "harness.plugin", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--rootdir", ".")
    # Who started us may have it that signals are ignored (nohup, a shell's background job).
    run = ("env", "--default-signal=INT,HUP", sys.executable)
    return [*run, "-m", "pytest", *plugins, *arguments, "test_child.py"]


def vm_options(settings: Settings) -> list[str]:
    """The options that give a child the same machines, from the same templates."""
    names = ("guest", "suite", "accel", "cpus", "memory", "cache")
    return [f"--vm-{name}={getattr(settings, name)}" for name in names]


def run_pytest(
    directory: Path, test: str, *arguments: str, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A pytest from start to end, without a terminal."""
    return subprocess.run(
        pytest_command(directory, test, arguments),
        cwd=directory,
        env=environment() | dict(variables or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOOT_PATIENCE,
        start_new_session=True,
        check=False,
    )


@dataclass(frozen=True)
class Child:
    """A pytest in the middle of a test, its QEMU's pid and the machine's run directory."""

    process: subprocess.Popen[bytes]
    qemu: int
    run: Path

    def end(self, number: signal.Signals) -> int:
        """Send the signal and wait; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


@contextmanager
def child_with_machine(
    directory: Path, wait: Callable[[Path], str], *arguments: str, test: str = READY
) -> Iterator[Child]:
    """A child that has its machine; ``wait`` gives the content of the file with which it says so."""
    command = pytest_command(directory, test, arguments)
    with (
        (directory / "output").open("wb") as output,
        subprocess.Popen(
            command,
            cwd=directory,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            qemu, run = wait(directory / "ready").split(" ", 1)
            assert not ends(int(qemu), within=0), "the control: its QEMU runs"
            yield Child(process, int(qemu), Path(run))
        finally:
            process.kill()
