"""Looking at directories: at new ones, filled before they could be watched, and at all when something was missed."""

import os
import stat
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from hermes_auditd.mirror import APPEARED, CHANGED, VANISHED, Mirror, Steps, advance, differences
from hermes_auditd.record import Known
from hermes_auditd.tree import Directory, Unreachable

CHUNK = 200
"""Names looked at in one step."""


@dataclass
class Look:
    """Why directories are looked at."""

    origin: str
    deep: bool = False
    """Also at those that are known: a rescan."""
    began: int = 0
    since: int | None = None
    """From when on something may have been missed; None if nothing is known to have been."""
    found: int = 0
    running: int = 0
    missing: list[tuple[Directory, bytes]] = field(default_factory=list)
    """Directories that are not where they were: some turn up elsewhere."""


class Scanner:
    """Looks at one agent's directories, a little at each call."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._new: deque[tuple[int, Steps]] = deque()
        """Looks at new directories, each with the place in the queue that has to be reached first: where notifications
        from before the look are still to be read, paths may yet turn out to mean something else."""
        self._queued: set[int] = set()
        """Directories in that queue."""
        self._known: deque[Steps] = deque()
        self._wanted: Look | None = None
        self._rescan: Look | None = None

    @property
    def is_busy(self) -> bool:
        return bool(self._new or self._known or self._mirror.lost)

    @property
    def is_rescanning(self) -> bool:
        return self._rescan is not None or self._wanted is not None

    def want(self, origin: str, since: int | None) -> None:
        """Compare all that is there with all that is known, soon. A wish for what may have been missed stays."""
        if self._wanted is None or self._wanted.since is None:
            self._wanted = Look(origin, deep=True, since=since)

    def begin(self) -> None:
        """Begin the rescan that is wanted, if none is going on."""
        root = self._mirror.tree.root
        if self._wanted is None or self._rescan is not None or root is None:
            return
        self._rescan, self._wanted = self._wanted, None
        self._rescan.began = time.time_ns()
        self._mirror.counters["rescans"] += 1
        self._mirror.unwatched = 0
        self._look_deep(root, self._rescan)

    def stop(self) -> None:
        """Look no further: the state directory is another one."""
        for steps in (*(steps for _, steps in self._new), *self._known):
            steps.close()
        self._new.clear()
        self._queued.clear()
        self._known.clear()
        self._rescan = self._wanted = None

    def look_into(self, directory: Directory) -> None:
        """Look at a directory that is new here, soon: what is in it may have been there before its watch."""
        directory.is_unseen = False
        if directory.number in self._queued:
            return
        self._queued.add(directory.number)
        self._new.append((self._mirror.tree.inotify.end(), self._look(directory, Look("scan"))))

    def _look_deep(self, directory: Directory, look: Look) -> None:
        look.running += 1
        directory.is_unseen = False
        self._known.append(self._look(directory, look))

    def step(self, until: int) -> Look | None:
        """Look until a time of the monotonic clock; returns the rescan when this has ended it."""
        while time.monotonic_ns() < until:
            if self._mirror.lost:
                if not advance(self._mirror.lost[0]):
                    self._mirror.lost.pop(0)
            elif self._new and self._new[0][0] <= self._mirror.tree.inotify.handled:
                if not advance(self._new[0][1]):
                    self._new.popleft()
            elif self._known:
                if not advance(self._known[0]):
                    self._known.popleft()
                    rescan = self._rescan
                    assert rescan is not None
                    rescan.running -= 1
                    if rescan.running == 0:
                        self._end(rescan)
                        return rescan
            else:
                break
        return None

    def _end(self, look: Look) -> None:
        for directory, name in look.missing:
            is_known = self._mirror.record.known((directory.number, name)) is not None
            is_kept = self._mirror.tree.at(directory.identity) is directory
            if is_known and is_kept and self._mirror.tree.look(directory, name) is None:
                self._tell_vanished(directory, name, look)
        self._rescan = None

    # --- one directory

    def _look(self, directory: Directory, look: Look) -> Steps:
        """Compare what is in a directory with what is known of it."""
        self._queued.discard(directory.number)
        try:
            fd = self._mirror.tree.open_again(directory)
        except (OSError, Unreachable):
            directory.is_unseen = True  # it is gone or elsewhere, and notifications will tell
            queue = self._mirror.tree.inotify
            if queue.end() > queue.handled and self._mirror.tree.at(directory.identity) is directory:
                self.look_into(directory)
            return
        try:
            here: set[bytes] = set()
            with os.scandir(fd) as entries:
                while chunk := {os.fsencode(entry.name): entry for entry in islice(entries, CHUNK)}:
                    here.update(chunk)
                    self._compare(directory, chunk, look)
                    yield
            for names in self._mirror.record.names(directory.number, CHUNK):
                for name in names:
                    if name not in here:
                        self._check_missing(directory, name, fd, look)
                yield
        finally:
            os.close(fd)

    def _compare(self, directory: Directory, chunk: "dict[bytes, os.DirEntry[str]]", look: Look) -> None:
        known = self._mirror.record.known_among(directory.number, list(chunk))
        for name, entry in chunk.items():
            try:
                seen = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if self._mirror.excludes(directory, name):
                continue
            found = known.get(name)
            if not stat.S_ISDIR(seen.st_mode) or not self._compare_directory(directory, name, found, seen, look):
                self._compare_file(directory, name, found, seen, look)

    def _compare_file(
        self, directory: Directory, name: bytes, known: Known | None, seen: os.stat_result, look: Look
    ) -> None:
        key = directory.number, name
        if _is_another(known, seen):
            self._tell_vanished(directory, name, look)
            known = None
        if known is None:
            self._tell_found("create", directory, name, seen, look)
            self._mirror.note_told(key, APPEARED)
            self._mirror.remember(key, Known.of(seen))
        else:
            self._tell_differences(directory, name, known, seen, look)

    def _compare_directory(
        self, directory: Directory, name: bytes, known: Known | None, seen: os.stat_result, look: Look
    ) -> bool:
        """The same for a directory. False if it cannot be opened, or is mounted here and at home elsewhere."""
        key = directory.number, name
        if _is_another(known, seen):
            self._tell_vanished(directory, name, look)
            known = None
        adopted = self._mirror.adopt(directory, name)
        if adopted is None or adopted.directory.parent is not directory or adopted.directory.name != name:
            return False
        if adopted.former is not None:
            former, old_path = adopted.former
            self._tell_found("rename", directory, name, adopted.seen, look, old_path)
            self._mirror.note_told(former, VANISHED)
            self._mirror.note_told(key, APPEARED)
        elif known is None:
            self._tell_found("create", directory, name, adopted.seen, look)
            self._mirror.note_told(key, APPEARED)
        carried = self._mirror.record.known(key)
        if carried is not None:
            self._tell_differences(directory, name, carried, adopted.seen, look)
        if look.deep:
            self._look_deep(adopted.directory, look)
        elif adopted.directory.is_unseen:
            self.look_into(adopted.directory)
        return True

    def _check_missing(self, directory: Directory, name: bytes, fd: int, look: Look) -> None:
        """A name that is known and was not read: is it gone?"""
        known = self._mirror.record.known((directory.number, name))
        if known is None:
            return
        try:
            os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            if known.number is not None and look.deep:
                look.missing.append((directory, name))
            else:
                self._tell_vanished(directory, name, look)

    # --- rows

    def _tell_found(
        self,
        kind: str,
        directory: Directory,
        name: bytes,
        seen: os.stat_result | None,
        look: Look,
        old_path: str | None = None,
    ) -> None:
        look.found += 1
        path = self._mirror.tree.text(directory, name)
        self._mirror.tell(kind, path, seen, origin=look.origin, old_path=old_path, first=look.since)

    def _tell_differences(
        self, directory: Directory, name: bytes, known: Known, seen: os.stat_result, look: Look
    ) -> None:
        key = directory.number, name
        kinds = differences(known, seen)
        for kind in kinds:
            self._tell_found(kind, directory, name, seen, look)
        if kinds:
            self._mirror.note_told(key, CHANGED)
        if kinds or known.mode is None:
            self._mirror.remember(key, Known.of(seen, known.number))

    def _tell_vanished(self, directory: Directory, name: bytes, look: Look) -> None:
        key = directory.number, name
        path = self._mirror.tree.text(directory, name)
        self._mirror.flush(key)
        self._tell_found("delete", directory, name, None, look)
        self._mirror.note_told(key, VANISHED)
        self._mirror.vanish(key, path, look.origin)


def _is_another(known: Known | None, seen: os.stat_result) -> bool:
    """Whether another file has taken the place of the known one."""
    return known is not None and known.inode is not None and known.inode != seen.st_ino
