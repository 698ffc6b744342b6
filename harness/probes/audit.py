"""Attacks on the audit daemon and its record (A4), and what else its tests do in a guest: a follower that notes when
each row can be read, and a bare watcher that is held beside the daemon.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import dedent
from typing import NamedTuple

from testinfra.host import Host

from harness.contract import ControlFailed
from harness.errors import HarnessError
from harness.pace import stretch
from harness.policy import Agent
from harness.probes.attempts import Attacker, Attempt, Origin, order, quote
from harness.probes.containers import main_pid
from harness.probes.programs import wait_until
from harness.probes.ways import BOTH, ROOT, own_directory
from harness.vm.machine import Machine

UNIT = "hermes-auditd.service"
DIRECTORY = "/var/lib/hermes-auditd"
DATABASE = f"{DIRECTORY}/audit.db"
TARGET = "audit"
"""The record and its daemon, as a target in the matrix."""

# --- attacks on the record and the daemon -------------------------------------------------------------

Script = Callable[[Attacker, int], str]
"""What an attacker runs, who is told the daemon's process."""


@dataclass(frozen=True)
class Way:
    """One way to try; see ``harness.probes.ways``. The control is root, by the same script."""

    name: str
    script: Script
    token: str | None = None
    origins: tuple[Origin, ...] = BOTH


def _in_directory(name: str) -> str:
    return f"{DIRECTORY}/{name}"


def _link(attacker: Attacker, _: int) -> str:
    link = f"{own_directory(attacker)}/link-to-the-record.{attacker.origin}"
    return f"ln {DATABASE} {link} && won; rm -f {link}"


def _lock(attacker: Attacker, _: int) -> str:
    program = f"""\
        import sqlite3
        connection = sqlite3.connect("file:{DATABASE}?mode=rw", uri=True, timeout=30, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")"""
    return f"python3 -I -S -c {quote(dedent(program))} && won"


def _signal(attacker: Attacker, pid: int) -> str:
    """In a container, a process of that number would be its own."""
    send = f"kill -CONT {pid} && won"
    return f"[ -e /proc/{pid} ] || {{ {send}; }}" if attacker.is_inside else send


# Where NixOS has a link to them, and where a generation has them; a colon that cannot write ends its shell.
CHANGE_SETTINGS = """
cd /etc/hermes-auditd && cp -a config.json other.json && mv other.json config.json && won
: >> /var/lib/tentaflake/current/audit.json && won"""


WAYS = [
    Way("read the record", lambda *_: f"head -c 100 {DATABASE}", "SQLite format 3"),
    Way("read the record's log", lambda *_: f"head -c 1 {DATABASE}-wal > /dev/null && won"),
    Way("list the record's files", lambda *_: f"ls {DIRECTORY}", "audit.db-wal"),
    Way("ask hermes-audit", lambda *_: "hermes-audit query --limit 1 && won", origins=("uid",)),
    Way("read the metrics", lambda *_: "cat /run/hermes-auditd/metrics.prom", "hermes_auditd_events_total"),
    Way("append to the record", lambda *_: f": >> {DATABASE} && won"),
    Way("add a file to the record", lambda who, _: f": > {_in_directory(f'planted-by-{who.slug}')} && won"),
    Way("delete a file of the record", lambda who, _: f"rm {_in_directory(f'removable-{who.slug}')} && won"),
    Way(
        "rename a file of the record",
        lambda who, _: f"mv {_in_directory(f'movable-{who.slug}')} {_in_directory(f'moved-{who.slug}')} && won",
    ),
    Way("link to the record", _link),
    Way("lock the record", _lock, origins=("uid",)),
    Way("change the daemon's settings", lambda *_: CHANGE_SETTINGS),
    Way("send the daemon a signal", _signal),
    Way("take the daemon's processor", lambda _, pid: f"renice -n 0 -p {pid} && won"),
    Way("read the daemon's environment", lambda _, pid: f"tr '\\0' '\\n' < /proc/{pid}/environ", "NOTIFY_SOCKET="),
    Way("command the daemon's unit", lambda *_: f"systemctl --no-ask-password reload {UNIT} && won", origins=("uid",)),
]


