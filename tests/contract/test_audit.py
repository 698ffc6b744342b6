"""A1 to A5: what agents do to their files is on record, and they cannot keep it from being so."""

import random
import re
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hermes_auditd.reader import Filter, Reader
from hermes_auditd.record import open_record
from hermes_auditd.text import escape

from harness.contract import ControlFailed
from harness.lab import Lab
from harness.pace import stretch
from harness.policy import Agent, Plan
from harness.probes import audit
from harness.probes.attempts import order, quote
from harness.probes.audit import (
    DATABASE,
    DIRECTORY,
    TWIN,
    UNIT,
    BareWatcher,
    Follower,
    daemon_pid,
    follow,
    start_bare_watcher,
)
from harness.probes.containers import main_pid
from harness.probes.exhaustion import background, order_when_full
from harness.probes.programs import wait_until
from harness.vm.machine import Machine
from harness.vm.template import Template
from harness.vm.wreck import cut_power, salvage

claim = pytest.mark.claim


@pytest.fixture
def followed(machine: Machine) -> Follower:
    """The record of this test's machine, from now on."""
    return follow(machine)


@pytest.fixture
def attacker(agents: Mapping[str, Agent]) -> Agent:
    """One that has no disk quota, if there is one: so nothing limits what it does."""
    return min(agents.values(), key=lambda agent: agent.limits.disk or 0)


@pytest.fixture
def neighbours(agents: Mapping[str, Agent], attacker: Agent) -> list[Agent]:
    found = [agent for agent in agents.values() if agent is not attacker]
    if not found:
        raise ControlFailed("there is no neighbour: the host has one agent only")
    return found


def check_whole(machine: Machine) -> None:
    """The record is as it was written; that a change is found is tested natively."""
    machine.run("hermes-audit verify", timeout=300).check()


# --- A1

LATE = 1.0
"""Seconds that a row may come later than the bare watcher's beside it: A1's promise, which no machine changes."""
BARE_MOST = 10.0
"""Seconds (stretched) that the bare watcher may need itself: a guest that is slower is no control."""
ROUNDS = 10
# Each act has a directory of its own, whose times say when it was done, and a name in the bare watcher's twin of it.
PREPARE = """
cd {state} && i=0
while [ $i -lt {rounds} ]; do
  mkdir -p acts/$i/write acts/$i/delete acts/$i/rename acts/$i/chmod acts/$i/chown
  for act in write delete rename chmod chown; do : > acts/$i/$act/file; done
  : > {twin}/{name}-create-$i; i=$((i + 1))
done"""
ACT = """
cd {state} && i=0
while [ $i -lt {rounds} ]; do
  cd acts/$i && echo more >> write/file && : > {twin}/{name}-write-$i && rm delete/file && : > {twin}/{name}-delete-$i
  mv rename/file rename/other && : > {twin}/{name}-rename-$i && chmod 640 chmod/file && : > {twin}/{name}-chmod-$i
  cd ../.. && i=$((i + 1))
done"""
# Who owns a file, only root can change.
CHOWN = """
for i in $(seq 0 {last}); do chown 0:0 {state}/acts/$i/chown/file && : > {twin}/{name}-chown-$i; done"""
IN_DIRECTORY = ("delete", "rename")
"""Acts whose time is the last change (ctime) of the directory; that of the others is the file's."""


def times_of(machine: Machine, act: str, directories: list[str]) -> list[float]:
    """When the act was done in each of these directories: seconds since 1970, by the guest's clock."""
    paths = " ".join(quote(path if act in IN_DIRECTORY else f"{path}/file") for path in directories)
    return [float(line) for line in machine.host.check_output(f"stat -c %.9Z {paths}").splitlines()]


