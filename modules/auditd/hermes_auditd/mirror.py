"""What is known of one agent's files, and the rows that tell how it came to differ.

What is known is always what the last look saw; what happened is what the notifications say. The two are apart in time:
a look can be ahead of notifications that are still in the queue. So what a look tells is noted with the place that the
queue had reached by then, and a notification from before that place that says the same is not told again.
"""

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Generator
from typing import NamedTuple

from hermes_auditd.chain import Event
from hermes_auditd.config import Agent
from hermes_auditd.record import Key, Known, Record
from hermes_auditd.text import escape, shorten
from hermes_auditd.tree import Directory, Tree, Unreachable, identity
from hermes_auditd.writes import Coalescer, Writes

APPEARED, CHANGED, VANISHED = "appeared", "changed", "vanished"
MILLISECOND = 1_000_000

STEPS_AT_ONCE = 10
"""Of what a directory held that is gone; of more, the rest is told later, so that others do not wait."""

Steps = Generator[None, None, None]
"""Work that would take long, in steps that do not."""


def advance(steps: Steps) -> bool:
    """Take the next step; False if there is none."""
    try:
        next(steps)
    except StopIteration:
        return False
    return True


class Told(NamedTuple):
    """What a look has told of a name, and the place that the queue had reached by then."""

    what: str
    until: int


class Adopted(NamedTuple):
    """A directory that is kept from now on, or was already."""

    directory: Directory
    seen: os.stat_result
    former: tuple[Key, str] | None = None
    """Where it was until now, if it was elsewhere."""


def differences(known: Known, seen: os.stat_result) -> list[str]:
    """The kinds of change that lead from what was known to what is seen; none if too little was known to tell."""
    if known.mode is None:
        return []
    kinds = []
    if known.mode != seen.st_mode:
        kinds.append("chmod")
    if (known.uid, known.gid) != (seen.st_uid, seen.st_gid):
        kinds.append("chown")
    if not stat.S_ISDIR(seen.st_mode):  # whose times and size change with what it holds
        if (known.size, known.mtime) != (seen.st_size, seen.st_mtime_ns):
            kinds.append("write")
        elif not kinds and known.ctime != seen.st_ctime_ns:
            kinds.append("attrib")
    return kinds


