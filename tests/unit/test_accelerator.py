"""The accelerator: only what a guest itself printed counts as a yes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from harness.cache import Cache, default_root
from harness.errors import HarnessError
from harness.vm import accelerator
from harness.vm.accelerator import ALIVE, INIT, Verdict, find_accelerator, tiny_initrd, try_kvm
from harness.vm.image import Image
from harness.vm.qemu import GuestDied, Hardware, Process

Guest = Callable[[Path], None]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def image(tmp_path: Path) -> Image:
    (tmp_path / "busybox").write_bytes(b"busybox")
    return Image("key", tmp_path, tmp_path / "vmlinuz", tmp_path / "initrd", tmp_path / "disk", "", {})


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev/kvm that is there and may be opened."""
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(accelerator, "KVM", path)
    monkeypatch.setattr(accelerator, "PVM", tmp_path / "no-pvm")
    monkeypatch.setattr(accelerator, "KVM_LIMIT", 0.2)
    return path


def silent(_: Path) -> None:
    """A guest whose kernel hangs."""


def alive(directory: Path) -> None:
    (directory / "console.log").write_bytes(b"\r\n" + ALIVE + b"\r\n")


def cursing(directory: Path) -> None:
    (directory / "console.log").write_bytes(b"Run /init as init process\r\n" + INIT)


def dead(_: Path) -> None:
    raise GuestDied("QEMU (pid 1) ended with exit code 1\ncould not access KVM kernel module")


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Guest]]:
    """The guests to be started, in turn, in place of a QEMU."""
    guests: list[Guest] = []

    @contextmanager
    def start(directory: Path, *_: Any, **__: Any) -> Iterator[Process]:
        guests.pop(0)(directory)
        yield Mock(spec=Process)

    monkeypatch.setattr(accelerator, "start_qemu", start)
    yield guests
    assert guests == [], "not every guest was tried"


