"""One agent's watch: notifications in, rows of the record out."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hermes_auditd import inotify
from hermes_auditd.config import Agent, Config
from hermes_auditd.mirror import APPEARED, MILLISECOND, VANISHED, Mirror, differences
from hermes_auditd.record import Key, Known, Record
from hermes_auditd.scanner import Look, Scanner
from hermes_auditd.tree import Directory, Unreachable, identity

READ_SIZE = 32 * 1024
"""Bytes of notifications taken at a time, some 700: what other agents wait for while one floods."""
MOVE_TIMEOUT = 100 * MILLISECOND
"""After as long, a file that was moved away and did not arrive has left the state directory."""


class Move(NamedTuple):
    """A file on its way from one name to another."""

    directory: Directory
    name: bytes
    path: str
    deadline: int
    end: int | None = None
    """Where the queue ended when the deadline had passed: up to there its arrival may still be found."""


class Watcher:
    """Watches one agent's state directory. Each call does a little, and waits for nothing."""

    def __init__(self, agent: Agent, config: Config, record: Record) -> None:
        self.agent = agent
        self.mirror = Mirror(agent, record, config.coalesce_ms * MILLISECOND)
        self.tree = self.mirror.tree
        self.record = record
        self.scanner = Scanner(self.mirror)
        self._config = config
        self._unhandled: Iterator[inotify.Notification] | None = None
        self._moves: dict[int, Move] = {}
        self._leaving: dict[Key, int] = {}
        """The cookie of the move that takes away what was under a name."""
        self._last_rename: tuple[Key, Key] | None = None
        """From where, and to where."""
        self._position = 0
        self._monotonic = 0
        self._last_read = self.mirror.now
        self._next_rescan: int | None = None

    def close(self) -> None:
        self.scanner.stop()
        self.tree.close()

    # --- notifications

    def read(self, until: int | None = None) -> bool:
        """Handle up to `READ_SIZE` of what is in the queue; whether there was anything.

        At a time of the monotonic clock it stops, and the rest is handled at the next call.
        """
        mirror, watched = self.mirror, self.tree.watched
        mirror.now, self._monotonic = time.time_ns(), time.monotonic_ns()
        before = self.tree.inotify.handled
        if self._unhandled is None:
            self._unhandled = self.tree.inotify.read(READ_SIZE)
        for watch, mask, cookie, name, position in self._unhandled:
            self._position = position
            directory = watched.get(watch)
            if directory is not None and name:
                if not mirror.excludes(directory, name):
                    _HANDLERS[mask & 0xFFF](self, directory, name, bool(mask & inotify.ISDIR), cookie)
            elif mask & inotify.Q_OVERFLOW:
                self._overflowed()
            elif directory is not None:  # else it is the rest of a watch that was ended
                self._handle_own(directory, mask)
            if until is not None and time.monotonic_ns() > until:
                break
        else:
            self._unhandled = None
        if mirror.has_told:
            mirror.forget_told()
        self._last_read = mirror.now
        return self._unhandled is not None or self.tree.inotify.handled > before

    @property
    def is_behind(self) -> bool:
        """Whether notifications were read that are still to be handled."""
        return self._unhandled is not None

    def _handle_own(self, directory: Directory, mask: int) -> None:
        """A notification about a watched directory itself; its parent's tells the same but for the topmost one."""
        if mask & inotify.IGNORED:  # it was deleted, or its file system unmounted
            is_root = directory is self.tree.root
            self.tree.unwatched(directory)
            if is_root:
                self.check_root("mount")
            else:
                self.tree.drop(directory)
        elif mask & inotify.ATTRIB and directory is self.tree.root:
            try:
                seen = os.fstat(self.tree.descriptor(directory))
            except Unreachable:
                return
            self._tell_change(self.mirror.root_key, self.mirror.path, seen)

    def _overflowed(self) -> None:
        """The kernel has thrown notifications away. What they were about is found by comparing."""
        detail = "the kernel's queue was full and notifications are lost; a rescan follows"
        self.mirror.tell("overflow", self.mirror.path, first=self._last_read, detail=detail)
        self.scanner.want("overflow", self._last_read)

    def _created(self, directory: Directory, name: bytes, is_directory: bool, cookie: int) -> None:
        self._settle_move(directory, name)
        if not self.mirror.already_told((directory.number, name), APPEARED, self._position):
            self._appeared(directory, name, is_directory)

    def _appeared(self, directory: Directory, name: bytes, is_directory: bool, detail: str | None = None) -> None:
        seen = self.mirror.look(directory, name)
        if seen is not None and stat.S_ISDIR(seen.st_mode) != is_directory:
            seen = None  # it is another file by now, and that one has a notification of its own
        self._replaced(directory, name, seen)
        self.mirror.tell("create", self.tree.text(directory, name), seen, detail=detail)
        if not is_directory or not self._adopt(directory, name):
            self.mirror.remember((directory.number, name), Known() if seen is None else Known.of(seen))

    def _replaced(self, directory: Directory, name: bytes, seen: os.stat_result | None) -> None:
        """What is known under a name where something appears is gone: overwritten, or its end was not told."""
        key = directory.number, name
        if self.record.known(key) is not None:
            path = self.tree.text(directory, name)
            self.mirror.flush(key)
            self.mirror.tell("delete", path, detail="replaced")
            self.mirror.vanish(key, path, "live", seen, detail="replaced")

    def _adopt(self, directory: Directory, name: bytes) -> bool:
        adopted = self.mirror.adopt(directory, name)
        if adopted is not None and adopted.directory.is_unseen:
            self.scanner.look_into(adopted.directory)
        return adopted is not None

    def _deleted(self, directory: Directory, name: bytes, is_directory: bool, cookie: int) -> None:
        key = directory.number, name
        if self.mirror.already_told(key, VANISHED, self._position):
            return
        path = self.tree.text(directory, name)
        self.mirror.flush(key)
        self.mirror.tell("delete", path)
        seen = self.tree.look(directory, name)
        self.mirror.vanish(key, path, "live", seen)

    def _moved_from(self, directory: Directory, name: bytes, is_directory: bool, cookie: int) -> None:
        self.mirror.flush((directory.number, name))
        deadline = time.monotonic_ns() + MOVE_TIMEOUT
        self._moves[cookie] = Move(directory, name, self.tree.text(directory, name), deadline)
        self._leaving[directory.number, name] = cookie

    def _moved_to(self, directory: Directory, name: bytes, is_directory: bool, cookie: int) -> None:
        key = directory.number, name
        self.mirror.flush(key)
        move = self._take_move(cookie)
        self._settle_move(directory, name)
        appeared = self.mirror.already_told(key, APPEARED, self._position)
        if move is None:
            if not appeared:
                self._appeared(directory, name, is_directory, detail="moved in")
            return
        former = move.directory.number, move.name
        vanished = self.mirror.already_told(former, VANISHED, self._position)
        seen = self.mirror.look(directory, name)
        is_exchange = self._is_exchange(former, key, move)
        if not (appeared and vanished):
            detail = "exchange" if is_exchange else None
            self.mirror.tell("rename", self.tree.text(directory, name), seen, old_path=move.path, detail=detail)
        self._last_rename = former, key
        known = self.record.known(former)
        if not (is_directory and (self._adopt(directory, name) or self.mirror.move_unseen(former, directory, name))):
            self.mirror.remember_moved(known, key, seen)
        if not is_exchange:
            self.record.forget(self.mirror.id, former)

    def _is_exchange(self, former: Key, key: Key, move: Move) -> bool:
        """Whether this is the second half of two files changing places: what the first half moved is still there."""
        if self._last_rename != (key, former):
            return False
        known, seen = self.record.known(former), self.tree.look(move.directory, move.name)
        return known is not None and seen is not None and known.inode == seen.st_ino

    def _modified(self, directory: Directory, name: bytes, is_directory: bool, cookie: int) -> None:
        if self.mirror.has_told:
            seen = self.tree.look(directory, name)
            if self.mirror.is_old_news((directory.number, name), seen, self._position):
                return
        self.mirror.writes.add(directory, name, self.tree.text(directory, name), self.mirror.now, self._monotonic)

    def _closed(self, directory: Directory, name: bytes, is_directory: bool, cookie: int) -> None:
        """A file that was open for writing was closed. What was written through a mapping shows only here."""
        key = directory.number, name
        if self.mirror.writes.holds(key):
            return
        known, seen = self.record.known(key), self.tree.look(directory, name)
        if known is not None and seen is not None and "write" in differences(known, seen):
            self.mirror.writes.add(directory, name, self.tree.text(directory, name), self.mirror.now, self._monotonic)

    def _changed(self, directory: Directory, name: bytes, is_directory: bool, cookie: int) -> None:
        key = directory.number, name
        path = self.tree.text(directory, name)
        seen = self.mirror.look(directory, name)
        if seen is None:
            self.mirror.tell("attrib", path)
        elif not self.mirror.is_old_news(key, seen, self._position):
            self._tell_change(key, path, seen)

    def _tell_change(self, key: tuple[int, bytes], path: str, seen: os.stat_result) -> None:
        """Tell what of mode, owner and the rest was changed; inotify does not say."""
        known = self.mirror.known(key, path, seen)
        kinds = [kind for kind in differences(known, seen) if kind in ("chmod", "chown")]
        if not kinds:
            # If the change was there when the file was first seen, its times tell: a change of mode or owner leaves
            # the time of the last write behind; setting the times to now does not.
            is_late = known.mode is None or known.ctime == seen.st_ctime_ns
            kinds = ["chmod" if is_late and seen.st_ctime_ns > seen.st_mtime_ns else "attrib"]
        for kind in kinds:
            self.mirror.tell(kind, path, seen)
        self.mirror.remember(key, Known.of(seen, known.number))

    # --- what is due

    def settle(self, monotonic: int) -> None:
        """Make rows of what was held back long enough."""
        self.mirror.now = time.time_ns()
        for writes in self.mirror.writes.due(monotonic):
            self.mirror.tell_writes(writes)
        self._settle_moves(monotonic)

    def settle_all(self) -> None:
        """Make rows of all that is held back."""
        self.mirror.now = time.time_ns()
        for writes in self.mirror.writes.everything():
            self.mirror.tell_writes(writes)
        self._settle_moves(time.monotonic_ns() + MOVE_TIMEOUT)

    def _settle_moves(self, monotonic: int) -> None:
        queue = self.tree.inotify
        while self._moves:
            cookie, move = next(iter(self._moves.items()))
            if move.deadline > monotonic:
                return
            if move.end is None:  # on a slow machine, the other half was told while nobody read
                move = self._moves[cookie] = move._replace(end=queue.end())
            if move.end is None or queue.handled < move.end:
                return
            self._moved_out(self._take_move(cookie))

    def _settle_move(self, directory: Directory, name: bytes) -> None:
        """Something new appears under a name: what was moved away from there before does not come any more."""
        cookie = self._leaving.get((directory.number, name))
        if cookie is not None:
            self._moved_out(self._take_move(cookie))

    def _take_move(self, cookie: int) -> Move | None:
        move = self._moves.pop(cookie, None)
        if move is not None:
            self._leaving.pop((move.directory.number, move.name), None)
        return move

    def _moved_out(self, move: Move | None) -> None:
        if move is None:
            return
        key = move.directory.number, move.name
        if not self.mirror.already_told(key, VANISHED, self._position):
            self.mirror.tell("delete", move.path, detail="moved out")
            seen = self.tree.look(move.directory, move.name)
            self.mirror.vanish(key, move.path, "live", seen, detail="moved out")

    def next_due(self) -> int | None:
        """When `settle` has something to do, on the monotonic clock."""
        due = self.mirror.writes.next_due()
        move = next(iter(self._moves.values()), None)
        return min((moment for moment in (due, move and move.deadline) if moment is not None), default=None)

    @property
    def is_busy(self) -> bool:
        """Whether there are directories to be looked at."""
        return self.scanner.is_busy or bool(self.mirror.doubtful)

    def scan(self, until: int) -> None:
        """Look at directories until a time of the monotonic clock."""
        self.mirror.now = time.time_ns()
        while self.mirror.doubtful:
            self.scanner.look_into(self.mirror.doubtful.popitem()[1])
        ended = self.scanner.step(until)
        if ended is not None:
            self._rescan_ended(ended)

    def _rescan_ended(self, rescan: Look) -> None:
        mirror, spent = self.mirror, time.time_ns() - rescan.began
        if rescan.origin != "interval" or rescan.found:
            detail = f"{rescan.found} differences found; {self.record.remembered(mirror.id)} files and directories"
            mirror.tell("rescan", mirror.path, origin=rescan.origin, first=rescan.since or rescan.began, detail=detail)
        if "watches" in mirror.limited and not mirror.unwatched:
            mirror.limited.discard("watches")
            mirror.tell("limit", mirror.path, count=len(self.tree.watched), detail="every directory has a watch again")
        seconds = self._config.unwatched_seconds if mirror.limited else self._config.rescan_minutes * 60
        if seconds:
            # However many directories there are, looking at them takes a tenth of a processor at most.
            self._next_rescan = time.monotonic_ns() + max(seconds * 1000 * MILLISECOND, 10 * spent)

    def tick(self) -> None:
        """Once a second: is the state directory where it was, is it time to compare everything."""
        self.mirror.now = time.time_ns()
        self.check_root("mount")
        if self._next_rescan is not None and time.monotonic_ns() >= self._next_rescan:
            self._next_rescan = None
            self.scanner.want("interval", None)

    # --- the state directory

    def check_root(self, origin: str, since: int | None = None) -> None:
        """Watch the directory that the path leads to, if it is not the one that is watched."""
        try:
            fd = self.tree.open_root()
        except OSError as error:
            self._end_watch(f"it cannot be opened: {error.strerror}")
            self.mirror.limit("root", 0, f"the state directory cannot be opened: {error.strerror}")
            return
        try:
            seen = os.fstat(fd)
            root = self.tree.root
            if root is None or root.identity != identity(seen) or root.watch is None:
                self._end_watch("another directory has taken its place")
                self._begin_watch(fd, seen, origin, since)
        finally:
            os.close(fd)

    def _begin_watch(self, fd: int, seen: os.stat_result, origin: str, since: int | None) -> None:
        mirror = self.mirror
        root = Directory(mirror.root_number, identity(seen), None, b"")
        self.tree.add(root)
        mirror.watch(fd, root)
        mirror.limited.discard("root")
        mirror.tell("watch", mirror.path, seen, origin=origin, first=since)
        known = self.record.known(mirror.root_key)
        for kind in differences(known, seen) if known else []:
            mirror.tell(kind, mirror.path, seen, origin=origin, first=since)
        mirror.remember(mirror.root_key, Known.of(seen, mirror.root_number))
        self.scanner.want(origin, since or mirror.now)

    def _end_watch(self, why: str) -> None:
        if self.tree.root is not None:
            self.mirror.tell("unwatch", self.mirror.path, detail=why)
            self.scanner.stop()
            self._moves.clear()
            self._leaving.clear()
            self.tree.clear()


_HANDLERS: dict[int, Callable[[Watcher, Directory, bytes, bool, int], None]] = {
    inotify.CREATE: Watcher._created,
    inotify.DELETE: Watcher._deleted,
    inotify.MODIFY: Watcher._modified,
    inotify.CLOSE_WRITE: Watcher._closed,
    inotify.ATTRIB: Watcher._changed,
    inotify.MOVED_FROM: Watcher._moved_from,
    inotify.MOVED_TO: Watcher._moved_to,
}