class Mirror:
    """One agent's directories, what is known of them, and rows about them."""

    def __init__(self, agent: Agent, record: Record, window: int) -> None:
        self.agent = agent
        self.record = record
        self.tree = Tree(agent.path, agent.limits.max_watches)
        self.path = escape(os.fsencode(agent.path))
        self.id, self.root_number = record.agent(agent.name, agent.path, agent.uid, agent.limits.max_bytes // 2)
        self.root_key: Key = (0, b"%d" % self.id)
        self.counters: Counter[str] = Counter()
        self.now = time.time_ns()
        self.limited: set[str] = set()
        """What this agent has more of than it may: each is told once."""
        self.unwatched = 0
        """Directories that could not be watched since this was last set to 0."""
        self.writes = Coalescer(window)
        self.lost: list[Steps] = []
        """What is still to be told of directories that are gone."""
        self.doubtful: dict[int, Directory] = {}
        """Where something happened that could not be looked at."""
        self._told: dict[Key, Told] = {}

    # --- rows

    def tell(
        self,
        kind: str,
        path: str,
        seen: os.stat_result | None = None,
        *,
        origin: str = "live",
        old_path: str | None = None,
        first: int | None = None,
        count: int = 1,
        detail: str | None = None,
    ) -> None:
        """Add a row; ``seen`` is the file as it is now."""
        self.counters[kind] += 1
        size = mode = uid = gid = None
        if seen is not None:
            size, mode, uid, gid = seen.st_size, seen.st_mode & 0o7777, seen.st_uid, seen.st_gid
        self.record.add(
            Event(self.id, self.now, kind, path, origin, old_path, first, count, size, mode, uid, gid, detail)
        )

    def limit(self, what: str, count: int, detail: str) -> None:
        """Tell, once until it is over, that the agent has more of something than it may."""
        if what not in self.limited:
            self.limited.add(what)
            self.tell("limit", self.path, count=count, detail=detail)

    def flush(self, key: Key) -> None:
        """Make a row of writes that are held back: something else is about to be told of the file."""
        writes = self.writes.take(key)
        if writes is not None:
            self.tell_writes(writes)

    def tell_writes(self, writes: Writes) -> None:
        seen = self.look(writes.directory, writes.name)
        if seen is not None:
            key = writes.directory.number, writes.name
            known = self.known(key, writes.path, seen)
            self.remember(key, _with_mode_of(known, Known.of(seen, known.number)))
        self.counters["write"] += 1
        first, size = writes.first if writes.count > 1 else None, seen.st_size if seen else None
        self.record.add(Event(self.id, writes.last, "write", writes.path, first=first, count=writes.count, size=size))

    def known(self, key: Key, path: str, seen: os.stat_result) -> Known:
        """What was known of a file that has changed.

        One that nothing is known of was made before its directory was watched, and the look into that is still to come.
        """
        known = self.record.known(key)
        if known is None:
            known = Known.of(seen)
            if "entries" not in self.limited:
                self.tell("create", path, seen, origin="scan")
                self.note_told(key, APPEARED)
        return known

    def excludes(self, directory: Directory, name: bytes) -> bool:
        limits, root = self.agent.limits, self.tree.root
        if not limits.exclude or root is None:
            return False
        return limits.excludes(self.tree.text(directory, name)[len(self.tree.text(root, b"")) :])

    # --- what was told already

    def note_told(self, key: Key, what: str) -> None:
        self._told.pop(key, None)
        self._told[key] = Told(what, self.tree.inotify.end())

    def already_told(self, key: Key, what: str, position: int) -> bool:
        """Whether a look has told this before its notification was read. Only once: the next one is another act."""
        if not self._told:
            return False
        told = self._told.pop(key, None)
        return told is not None and told.what == what and position <= told.until

    def is_old_news(self, key: Key, seen: os.stat_result | None, position: int) -> bool:
        """Whether a notification of a change is from before the look that told the file as it still is."""
        told = self._told.get(key)
        if told is None or seen is None or position > told.until:
            return False
        known = self.record.known(key)
        return known is not None and not differences(known, seen)

    @property
    def has_told(self) -> bool:
        return bool(self._told)

    def forget_told(self) -> None:
        """Drop what the queue has passed by."""
        handled = self.tree.inotify.handled
        while self._told and self._told[key := next(iter(self._told))].until <= handled:
            del self._told[key]

    # --- what is known

    def look(self, directory: Directory, name: bytes) -> os.stat_result | None:
        """What is under a name where something has happened. If that cannot be seen now, it is looked at soon."""
        seen = self.tree.look(directory, name)
        if seen is None and not self.tree.is_reachable(directory):
            key = directory.number, name
            known = self.record.known(key)
            if known is not None:
                self.remember(key, Known(known.number, known.inode))
            self.doubtful[directory.number] = directory
        return seen

    def remember(self, key: Key, known: Known) -> None:
        if not self.record.remember(self.id, key, known):
            detail = "so many files are remembered that there is no room for more: a rescan cannot tell of the others"
            self.limit("entries", self.record.remembered(self.id), detail)

    def remember_moved(self, former: Known | None, key: Key, seen: os.stat_result | None) -> None:
        if seen is None:
            self.remember(key, (former or Known())._replace(number=None))
        else:
            same = former if former is not None and former.inode == seen.st_ino else None
            self.remember(key, _with_mode_of(same, Known.of(seen)))

    def vanish(
        self, key: Key, path: str, origin: str, seen: os.stat_result | None = None, detail: str | None = None
    ) -> None:
        """Forget what was known under a name and below it; ``seen`` is what has taken its place by now."""
        child = self.tree.slot(*key)
        if child is not None and seen is not None and identity(seen) == child.identity:
            child.is_unseen = True  # it is back, or was seen ahead of time: that it appears is still to be told
        elif child is not None:
            self.tree.drop(child)
        known = self.record.known(key)
        self.record.forget(self.id, key)
        if known is not None and known.number is not None and self.record.holds(known.number):
            steps = self._lose(known.number, path, origin, detail)
            if all(advance(steps) for _ in range(STEPS_AT_ONCE)):
                self.lost.append(steps)

    def _lose(self, number: int, path: str, origin: str, detail: str | None) -> Steps:
        """Tell of all that was in a directory that is gone, and below: it went with what it held."""
        waiting = [(number, path)]
        while waiting:
            number, path = waiting.pop()
            for names in self.record.names(number, 200):
                for name in names:
                    known = self.record.known((number, name))
                    if known is None:
                        continue
                    below = shorten(f"{path}/{escape(name)}")
                    self.tell("delete", below, origin=origin, detail=detail)
                    self.record.forget(self.id, (number, name))
                    if known.number is not None:
                        waiting.append((known.number, below))
                        child = self.tree.slot(number, name)
                        if child is not None:
                            self.tree.drop(child)
                yield

    # --- directories

    def adopt(self, parent: Directory, name: bytes) -> Adopted | None:
        """Keep and watch the directory under this name; None if there is none, or none that can be opened."""
        try:
            fd = self.tree.open_below(parent, name)
        except PermissionError:
            self.limit("readable", 1, f"a directory cannot be read: {self.tree.text(parent, name)}")
            return None
        except (OSError, Unreachable):
            return None
        try:
            seen = os.fstat(fd)
            adopted = self._adopt_open(parent, name, seen)
            self.watch(fd, adopted.directory)
        finally:
            os.close(fd)
        return adopted

    def _adopt_open(self, parent: Directory, name: bytes, seen: os.stat_result) -> Adopted:
        key = parent.number, name
        child = self.tree.at(identity(seen))
        if child is None:
            known = self.record.known(key)
            number = known.number if known is not None and known.inode == seen.st_ino else None
            child = Directory(number or self.record.new_number(), identity(seen), parent, name)
            self.tree.add(child)
            self.remember(key, _with_mode_of(known if number else None, Known.of(seen, child.number)))
            return Adopted(child, seen)
        if child.parent is parent and child.name == name:
            if self.record.known(key) is None:
                self.remember(key, Known.of(seen, child.number))
            return Adopted(child, seen)
        if child.parent is None or self._is_still_there(child):
            return Adopted(child, seen)  # mounted twice: told of where it was found first
        former = (child.parent.number, child.name), self.tree.text(child.parent, child.name)
        known = self.record.known(former[0])
        if known is not None and known.number == child.number:
            self.record.forget(self.id, former[0])
        else:
            known = None  # something else has taken its place there already
        self.tree.move(child, parent, name)
        self.remember(key, _with_mode_of(known, Known.of(seen, child.number)))
        return Adopted(child, seen, former)

    def move_unseen(self, former: Key, parent: Directory, name: bytes) -> bool:
        """Note that a directory was renamed to where it is no longer seen. False if that was another one."""
        child = self.tree.slot(*former)
        known = self.record.known(former)
        if child is None or known is None or known.number != child.number or self._is_still_there(child):
            return False
        self.record.forget(self.id, former)
        self.tree.move(child, parent, name)
        self.remember((parent.number, name), known)
        return True

    def _is_still_there(self, child: Directory) -> bool:
        assert child.parent is not None
        seen = self.tree.look(child.parent, child.name)
        return seen is not None and identity(seen) == child.identity

    def watch(self, fd: int, directory: Directory) -> None:
        try:
            if self.tree.watch(fd, directory):
                return
            reason = f"the agent may have {self.tree.limit} watches"
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            reason = "the kernel has no watch left for the daemon (sysctl fs.inotify.max_user_watches)"
        self.unwatched += 1
        self.limit(
            "watches", len(self.tree.watched), f"{reason}; directories without one are looked at from time to time"
        )


def _with_mode_of(former: Known | None, fresh: Known) -> Known:
    """What was seen, but with mode and owner as known: a change of those has a notification, which is to find it."""
    if former is None or former.mode is None:
        return fresh
    return fresh._replace(mode=former.mode, uid=former.uid, gid=former.gid)