def plan_audit_attempts(host: Host, attackers: Sequence[Attacker]) -> Iterator[Attempt]:
    """Every attacker by every way, and root."""
    everybody = [*attackers, ROOT]
    planted = " ".join(_in_directory(f"{what}-{who.slug}") for who in everybody for what in ("movable", "removable"))
    host.check_output(f"touch {planted}")
    pid = daemon_pid(host)
    for way in WAYS:
        for attacker in everybody:
            if attacker is ROOT or attacker.origin in way.origins:
                yield Attempt(
                    claim="A4",
                    way=way.name,
                    attacker=attacker,
                    target=TARGET,
                    script=way.script(attacker, pid),
                    expected="reached" if attacker is ROOT else "refused",
                    token=way.token.encode() if way.token else None,
                )


def daemon_pid(host: Host) -> int:
    pid = int(host.check_output("systemctl show --property=MainPID --value %s", UNIT))
    if pid == 0:
        raise HarnessError(f"{UNIT} does not run", hint=f"journalctl -u {UNIT}")
    return pid


# --- what is recorded -------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the record, and when it was read (seconds since 1970, by the guest's clock)."""

    id: int
    agent: str
    kind: str
    path: str
    old_path: str | None
    origin: str
    count: int  # type: ignore[assignment] # a field, and not the method of tuples
    seen: float


LOOK_INTERVAL = 0.05
"""Seconds between two looks at a record, the daemon's or the bare watcher's."""
# Prints the rows as they come, each with the time at which it could be read.
FOLLOWER = f"""\
import json, sys, time
sys.path.insert(0, "/usr/lib/tentaflake/auditd")
from hermes_auditd.reader import Filter, Reader
reader = Reader("{DATABASE}")
last = reader.last_id()
print("[]", flush=True)
for row in reader.follow(Filter(path=sys.argv[1] or None), last, {LOOK_INTERVAL}):
    fields = [row[name] for name in ("id", "agent", "kind", "path", "old_path", "origin", "count")]
    print(json.dumps([*fields, time.time()]), flush=True)
"""
FOLLOWED = "/run/followed"
PATIENCE = 60.0
"""Seconds for a row to come, stretched; not what a test measures. On a broken host they are waited out."""


@dataclass
class Follower:
    """Rows of the record since it was started, as they could be read. It asks the guest for new ones only."""

    machine: Machine
    read: int = 0
    found: list[Row] = field(default_factory=list)

    def rows(self) -> list[Row]:
        said = self.machine.run(f"tail -c +{self.read + 1} {FOLLOWED}").check().stdout
        whole = said[: said.rfind(b"\n") + 1]
        self.read += len(whole)
        self.found += [Row(*json.loads(line)) for line in whole.splitlines() if line != b"[]"]
        return self.found

    def of(self, agent: Agent, *kinds: str, origin: str | None = None) -> list[Row]:
        """The rows of an agent, of these kinds."""
        return [
            row for row in self.rows() if row.agent == agent.name and row.kind in kinds and origin in (None, row.origin)
        ]

    def wait_row(self, agent: Agent, path: str, kind: str = "create", *, timeout: float = PATIENCE) -> Row:
        """The first row on a path below the agent's state directory."""
        where = f"{agent.state_dir}/{path}"
        [row] = self.wait_rows(agent, kind, [where], timeout=timeout)
        return row

    def wait_rows(self, agent: Agent, kind: str, paths: Sequence[str], *, timeout: float = PATIENCE) -> list[Row]:
        """The first row on each of these paths, by one of which a renamed file went; raises ``AssertionError``."""
        started, timeout = time.monotonic(), stretch(timeout)
        while True:
            first = {row.old_path or row.path: row for row in reversed(self.of(agent, kind))}
            missing = [path for path in paths if path not in first]
            if not missing:
                return [first[path] for path in paths]
            if (waited := time.monotonic() - started) > timeout:
                what = f"{len(missing)} of {len(paths)} rows ({kind} of {agent.name}) are not there, as {missing[0]}"
                raise AssertionError(f"after {waited:.0f} s, {what}")
            time.sleep(min(0.1 + waited / 10, 2))  # each look is a process in the guest


def follow(machine: Machine, paths: str | None = None) -> Follower:
    """Follow the record from now on, or what it has on some paths (an SQLite GLOB).

    In a storm, who prints every row is late by what the printing takes, and takes it from the daemon.
    """
    machine.put(FOLLOWER.encode(), "/run/follow.py")
    machine.run(f"setsid python3 /run/follow.py {quote(paths or '')} < /dev/null > {FOLLOWED} 2>&1 &").check()
    follower = Follower(machine)
    wait_until("the record is followed", lambda: machine.run(["test", "-s", FOLLOWED]).exit == 0)
    return follower


