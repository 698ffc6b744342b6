"""inotify(7) by ctypes: three calls and the parsing of what is read.

Our own, because no well-kept binding fits: docs/audit.md says which were looked at.
"""

import ctypes
import fcntl
import os
import struct
import termios
from collections.abc import Iterator

MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
Q_OVERFLOW = 0x4000
IGNORED = 0x8000
ISDIR = 0x40000000
_ONLYDIR = 0x01000000
_ALL = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | _ONLYDIR

_HEADER = struct.Struct("iIII")  # wd, mask, cookie, length of the name with its padding
_LIBC = ctypes.CDLL(None, use_errno=True)

Notification = tuple[int, int, int, bytes, int]
"""Watch, mask, cookie, name, and where it ends in the stream of all that was ever read from this queue."""


def _call(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Inotify:
    """One inotify queue."""

    def __init__(self) -> None:
        self.fd = _call(_LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self.received = 0
        """Bytes read so far."""
        self.handled = 0
        """Of them, those of notifications that whoever reads is done with: the place that it has reached."""

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        os.close(self.fd)

    def watch(self, directory: int) -> int:
        """Watch the directory behind a file descriptor, whatever its path is by now; returns the watch."""
        return _call(_LIBC.inotify_add_watch(self.fd, b"/proc/self/fd/%d" % directory, ctypes.c_uint32(_ALL)))

    def unwatch(self, watch: int) -> None:
        """End a watch; one that the kernel has ended already is fine."""
        _LIBC.inotify_rm_watch(self.fd, watch)

    def waiting(self) -> int:
        """Bytes in the queue."""
        number = bytearray(4)
        fcntl.ioctl(self.fd, termios.FIONREAD, number)
        return int.from_bytes(number, "little")

    def end(self) -> int:
        """The place in the stream behind all that has happened until now."""
        return self.received + self.waiting()

    def read(self, size: int) -> Iterator[Notification]:
        """What is in the queue, up to ``size`` bytes, oldest first; nothing if the queue is empty."""
        try:
            data = os.read(self.fd, size)
        except BlockingIOError:
            return
        start = self.received
        self.received += len(data)
        position, end = 0, len(data)
        while position < end:
            watch, mask, cookie, length = _HEADER.unpack_from(data, position)
            position += 16 + length
            yield watch, mask, cookie, data[position - length : position].rstrip(b"\0"), start + position
            self.handled = start + position
