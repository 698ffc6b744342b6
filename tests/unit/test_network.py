"""The wire between machines, without a guest: QEMU's hub joins sockets, and outlives its neighbours but not us."""

import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.vm.network import Wire, hub_arguments, start_wire
from harness.vm.qemu import Hardware, start_qemu, unplugged
from tests.unit.support import PATIENCE, ends, line_of, open_files, python

START = """
import sys
from harness.vm.network import start_wire

with start_wire(2) as wire:
    print(wire.hub.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def wire() -> Iterator[Wire]:
    with start_wire(3) as made:
        for end in made.ends:
            end.settimeout(PATIENCE)
        yield made


def frame(text: bytes) -> bytes:
    """An Ethernet frame to everybody, of a type that nobody knows."""
    return b"\xff" * 6 + b"\x52\x54\x00\x00\x00\x01" + struct.pack("!H", 0x88B5) + text.ljust(46, b"\0")


def test_what_one_end_sends_all_others_get(wire: Wire) -> None:
    first, *others = wire.ends
    first.send(frame(b"hello"))
    assert [other.recv(2000) for other in others] == [frame(b"hello")] * 2


def test_the_sender_does_not_get_it_back(wire: Wire) -> None:
    first, second, third = wire.ends
    first.send(frame(b"mine"))
    assert third.recv(2000) == frame(b"mine")
    second.send(frame(b"control"))
    assert first.recv(2000) == frame(b"control")


def test_a_machine_that_has_gone_leaves_the_others_connected(wire: Wire) -> None:
    first, second, third = wire.ends
    second.close()
    for number in range(200):  # more than a socket holds for one who does not read
        first.send(frame(b"%d" % number))
        assert third.recv(2000) == frame(b"%d" % number)


def test_a_machine_that_does_not_read_leaves_the_others_connected(wire: Wire) -> None:
    first, _stuck, third = wire.ends
    for number in range(2000):
        first.send(frame(b"%d" % number))
        assert third.recv(2000) == frame(b"%d" % number)


def test_wires_do_not_meet(wire: Wire) -> None:
    with start_wire(2) as other:
        first, second = other.ends
        second.settimeout(PATIENCE)
        wire.ends[0].send(frame(b"here"))
        assert wire.ends[1].recv(2000) == frame(b"here")
        first.send(frame(b"there"))
        assert second.recv(2000) == frame(b"there")
        second.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.recv(2000)


def test_a_wire_that_is_well_passes_its_check(wire: Wire) -> None:
    wire.check()


def test_a_hub_that_ended_is_named_with_how(wire: Wire) -> None:
    wire.hub.kill()
    assert ends(wire.hub.pid)
    with pytest.raises(HarnessError, match=rf"hub of the wire \(pid {wire.hub.pid}\) has ended .*SIGKILL"):
        wire.check()


def test_a_hub_that_does_not_start_is_named_with_qemus_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.vm.network.hub_arguments", lambda _: ["-no-such-option"])
    with start_wire(2) as wire:
        assert ends(wire.hub.pid)
        with pytest.raises(HarnessError, match="no-such-option"):
            wire.check()


def test_nothing_is_left_of_a_wire() -> None:
    before = open_files()
    with start_wire(4) as wire:
        pid = wire.hub.pid
    assert ends(pid, within=0)
    assert open_files() == before


def test_the_hub_dies_with_a_killed_parent() -> None:
    with python(START) as parent:
        pid = int(line_of(parent))
        assert not ends(pid, within=0)
    assert parent.returncode == -signal.SIGKILL
    assert ends(pid)


def test_the_hub_has_a_port_for_each_socket() -> None:
    with unplugged() as first, unplugged() as second:
        words = hub_arguments([first, second])
        for number, port in enumerate([first, second]):
            assert f"dgram,id=wire{number},local.type=fd,local.str={port.fileno()}" in words
            assert f"hubport,id=port{number},hubid=0,netdev=wire{number}" in words


# --- a machine's end


@pytest.mark.parametrize("given", [True, False])
def test_a_machine_has_a_second_card_whose_frames_go_where_it_is_told_or_nowhere(given: bool, tmp_path: Path) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    arguments = [*Hardware("tcg", cpus=1, memory=16).arguments(tmp_path / "ram", share=False), "-S"]
    with (
        here,
        there,
        start_qemu(
            tmp_path, arguments, disk="file=disk.raw,format=raw", netdev="user", wire=there if given else None
        ) as process,
    ):
        table = process.execute("human-monitor-command", **{"command-line": "info network"})
        assert "wire: index=0,type=dgram" in table
        assert (there.fileno() == -1) == given, "its end is QEMU's alone, or its death would not be noticed"
        if given:
            here.send(frame(b"hello"))
            process.close()
            with pytest.raises(ConnectionRefusedError):
                here.send(frame(b"nobody there"))