def read_cpio(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name to (mode, content), after cpio(5), "New ASCII Format"."""
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        fields = [int(archive[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[position + 110 : position + 110 + name_size - 1].decode()
        start = position + (110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[start : start + size])
        position = start + (size + 3) // 4 * 4


# --- the verdict


@pytest.mark.usefixtures("device")
def test_a_guest_that_says_it_lives_is_a_yes(cache: Cache, image: Image, trials: list[Guest]) -> None:
    trials.append(alive)
    assert find_accelerator(cache, image).accelerator == "kvm"


@pytest.mark.usefixtures("device")
def test_a_guest_that_hangs_is_a_no_with_the_reason(cache: Cache, image: Image, trials: list[Guest]) -> None:
    trials.append(silent)
    verdict = find_accelerator(cache, image)
    assert verdict.accelerator == "tcg" and "did not come up" in verdict.reason


@pytest.mark.usefixtures("device")
def test_a_console_that_only_shows_the_init_script_is_a_no(cache: Cache, image: Image, trials: list[Guest]) -> None:
    trials.append(cursing)
    assert find_accelerator(cache, image).accelerator == "tcg"


@pytest.mark.usefixtures("device")
def test_a_qemu_that_fails_is_a_no_with_its_own_words(cache: Cache, image: Image, trials: list[Guest]) -> None:
    trials.append(dead)
    verdict = find_accelerator(cache, image)
    assert verdict.accelerator == "tcg" and "could not access KVM kernel module" in verdict.reason


@pytest.mark.usefixtures("device")
def test_a_guest_that_lived_and_has_powered_off_is_a_yes(cache: Cache, image: Image, trials: list[Guest]) -> None:
    def quick(directory: Path) -> None:
        alive(directory)
        dead(directory)

    trials.append(quick)
    assert find_accelerator(cache, image).accelerator == "kvm"


@pytest.mark.usefixtures("trials")
def test_a_missing_device_is_a_no_without_a_trial(cache: Cache, image: Image, device: Path) -> None:
    device.unlink()
    assert find_accelerator(cache, image) == Verdict("tcg", f"no {device}")


@pytest.mark.usefixtures("trials")
def test_a_device_that_may_not_be_opened_is_a_no_without_a_trial(
    cache: Cache, image: Image, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert find_accelerator(cache, image) == Verdict("tcg", f"{device} may not be opened by this user")


@pytest.mark.usefixtures("device", "trials")
def test_tcg_needs_no_trial(cache: Cache, image: Image) -> None:
    assert find_accelerator(cache, image, "tcg") == Verdict("tcg", "as asked")


@pytest.mark.usefixtures("device")
def test_a_trial_leaves_nothing_running_and_no_file(cache: Cache, image: Image, trials: list[Guest]) -> None:
    trials.append(alive)
    find_accelerator(cache, image)
    assert list((cache.root / "run").iterdir()) == []


# --- what is remembered


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("guest", [alive, silent])
def test_a_verdict_is_remembered(cache: Cache, image: Image, trials: list[Guest], guest: Guest) -> None:
    trials.append(guest)
    assert find_accelerator(cache, image) == find_accelerator(cache, image)


def test_a_device_that_was_missing_is_tried_once_it_is_there(
    cache: Cache, image: Image, trials: list[Guest], device: Path
) -> None:
    device.unlink()
    find_accelerator(cache, image)
    device.touch()
    trials.append(alive)
    assert find_accelerator(cache, image).accelerator == "kvm"


def test_a_yes_is_not_believed_when_the_device_is_gone(
    cache: Cache, image: Image, trials: list[Guest], device: Path
) -> None:
    trials.append(alive)
    find_accelerator(cache, image)
    device.unlink()
    assert find_accelerator(cache, image).accelerator == "tcg"


@pytest.mark.usefixtures("device")
def test_another_kernel_is_tried_anew(cache: Cache, image: Image, trials: list[Guest]) -> None:
    trials += [silent, alive]
    find_accelerator(cache, image)
    assert find_accelerator(cache, replace(image, key="other")).accelerator == "kvm"


@pytest.mark.usefixtures("device")
def test_after_another_start_of_the_machine_it_is_tried_anew(
    cache: Cache, image: Image, trials: list[Guest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "BOOT_ID", tmp_path / "boot_id")
    verdicts: list[str] = []
    for boot in ("first", "first", "second", "second"):
        (tmp_path / "boot_id").write_text(boot)
        if len(verdicts) in (0, 2):
            trials.append(silent if boot == "first" else alive)
        verdicts.append(find_accelerator(cache, image).accelerator)
    assert verdicts == ["tcg", "tcg", "kvm", "kvm"]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("content", ["", "{", "{}", '"kvm"'])
def test_a_spoilt_record_is_tried_anew(cache: Cache, image: Image, trials: list[Guest], content: str) -> None:
    trials += [silent, alive]
    find_accelerator(cache, image)
    [record] = (cache.root / "verdicts").iterdir()
    record.write_text(content)
    assert find_accelerator(cache, image).accelerator == "kvm"


# --- KVM and nothing else


@pytest.mark.usefixtures("device")
def test_kvm_that_is_asked_for_and_does_not_work_is_an_error(cache: Cache, image: Image, trials: list[Guest]) -> None:
    trials.append(silent)
    with pytest.raises(HarnessError, match=r"(?s)KVM does not work here: .*did not come up.*hint: use --vm-accel=tcg"):
        find_accelerator(cache, image, "kvm")


@pytest.mark.usefixtures("device")
def test_kvm_that_is_asked_for_is_tried_again_after_a_no(cache: Cache, image: Image, trials: list[Guest]) -> None:
    trials += [silent, alive]
    find_accelerator(cache, image)
    assert find_accelerator(cache, image, "kvm").accelerator == "kvm"


@pytest.mark.usefixtures("device")
def test_kvm_that_is_asked_for_is_not_tried_again_after_a_yes(cache: Cache, image: Image, trials: list[Guest]) -> None:
    trials.append(alive)
    assert find_accelerator(cache, image) == find_accelerator(cache, image, "kvm")


# --- the tiny guest


def test_the_initramfs_is_a_cpio_archive_with_busybox_and_init() -> None:
    assert read_cpio(tiny_initrd(b"odd length")) == {
        "bin": (0o40755, b""),
        "dev": (0o40755, b""),
        "bin/busybox": (0o100755, b"odd length"),
        "init": (0o100755, INIT),
    }


@pytest.mark.parametrize("size", range(5))
def test_the_initramfs_is_whole_whatever_the_size_of_busybox(size: int) -> None:
    assert read_cpio(tiny_initrd(b"b" * size))["bin/busybox"][1] == b"b" * size


def test_the_line_that_counts_is_not_in_the_archive() -> None:
    assert ALIVE not in tiny_initrd(b"busybox")


@pytest.fixture
def built() -> Image:
    """An image that an earlier run has built; this file never builds one."""
    root = Path(os.environ.get("TENTAFLAKE_CACHE") or default_root()).expanduser()
    directories = [
        path.parent for path in root.glob("images/[!.]*/manifest.json") if (path.parent / "vmlinuz").exists()
    ]
    if not directories:
        pytest.skip(f"no built image in the cache {root}: any run with a machine makes one")
    newest = max(directories, key=lambda path: path.stat().st_mtime)
    return Image(newest.name, newest, newest / "vmlinuz", newest / "initrd", newest / "disk.raw", "", {})


def test_the_tiny_guest_comes_up_where_a_guest_can(cache: Cache, built: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "Hardware", lambda _, **rest: Hardware("tcg", **rest))
    monkeypatch.setattr(accelerator, "KVM_LIMIT", 60.0)
    assert try_kvm(cache, built).reason.startswith("a guest ran under it")


def test_the_verdict_on_this_machine_has_a_reason(cache: Cache, built: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "KVM_LIMIT", 3.0)
    verdict = find_accelerator(cache, built)
    assert verdict.accelerator in ("kvm", "tcg") and verdict.reason


def test_pvm_is_named_and_not_tried(
    cache: Cache, image: Image, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: list[Guest]
) -> None:
    monkeypatch.setattr(accelerator, "PVM", tmp_path)
    verdict = find_accelerator(cache, image)
    assert verdict.accelerator == "tcg" and "PVM" in verdict.reason and "--vm-kernel" in verdict.reason


def test_another_kernel_is_tried_under_pvm(
    cache: Cache, image: Image, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: list[Guest]
) -> None:
    monkeypatch.setattr(accelerator, "PVM", tmp_path)
    kernel = tmp_path / "elsewhere" / "vmlinuz"
    kernel.parent.mkdir()
    kernel.touch()
    (tmp_path / "initrd").touch()
    trials.append(alive)
    assert find_accelerator(cache, image.with_kernel(kernel, None)).accelerator == "kvm"
