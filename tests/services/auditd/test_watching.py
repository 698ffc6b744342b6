"""What is recorded of what happens in a state directory."""

import ctypes
import mmap
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hermes_auditd.text import CUT, unescape

from tests.services.auditd.conftest import Locally, Start
from tests.services.auditd.support import eventually, exchange, told


def write(path: Path, text: str = "x") -> None:
    path.write_text(text)


# --- kinds


def in_turn(*acts: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda home: [act(home) for act in acts]


def write_new(home: Path) -> None:
    write(home / "new")


def exchange_new(home: Path) -> None:
    exchange(bytes(home / "new"), bytes(home / "file"))


ACTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a file is made": (lambda home: (home / "new").touch(), ["create new"]),
    "a file is made and written": (write_new, ["create new", "write new"]),
    "a file is written": (lambda home: (home / "file").write_text("x"), ["write file"]),
    "a file is emptied": (lambda home: os.truncate(home / "file", 0), ["write file"]),
    "a file is deleted": (lambda home: (home / "file").unlink(), ["delete file"]),
    "a file is renamed": (lambda home: (home / "file").rename(home / "other"), ["rename file other"]),
    "a file is moved": (lambda home: (home / "file").rename(home / "directory/f"), ["rename file directory/f"]),
    "a mode is changed": (lambda home: (home / "file").chmod(0o600), ["chmod file"]),
    "times are set": (lambda home: os.utime(home / "file", (1, 1)), ["attrib file"]),
    "a directory is made": (lambda home: (home / "new").mkdir(), ["create new"]),
    "a directory is removed": (lambda home: (home / "directory").rmdir(), ["delete directory"]),
    "a symlink is made": (lambda home: (home / "link").symlink_to("file"), ["create link"]),
    "a hard link is made": (lambda home: os.link(home / "file", home / "link"), ["create link"]),
    "a fifo is made": (lambda home: os.mkfifo(home / "fifo"), ["create fifo"]),
    "a file lives shortly": (
        in_turn(write_new, lambda home: (home / "new").unlink()),
        ["create new", "write new", "delete new"],
    ),
    "a file is saved by way of another": (
        in_turn(write_new, lambda home: (home / "new").rename(home / "file")),
        ["create new", "write new", "rename new file"],
    ),
    "two files change places": (
        in_turn(write_new, exchange_new),
        ["create new", "write new", "rename new file", "rename file new"],
    ),
}


@pytest.mark.parametrize(("act", "expected"), ACTS.values(), ids=ACTS)
def test_an_act_is_told(locally: Locally, home: Path, act: Callable[[Path], object], expected: list[str]) -> None:
    local = locally()
    (home / "file").touch()
    (home / "directory").mkdir()
    local.drain()
    last = local.rows()[-1]["id"]
    act(home)
    local.drain()
    assert told([row for row in local.rows() if row["id"] > last], home) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_change_of_owner_is_told_with_the_owner(locally: Locally, home: Path) -> None:
    local = locally()
    (home / "file").touch()
    local.drain()
    os.chown(home / "file", 12, 34)
    local.drain()
    [row] = local.rows(kinds=("chown",))
    assert (row["uid"], row["gid"]) == (12, 34)


def test_a_row_has_size_mode_and_time_to_the_nanosecond(locally: Locally, home: Path) -> None:
    local = locally()
    before = time.time_ns()
    write(home / "file", "12345")
    (home / "file").chmod(0o4710)
    local.drain()
    [row] = local.rows(kinds=("create",))
    assert (row["size"], row["mode"]) == (5, 0o4710) and before < row["time"] < time.time_ns()


def test_a_change_of_the_state_directory_itself_is_told(locally: Locally, home: Path) -> None:
    local = locally()
    home.chmod(0o711)
    local.drain()
    assert [(row["path"], row["mode"]) for row in local.rows(kinds=("chmod",))] == [(str(home), 0o711)]


def test_what_is_written_through_a_mapping_is_told_when_the_file_is_closed(locally: Locally, home: Path) -> None:
    local = locally()
    write(home / "file", "x" * 4096)
    local.drain()
    with (home / "file").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapping:
        mapping[:5] = b"hello"
        mapping.flush()
    before = len(local.rows(kinds=("write",)))
    local.drain()
    assert len(local.rows(kinds=("write",))) == before + 1


# --- writes


def test_ten_thousand_writes_are_a_few_rows_that_say_since_when(locally: Locally, home: Path) -> None:
    local = locally()
    with (home / "file").open("wb", buffering=0) as file:
        for _ in range(10_000):
            file.write(b"x")
            if file.tell() % 100 == 0:
                local.daemon.watchers["a"].read()
    local.drain()
    rows = local.rows(kinds=("write",))
    assert 1 <= len(rows) <= 10 and rows[-1]["size"] == 10_000
    assert sum(row["count"] for row in rows) >= 100 and rows[0]["first"] < rows[0]["time"]