@claim("A1")
@pytest.mark.recorded
def test_every_act_is_recorded_within_a_second_in_new_directories_too(
    machine: Machine, agents: Mapping[str, Agent], followed: Follower
) -> None:
    """From the act to where another process reads the row, inside the guest. Of each agent and kind of act, most rows
    are at most a second later than the bare watcher's of an act in the same moment. Creations are in new directories.
    """
    bare = start_bare_watcher(machine, list(agents.values()))
    delays: dict[tuple[str, str], list[float]] = {}
    lateness: dict[tuple[str, str], list[float]] = {}

    def note(agent: Agent, act: str) -> None:
        name = "chown" if act == "create" else act
        directories = [f"{agent.state_dir}/acts/{number}/{name}" for number in range(ROUNDS)]
        rows = followed.wait_rows(agent, act, [f"{path}/file" for path in directories])
        assert [row.origin for row in rows if row.origin not in ("live", "scan")] == []
        times = times_of(machine, act, directories)
        took = [row.seen - done for row, done in zip(rows, times, strict=True)]
        needed = bare.measure_delays(agent, [f"{agent.name}-{act}-{number}" for number in range(ROUNDS)])
        if statistics.median(needed) > stretch(BARE_MOST):
            raise ControlFailed(f"the bare watcher itself needs {statistics.median(needed):.1f} s: {needed}")
        delays[agent.name, act] = took
        lateness[agent.name, act] = [mine - least for mine, least in zip(took, needed, strict=True)]

    for agent in agents.values():
        words = {"state": quote(agent.state_dir), "rounds": ROUNDS, "twin": TWIN, "name": agent.name}
        order(machine.host, agent, PREPARE.format(**words))
        note(agent, "create")
        assert statistics.median(lateness[agent.name, "create"]) < LATE, (lateness, delays)  # before more is tried
    for agent in agents.values():
        words = {"state": quote(agent.state_dir), "rounds": ROUNDS, "last": ROUNDS - 1, "name": agent.name}
        order(machine.host, agent, ACT.format(**words, twin=TWIN))
        machine.host.check_output(CHOWN.format(**words, twin=bare.twins[agent.name]))
        for act in ("write", "delete", "rename", "chmod", "chown"):
            note(agent, act)
    assert max(map(statistics.median, lateness.values())) < LATE, (lateness, delays)
    assert min(min(found) for found in delays.values()) > 0, delays  # the control: no row is older than its act


NAMES = [
    b"n" * 255,
    b"line\nbreak",
    b"\033[2J\033]0;title\007",
    b"tab\tand\rreturn",
    b"\377\376 not utf-8 \303",
    b"'; DROP TABLE event; --",
    b"back\\slash \\x41",
    "right\u202eto left".encode(),
    b"*?[a]$(reboot)`reboot`",
]


@claim("A1")
def test_hostile_names_are_recorded_byte_for_byte_and_harm_no_terminal(
    machine: Machine, attacker: Agent, followed: Follower
) -> None:
    names = [name if name.startswith(b"nn") else b"hostile " + name for name in NAMES]
    written = ["".join(f"\\x{byte:02x}" for byte in name) for name in names]
    lines = [f": > {quote(attacker.state_dir)}/\"$(printf '%b' '{name}')\"" for name in written]
    order(machine.host, attacker, "\n".join(lines))
    followed.wait_rows(attacker, "create", [f"{attacker.state_dir}/{escape(name)}" for name in names])
    shown = machine.run("hermes-audit query --path '*/hostile *'").check().stdout.decode()
    assert "DROP TABLE" in shown
    assert all(line.isprintable() for line in shown.splitlines())


# --- A2

QUEUE = 16


@claim("A2")
@pytest.mark.recorded
def test_a_burst_that_overflows_the_kernels_queue_is_found_again_and_marked(
    machine: Machine, attacker: Agent, neighbours: list[Agent]
) -> None:
    machine.run(f"sysctl -q fs.inotify.max_queued_events={QUEUE} && systemctl restart {UNIT}", timeout=300).check()
    followed = follow(machine)
    burst = "mkdir {state}/burst && cd {state}/burst && i=0; while [ $i -lt 1000 ]; do : > $i; i=$((i + 1)); done"
    order(machine.host, attacker, burst.format(state=quote(attacker.state_dir)))
    for neighbour in neighbours:
        order(machine.host, neighbour, f": > {quote(neighbour.state_dir)}/beside-a-burst")
    rows = followed.wait_rows(attacker, "create", [f"{attacker.state_dir}/burst/{number}" for number in range(1000)])
    for neighbour in neighbours:
        followed.wait_row(neighbour, "beside-a-burst")
    order(machine.host, attacker, f": > {quote(attacker.state_dir)}/after-the-burst")
    followed.wait_row(attacker, "after-the-burst")
    assert followed.of(attacker, "overflow"), "the burst did not overflow the queue"
    assert "overflow" in {row.origin for row in rows} <= {"live", "scan", "overflow"}
    told = Counter(row.path for row in followed.of(attacker, "create"))
    twice = [path for path, count in told.items() if count > 1]
    assert not twice, "some are told twice"
    for neighbour in neighbours:
        assert followed.of(neighbour, "overflow") == []


