"""The cache: made once, whole or not at all, and clean after whoever was killed."""

import errno
import fcntl
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cache import Cache, CacheUnusable, default_root, file_digest, key_of
from harness.vm.template import copy_sparsely
from tests.unit.support import PROPERTY, REPOSITORY, ends, line_of, python, sleeper

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.dictionaries(st.text(max_size=5), JSON, max_size=5)

MAKE = """
import os, sys
from pathlib import Path
from harness.cache import Cache

def build(directory):
    (directory / "half").write_text("half")
    print("building", flush=True)
    os.read(os.open(sys.argv[2], os.O_RDONLY), 1)  # until the test says so

print("ready", flush=True)
print(Cache(Path(sys.argv[1])).make("images", "key", build), flush=True)
"""
HOLD = """
import sys
from pathlib import Path
from harness.cache import Cache

with Cache(Path(sys.argv[1])).lock("name"):
    print("locked", flush=True)
    sys.stdin.read()
"""
RUN = """
import subprocess, sys
from pathlib import Path
from harness.cache import Cache

with Cache(Path(sys.argv[1])).run_directory() as directory:
    orphan = subprocess.Popen(["sleep", "600"], cwd=directory, stdout=subprocess.DEVNULL)
    (directory / "qemu.pid").write_text(str(orphan.pid))
    print(directory, flush=True)
    print(orphan.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A FIFO: a builder waits there until the test lets it pass."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def fill(directory: Path) -> None:
    (directory / "file").write_text("whole")


def fail(directory: Path) -> None:
    fill(directory)
    raise RuntimeError("half way")


def never(directory: Path) -> None:
    pytest.fail(f"{directory} is built again")


def breaks_with(number: int) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        raise OSError(number, os.strerror(number))

    return build


def is_locked(cache: Cache, name: str) -> bool:
    with (cache.root / "locks" / name).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def grow_old(path: Path, seconds: float) -> None:
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


# --- keys


@PROPERTY
@given(parts=PARTS, seed=st.integers())
def test_a_key_does_not_depend_on_order(parts: dict[str, object], seed: int) -> None:
    items = list(parts.items())
    random.Random(seed).shuffle(items)
    assert key_of(**dict(items)) == key_of(**parts)


@PROPERTY
@given(one=PARTS, other=PARTS)
def test_different_content_has_a_different_key(one: dict[str, object], other: dict[str, object]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # in Python, True == 1
    assert (key_of(**one) == key_of(**other)) == same


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_key_is_the_same_in_every_process(seed: str) -> None:
    program = "from pathlib import Path; from harness.cache import key_of; print(key_of(a=1, p=Path('x'), t=(1, 'é')))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == key_of(a=1, p=Path("x"), t=(1, "é"))


@pytest.mark.parametrize("part", [{"a", "b"}, object()], ids=["a set", "an object"])
def test_content_without_a_stable_text_has_no_key(part: object) -> None:
    with pytest.raises(TypeError):
        key_of(part=part)


def test_a_file_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert file_digest(tmp_path / "file").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_the_cache_is_where_the_xdg_specification_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_root() == Path("/somewhere/tentaflake")


# --- making


def test_an_entry_is_found_once_it_is_made(cache: Cache) -> None:
    path = cache.make("images", "key", fill)
    assert cache.find("images", "key") == path and (path / "file").read_text() == "whole"


def test_an_entry_that_was_not_made_is_not_found(cache: Cache) -> None:
    assert cache.find("images", "key") is None


def test_an_entry_is_not_made_twice(cache: Cache) -> None:
    assert cache.make("images", "key", fill) == cache.make("images", "key", never)


def test_an_entry_is_not_found_before_it_is_whole(cache: Cache) -> None:
    seen = []
    cache.make("images", "key", lambda _: seen.append(cache.find("images", "key")))
    assert seen == [None]


def test_racing_makers_build_once(cache: Cache, gate: Path) -> None:
    with ExitStack() as stack:
        makers = [stack.enter_context(python(MAKE, cache.root, gate)) for _ in range(5)]
        assert [line_of(maker) for maker in makers] == ["ready"] * 5
        passage = stack.enter_context(gate.open("rb+", buffering=0))
        passage.write(bytes(5))  # one each: a second builder is not held up, but seen
        said = [maker.stdout.read().split() for maker in makers if maker.stdout]
    path = str(cache.path("images", "key"))
    assert sorted(said) == sorted([["building", path], *[[path]] * 4])


def test_a_builder_that_raises_leaves_nothing(cache: Cache) -> None:
    with pytest.raises(RuntimeError):
        cache.make("images", "key", fail)
    assert list((cache.root / "images").iterdir()) == []


def test_a_builder_that_raises_can_be_followed_by_one_that_does_not(cache: Cache) -> None:
    with pytest.raises(RuntimeError):
        cache.make("images", "key", fail)
    assert cache.make("images", "key", fill).is_dir()


@pytest.fixture
def killed_half_way(cache: Cache, gate: Path) -> Cache:
    """The cache after a maker was killed while it built."""
    with python(MAKE, cache.root, gate) as maker:
        assert [line_of(maker), line_of(maker)] == ["ready", "building"]
    assert list(cache.root.glob("images/.key.*.partial/half"))
    return cache


def test_what_a_killed_builder_left_is_not_found(killed_half_way: Cache) -> None:
    assert killed_half_way.find("images", "key") is None


def test_what_a_killed_builder_left_is_removed_by_the_next(killed_half_way: Cache) -> None:
    path = killed_half_way.make("images", "key", fill)
    assert list(path.parent.iterdir()) == [path]
    assert [file.name for file in path.iterdir()] == ["file"]


def test_what_a_killed_builder_left_is_swept_though_its_key_is_never_asked_for_again(killed_half_way: Cache) -> None:
    assert len(killed_half_way.sweep_runs()) == 1
    assert list((killed_half_way.root / "images").iterdir()) == []


def test_what_is_being_built_is_not_swept(cache: Cache) -> None:
    swept = []
    cache.make("images", "key", lambda _: swept.extend(cache.sweep_runs()))
    assert swept == []


# --- locks


def test_a_lock_is_held_by_one(cache: Cache) -> None:
    with cache.lock("name"):
        assert is_locked(cache, "name")
    assert not is_locked(cache, "name")


def test_a_lock_of_another_name_is_free(cache: Cache) -> None:
    with cache.lock("name"):
        assert not is_locked(cache, "another")


def test_a_lock_names_its_holder(cache: Cache) -> None:
    with cache.lock("name"), cache.lock("another"):
        assert (cache.root / "locks" / "name").read_text() == f"{os.getpid()}\n"


def test_a_lock_is_released_when_its_holder_is_killed(cache: Cache) -> None:
    with python(HOLD, cache.root) as holder:
        assert line_of(holder) == "locked"
        assert is_locked(cache, "name")
    assert not is_locked(cache, "name")


def test_a_lock_is_not_inherited_by_a_program_that_its_holder_starts(cache: Cache, tmp_path: Path) -> None:
    with ExitStack() as stack:
        with cache.lock("name"):
            stack.enter_context(sleeper(tmp_path))
        assert not is_locked(cache, "name")


# --- directories of running machines


def test_a_run_directory_is_gone_at_the_end(cache: Cache) -> None:
    with cache.run_directory() as directory:
        fill(directory)
    assert list((cache.root / "run").iterdir()) == []


def test_a_run_directory_is_gone_after_an_error(cache: Cache) -> None:
    with pytest.raises(RuntimeError), cache.run_directory() as directory:
        fail(directory)
    assert list((cache.root / "run").iterdir()) == []


def test_two_run_directories_differ(cache: Cache) -> None:
    with cache.run_directory() as one, cache.run_directory() as other:
        assert one != other


def test_a_living_owners_directory_is_not_swept(cache: Cache) -> None:
    with cache.run_directory() as directory:
        grow_old(directory, 10_000)
        assert cache.sweep_runs() == []
        assert (directory / "lock").exists()


def test_a_killed_owners_directory_is_swept(cache: Cache) -> None:
    with python(RUN, cache.root) as owner:
        directory = Path(line_of(owner))
        line_of(owner)
    assert cache.sweep_runs() == [directory]
    assert not directory.exists()


def test_a_killed_owners_machine_is_killed(cache: Cache) -> None:
    with python(RUN, cache.root) as owner:
        line_of(owner)
        orphan = int(line_of(owner))
    assert not ends(orphan, within=0)
    cache.sweep_runs()
    assert ends(orphan)


def test_a_stranger_with_the_machines_old_pid_is_not_killed(cache: Cache, tmp_path: Path) -> None:
    left = cache.root / "run" / "1-dead"
    left.mkdir(parents=True)
    (left / "lock").touch()
    with sleeper(tmp_path) as stranger:
        (left / "qemu.pid").write_text(str(stranger))
        assert cache.sweep_runs() == [left]
        assert not ends(stranger, within=0)


def test_a_directory_that_is_just_being_made_is_not_swept(cache: Cache) -> None:
    unlocked = cache.root / "run" / ".1-new"
    unlocked.mkdir(parents=True)
    (unlocked / "lock").touch()
    cache.sweep_runs()
    assert unlocked.exists()


def test_a_directory_whose_owner_was_killed_while_making_it_is_swept_later(cache: Cache) -> None:
    left = cache.root / "run" / ".1-old"
    left.mkdir(parents=True)
    grow_old(left, 120)
    cache.sweep_runs()
    assert not left.exists()


def test_a_directory_whose_lock_can_not_be_opened_is_left_alone(cache: Cache) -> None:
    odd = cache.root / "run" / "1-odd"
    odd.mkdir(parents=True)
    (odd / "lock").symlink_to("lock")
    grow_old(odd, 10_000)
    assert cache.sweep_runs() == []
    assert odd.exists()


def test_sweeping_a_cache_that_is_not_there_is_fine(cache: Cache) -> None:
    assert cache.sweep_runs() == []


# --- pruning


def test_pruning_deletes_what_was_not_used_for_so_long(cache: Cache) -> None:
    old, young = cache.make("images", "old", fill), cache.make("templates", "young", fill)
    grow_old(old, 1000)
    assert cache.prune(unused_for=500) == [old]
    assert not old.exists() and young.exists()


def test_finding_an_entry_is_using_it(cache: Cache) -> None:
    old = cache.make("images", "old", fill)
    grow_old(old, 1000)
    cache.find("images", "old")
    assert cache.prune(unused_for=500) == []


def test_pruning_does_not_touch_running_machines(cache: Cache) -> None:
    with cache.run_directory() as directory:
        assert cache.prune(unused_for=0) == [] and directory.exists()


# --- disks that do not take it


def test_a_full_disk_is_one_clear_error(cache: Cache) -> None:
    def build(directory: Path) -> None:
        (directory / "disk").symlink_to("/dev/full")
        (directory / "disk").write_bytes(b"x")

    with pytest.raises(CacheUnusable, match=r"(?s)is full \(\d+ MiB free\).*hint: free some space"):
        cache.make("images", "key", build)
    assert list((cache.root / "images").iterdir()) == []


def test_a_disk_too_full_for_a_copy_of_a_machines_memory_is_the_same_error(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(b"x")
    with pytest.raises(CacheUnusable, match="is full"):
        cache.make("templates", "key", lambda _: copy_sparsely(tmp_path / "ram", Path("/dev/full")))


def test_a_disk_too_full_for_the_cache_itself_is_the_same_error(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda self, **_: breaks_with(errno.ENOSPC)(self))
    with pytest.raises(CacheUnusable, match="is full"), cache.run_directory():
        pass


def test_a_quota_is_a_full_disk(cache: Cache) -> None:
    with pytest.raises(CacheUnusable, match="is full"):
        cache.make("images", "key", breaks_with(errno.EDQUOT))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM], ids=errno.errorcode.get)
def test_a_cache_that_can_not_be_written_is_one_clear_error(cache: Cache, number: int) -> None:
    with pytest.raises(CacheUnusable, match=r"(?s)can not be written.*hint: choose another place"):
        cache.make("images", "key", breaks_with(number))


def test_a_forbidden_place_is_one_clear_error() -> None:
    with pytest.raises(CacheUnusable, match="can not be written"):
        Cache(Path("/sys/tentaflake")).make("images", "key", never)


def test_a_file_in_place_of_the_cache_is_one_clear_error(cache: Cache) -> None:
    cache.root.write_text("a file")
    with pytest.raises(CacheUnusable, match="can not be written"):
        cache.make("images", "key", never)


def test_another_error_of_a_builder_is_not_blamed_on_the_disk(cache: Cache) -> None:
    with pytest.raises(FileNotFoundError):
        cache.make("images", "key", breaks_with(errno.ENOENT))