def test_a_file_that_is_written_all_the_time_is_told_of_meanwhile(start: Start, home: Path) -> None:
    running = start()

    def told_twice() -> bool:
        with (home / "file").open("a") as file:
            file.write("x")
        time.sleep(0.05)  # this is the attack: never leave a pause longer than any debounce
        return len(running.rows(kinds=("write",))) >= 2

    eventually(told_twice, "two rows of a file that is written")
    # By what the rows say of themselves, which a slow disk does not change.
    assert all(row["time"] - (row["first"] or row["time"]) < 5e9 for row in running.rows(kinds=("write",)))


# --- directories


def test_directories_made_and_filled_in_a_tight_loop_are_told_whole(start: Start, home: Path) -> None:
    running = start()
    for number in range(500):
        (home / f"d{number}").mkdir()
        write(home / f"d{number}" / "file")
    running.stop()
    created = [line for line in told(running.rows(), home) if line.startswith("create")]
    expected = [f"create d{number}{name}" for number in range(500) for name in ("", "/file")]
    assert sorted(created) == sorted(expected)


def test_deep_directories_made_at_once_are_told_whole(start: Start, home: Path) -> None:
    running = start()
    path = home / "/".join("abcdefghij" * 3)
    path.mkdir(parents=True)
    write(path / "file")
    running.stop()
    made = [path / "file", path, *path.parents[:29]]
    expected = [f"create {parent.relative_to(home)}" for parent in made]
    created = [line for line in told(running.rows(), home) if line.startswith("create")]
    assert sorted(created) == sorted(expected)


def test_a_directory_below_the_longest_path_is_watched_too(locally: Locally, home: Path) -> None:
    local = locally()
    name, here = "n" * 200, os.getcwd()  # noqa: PTH109 - to come back
    try:
        os.chdir(home)
        for _ in range(30):
            os.mkdir(name)  # noqa: PTH102 - relative, as the whole path is too long
            os.chdir(name)
        local.drain()
        write(Path("file"))
        local.drain()
    finally:
        os.chdir(here)
    rows = local.rows(kinds=("create", "write"))
    assert [(row["kind"], row["path"].rsplit("/", 1)[1]) for row in rows[-2:]] == [
        ("create", "file"),
        ("write", "file"),
    ]
    assert rows[-1]["path"].startswith(CUT) and len(rows[-1]["path"]) < 5000


@pytest.mark.auditd
def test_ten_thousand_directories_made_and_removed_blind_nobody(start: Start, tmp_path: Path) -> None:
    running = start("a", "b", maxWatches=500)
    for number in range(10_000):
        os.mkdir(tmp_path / f"a/{number}")  # noqa: PTH102 - as fast as it goes
        os.rmdir(tmp_path / f"a/{number}")  # noqa: PTH106
    for agent in ("a", "b"):
        (tmp_path / agent / "later").mkdir()
        running.wait_row(path=f"*/{agent}/later")
        write(tmp_path / agent / "later" / "file")
        running.wait_row(path=f"*/{agent}/later/file")
    running.stop()
    made = running.rows(agent="a", kinds=("create",))
    removed = running.rows(agent="a", kinds=("delete",))
    overflows = running.rows(kinds=("overflow",))
    assert overflows or (len(made), len(removed)) == (10_002, 10_000)


@pytest.mark.parametrize("name", ["data.db", ".git/config", "node_modules/x.js", ".hidden", "file~", "#x#"])
def test_nothing_is_left_out(locally: Locally, home: Path, name: str) -> None:
    local = locally()
    (home / name).parent.mkdir(exist_ok=True)
    write(home / name)
    local.drain()
    assert f"create {name}" in told(local.rows(), home)


def test_what_the_settings_exclude_is_left_out_and_nothing_else(locally: Locally, home: Path) -> None:
    local = locally(exclude=["cache", "*.tmp"])
    for name in ("cache/file", "kept/file", "kept/x.tmp"):
        (home / name).parent.mkdir(exist_ok=True)
        write(home / name)
    local.drain()
    assert [line for line in told(local.rows(), home) if "create" in line] == ["create kept", "create kept/file"]


def test_a_planted_symlink_leads_nowhere(locally: Locally, home: Path, tmp_path: Path) -> None:
    local = locally()
    (tmp_path / "elsewhere").mkdir()
    (home / "link").symlink_to(tmp_path / "elsewhere")
    (home / "real").mkdir()
    local.drain()
    write(tmp_path / "elsewhere" / "file")
    write(home / "real" / "file")
    local.drain()
    assert told(local.rows(), home) == ["create link", "create real", "create real/file", "write real/file"]


