"""The directories that are watched for one agent.

A directory is known by its inode and its watch, not by its path: paths change while their notifications are still in
the queue, and whoever owns the tree can put a symbolic link where a directory was. So each is opened from a directory
that is open already, is checked to be the one meant, and is watched through its file descriptor.
"""

import os
from collections.abc import Iterator

from hermes_auditd.inotify import Inotify
from hermes_auditd.text import CUT, escape

PATH_MAX = 4096
OPEN_DIRECTORIES = 256
"""File descriptors kept, so that a busy directory is not opened for each of its files."""
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
_OPEN_BELOW = _OPEN | os.O_NOFOLLOW

Identity = tuple[int, int]
"""Device and inode."""


def identity(seen: os.stat_result) -> Identity:
    return seen.st_dev, seen.st_ino


class Directory:
    """One directory of the tree; the state directory itself has no parent."""

    __slots__ = ("identity", "is_unseen", "name", "number", "parent", "watch")

    def __init__(self, number: int, identity: Identity, parent: "Directory | None", name: bytes) -> None:
        self.number = number
        self.identity = identity
        self.parent = parent
        self.name = name
        self.watch: int | None = None
        self.is_unseen = True
        """Whether nobody has looked into it, or is about to."""


class Unreachable(Exception):
    """The directory is not where it was last seen, or not the same: its notifications will tell."""