# --- A3

# Files that come, change their names and go, so that no quota is reached, until somebody makes the file `stop`.
WRITE = """
mkdir -p {state}/steady && cd {state}/steady && i=0
while [ ! -e stop ]; do
  i=$((i + 1)); echo $i > file-$i; mv file-$i moved-$i; rm -f moved-$((i - 100)); usleep 100000
done
: > the-end"""


def write_without_end(machine: Machine, agents: Mapping[str, Agent]) -> None:
    for agent in agents.values():
        order(machine.host, agent, background(WRITE.format(state=quote(agent.state_dir))))


@claim("A3")
@pytest.mark.recorded
def test_nothing_is_lost_when_the_daemon_is_killed_again_and_again(
    machine: Machine, agents: Mapping[str, Agent], followed: Follower
) -> None:
    """In the middle of its work. What was read before is still there, and what was done meanwhile is found."""
    write_without_end(machine, agents)
    killed, first = set(), next(iter(agents.values()))
    for number in range(3):
        before = len(followed.rows())
        wait_until("agents are at work", partial(has_more_rows, followed, before))
        pid = daemon_pid(machine.host)
        killed.add(pid)
        machine.run(["kill", "-KILL", str(pid)]).check()
        wait_until("the daemon is back", partial(is_up_again, machine, pid))
        order(machine.host, first, f": > {quote(first.state_dir)}/back-{number}")
        followed.wait_row(first, f"back-{number}")
        paths = {row.path for row in followed.rows()}
        there = steady_files(machine, first, f"! -newercm {quote(first.state_dir)}/back-{number}")  # changed before it
        assert there  # the control
        assert [path for path in there if path not in paths] == []
    assert len(killed) == 3
    for agent in agents.values():
        order(machine.host, agent, f": > {quote(agent.state_dir)}/steady/stop")
        followed.wait_row(agent, "steady/the-end")
    read = followed.rows()
    rows = {row["id"]: (row["agent"], row["path"]) for row in stored(machine)}
    assert [row for row in read if rows.get(row.id) != (row.agent, row.path)] == []
    paths = {path for _, path in rows.values()}
    for agent in agents.values():
        there = steady_files(machine, agent)
        assert len(there) > 20  # the control
        assert [path for path in there if path not in paths] == []
    check_whole(machine)


def steady_files(machine: Machine, agent: Agent, tests: str = "") -> list[str]:
    """What ``write_without_end`` has left so far; ``tests`` are find(1)'s.

    What is renamed or removed after find(1) has read its name is passed over: it is none of an error, and no file that
    has stayed.
    """
    return machine.host.check_output(
        f"find {quote(agent.state_dir)}/steady -ignore_readdir_race -type f {tests}"
    ).splitlines()


def has_more_rows(followed: Follower, before: int) -> bool:
    return len(followed.rows()) > before + 50


def is_up_again(machine: Machine, former: int) -> bool:
    shown = machine.host.check_output("systemctl show --property=MainPID,ActiveState %s", UNIT)
    return "ActiveState=active" in shown and f"MainPID={former}\n" not in shown + "\n"


def stored(machine: Machine, arguments: str = "") -> Iterator[dict[str, Any]]:
    """The rows that ``hermes-audit query`` finds with these arguments in the record as it is now."""
    said = machine.run(f"hermes-audit query --json {arguments}", timeout=300).check().stdout
    return (msgspec.json.decode(line) for line in said.splitlines())


