"""How fast this machine is now, and what becomes of a deadline by it.

A deadline only catches what is stuck; on a machine three times slower, what is not stuck takes three times as long.
So the pace is measured once at the start of a run, by a piece of work on every processor at once (a CPU quota and other
work beside count too), and every deadline of the harness is stretched by it. It never shortens one, and no promise
about time is stretched: those are held against a control in the same guest (docs/time-limits.md).

Processes that this one starts inherit the measure as ``TENTAFLAKE_PACE``; a number there is used as it is.
"""

import math
import os
import subprocess
import sys
import time
from functools import cache

from harness.errors import HarnessError

VARIABLE = "TENTAFLAKE_PACE"
REFERENCE = 0.20
"""Seconds that the work takes on the machine on which the deadlines were set: two cores of 2026, without KVM, quiet."""
MOST = 8.0
"""The most that a deadline is stretched: on a broken host, some are waited out."""
WORK = "total = 0\nfor number in range(3_000_000): total += number"


def measure_work() -> float:
    """Seconds for ``WORK``, done on every processor at the same time."""
    started = time.monotonic()
    command = [sys.executable, "-I", "-S", "-c", WORK]
    workers = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(os.cpu_count() or 1)]
    for worker in workers:
        worker.wait()
    return time.monotonic() - started


@cache
def measure_pace() -> float:
    """How many times longer than on the reference machine things take here: from 1 to ``MOST``."""
    given = os.environ.get(VARIABLE)
    try:
        found = float(given) if given else measure_work() / REFERENCE
    except ValueError:
        raise HarnessError(f"{VARIABLE} is {given!r}: not a number", hint="unset it, and it is measured") from None
    pace = round(min(max(found, 1.0), MOST), 1)
    os.environ[VARIABLE] = str(pace)
    return pace


def describe_pace() -> str:
    """For a header and a verdict."""
    return f"{measure_pace():.1f} times the reference machine's seconds"


def stretch_whole(seconds: int) -> int:
    """A deadline for a program that takes whole seconds."""
    return math.ceil(stretch(seconds))


def stretch(seconds: float) -> float:
    """A deadline (seconds) as it is on this machine."""
    return seconds * measure_pace()
