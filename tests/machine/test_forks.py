"""A fork is a new machine: its own randomness, its own clock, its own disk and memory, and a template that stays."""

import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from harness.cache import file_digest
from harness.lab import Lab
from harness.plugin import track_machine
from harness.policy import Plan
from harness.vm.machine import Machine

DRAW = """
head -c 16 /dev/urandom | sha256sum
python3 -c 'import os; print(os.getrandom(16).hex())'
cat /proc/sys/kernel/random/uuid
sha256sum /etc/machine-id
"""
SOURCES = ("urandom", "getrandom", "uuid", "machine-id")


@pytest.fixture(scope="module")
def first_fork(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    with track_machine(request.config, lab.machine(plan)) as made:
        yield made


@pytest.fixture(scope="module")
def second_fork(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    with track_machine(request.config, lab.machine(plan)) as made:
        yield made


@pytest.fixture(scope="module")
def drawn(first_fork: Machine, second_fork: Machine) -> Mapping[str, tuple[str, str]]:
    """What each fork drew with its very first command, by source."""
    first, second = (fork.run(DRAW).check().text.splitlines() for fork in (first_fork, second_fork))
    return {source: (one, other) for source, one, other in zip(SOURCES, first, second, strict=True)}


@pytest.mark.parametrize("source", ["urandom", "getrandom", "uuid"])
def test_two_forks_draw_different_randomness_at_once(source: str, drawn: Mapping[str, tuple[str, str]]) -> None:
    """The control: what was in the template is the same in both, so that they are forks of one machine."""
    same, other = drawn["machine-id"]
    assert same == other, "the control: these are no forks of one template"
    one, other = drawn[source]
    assert one != other


def test_the_kernel_knows_that_it_was_forked(first_fork: Machine, second_fork: Machine) -> None:
    for fork in (first_fork, second_fork):
        assert "crng reseeded due to virtual machine fork" in fork.run("dmesg").check().text


def test_the_clock_of_a_fork_is_the_hosts(machine: Machine) -> None:
    before = time.time()
    seen = float(machine.run("date +%s.%N").check().text)
    assert before - 2 <= seen <= time.time() + 2


def test_a_fork_does_not_see_the_files_of_another(first_fork: Machine, second_fork: Machine) -> None:
    first_fork.run("echo mine > /root/of-the-first && sync").check()
    assert first_fork.host.file("/root/of-the-first").exists
    assert not second_fork.host.file("/root/of-the-first").exists


def test_a_fork_does_not_see_the_processes_of_another(first_fork: Machine, second_fork: Machine) -> None:
    first_fork.run("systemd-run --quiet --unit=of-the-first sleep infinity").check()
    assert first_fork.host.service("of-the-first").is_running
    assert not second_fork.host.service("of-the-first").is_running


def test_two_forks_have_ports_of_their_own(first_fork: Machine, second_fork: Machine) -> None:
    assert first_fork.ssh_port != second_fork.ssh_port


def test_what_a_fork_writes_does_not_change_the_template(lab: Lab, plan: Plan) -> None:
    """To disk and to memory. The control: a file of the fork's own, its overlay, has grown."""
    template = lab.activated(plan)
    before = state_of(template.directory)
    with lab.machine(plan) as machine:
        overlay = machine.process.directory / "overlay.qcow2"
        empty = overlay.stat().st_size
        machine.run("head -c 8M /dev/urandom | tee /root/disk > /dev/shm/memory && sync").check()
        assert overlay.stat().st_size > empty
    assert state_of(template.directory) == before


def state_of(template: Path) -> dict[str, tuple[int, int, str]]:
    """Size, time of the last change and (but for the memory, which is long to read) digest, by file."""
    return {
        path.name: (path.stat().st_size, path.stat().st_mtime_ns, "" if path.name == "ram" else file_digest(path))
        for path in template.iterdir()
        if path.is_file()
    }


def test_nothing_is_left_of_a_fork(lab: Lab, plan: Plan) -> None:
    with lab.machine(plan) as machine:
        process = machine.process
    assert process.popen.poll() is not None
    assert not process.directory.exists()


def test_a_fork_finds_its_disk_whole(machine: Machine) -> None:
    """A snapshot taken in the middle of a write would show as an error of the file system."""
    machine.process.execute("stop")
    checked = subprocess.run(
        ["qemu-img", "check", "--force-share", "overlay.qcow2"],
        cwd=machine.process.directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