def test_a_symlink_put_in_the_place_of_a_directory_leads_nowhere(locally: Locally, home: Path, tmp_path: Path) -> None:
    local = locally()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "sub").mkdir(parents=True)
    (home / "directory").mkdir()
    (home / "directory").rmdir()
    (home / "directory").symlink_to(elsewhere)
    local.drain()
    write(elsewhere / "file")
    local.drain()
    assert told(local.rows(), home) == ["create directory", "delete directory", "create directory"]


# --- moves


def test_a_renamed_directory_takes_what_it_holds_along(locally: Locally, home: Path) -> None:
    local = locally()
    (home / "one/two").mkdir(parents=True)
    write(home / "one/two/file")
    local.drain()
    (home / "one").rename(home / "other")
    write(home / "other/two/file")
    local.drain()
    assert told(local.rows(), home)[-2:] == ["rename one other", "write other/two/file"]


def test_a_directory_that_is_moved_in_is_told_whole(locally: Locally, home: Path, tmp_path: Path) -> None:
    local = locally()
    (tmp_path / "outside/sub").mkdir(parents=True)
    write(tmp_path / "outside/sub/file")
    (tmp_path / "outside").rename(home / "in")
    local.drain()
    assert told(local.rows(), home) == ["create in", "create in/sub", "create in/sub/file"]
    write(home / "in/sub/file")
    local.drain()
    assert told(local.rows(), home)[-1] == "write in/sub/file"


def test_a_directory_that_is_moved_out_is_told_whole_and_watched_no_longer(
    locally: Locally, home: Path, tmp_path: Path
) -> None:
    local = locally()
    (home / "out/sub").mkdir(parents=True)
    write(home / "out/sub/file")
    local.drain()
    before = len(local.rows())
    (home / "out").rename(tmp_path / "outside")
    local.drain()
    write(tmp_path / "outside/sub/file")
    local.drain()
    rows = local.rows()[before:]
    assert told(rows, home) == ["delete out", "delete out/sub", "delete out/sub/file"]
    assert {row["detail"] for row in rows} == {"moved out"}
    assert len(local.daemon.watchers["a"].tree.watched) == 1


def test_a_rename_is_one_however_late_its_second_half_is_read(locally: Locally, home: Path) -> None:
    """The machine stood still between the two: the half that is in the queue is waited for, whatever the clock says."""
    local = locally()
    (home / "file").touch()
    local.drain()
    before, watcher = len(local.rows()), local.daemon.watchers["a"]
    (home / "file").rename(home / "other")
    watcher.read(until=0)  # one notification
    assert watcher.is_behind
    watcher.settle(time.monotonic_ns() + 10**9)
    local.drain()
    assert told(local.rows()[before:], home) == ["rename file other"]


def test_a_storm_of_renames_is_told_move_by_move(start: Start, home: Path) -> None:
    running = start()
    for name in ("one", "two"):
        (home / name).mkdir()
    write(home / "one/file")
    running.wait_row(path="*/one/file", kinds=("create",))
    places = [home / "one/file", home / "two/file"]
    for _ in range(2000):
        places[0].rename(places[1])
        places.reverse()
    running.stop()
    expected = ["rename one/file two/file", "rename two/file one/file"] * 1000
    assert [line for line in told(running.rows(), home) if "rename" in line] == expected


# --- names


