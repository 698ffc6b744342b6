"""hermes-audit: what it prints, and that it keeps nobody waiting."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from hermes_auditd.cli import main as hermes_audit
from hermes_auditd.reader import Filter, Reader
from hermes_auditd.text import escape, neutralise, unescape
from hypothesis import given
from hypothesis import strategies as st

from tests.services.auditd.conftest import Locally, Start
from tests.services.auditd.support import PACKAGE, Local, eventually, let_pass, obstacle_to_others
from tests.unit.support import PROPERTY

Audit = Callable[..., tuple[int, str]]


@pytest.fixture
def local(locally: Locally, home: Path) -> Local:
    """A record of two agents."""
    local = locally("a", "b")
    (home / "notes.txt").write_text("x")
    (home / "evil\x1b[31m\n").touch()
    local.drain()
    (home / "notes.txt").rename(home / "read me")
    (home.parent / "b/file").touch()
    local.drain()
    return local


@pytest.fixture
def audit(local: Local, capsys: pytest.CaptureFixture[str]) -> Audit:
    """``audit("tail", "-n", "3")``: the exit code and what is printed."""

    def audit(*arguments: str) -> tuple[int, str]:
        code = hermes_audit(["--database", local.data["database"], *arguments])
        return code, capsys.readouterr().out

    return audit


def paths(output: str) -> list[str]:
    return [Path(json.loads(line)["path"]).name for line in output.splitlines()]


@PROPERTY
@given(st.binary())
def test_every_name_is_escaped_to_printable_text_and_back(raw: bytes) -> None:
    text = escape(raw)
    assert unescape(text) == raw and text.isprintable() and neutralise(text) == text


@PROPERTY
@given(st.text())
def test_nothing_that_is_printed_can_speak_to_the_terminal(text: str) -> None:
    assert neutralise(text).isprintable()


def test_tail_prints_the_newest_rows(audit: Audit) -> None:
    code, output = audit("tail", "-n", "2")
    assert code == 0 and len(output.splitlines()) == 2 and "notes.txt -> " in output and "/b/file" in output


def test_a_terminal_escape_is_shown_and_not_sent(audit: Audit) -> None:
    _, output = audit("tail")
    assert "evil\\x1b[31m\\x0a" in output and "\x1b" not in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--agent", "b", "--kind", "create"], ["file"]),
        (["--agent", "a", "--kind", "create"], ["notes.txt", "evil\\x1b[31m\\x0a"]),
        (["--kind", "rename"], ["read me"]),
        (["--kind", "rename", "--kind", "write"], ["notes.txt", "read me"]),
        (["--path", "*/notes*"], ["notes.txt", "notes.txt", "read me"]),
        (["--path", "*x1b*"], ["evil\\x1b[31m\\x0a"]),
        (["--since", "1h", "--kind", "rename"], ["read me"]),
        (["--until", "1h"], []),
        (["--since", "@99999999999"], []),
        (["--origin", "start", "--kind", "watch", "--agent", "b"], ["b"]),
        (["--path", "*", "--limit", "1", "--agent", "b"], ["b"]),
    ],
    ids=str,
)
def test_query_finds(audit: Audit, arguments: list[str], expected: list[str]) -> None:
    code, output = audit("query", "--json", *arguments)
    assert code == 0 and paths(output) == expected


def test_stats_count_by_agent_and_kind(audit: Audit) -> None:
    found = {entry["agent"]: entry for entry in json.loads(audit("stats", "--json")[1])}
    assert found["a"]["kinds"]["create"] == 2 and found["a"]["files"] == 3 and found["b"]["kinds"]["create"] == 1
    assert "create:2" in audit("stats")[1]


def test_an_export_is_complete_in_both_formats(audit: Audit, local: Local) -> None:
    lines = [json.loads(line) for line in audit("export")[1].splitlines()]
    table = list(csv.DictReader(io.StringIO(audit("export", "--format", "csv")[1])))
    assert [row["id"] for row in lines] == [int(row["id"]) for row in table] == [row["id"] for row in local.rows()]
    assert [row["path"] for row in lines] == [row["path"] for row in table]


def test_verify_says_whole_and_where_the_chains_stand(audit: Audit, local: Local) -> None:
    code, output = audit("verify")
    assert code == 0 and output.count("whole: ") == 3
    head = output.splitlines()[1].split()[1]
    assert audit("verify", "--head", head)[0] == 0
    assert audit("verify", "--head", head[:-1] + ("0" if head[-1] != "0" else "1"))[0] == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["query", "--agent", "c"], "no agent 'c'"), (["--database", "/nowhere/x", "stats"], "no record at /nowhere/x")],
)
def test_a_wrong_question_gets_one_error(
    local: Local, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    assert hermes_audit(["--database", local.data["database"], *arguments]) == 2
    assert word in capsys.readouterr().err


def test_a_wrong_time_is_refused(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hermes_audit(["query", "--since", "yesterday"])
    assert "'yesterday' is no time" in capsys.readouterr().err


# --- beside the daemon


def command(database: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "hermes_auditd.cli", "--database", database, *arguments]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(PACKAGE)}


def test_following_tells_a_row_once_that_comes_while_others_are_read(locally: Locally, home: Path) -> None:
    local = locally()
    reader = Reader(local.data["database"])
    last_id = reader.last_id

    def make(name: str) -> None:
        (home / name).mkdir()
        local.drain()

    def last_id_just_before_another_row() -> int:
        newest = last_id()
        make(f"after-{newest}")
        return newest

    reader.last_id = last_id_just_before_another_row  # type: ignore[method-assign]
    followed = reader.follow(Filter(kinds=("create",)), last_id(), 0.001)
    make("first")
    paths = [row["path"] for row in islice(followed, 5)]
    reader.close()
    assert len(set(paths)) == 5


def test_tail_follows_what_is_recorded(start: Start, home: Path) -> None:
    running = start()
    running.wait_row(kinds=("rescan",))
    follow = command(running.data["database"], "tail", "-f", "-n", "1", "--json")
    with subprocess.Popen(follow, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            assert json.loads(follower.stdout.readline())["kind"] == "rescan"
            (home / "new").touch()
            assert json.loads(follower.stdout.readline())["path"] == f"{home}/new"
        finally:
            follower.kill()


@pytest.mark.auditd
def test_a_reader_that_does_not_read_on_keeps_the_daemon_from_nothing(start: Start, home: Path) -> None:
    running = start()
    for number in range(5000):
        (home / f"before{number}").touch()
    running.wait_row(path="*/before4999")
    export = command(running.data["database"], "export")
    with subprocess.Popen(export, env=ENVIRONMENT, stdout=subprocess.PIPE) as reader:
        try:
            assert reader.stdout is not None and reader.stdout.read(1) == b"{"  # its pipe is full now, and stays so
            (home / "after").touch()
            assert running.wait_row(path="*/after") < 1
            for number in range(5000):
                (home / f"before{number}").unlink()
            running.wait_row(path="*/before4999", kinds=("delete",))
            log = Path(running.data["database"] + "-wal")
            eventually(lambda: log.stat().st_size < 32e6, "the log does not grow without end")
            assert reader.poll() is None
        finally:
            reader.kill()


@pytest.mark.skipif(obstacle_to_others() is not None, reason=str(obstacle_to_others()))
@pytest.mark.parametrize("daemon_runs", [True, False])
def test_who_is_in_the_group_reads_and_nobody_else_does(start: Start, tmp_path: Path, daemon_runs: bool) -> None:
    running = start(wrapper=["setpriv", "--regid=61184", "--clear-groups", "sh", "-c", 'umask 027; exec "$@"', "sh"])
    (tmp_path / "a/file").touch()
    running.wait_row(path="*/file")
    let_pass(tmp_path)
    if not daemon_runs:
        running.stop()

    def read(groups: str) -> subprocess.CompletedProcess[str]:
        drop = ["setpriv", "--reuid=61185", "--regid=61185", groups, "--inh-caps=-all"]
        query = [*drop, *command(running.data["database"], "query", "--path", "*/file")]
        return subprocess.run(query, env=ENVIRONMENT, capture_output=True, text=True, check=False)

    member, stranger = read("--groups=61184"), read("--clear-groups")
    assert "/file" in member.stdout, member.stderr
    assert stranger.returncode == 2 and "/file" not in stranger.stdout
