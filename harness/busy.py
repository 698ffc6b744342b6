"""Runs a command as on a busy machine: ``python -m harness.busy COMMAND...`` (``ci/test --busy``).

The command has a third of the processors' time (a CPU quota: cgroups(7), version 1 or 2, which takes root). Beside it
run two loops that take all that they get, and a process that holds half of the memory and touches it again and again.

However it ends, nothing is left: the load dies with this process (``PR_SET_PDEATHSIG``), and a child that does nothing
but wait for its end (the *cleaner*) ends what is left in the cgroup then, and removes it.
"""

import argparse
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from harness.errors import HarnessError, Untriable

SHARE = 1 / 3
"""Of the processors' time, for the command."""
PERIOD = 100_000
"""Microseconds in which the kernel grants the quota."""
LOOPS = 2
MEMORY = 1 / 2
"""Of the machine's memory, held beside it."""
LEAVE_TIME = 10.0
"""Seconds that the command's processes have to end by themselves once this one is gone."""
LOOP = "while True: pass"
# One byte of each page, some thousands at a time and then a pause: all of it every ten seconds or so.
HOLD = """
import mmap, sys, time
size = int(sys.argv[1])
memory = mmap.mmap(-1, size)
step = max(size // 100 // 4096, 1) * 4096
first = True
while True:
    for start in range(0, size, step):
        end = min(start + step, size)
        memory[start:end:4096] = bytes(len(range(start, end, 4096)))
        time.sleep(0 if first else 0.1)
    if first:
        print("held", flush=True)
    first = False
"""
# Waits until whoever holds the other end of its standard input is gone. $1 directory, $2 tenths of a second to wait.
CLEANER = """
trap '' INT TERM HUP
cat > /dev/null
tenths=0
until rmdir "$1" 2> /dev/null || [ ! -d "$1" ]; do
  tenths=$((tenths + 1))
  [ "$tenths" -lt "$2" ] || while read -r pid; do kill -KILL "$pid" 2> /dev/null; done < "$1/cgroup.procs"
  sleep 0.1
done"""
# Enters the cgroup and becomes the command. $1 directory.
ENTER = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'


@dataclass(frozen=True)
class Hierarchy:
    """Where cgroups with a CPU quota can be made; ``version`` is 1 or 2 (cgroups(7))."""

    root: Path
    version: int

    def settings(self, quota: int) -> dict[str, str]:
        """What to write into which file of a cgroup, for ``quota`` microseconds each ``PERIOD``."""
        if self.version == 2:
            return {"cpu.max": f"{quota} {PERIOD}"}
        return {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(quota)}


def find_hierarchy(mounts: Path = Path("/proc/self/mounts")) -> Hierarchy:
    """The hierarchy that has the controller of CPU time; raises ``Untriable`` if there is none."""
    for line in mounts.read_text().splitlines():
        _, place, kind, options, *_ = line.split(" ")
        root = Path(place)
        if kind == "cgroup" and "cpu" in options.split(","):
            return Hierarchy(root, 1)
        if kind == "cgroup2":
            with suppress(OSError):
                if "cpu" in (root / "cgroup.controllers").read_text().split():
                    return Hierarchy(root, 2)
    raise Untriable(
        "no CPU quota can be set: no mounted cgroup hierarchy has the controller `cpu`",
        hint="run it on the machine itself, or in a container that has /sys/fs/cgroup of its own",
    )


@contextmanager
def limit_cpu(hierarchy: Hierarchy, quota: int) -> Iterator[Path]:
    """A cgroup whose processes have ``quota`` microseconds of CPU time each ``PERIOD``; gone at the end, as they are.

    Raises ``Untriable`` where it cannot be made.
    """
    directory = hierarchy.root / f"tentaflake-busy-{os.getpid()}"
    with ExitStack() as stack:
        try:
            directory.mkdir()
            stack.enter_context(_clean_up(directory))
            if hierarchy.version == 2:
                _write(hierarchy.root / "cgroup.subtree_control", "+cpu")
            for name, value in hierarchy.settings(quota).items():
                _write(directory / name, value)
        except OSError as error:
            is_crowded = error.errno == errno.EBUSY  # cgroups(7): no internal processes
            raise Untriable(
                f"no CPU quota can be set: {error.filename or directory}: {error.strerror}",
                hint="run it outside of the container, whose processes are in that cgroup themselves"
                if is_crowded
                else "run it as root, where /sys/fs/cgroup can be written",
            ) from None
        yield directory