# Acknowledged is what somebody could read. It goes to the serial console, and so out of the machine.
ACKNOWLEDGE = r"""
hermes-audit tail -n 0 -f --json |
  sed -u -n -E 's|^\{"id": ([0-9]+), "agent": "([^"]*)", .*"path": "([^"]*)".*|acknowledged \1 \2 \3|p' > /dev/ttyS0"""
ACKNOWLEDGED = re.compile(rb"acknowledged (\d+) (\S*) (\S+)\r?\n")


# A kernel that writes what nobody has synced as late as it can: after half an hour, and not for having waited long.
WRITE_LATE = "mount -o remount,commit=1800 / && echo 0 > /proc/sys/vm/dirty_writeback_centisecs"


@pytest.fixture(scope="session")
def busy(lab: Lab, plan: Plan) -> Template:
    """Agents write without an end, and each row that can be read is told on the console."""

    def begin(machine: Machine) -> None:
        machine.run(WRITE_LATE).check()
        write_without_end(machine, plan.agents)
        machine.run(background(ACKNOWLEDGE)).check()
        log = machine.process.console_log
        wait_until("rows are told on the console", lambda: bool(ACKNOWLEDGED.search(log.read_bytes())))

    return lab.stage(plan, begin, title="agents that write without an end")


def acknowledged(log: Path) -> dict[int, tuple[str, str]]:
    """Agent and path of each row that was told, by id."""
    return {int(row[1]): (row[2].decode(), row[3].decode()) for row in ACKNOWLEDGED.finditer(log.read_bytes())}


def cut_once(
    lab: Lab, template: Template, agent: Agent, directory: Path, chance: random.Random
) -> dict[int, tuple[str, str]]:
    """Cut the power at a random moment; the record's files come to ``directory``. Returns what was acknowledged."""
    with lab.fork(template) as machine:
        log = machine.process.console_log
        # What was recorded before the snapshot is on the disk in any case: a snapshot begins with sync(1).
        path = f"{agent.state_dir}/steady/since-the-fork"
        order(machine.host, agent, f": > {quote(path)}")
        wait_until("a row of this fork is told", lambda: (agent.name, path) in acknowledged(log).values())
        time.sleep(chance.uniform(0, 2))  # no condition: any moment will do
        cut_power(machine)
        salvage(machine, DIRECTORY, directory)
        return acknowledged(log)


def faults_of(record: Path, told: Mapping[int, tuple[str, str]]) -> list[str]:
    """What is wrong with a record, all of whose rows in ``told`` should be there."""
    opened, aside = open_record(str(record), "a-test")  # as the daemon would
    opened.close()
    reader = Reader(str(record))
    try:
        faults = [fault for verdict in reader.verify({}) for fault in verdict.faults]
        rows = {row["id"]: (row["agent"], row["path"]) for row in reader.rows(Filter(), min(told) - 1)}
    finally:
        reader.close()
    lost = [f"row {number} ({row[1]}) is lost" for number, row in told.items() if rows.get(number) != row]
    return [*(["it is damaged"] if aside else []), *faults, *lost]


def cut_again_and_again(lab: Lab, template: Template, agent: Agent, directory: Path, count: int) -> None:
    """``count`` times, at least once; the first after which something is lost fails."""
    seed = random.randrange(1 << 32)
    chance, started = random.Random(seed), time.monotonic()
    record, told = Path(), dict[int, tuple[str, str]]()
    for number in range(count):
        place = directory / str(number)
        place.mkdir()
        told = cut_once(lab, template, agent, place, chance)
        record = place / Path(DIRECTORY).name / Path(DATABASE).name
        faults = faults_of(record, told)
        assert not faults, f"cut {number}, seed {seed}: {faults[:10]}"
        print(f"cut {number}: {(time.monotonic() - started) / (number + 1):.1f} s each, {len(told)} rows told")
    with closing(sqlite3.connect(record)) as connection, connection:  # the control: a row that is lost is missed
        connection.execute("DELETE FROM event WHERE id = ?", (max(told),))
    assert len(faults_of(record, told)) > 1


