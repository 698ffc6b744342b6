"""The database: its chain, its limits, its damage, and what the disk does to it."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hermes_auditd import daemon as daemon_module
from hermes_auditd import record as record_module
from hermes_auditd import writer as writer_module
from hermes_auditd.chain import COLUMNS, START, Event, digest
from hermes_auditd.errors import AuditError
from hermes_auditd.reader import Reader
from hermes_auditd.record import HOST, Record, open_record
from hypothesis import given
from hypothesis import strategies as st

from tests.services.auditd.conftest import Locally, Start
from tests.services.auditd.support import eventually, rows, settings, told, verdicts
from tests.unit.support import PROPERTY

DAY = 86400 * 10**9


def faults(database: Path | str) -> list[str]:
    return [fault for verdict in verdicts(str(database)) for fault in verdict.faults]


@pytest.fixture
def database(locally: Locally, home: Path) -> Path:
    """A record with thirty rows of one agent and some of another."""
    local = locally("a", "b")
    for number in range(30):
        (home / f"file{number}").touch()
    (home.parent / "b/file").touch()
    local.drain()
    return Path(local.data["database"])


# --- the chain


def test_the_hash_of_a_row_is_as_documented() -> None:
    event = Event(2, 5, "create", "/x", size=3)
    encoded = b'[7,2,5,"create","/x","live",null,null,1,3,null,null,null,null]'
    assert digest(START, 7, event) == hashlib.sha256(START + encoded).digest()


def test_an_untouched_record_is_whole(database: Path) -> None:
    assert faults(database) == []


TAMPERING = {
    "a path is changed": "UPDATE event SET path = path || 'x' WHERE id = :middle",
    "a time is changed": "UPDATE event SET time = time + 1 WHERE id = :middle",
    "a detail is added": "UPDATE event SET detail = 'x' WHERE id = :middle",
    "a count is changed": "UPDATE event SET count = 2 WHERE id = :middle",
    "a row is given to another agent": "UPDATE event SET agent = 3 WHERE id = :middle",
    "a row is given to nobody": "UPDATE event SET agent = 99 WHERE id = :middle",
    "a row is removed": "DELETE FROM event WHERE id = :middle",
    "the last row is removed": "DELETE FROM event WHERE id = :last",
    "the first rows are removed": "DELETE FROM event WHERE id <= :middle",
    "all rows are removed": "DELETE FROM event",
    "a row is moved": "UPDATE event SET id = id + 1000 WHERE id = :middle",
    "a row is added": (
        "INSERT INTO event SELECT id + 1000, agent, time, kind, path, origin, old_path, first, count, size, mode, uid,"
        " gid, detail, hash FROM event WHERE id = :last"
    ),
    "the head is changed": "UPDATE agent SET head_id = head_id - 1 WHERE name = 'a'",
    "pruning is pretended": "UPDATE agent SET pruned_id = :middle WHERE name = 'a'",
}


@pytest.mark.parametrize("statement", TAMPERING.values(), ids=TAMPERING)
def test_tampering_is_found(database: Path, statement: str) -> None:
    with sqlite3.connect(database) as connection:
        ids = [number for (number,) in connection.execute("SELECT id FROM event WHERE agent = 2 ORDER BY id")]
        connection.execute("PRAGMA foreign_keys = OFF")
        cursor = connection.execute(statement, {"middle": ids[15], "last": ids[-1]})
        assert cursor.rowcount > 0
    connection.close()
    assert faults(database) != []


def test_a_record_that_was_written_anew_is_found_by_a_head_noted_elsewhere(database: Path) -> None:
    reader = Reader(str(database))
    heads = {verdict.agent: (verdict.head, verdict.hash) for verdict in reader.verify({})}
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE event SET path = '/innocent' WHERE id = (SELECT max(id) FROM event WHERE agent = 2)")
        value = START
        for number, *fields, _ in connection.execute("SELECT * FROM event WHERE agent = 2 ORDER BY id").fetchall():
            names = [row[1] for row in connection.execute("PRAGMA table_info(event)")]
            event = Event(**dict(zip(names[1:-1], fields, strict=True)))
            value = digest(value, number, event)
            connection.execute("UPDATE event SET hash = ? WHERE id = ?", (value, number))
        connection.execute("UPDATE agent SET head_hash = ? WHERE id = 2", (value,))
    connection.close()
    assert [fault for verdict in reader.verify({}) for fault in verdict.faults] == []
    [fault] = [fault for verdict in reader.verify(heads) for fault in verdict.faults]
    reader.close()
    assert "rewritten" in fault


def test_columns_are_in_the_order_of_the_chain(database: Path) -> None:
    connection = sqlite3.connect(database)
    names = {row[1] for row in connection.execute("PRAGMA table_info(event)")}
    connection.close()
    assert names == {*COLUMNS, "hash"}


# --- limits


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    record = Record(str(tmp_path / "audit.db"))
    yield record
    record.close()


def fill(record: Record, agent: int, times: list[int], path: str = "/x") -> None:
    for when in times:
        record.add(Event(agent, when, "create", path))
    record.commit()


@pytest.mark.auditd
@PROPERTY
@given(data=st.data())
def test_pruning_removes_the_oldest_and_leaves_the_record_whole(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = str(tmp_path_factory.mktemp("prune") / "audit.db")
    record = Record(path)
    agents = [record.agent(name, f"/{name}", 1, 10**6)[0] for name in ("a", "b")]
    for _ in range(data.draw(st.integers(1, 5))):
        fill(record, data.draw(st.sampled_from(agents)), [1] * data.draw(st.integers(1, 20)))
        record.prune(data.draw(st.sampled_from([HOST, *agents])), data.draw(st.integers(0, 3000)), 0)
    sizes = {agent: record.size(agent) for agent in agents}
    record.close()
    assert faults(path) == []
    for agent, name in zip(agents, ("a", "b"), strict=True):
        assert sizes[agent] == len(rows(path, agent=name)) * (record_module.ROW_COST + 2)


@pytest.mark.auditd
def test_a_flood_of_one_agent_takes_nothing_from_another(start: Start, tmp_path: Path) -> None:
    running = start("a", "b", maxBytes=1024 * 1024)
    (tmp_path / "b/precious").touch()
    running.wait_row(path="*/precious")
    for number in range(15_000):
        os.close(os.open(tmp_path / f"a/{number}", os.O_CREAT))

    def size() -> int:
        reader = Reader(running.data["database"])
        try:
            return next(int(entry["bytes"]) for entry in reader.stats() if entry["agent"] == "a")
        finally:
            reader.close()

    running.wait_row(agent="a", path="*/14999")
    eventually(lambda: size() < 1.05e6, "what is too much is pruned")
    running.stop()
    assert running.rows(agent="a", kinds=("prune",)) and size() > 0.8e6
    assert told(running.rows(agent="b"), tmp_path / "b") == ["create precious"]
    assert told(running.rows(agent="a"), tmp_path / "a")[-1] == "create 14999"
    assert faults(running.data["database"]) == []


def test_rows_older_than_they_may_get_are_pruned(record: Record) -> None:
    agent, _ = record.agent("a", "/a", 1, 10**6)
    now = 100 * DAY
    fill(record, agent, [now - 3 * DAY, now - 2 * DAY, now - DAY, now])
    assert record.prune(agent, 0, now - 2 * DAY + 1) == (2, now - 3 * DAY)
    record.close()
    assert [row["time"] for row in rows(record.path, agent="a")] == [now - DAY, now] and faults(record.path) == []


@pytest.mark.parametrize("jump", [50 * 365 * DAY, -50 * 365 * DAY])
def test_a_clock_that_jumps_makes_no_row_old_or_young(record: Record, jump: int) -> None:
    agent, _ = record.agent("a", "/a", 1, 10**6)
    now = 60 * 365 * DAY
    fill(record, agent, [now - 5 * DAY, now - DAY])
    record.add(Event(HOST, now + jump, "clock", detail=str(jump)))
    record.commit()
    fill(record, agent, [now + jump])
    assert record.prune(agent, 0, now + jump - 2 * DAY)[0] == 1
    assert record.prune(agent, 0, now + jump - 2 * DAY)[0] == 0


def test_a_clock_that_jumps_is_told(locally: Locally, monkeypatch: pytest.MonkeyPatch) -> None:
    local = locally()
    before = daemon_module._clock_offset()
    monkeypatch.setattr(daemon_module, "_clock_offset", lambda: before + 3600 * 10**9)
    local.daemon._tick()
    local.daemon._tick()
    local.drain()
    [row] = local.rows(kinds=("clock",))
    assert abs(int(row["detail"]) - 3600 * 10**9) < 10**9


def test_a_clock_that_went_back_meanwhile_is_told_at_the_start(
    locally: Locally, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = locally()
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10 * DAY)
    local.restart()
    monkeypatch.setattr(time, "time_ns", real)
    local.restart()
    assert [int(row["detail"]) // DAY for row in local.rows(kinds=("clock",))] == [-10]


# --- the schema


def test_a_migration_is_applied_once_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    agent, _ = record.agent("a", "/a", 1, 10**6)
    fill(record, agent, [1, 2, 3])
    record.close()
    monkeypatch.setattr(record_module, "MIGRATIONS", [*record_module.MIGRATIONS, "CREATE TABLE later (x)"])
    for _ in range(2):
        migrated = Record(record.path)
        assert migrated._connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert migrated._connection.execute("SELECT count(*) FROM event").fetchone() == (3,)
        migrated.close()


def test_a_migration_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    record.close()
    broken = "CREATE TABLE later (x); SELECT * FROM nowhere"
    monkeypatch.setattr(record_module, "MIGRATIONS", [*record_module.MIGRATIONS, broken])
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        Record(record.path)
    monkeypatch.undo()
    again = Record(record.path)
    assert again._connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'later'").fetchone() == (0,)
    again.close()


def test_a_record_of_a_newer_daemon_is_left_alone(record: Record) -> None:
    record._connection.execute("PRAGMA user_version = 99")
    record.close()
    with pytest.raises(AuditError, match="version 99"):
        open_record(record.path, "x")
    with pytest.raises(AuditError, match="version 99"):
        Reader(record.path)
    assert not list(Path(record.path).parent.glob("*corrupt*"))


# --- damage


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a database " * 1000)


def overwrite_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [overwrite, overwrite_pages, cut])
def test_a_damaged_record_is_kept_aside_and_a_new_one_begun(
    locally: Locally, home: Path, damage: Callable[[Path], None]
) -> None:
    local = locally()
    for number in range(200):
        (home / str(number)).touch()
    local.drain()
    database = Path(local.data["database"])
    local.daemon.stop()
    damage(database)
    Path(f"{database}-wal").touch()  # as after a crash: then the whole file is checked
    content = database.read_bytes()
    local.daemon = type(local)(local.data).daemon
    [aside] = [
        path
        for path in database.parent.glob("audit.db.corrupt-*")
        if path.suffix not in (".db-wal", ".db-shm") and not path.name.endswith(("-wal", "-shm"))
    ]
    assert aside.read_bytes() == content
    assert [row["kind"] for row in local.rows(agent="")][:2] == ["corrupt", "start"]
    assert len(local.rows(kinds=("create",), origin="start")) == 200 and faults(database) == []


def test_a_record_that_turns_out_to_be_damaged_is_replaced_while_the_daemon_runs(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = settings(tmp_path, "a")
    (tmp_path / "config.json").write_text(json.dumps(data))
    (home / "file").touch()
    errors = [sqlite3.DatabaseError("malformed")]
    errors[0].sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    def run(daemon: daemon_module.Daemon, _: str) -> None:
        if errors:
            raise errors.pop()
        daemon._commit()
        daemon.stop()

    monkeypatch.setattr(daemon_module.Daemon, "run", run)
    daemon_module.serve(str(tmp_path / "config.json"))
    found = rows(data["database"])
    assert [row["kind"] for row in found][:2] == ["corrupt", "start"] and told(found, home) == ["create file"]
    assert any(path.name.startswith("audit.db.corrupt-") for path in (tmp_path / "record").iterdir())


# --- the disk


class Failing:
    """A connection that fails to commit while it is told to."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.error: sqlite3.Error | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def execute(self, statement: str, *rest: Any) -> Any:
        if statement == "COMMIT" and self.error is not None:
            raise self.error
        return self.connection.execute(statement, *rest)