class Tree:
    """An inotify queue and the directories watched by it. ``root`` is followed if it is a symbolic link."""

    def __init__(self, root: str, limit: int) -> None:
        self.inotify = Inotify()
        self.root: Directory | None = None
        self.limit = limit
        self.watched: dict[int, Directory] = {}
        self._root_path = root
        self._slots: dict[tuple[int, bytes], Directory] = {}
        self._by_identity: dict[Identity, Directory] = {}
        self._texts: dict[int, str] = {}
        self._descriptors: dict[int, int] = {}

    def close(self) -> None:
        self.release()
        self.inotify.close()

    # --- looking

    def text(self, directory: Directory, name: bytes) -> str:
        """The escaped path of a name in a directory, as it is known now."""
        prefix = self._texts.get(directory.number)
        if prefix is None:
            prefix = self._texts[directory.number] = self._prefix(directory)
        return prefix + escape(name)

    def _prefix(self, directory: Directory) -> str:
        parts: list[str] = []
        length = 0
        here: Directory | None = directory
        while here is not None and here.parent is not None:
            parts.append(escape(here.name) + "/")
            length += len(here.name) + 1
            if length > PATH_MAX:
                return CUT + "".join(reversed(parts))
            here = here.parent
        return escape(os.fsencode(self._root_path)) + "/" + "".join(reversed(parts))

    def descriptor(self, directory: Directory) -> int:
        """An open file descriptor of the directory, which stays ours; raises `Unreachable`."""
        found = self._descriptors.get(directory.number)
        if found is None:
            found = self._open(directory)
            if len(self._descriptors) >= OPEN_DIRECTORIES:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[directory.number] = found
        return found

    def _open(self, directory: Directory) -> int:
        """Open from the nearest directory that is open; what is on the way does not matter if the end is right."""
        names: list[bytes] = []
        here = directory
        while here.parent is not None and here.number not in self._descriptors:
            names.append(here.name)
            here = here.parent
        start = self._descriptors.get(here.number)
        try:
            fd = os.open(self._root_path, _OPEN) if start is None else os.dup(start)
            for path in _chunks(reversed(names)):
                try:
                    below = os.open(path, _OPEN_BELOW, dir_fd=fd)
                finally:
                    os.close(fd)
                fd = below
        except OSError as error:
            raise Unreachable(error.strerror) from None
        if identity(os.fstat(fd)) != directory.identity:
            os.close(fd)
            raise Unreachable("another directory is there")
        return fd

    def open_root(self) -> int:
        """The state directory, wherever its path leads now; the caller closes it. Raises `OSError`."""
        return os.open(self._root_path, _OPEN)

    def open_below(self, directory: Directory, name: bytes) -> int:
        """A directory that may not be known yet; the caller closes it. Raises `OSError` or `Unreachable`."""
        return os.open(name, _OPEN_BELOW, dir_fd=self.descriptor(directory))

    def open_again(self, directory: Directory) -> int:
        """A directory to be read from its beginning; the caller closes it. Raises `OSError` or `Unreachable`."""
        return os.open(b".", _OPEN_BELOW, dir_fd=self.descriptor(directory))

    def look(self, directory: Directory, name: bytes) -> os.stat_result | None:
        """What is there under a name; None if nothing is, or if it cannot be seen now."""
        try:
            return os.stat(name, dir_fd=self.descriptor(directory), follow_symlinks=False)
        except (OSError, Unreachable):
            return None

    def is_reachable(self, directory: Directory) -> bool:
        """Whether a directory is where it was last heard of."""
        try:
            self.descriptor(directory)
        except Unreachable:
            return False
        return True

    def release(self) -> None:
        """Close what is only kept open for speed: an open directory would keep a file system from being unmounted."""
        for fd in self._descriptors.values():
            os.close(fd)
        self._descriptors.clear()
        self._texts.clear()

    # --- keeping

    def at(self, seen: Identity) -> Directory | None:
        """The directory that is kept with this identity. A watch keeps the inode, so its number is not used again."""
        return self._by_identity.get(seen)

    def slot(self, number: int, name: bytes) -> Directory | None:
        """The directory that is found under a name in the directory with this number."""
        return self._slots.get((number, name))

    def add(self, directory: Directory) -> None:
        self._by_identity[directory.identity] = directory
        if directory.parent is None:
            self.root = directory
        else:
            self._slots[directory.parent.number, directory.name] = directory

    def move(self, child: Directory, parent: Directory, name: bytes) -> None:
        """Note that a directory is now found under another name."""
        self._vacate(child)
        child.parent, child.name = parent, name
        self._slots[parent.number, name] = child
        self._texts.clear()

    def _vacate(self, child: Directory) -> None:
        if child.parent is not None and self._slots.get((child.parent.number, child.name)) is child:
            del self._slots[child.parent.number, child.name]

    def watch(self, fd: int, directory: Directory) -> bool:
        """Watch a directory that is open; False if the agent has no watch left. Raises `OSError`."""
        if directory.watch is None and len(self.watched) >= self.limit:
            return False
        watch = self.inotify.watch(fd)
        if watch != directory.watch:  # that a watch has ended may be among what an overflow has swallowed
            self.unwatched(directory)
            directory.watch = watch
            self.watched[watch] = directory
        return True

    def unwatched(self, directory: Directory) -> None:
        """Note that the kernel has ended a directory's watch."""
        if directory.watch is not None:
            del self.watched[directory.watch]
            directory.watch = None

    def drop(self, directory: Directory) -> None:
        """Keep a directory no longer, and end its watch."""
        self._vacate(directory)
        if self._by_identity.get(directory.identity) is directory:
            del self._by_identity[directory.identity]
        if directory.watch is not None:
            del self.watched[directory.watch]
            self.inotify.unwatch(directory.watch)
            directory.watch = None
        fd = self._descriptors.pop(directory.number, None)
        if fd is not None:
            os.close(fd)
        self._texts.pop(directory.number, None)

    def clear(self) -> None:
        """Drop all directories."""
        for directory in list(self._by_identity.values()):
            self.drop(directory)
        self.root = None


def _chunks(names: Iterator[bytes]) -> Iterator[bytes]:
    """Relative paths that, opened one from the other, lead along all the names: the kernel takes no longer ones."""
    path = b""
    for name in names:
        if len(path) + len(name) + 1 >= PATH_MAX:
            yield path
            path = b""
        path = path + b"/" + name if path else name
    if path:
        yield path