@claim("A3")
@pytest.mark.recorded
def test_the_record_survives_power_cuts(lab: Lab, busy: Template, attacker: Agent, tmp_path: Path) -> None:
    cut_again_and_again(lab, busy, attacker, tmp_path, 3)


@claim("A3")
@pytest.mark.power
def test_the_record_survives_fifty_power_cuts(lab: Lab, busy: Template, attacker: Agent, tmp_path: Path) -> None:
    cut_again_and_again(lab, busy, attacker, tmp_path, 50)


# --- A4


@claim("A4")
@pytest.mark.parametrize("way", [way.name for way in audit.WAYS])
def test_agent_cannot_reach_the_record_nor_the_daemon(way: str, outcomes: Callable[[str], None]) -> None:
    outcomes(way)


@claim("A4")
def test_the_daemon_is_confined(shared_machine: Machine) -> None:
    """It may read what is not its own, and nothing else that its user may not."""
    host = shared_machine.host
    status = host.check_output("cat /proc/%s/status", str(daemon_pid(host)))
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        f"{1 << 2:016x}"
    }  # CAP_DAC_READ_SEARCH
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert fields["Uid"].split()[0] == str(host.user("hermes-auditd").uid) != "0"
    shared_machine.run(f"systemd-analyze security --no-pager --threshold=20 {UNIT}").check()  # tenths


STORMS = {
    "directories made and removed": "i=0; while [ $i -lt 10000 ]; do mkdir d$i; rmdir d$i; i=$((i + 1)); done",
    "one file written": "i=0; while [ $i -lt 10000 ]; do echo $i > one; i=$((i + 1)); done",
    "renames across directories": """
        : > x/f; i=0; while [ $i -lt 1000 ]; do mv x/f y/f; mv y/f x/f; i=$((i + 1)); done""",
    "hard links": ": > f; i=0; while [ $i -lt 2000 ]; do ln f l$i; i=$((i + 1)); done",
}
SLOW_STORMS = {"directories made and removed"}


BESIDE = "*/beside-*"
"""The paths that are followed in a storm; of the rest, nobody could read the rows as soon."""


@claim("A4")
@pytest.mark.recorded
@pytest.mark.parametrize(
    "storm",
    # The first starts twenty thousand programs, which takes minutes under emulation.
    [pytest.param(name, marks=[pytest.mark.auditd] * (name in SLOW_STORMS)) for name in STORMS],
)
def test_a_storm_neither_stalls_nor_blinds_the_record(
    machine: Machine, attacker: Agent, neighbours: list[Agent], storm: str
) -> None:
    """While it goes on, a neighbour's acts are recorded no second later than by a bare watcher that has no storm to
    record; and afterwards the attacker's own."""
    state = quote(attacker.state_dir)
    # Watched before it breaks: of what is done in a directory before that, only what comes of it can be told.
    order(machine.host, attacker, f"mkdir -p {state}/storm/x {state}/storm/y")
    wait_until("the storm's directories are on record", partial(are_stored, machine, attacker, ["x", "y"]))
    followed, bare = follow(machine, BESIDE), start_bare_watcher(machine, neighbours)
    script = f"cd {state}/storm && ( {STORMS[storm]} ); : > {state}/beside-the-end"
    order(machine.host, attacker, background(script))
    check_lateness(machine, followed, bare, attacker, neighbours)
    followed.wait_row(attacker, "beside-the-end", timeout=300)
    order(machine.host, attacker, f"mkdir -p {state}/beside-later/deep && : > {state}/beside-later/deep/file")
    followed.wait_row(attacker, "beside-later/deep/file")
    rows = list(stored(machine, f"--agent {attacker.name}"))
    inside = [row for row in rows if f"{attacker.state_dir}/storm/" in row["path"]]
    if storm == "one file written":
        told = [row for row in inside if row["kind"] == "write"]
        assert 1 < sum(row["count"] for row in told if row["path"].endswith("/storm/one")) >= len(told)
    elif not any(row["kind"] == "overflow" for row in rows):
        wanted = {"directories made and removed": ("delete", 10_000), "hard links": ("create", 2000)}
        kind, count = wanted.get(storm, ("rename", 2000))
        assert len([row for row in inside if row["kind"] == kind]) >= count
    check_whole(machine)