# --- the control: what a bare watcher needs ---------------------------------------------------------------

# The least that can record: each name that appears in a directory is a row in a database of its own, safe on the disk
# before anybody can read it. Nothing is told apart, looked at, coalesced or bounded.
BARE_WATCHER = """\
import ctypes, os, sqlite3, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
database, *directories = sys.argv[1:]
queue = libc.inotify_init()
for directory in directories:
    if libc.inotify_add_watch(queue, os.fsencode(directory), 0x100) < 0:  # IN_CREATE
        sys.exit(f"{directory}: {os.strerror(ctypes.get_errno())}")
record = sqlite3.connect(database, isolation_level=None)
record.execute("PRAGMA journal_mode = WAL")
record.execute("PRAGMA synchronous = FULL")
record.execute("CREATE TABLE act (name TEXT)")
print("watching", flush=True)
while True:
    data, position = os.read(queue, 32768), 0
    record.execute("BEGIN")
    while position < len(data):
        _, _, _, length = struct.unpack_from("iIII", data, position)
        name = data[position + 16 : position + 16 + length].rstrip(b"\\0").decode()
        record.execute("INSERT INTO act VALUES (?)", (name,))
        position += 16 + length
    record.execute("COMMIT")
"""
# Prints the names as they come, each with the time at which it could be read.
BARE_READER = f"""\
import json, sqlite3, sys, time
record, last = sqlite3.connect(f"file:{{sys.argv[1]}}?mode=ro", uri=True), 0
while True:
    rows = record.execute("SELECT rowid, name FROM act WHERE rowid > ? ORDER BY rowid", (last,)).fetchall()
    for last, name in rows:
        print(json.dumps([name, time.time()]), flush=True)
    time.sleep({LOOK_INTERVAL})
"""
BARE = "/root/bare-watcher"
TWIN = "/tmp/twin"
"""A directory in an agent's container, outside of its state: the bare watcher's, and not the daemon's."""


@dataclass(frozen=True)
class BareWatcher:
    """A bare watcher of what appears in ``TWIN`` of some agents, in the same guest as the daemon.

    ``twins`` are these directories as the host sees them, by the agents' names.
    """

    machine: Machine
    twins: dict[str, str]

    def measure_delays(self, agent: Agent, names: Sequence[str]) -> list[float]:
        """Seconds from when each file was made in the agent's twin until the bare record's reader had its name."""

        def are_seen() -> bool:
            return set(names) <= self._read_times().keys()

        wait_until("a bare watcher has seen the acts", are_seen)
        seen = self._read_times()
        paths = " ".join(quote(f"{self.twins[agent.name]}/{name}") for name in names)
        made = map(float, self.machine.host.check_output(f"stat -c %.9Z {paths}").splitlines())
        return [seen[name] - moment for name, moment in zip(names, made, strict=True)]

    def _read_times(self) -> dict[str, float]:
        said = self.machine.run(f"cat {BARE}/seen").check().text
        return dict(json.loads(line) for line in said.splitlines(keepends=True) if line.endswith("\n"))


def start_bare_watcher(machine: Machine, agents: Sequence[Agent]) -> BareWatcher:
    """Start a bare watcher beside the daemon; names of files in the twins have to differ between agents too."""
    twins = {}
    for agent in agents:
        order(machine.host, agent, f"mkdir {TWIN}")
        twins[agent.name] = f"/proc/{main_pid(machine.host, agent)}/root{TWIN}"
    machine.run(["mkdir", BARE]).check()
    for name, program in (("watcher", BARE_WATCHER), ("reader", BARE_READER)):
        machine.put(program.encode(), f"{BARE}/{name}.py")
    run = f"cd {BARE} && setsid python3 -I -S {{}} < /dev/null > {{}} 2>&1 &"
    arguments = " ".join(map(quote, twins.values()))
    machine.run(run.format(f"watcher.py {BARE}/record.db {arguments}", "said")).check()
    wait_until("a bare watcher is there", lambda: machine.run(["test", "-s", f"{BARE}/said"]).exit == 0)
    if (said := machine.run(["cat", f"{BARE}/said"]).check().text) != "watching\n":
        raise ControlFailed(f"the bare watcher does not watch: {said}")
    machine.run(run.format(f"reader.py {BARE}/record.db", "seen")).check()
    return BareWatcher(machine, twins)