@pytest.fixture
def failing(locally: Locally, monkeypatch: pytest.MonkeyPatch) -> Any:
    local = locally()
    connection = Failing(local.daemon.record._connection)
    monkeypatch.setattr(local.daemon.record, "_connection", connection)
    monkeypatch.setattr(local.daemon.record, "reconnect", lambda: None)
    monkeypatch.setattr(writer_module, "RETRY", 0)
    return local, connection


@pytest.mark.parametrize("error", ["disk is full", "attempt to write a readonly database", "disk I/O error", "locked"])
def test_what_cannot_be_written_waits_and_is_written_later(failing: Any, home: Path, error: str) -> None:
    local, connection = failing
    connection.error = sqlite3.OperationalError(error)
    (home / "meanwhile").touch()
    local.drain()
    assert local.rows(kinds=("create",)) == []
    connection.error = None
    local.drain()
    assert told(local.rows(), home) == ["create meanwhile"]
    assert [row["count"] for row in local.rows(kinds=("gap",))] == [0] and faults(local.data["database"]) == []


def test_what_does_not_fit_into_memory_is_found_again(
    failing: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, connection = failing
    monkeypatch.setattr(writer_module, "HELD_ROWS", 50)
    connection.error = sqlite3.OperationalError("database or disk is full")
    for number in range(100):
        (home / str(number)).touch()
    local.drain()
    connection.error = None
    local.drain()
    assert local.rows(kinds=("gap",))[0]["count"] >= 100
    created = [line for line in told(local.rows(), home, origin=True) if "create" in line]
    assert sorted(created) == sorted(f"create {number} gap" for number in range(100))
    assert faults(local.data["database"]) == []


def test_who_locks_the_record_delays_it_and_nothing_more(start: Start, home: Path) -> None:
    running = start()
    (home / "before").touch()
    running.wait_row(path="*/before")
    connection = sqlite3.connect(running.data["database"], isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    (home / "meanwhile").touch()
    running.signal(signal.SIGTERM)
    assert running.process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(1)
    connection.execute("ROLLBACK")
    connection.close()
    assert running.wait() == 0
    assert "create meanwhile" in told(running.rows(), home) and running.rows()[-1]["kind"] == "stop"
    assert "cannot be written" not in running.log and running.rows(kinds=("gap",)) == []


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def on_disk(place: Path, options: str) -> list[str]:
    """What makes a command run with a small disk of its own at ``place``."""
    place.mkdir()
    return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o {options} none {place} && exec "$@"', "sh"]


@needs_root
def test_a_read_only_disk_is_refused_with_its_reason(start: Start, tmp_path: Path) -> None:
    running = start(wrapper=on_disk(tmp_path / "record", "ro"), ready=False)
    assert running.wait() == 1
    assert running.log.startswith(f"hermes-auditd: {tmp_path}/record/audit.db.lock cannot be made: Read-only")


@needs_root
def test_a_full_disk_is_reported_and_got_over(start: Start, home: Path, tmp_path: Path) -> None:
    place = tmp_path / "record"
    running = start(wrapper=on_disk(place, "size=4m"))
    assert running.process is not None
    enter = ["nsenter", f"--target={running.process.pid}", "--mount", "sh", "-c"]

    def do(command: str) -> None:
        subprocess.run([*enter, command], check=True, capture_output=True)

    def recorded(name: str) -> bool:
        do(f"cp {place}/audit.db {place}/audit.db-wal {tmp_path}")
        return bool(rows(str(tmp_path / "audit.db"), path=f"*/{name}"))

    (home / "before").touch()
    eventually(lambda: recorded("before"), "a row before the attack")
    do(f"dd if=/dev/zero of={place}/filler bs=1k 2> {tmp_path}/said || :")
    for number in range(3000):  # more than fits into what the log has left
        (home / f"meanwhile{number}").touch()
    eventually(lambda: "cannot be written" in running.log, "it is reported")
    do(f"rm {place}/filler")
    eventually(lambda: "can be written again" in running.log, "it is got over")
    eventually(lambda: recorded("meanwhile2999"), "what happened meanwhile is recorded")
    running.hear()
    assert any(said.startswith("STATUS=the record cannot be written") for said in running.said)
    found = rows(str(tmp_path / "audit.db"))
    assert sum(line.startswith("create meanwhile") for line in told(found, home)) == 3000
    assert faults(tmp_path / "audit.db") == []