def are_stored(machine: Machine, agent: Agent, names: list[str]) -> bool:
    """Whether these names in the directory of the storm are on record."""
    paths = {row["path"] for row in stored(machine, f"--agent {agent.name}")}
    return paths >= {f"{agent.state_dir}/storm/{name}" for name in names}


def check_lateness(
    machine: Machine, followed: Follower, bare: BareWatcher, attacker: Agent, neighbours: list[Agent]
) -> None:
    """The neighbours act one after the other, until the storm is over; most rows are in time."""
    acts = []
    over = f"test -e {quote(attacker.state_dir)}/beside-the-end"
    for number in range(1000):
        neighbour = neighbours[number % len(neighbours)]
        path = f"{neighbour.state_dir}/beside-{number}"
        order(machine.host, neighbour, f": > {quote(path)}; : > {TWIN}/{number}")
        row = followed.wait_row(neighbour, f"beside-{number}")
        acts.append((neighbour, number, row.seen - float(machine.host.check_output("stat -c %%.9Z %s", path))))
        if machine.run(over).exit == 0:
            break
    needed = [bare.measure_delays(neighbour, [str(number)])[0] for neighbour, number, _ in acts]
    lateness = [delay - least for (_, _, delay), least in zip(acts, needed, strict=True)]
    assert statistics.median(lateness) < LATE, (lateness, needed)


FILES = 100_000
FLOOD = """
mkdir {state}/flood && cd {state}/flood && i=0
while [ $i -lt {files} ]; do
  [ $((i % 1000)) = 0 ] && d=$((i / 1000)) && mkdir $d
  : > $d/$i; i=$((i + 1))
done
: > {state}/beside-the-end"""


@claim("A4")
@pytest.mark.auditd
def test_a_flood_of_files_is_recorded_whole(machine: Machine, attacker: Agent, neighbours: list[Agent]) -> None:
    followed, bare = follow(machine, BESIDE), start_bare_watcher(machine, neighbours[:1])
    state, disk = quote(attacker.state_dir), attacker.limits.disk
    files = min(FILES, (disk >> 14) - 500) if disk else FILES  # an inode for each 16 KiB
    order(machine.host, attacker, background(FLOOD.format(state=state, files=files)))
    check_lateness(machine, followed, bare, attacker, neighbours[:1])
    followed.wait_row(attacker, "beside-the-end", timeout=600)
    count = f"hermes-audit query --agent {attacker.name} --kind create --path '*/flood/*/*' --json | wc -l"
    assert int(machine.run(count, timeout=300).check().text) == files


@claim("A4")
@pytest.mark.recorded
def test_an_agent_that_fills_its_quota_is_recorded_still(machine: Machine, attacker: Agent, followed: Follower) -> None:
    agent, state = attacker, quote(attacker.state_dir)
    machine.run(f"setquota -u {agent.uid} 0 32768 0 4096 /").check()
    order(machine.host, agent, f": > {state}/before")
    fill = f"dd if=/dev/zero of={state}/full bs=1M 2>&1 | grep -o 'Disk quota exceeded'"
    assert order_when_full(machine.host, agent, f"{fill}; mv {state}/before {state}/after") == "Disk quota exceeded"
    followed.wait_row(agent, "full", "write")
    followed.wait_row(agent, "before", "rename")


# --- A5


def with_settings(plan: Plan, agent: Agent, **limits: int) -> Plan:
    """``plan`` with other limits of what is kept of an agent."""
    entries = plan.audit.config["directories"]
    directories = [entry | limits if entry["agent"] == agent.name else entry for entry in entries]
    changed = msgspec.structs.replace(plan.audit, config=plan.audit.config | {"directories": directories})
    return msgspec.structs.replace(plan, audit=changed)


