"""The command line: a fork's machine is its template's, or the state does not fit it."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from harness.cache import Cache
from harness.vm import qemu, template
from harness.vm.image import Image
from harness.vm.machine import Machine
from harness.vm.qemu import Hardware, Process
from harness.vm.template import Template, boot_arguments, power_on

HARDWARE = Hardware("tcg", cpus=2, memory=1024)
Call = tuple[list[str], dict[str, str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What QEMU is started with, in place of a QEMU."""
    made: list[Call] = []

    @contextmanager
    def start(
        directory: Path,
        arguments: Sequence[str],
        *,
        disk: str,
        netdev: str,
        wire: socket.socket | None = None,
        inherit: Sequence[int] = (),
    ) -> Iterator[Process]:
        made.append((list(arguments), {"disk": disk, "netdev": netdev}))
        yield Mock(spec=Process)

    for name in ("start_qemu", "launch_qemu"):
        monkeypatch.setattr(template, name, start)
    monkeypatch.setattr(Machine, "shell", Mock())
    monkeypatch.setattr(Machine, "wait_shell", lambda *_, **__: None)
    return made


@pytest.fixture
def image(tmp_path: Path) -> Image:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    return Image("key", tmp_path, tmp_path / "vmlinuz", tmp_path / "initrd", disk, "root=/dev/vda quiet", {})


@pytest.fixture
def both(calls: list[Call], image: Image, tmp_path: Path) -> tuple[Call, Call]:
    """The template's call, and that of a fork of it."""
    directory = tmp_path / "template"
    directory.mkdir()
    with power_on(image, HARDWARE, directory):
        (directory / "state").touch()
        (directory / "overlay.qcow2").touch()
    with Template(directory, HARDWARE, image).fork(Cache(tmp_path / "cache")):
        pass
    [cold, fork] = calls
    return cold, fork


def test_template_and_fork_differ_in_sharing_memory_and_incoming_state_only(both: tuple[Call, Call]) -> None:
    (cold, _), (fork, _) = both
    changed = [(there, here) for there, here in zip(cold, fork, strict=False) if there != here]
    [(shared, private)] = changed
    assert private == shared.replace("share=on", "share=off")
    assert fork[len(cold) :] == ["-incoming", "defer"]


def test_a_fork_maps_the_templates_own_memory(both: tuple[Call, Call], tmp_path: Path) -> None:
    _, (fork, _) = both
    assert any(f"mem-path={tmp_path}/template/ram,share=off" in word for word in fork)


def test_a_fork_writes_to_an_overlay_of_its_own(both: tuple[Call, Call]) -> None:
    (_, cold), (_, fork) = both
    assert (cold["disk"].split(",")[0], fork["disk"].split(",")[0]) == ("file=disk.qcow2", "file=overlay.qcow2")


def test_no_machine_reaches_the_hosts_network(both: tuple[Call, Call]) -> None:
    assert all("restrict=on" in backends["netdev"] for _, backends in both)


def test_a_machine_has_its_ssh_port_on_loopback_and_chosen_by_the_kernel(both: tuple[Call, Call]) -> None:
    assert all("hostfwd=tcp:127.0.0.1:0-" in backends["netdev"] for _, backends in both)


def test_a_machine_notices_that_it_is_a_fork() -> None:
    assert "vmgenid,guid=auto" in HARDWARE.arguments(Path("ram"), share=False)


@pytest.mark.parametrize(
    ("accelerator", "version", "model"),
    [
        ("tcg", (7, 2, 22), "max,-la57,-erms,-avx,-avx2,-cx16"),
        ("tcg", (8, 0, 0), "max,-la57,-erms,-avx,-avx2"),
        ("tcg", (10, 0, 2), "max,-la57,-erms,-avx,-avx2"),
        ("kvm", (7, 2, 22), "host"),
    ],
)
def test_the_processor_without_cmpxchg16b_is_for_old_tcg_only(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, version: tuple[int, ...], model: str
) -> None:
    monkeypatch.setattr(qemu, "qemu_version", lambda: version)
    assert Hardware(accelerator).cpu_model() == model


@pytest.mark.parametrize(
    ("accelerator", "line"),
    [("tcg", "quiet norandmaps isolcpus=1 transparent_hugepage=never more"), ("kvm", "quiet more")],
)
def test_only_an_emulated_kernel_is_told_how_to_save_work(accelerator: str, line: str) -> None:
    image = Image("key", Path(), Path("kernel"), Path("initrd"), Path("disk"), "quiet", {})
    assert boot_arguments(image, Hardware(accelerator), "more")[-1] == line


@pytest.mark.parametrize("other", [{"accelerator": "kvm"}, {"cpus": 3}, {"memory": 2048}])
def test_other_hardware_has_another_key(other: dict[str, Any]) -> None:
    assert replace(HARDWARE, **other).key() != HARDWARE.key()


def test_another_qemu_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for version in ((98, 0, 0), (99, 0, 0)):
        monkeypatch.setattr(qemu, "qemu_version", lambda version=version: version)
        keys.append(HARDWARE.key())
    assert keys[0] != keys[1]


def test_the_hosts_processor_is_in_the_key_where_the_guest_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "host_cpu", lambda: "another processor")
    assert (Hardware("kvm").key()["host_cpu"], HARDWARE.key()["host_cpu"]) == ("another processor", None)


def test_a_machine_has_a_card_to_be_managed_by_and_one_for_the_wire() -> None:
    cards = [word for word in HARDWARE.arguments(Path("ram"), share=False) if word.startswith("virtio-net-pci")]
    assert [card.split(",")[1] for card in cards] == ["netdev=management", "netdev=wire"]
    assert len({card.split(",")[2] for card in cards}) == 2, "two cards with one MAC address"
