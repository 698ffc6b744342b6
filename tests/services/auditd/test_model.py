"""Random file operations, against the state directory itself: the record says how it came to be as it is."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.services.auditd.support import Local, rows, verdicts
from tests.services.auditd.support import settings as daemon_settings

NAMES = st.sampled_from([b"a", b"b", b"c\n", b"\xff\\"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)


def replay(database: str, root: bytes) -> set[bytes]:
    """The paths that are there according to the record."""
    from hermes_auditd.text import unescape

    here: set[bytes] = set()
    displaced: set[bytes] = set()
    for row in rows(database, agent="a"):
        path = unescape(row["path"])
        if path == root or not path.startswith(root + b"/"):
            continue
        if row["kind"] == "create":
            assert path not in here, f"{path!r} is made twice"
            here.add(path)
        elif row["kind"] == "delete":
            here -= {path + rest for rest in below(here, path)}
        elif row["kind"] == "rename":
            former = unescape(row["old_path"])
            if row["detail"] == "exchange":  # what the rename before has displaced is here now
                here |= {path + rest for rest in displaced}
                continue
            moved = below(here, former)
            displaced = below(here - {former + rest for rest in moved}, path)
            here -= {former + rest for rest in moved} | {path + rest for rest in displaced}
            here |= {path + rest for rest in moved}
    return here


def below(paths: set[bytes], top: bytes) -> set[bytes]:
    """What is left of the paths that are ``top`` or below it, without that."""
    return {path[len(top) :] for path in paths if path == top or path.startswith(top + b"/")}


def present(root: bytes) -> dict[bytes, os.stat_result]:
    found = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(directory, name)  # noqa: PTH118 - bytes
            found[path] = os.lstat(path)
    return found


class StateDirectory(RuleBasedStateMachine):
    """Operations of an agent, and of whoever stops, kills and starves the daemon."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="auditd-model-"))
        self.root = os.fsencode(self.place / "a")
        self.outside = os.fsencode(self.place / "outside")
        os.mkdir(self.outside)  # noqa: PTH102 - bytes
        self.local = Local(daemon_settings(self.place, "a"))
        self.drained = True

    def teardown(self) -> None:
        try:
            self.local.drain()
            self.drained = True
            self.compare()
            assert not [fault for verdict in verdicts(self.local.data["database"]) for fault in verdict.faults]
        finally:
            self.local.close()
            shutil.rmtree(self.place)

    def at(self, path: bytes) -> bytes:
        return self.root + b"/" + path

    # What cannot be done, because something is there or is not, is done to no effect: the same holds of an agent.

    @rule(path=PATHS, content=st.binary(max_size=3))
    def write(self, path: bytes, content: bytes) -> None:
        try:
            fd = os.open(self.at(path), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)
        except OSError:
            return
        os.write(fd, content)
        os.close(fd)
        self.drained = False

    @rule(path=PATHS)
    def make_directory(self, path: bytes) -> None:
        self.attempt(lambda: os.makedirs(self.at(path)))  # noqa: PTH103 - bytes

    @rule(path=PATHS)
    def delete(self, path: bytes) -> None:
        if os.path.isdir(self.at(path)) and not os.path.islink(self.at(path)):  # noqa: PTH112, PTH114 - bytes
            self.attempt(lambda: shutil.rmtree(self.at(path)))
        else:
            self.attempt(lambda: os.unlink(self.at(path)))  # noqa: PTH108 - bytes

    @rule(former=PATHS, path=PATHS)
    def rename(self, former: bytes, path: bytes) -> None:
        self.attempt(lambda: os.rename(self.at(former), self.at(path)))  # noqa: PTH104 - bytes

    @rule(former=PATHS, path=PATHS)
    def exchange(self, former: bytes, path: bytes) -> None:
        from tests.services.auditd.support import exchange

        self.attempt(lambda: exchange(self.at(former), self.at(path)))

    @rule(path=PATHS)
    def move_out(self, path: bytes) -> None:
        name = b"%d" % len(os.listdir(self.outside))  # noqa: PTH208 - bytes
        self.attempt(lambda: os.rename(self.at(path), self.outside + b"/" + name))  # noqa: PTH104 - bytes

    @rule(path=PATHS, data=st.data())
    def move_in(self, path: bytes, data: st.DataObject) -> None:
        names = sorted(os.listdir(self.outside))  # noqa: PTH208 - bytes
        if names:
            name = data.draw(st.sampled_from(names))
            self.attempt(lambda: os.rename(self.outside + b"/" + name, self.at(path)))  # noqa: PTH104 - bytes

    @rule(former=PATHS, path=PATHS)
    def link(self, former: bytes, path: bytes) -> None:
        self.attempt(lambda: os.link(self.at(former), self.at(path), follow_symlinks=False))

    @rule(former=PATHS, path=PATHS)
    def symlink(self, former: bytes, path: bytes) -> None:
        self.attempt(lambda: os.symlink(self.at(former), self.at(path)))  # noqa: PTH211 - bytes

    @rule(path=PATHS, mode=st.sampled_from([0o700, 0o755, 0o644, 0]))
    def change_mode(self, path: bytes, mode: int) -> None:
        if not os.path.islink(self.at(path)):  # noqa: PTH114 - bytes
            self.attempt(lambda: os.chmod(self.at(path), mode))  # noqa: PTH101 - bytes

    def attempt(self, act: "object") -> None:
        assert callable(act)
        try:
            act()
        except OSError:
            return
        finally:
            self.drained = False

    @rule()
    def drain(self) -> None:
        self.local.drain()
        self.drained = True

    @rule()
    def read_a_little(self) -> None:
        """The daemon reads, but comes to nothing else."""
        self.local.daemon.watchers["a"].read()
        self.drained = False

    @rule()
    def lose(self) -> None:
        self.local.lose("a")
        self.drained = False

    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        self.local.restart(crash=crash)
        self.drained = True

    @invariant()
    @precondition(lambda self: self.drained)
    def compare(self) -> None:
        here = present(self.root)
        assert replay(self.local.data["database"], self.root) == set(here)
        record = self.local.daemon.record
        assert record.remembered(self.local.daemon.watchers["a"].mirror.id) == len(here) + 1
        for path, seen in here.items():
            parent, name = path.rsplit(b"/", 1)
            directory = self.directory(parent)
            known = record.known((directory, name))
            if seen.st_nlink > 1 and not stat.S_ISDIR(seen.st_mode):
                continue  # what is done to it by one name is not told of the others
            assert known is not None and (known.inode, known.mode, known.uid) == (
                seen.st_ino,
                seen.st_mode,
                seen.st_uid,
            )
            assert stat.S_ISDIR(seen.st_mode) or known.size == seen.st_size

    def directory(self, path: bytes) -> int:
        watcher = self.local.daemon.watchers["a"]
        directory = watcher.tree.root
        assert directory is not None
        for name in path[len(self.root) :].split(b"/")[1:]:
            directory = watcher.tree.slot(directory.number, name)
            assert directory is not None and directory.watch is not None
        return directory.number


TestStateDirectory = pytest.mark.auditd(StateDirectory.TestCase)
TestStateDirectory.settings = settings(
    max_examples=int(os.environ.get("EX", "60")),
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