@claim("A5")
@pytest.mark.recorded
def test_the_settings_bound_what_is_kept_of_an_agent_and_nothing_of_the_others(
    machine: Machine, lab: Lab, plan: Plan, attacker: Agent, neighbours: list[Agent], followed: Follower
) -> None:
    """New settings are in force without a restart, and after a rollback the former ones are."""
    for neighbour in neighbours:
        order(machine.host, neighbour, f": > {quote(neighbour.state_dir)}/to-be-kept")
        followed.wait_row(neighbour, "to-be-kept")
    pid = daemon_pid(machine.host)
    lab.guest.activate(machine, with_settings(plan, attacker, maxBytes=1 << 20))
    assert daemon_pid(machine.host) == pid
    name = "n" * 200
    place = f"{attacker.state_dir}/flood/{name}/{name}/{name}/{name}"  # a row costs what its path is long
    more = f"i=0; while [ $i -lt 1100 ]; do : > {name}$i; i=$((i + 1)); done"  # removing one takes ten times as long
    flood = f"mkdir -p {quote(place)} && cd {quote(place)}; {more}; : > {quote(attacker.state_dir)}/flood-is-over"
    order(machine.host, attacker, background(flood))
    followed.wait_row(attacker, "flood-is-over", timeout=300)
    wait_until("its oldest rows are pruned", lambda: bool(followed.of(attacker, "prune")))
    rows = list(stored(machine))
    kept = Counter(row["agent"] for row in rows)
    assert kept[attacker.name] * (160 + len(place) + len(name)) < 1 << 20
    assert len(followed.of(attacker, "create", "write", "delete")) > kept[attacker.name]
    for neighbour in neighbours:
        assert f"{neighbour.state_dir}/to-be-kept" in {row["path"] for row in rows}
        assert followed.of(neighbour, "prune") == []
    check_whole(machine)
    lab.guest.roll_back(machine)
    assert daemon_pid(machine.host) == pid
    assert "maxBytes" not in machine.run("cat /var/lib/tentaflake/current/audit.json").check().text


FILL = """
fallocate -l "$(df --output=avail -B1 / | tail -n 1)" /root/full
cat /dev/zero > /root/rest 2> /dev/null; sync; df --output=avail -B1 / | tail -n 1"""


# An agent at work on a disk that was filled meanwhile: no act of these takes any space there.
WHEN_FULL = """
cd {state}; until [ -e go ]; do usleep 100000; done
i=0; while [ $i -lt 100 ]; do mv one two; mv two one; i=$((i + 1)); done
mv one while-full; echo alive > /tmp/said"""


@claim("A5")
@pytest.mark.recorded
def test_a_full_disk_stops_no_agent_and_is_reported(
    machine: Machine, agents: Mapping[str, Agent], followed: Follower
) -> None:
    host = machine.host
    for agent in agents.values():
        order(host, agent, f": > {quote(agent.state_dir)}/one")
        order(host, agent, background(WHEN_FULL.format(state=quote(agent.state_dir))))
        followed.wait_row(agent, "one")
    pids = {name: main_pid(host, agent) for name, agent in agents.items()}
    daemon = daemon_pid(host)
    assert int(machine.run(FILL).check().text) < 4096
    for agent in agents.values():
        host.check_output("touch %s/go", agent.state_dir)
    for name, pid in pids.items():
        said = f"/proc/{pid}/root/tmp/said"
        wait_until(f"{name} goes on", partial(exists, machine, said))
    assert "cannot be written" in status_of(machine)
    assert "the record cannot be written" in machine.run(f"journalctl -u {UNIT} --no-pager").check().text
    assert {name: main_pid(host, agent) for name, agent in agents.items()} == pids
    machine.run("rm /root/full /root/rest").check()
    for agent in agents.values():
        followed.wait_rows(agent, "rename", [f"{agent.state_dir}/one"])
        order(host, agent, f": > {quote(agent.state_dir)}/afterwards")
        followed.wait_row(agent, "afterwards")
        last = [row for row in followed.of(agent, "rename") if row.path.endswith("/while-full")]
        assert last, "what was done while the disk was full is not on record"
    assert status_of(machine) == "watching"
    assert [row for row in followed.rows() if row.kind == "gap"] and daemon_pid(host) == daemon
    check_whole(machine)


def exists(machine: Machine, path: str) -> bool:
    return machine.run(["test", "-e", path]).exit == 0


def status_of(machine: Machine) -> str:
    return machine.host.check_output("systemctl show --property=StatusText --value %s", UNIT)
