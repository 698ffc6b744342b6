"""Whose an error is: a finding about what is tested, or this machine's, and nothing is known."""

from __future__ import annotations

import errno
import traceback

from hypothesis.errors import HypothesisException

from harness.cache import CacheUnusable
from harness.errors import HarnessError, Untriable
from harness.vm.qemu import GuestDied, GuestPanicked, HostDiskFull

SHORTAGES = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EIO}
"""What a machine that runs out of something says, whatever was asked of it."""


def is_finding(error: Exception) -> bool:
    """Whether an error that a check has raised says something about what it checked."""
    if isinstance(error, GuestPanicked):
        return True
    if isinstance(error, Untriable | CacheUnusable | HostDiskFull | GuestDied | MemoryError | HypothesisException):
        return False
    return not (isinstance(error, OSError) and error.errno in SHORTAGES)


def describe(error: Exception) -> str:
    """What an error says, with its notes; its kind, or the line that raised it, where its text says too little."""
    said = str(error)
    if not isinstance(error, AssertionError | HarnessError):
        said = f"{type(error).__name__}: {said}"
    frames = traceback.extract_tb(error.__traceback__)
    if frames and (not str(error) or said != str(error)):
        said = f"{said}\n{frames[-1].name}, line {frames[-1].lineno}: {frames[-1].line}".lstrip()
    return "\n".join([said, *getattr(error, "__notes__", [])])