def _write(file: Path, value: str) -> None:
    """``write_text``, whose error names no file where the kernel refuses the value."""
    try:
        file.write_text(value)
    except OSError as error:
        raise OSError(error.errno, f"{value!r}: {error.strerror}", str(file)) from None


@contextmanager
def _clean_up(directory: Path) -> Iterator[None]:
    """Have the cgroup removed when this process is gone, or has left here."""
    with subprocess.Popen(
        ["sh", "-c", CLEANER, "sh", str(directory), str(round(LEAVE_TIME * 10))],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ):
        yield  # its input is closed then, and it is waited for


def tie(signal_name: str) -> list[str]:
    """What a command starts with so that this signal ends it when this process has ended, also if that was before it
    could ask for the signal (prctl(2), PR_SET_PDEATHSIG)."""
    is_there = f'[ "$PPID" = {os.getpid()} ] && exec "$@"'
    return ["setpriv", f"--pdeathsig={signal_name}", "sh", "-c", is_there, "sh"]


@contextmanager
def make_load(loops: int, memory: int) -> Iterator[None]:
    """``loops`` loops without an end, and a process that holds ``memory`` bytes; they die with this process."""
    python = [*tie("KILL"), sys.executable, "-I", "-S", "-c"]
    commands = [[*python, LOOP]] * loops + ([[*python, HOLD, str(memory)]] if memory else [])
    with ExitStack() as stack:
        started = []
        for command in commands:
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
            )
            stack.callback(process.kill)
            started.append(process)
        if memory:
            holder = started[-1]
            _offer_to_oom_killer(holder.pid)
            assert holder.stdout is not None
            if not holder.stdout.readline():
                raise Untriable(f"{memory >> 20} MiB of memory cannot be held", hint="there is less than that free")
        yield
        if gone := [process.args for process in started if process.poll() is not None]:
            raise HarnessError(f"the machine was not busy to the end: {len(gone)} of the processes beside have ended")


def _offer_to_oom_killer(pid: int) -> None:
    """If memory runs out, this process is to go first (proc_pid_oom_score_adj(5))."""
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def run_busily(command: Sequence[str], share: float = SHARE, loops: int = LOOPS, memory: float = MEMORY) -> int:
    """Run the command so; returns its exit code, or 128 + N after signal N.

    SIGINT, SIGTERM and SIGHUP are passed on. Raises ``Untriable`` where there can be no quota.
    """
    quota = round((os.cpu_count() or 1) * PERIOD * share)
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with limit_cpu(find_hierarchy(), quota) as cgroup, make_load(loops, int(size * memory)):
        beside = f"{loops} loops and {int(size * memory) >> 20} MiB"
        print(f"busy: {quota / PERIOD:.2f} processors for the tests, beside {beside}", file=sys.stderr, flush=True)
        tied = [*tie("TERM"), "sh", "-c", ENTER, "sh", str(cgroup), *command]
        with _pass_on_signals() as pass_on_to, subprocess.Popen(tied, process_group=0) as process:
            pass_on_to(process)
            code = process.wait()
        return code if code >= 0 else 128 - code


@contextmanager
def _pass_on_signals() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Gives a function that names the process to which signals go, those too that have come by then."""
    named: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if named:
            named[0].send_signal(number)
        else:
            early.append(number)

    def pass_on_to(process: subprocess.Popen[bytes]) -> None:
        named.append(process)
        for number in early:
            process.send_signal(number)

    former = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield pass_on_to
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="harness.busy", description="Run a command as on a busy machine.")
    parser.add_argument("--share", type=float, default=SHARE, help="of the processors' time, for the command")
    parser.add_argument("--loops", type=int, default=LOOPS, help="that take all the CPU time they get, beside it")
    parser.add_argument("--memory", type=float, default=MEMORY, help="of the machine's memory, held beside it")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("there is no command")
    try:
        return run_busily(options.command, options.share, options.loops, options.memory)
    except HarnessError as error:
        print(f"busy: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
