"""An initramfs: what a kernel unpacks and runs before there is a disk (initramfs-buffer-format.rst, cpio newc)."""

import io
from collections.abc import Iterable
from typing import NamedTuple

DIRECTORY, FILE = 0o40755, 0o100644
PROGRAM = 0o100755


class Entry(NamedTuple):
    """``mode`` is as stat(2) gives it: the type too. A directory stands before what is in it."""

    name: str
    mode: int
    data: bytes = b""


def pack_initramfs(entries: Iterable[Entry]) -> bytes:
    archive = io.BytesIO()
    for inode, (name, mode, data) in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
        archive.write(header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4))
    return archive.getvalue()