NAMES = [
    b"n" * 255,
    b"line\nbreak",
    b"\x1b[2J\x1b]0;title\x07",
    b"tab\tand\rreturn",
    b"\xff\xfe not utf-8 \xc3",
    b"'; DROP TABLE event; --",
    b"back\\slash \\x41",
    "right\u202eto left".encode(),
    "grüße 漢字 🎉".encode(),
    b" ",
    b"*?[a]",
    b"%s%n{0}",
    b"\x01\x7f",
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_hostile_name_is_recorded_byte_for_byte_and_printable(locally: Locally, home: Path, name: bytes) -> None:
    local = locally()
    path = bytes(home) + b"/" + name
    os.mkdir(path)  # noqa: PTH102 - bytes
    local.drain()
    Path(os.fsdecode(path + b"/" + name[:100])).touch()
    local.drain()
    rows = local.rows(kinds=("create",))
    assert [unescape(row["path"]) for row in rows] == [path, path + b"/" + name[:100]]
    assert all(row["path"].isprintable() for row in rows)


# --- where the state directory is


def test_a_state_directory_that_is_a_symlink_is_followed(locally: Locally, home: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    home.symlink_to(tmp_path / "real")
    local = locally()
    write(tmp_path / "real/file")
    local.drain()
    assert told(local.rows(), home) == ["create file", "write file"]


def test_a_state_directory_that_becomes_another_one_is_followed(locally: Locally, home: Path, tmp_path: Path) -> None:
    local = locally()
    write(home / "old")
    local.drain()
    home.rename(tmp_path / "former")
    home.mkdir()
    write(home / "new")
    local.daemon.watchers["a"].tick()
    local.drain()
    write(home / "new")
    write(tmp_path / "former/old")
    local.drain()
    assert [row["kind"] for row in local.rows(kinds=("watch", "unwatch"))] == ["watch", "unwatch", "watch"]
    assert told(local.rows(), home)[2:] == ["create new", "delete old", "write new"]


def test_a_state_directory_that_is_not_there_yet_is_watched_when_it_is(locally: Locally, home: Path) -> None:
    home.mkdir()
    local = locally()
    home.rmdir()
    local.drain()
    local.daemon.watchers["a"].tick()
    home.mkdir()
    local.daemon.watchers["a"].tick()
    local.drain()
    write(home / "file")
    local.drain()
    assert told(local.rows(), home) == ["create file", "write file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_file_system_mounted_over_the_state_directory_is_watched(start: Start, home: Path, tmp_path: Path) -> None:
    running = start(wrapper=["unshare", "--mount", "--propagation=unchanged", "--"])
    assert running.process is not None
    enter = ["nsenter", f"--target={running.process.pid}", "--mount"]
    write(home / "under")
    running.wait_row(path="*/under")
    subprocess.run([*enter, "mount", "-t", "tmpfs", "none", str(home)], check=True)
    try:
        running.wait_row(kinds=("unwatch",))
        subprocess.run([*enter, "touch", str(home / "over")], check=True)
        running.wait_row(path="*/over", kinds=("create",))
        # A directory is held open for a twentieth of a second after something has happened in it.
        unmount = [*enter, "umount", "--quiet", str(home)]
        eventually(lambda: subprocess.run(unmount, check=False).returncode == 0, "it can be unmounted")
    except BaseException:
        subprocess.run([*enter, "umount", "-l", str(home)], check=False)
        raise
    running.wait_row(path="*/over", kinds=("delete",))
    write(home / "again")
    running.wait_row(path="*/again")


# --- limits


def test_an_agent_out_of_watches_is_told_of_and_blinds_nobody_else(locally: Locally, tmp_path: Path) -> None:
    local = locally("a", "b", maxWatches=5, unwatchedSeconds=1)
    for number in range(20):
        (tmp_path / f"a/{number}").mkdir()
    local.drain()
    (tmp_path / "b/directory").mkdir()
    local.drain()
    write(tmp_path / "b/directory/file")
    write(tmp_path / "a/19/file")
    local.drain()
    assert [row["agent"] for row in local.rows(kinds=("limit",))] == ["a"]
    assert "create directory/file" in told(local.rows(agent="b"), tmp_path / "b")
    assert "create 19/file" not in told(local.rows(agent="a"), tmp_path / "a")


def test_what_has_no_watch_is_found_by_looking_and_watched_when_there_is_room(locally: Locally, home: Path) -> None:
    local = locally(maxWatches=5)
    for number in range(20):
        (home / str(number)).mkdir()
    local.drain()
    write(home / "19/file")
    watcher = local.daemon.watchers["a"]
    watcher.scanner.want("interval", None)
    local.drain()
    assert "create 19/file interval" in told(local.rows(), home, origin=True)
    for number in range(10):
        (home / str(number)).rmdir()
    for number in range(10, 18):
        (home / str(number)).rmdir()
    local.drain()
    watcher.scanner.want("interval", None)
    local.drain()
    assert [row["detail"] for row in local.rows(kinds=("limit",))][-1] == "every directory has a watch again"
    write(home / "19/other")
    local.drain()
    assert "create 19/other live" in told(local.rows(), home, origin=True)


def test_more_files_than_an_agent_may_have_remembered_are_told_of(locally: Locally, home: Path) -> None:
    local = locally(maxBytes=1024 * 1024)
    share = 1024 * 1024 // 2 // 120
    for number in range(share + 50):
        (home / str(number)).touch()
    local.drain()
    assert told(local.rows(), home)[-1] == f"create {share + 49}"
    assert [row["count"] for row in local.rows(kinds=("limit",))] == [share]


def test_no_file_descriptor_is_left_open(locally: Locally, home: Path) -> None:
    local = locally()

    def count() -> int:
        local.daemon._commit()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = count()
    for number in range(300):
        (home / f"{number}/sub").mkdir(parents=True)
        write(home / f"{number}/sub/file")
    local.drain()
    shutil.rmtree(home / "7")
    local.drain()
    assert count() == before


def test_the_binding_speaks_the_kernels_inotify(locally: Locally, home: Path) -> None:
    """The control of all the others: the same act seen by libc alone."""
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(fd, os.fsencode(home.parent), 0x100)
    locally()
    data = os.read(fd, 4096)
    os.close(fd)
    assert home.name.encode() in data and stat.S_ISDIR(home.stat().st_mode)
