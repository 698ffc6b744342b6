"""What is found on disk after a test with a machine has failed, and where."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from harness.evidence import directory_for
from harness.lab import Lab
from harness.policy import Plan
from tests.faults.support import BOOT_PATIENCE, environment, pytest_command, run_pytest, vm_options

TEST = """
import pytest

def test_that_passes(machine):
    machine.run("true").check()

@pytest.mark.parametrize("way", ["a/b c"])
def test_that_fails(machine, way):
    machine.run("systemd-run --quiet --unit=broken --wait false; logger a word in the journal; echo kept > /root/kept")
    machine.run("echo '<0>a word of the kernel' > /dev/kmsg").check()
    assert way == "on purpose"

def test_that_fails_without_a_machine():
    assert False
"""
FILES = "console.log qemu.log journal.txt kernel.txt nft-ruleset.txt docker-ps.txt docker-inspect.json failed-units.txt"


@dataclass(frozen=True)
class Run:
    """A child pytest that has ended; ``artifacts`` is where its evidence is."""

    directory: Path
    artifacts: Path
    code: int
    output: str

    @property
    def evidence(self) -> Path:
        """The directory of the one failed test that had a machine."""
        [found] = [path for path in self.artifacts.iterdir() if path.name not in ("last", "machines")]
        return found


def run(lab: Lab, plan: Plan, directory: Path, keep: str) -> Run:
    lab.activated(plan)
    done = run_pytest(directory, TEST, *vm_options(lab.settings), "--vm-artifacts=found/here", f"--vm-keep={keep}")
    return Run(directory, directory / "found" / "here", done.returncode, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def failed(lab: Lab, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(lab, plan, tmp_path_factory.mktemp("failed"), "on-failure")


def test_the_run_fails_as_it_would_without_evidence(failed: Run) -> None:
    assert failed.code == pytest.ExitCode.TESTS_FAILED
    assert "2 failed, 1 passed" in failed.output


def test_the_place_is_made_from_the_tests_id(failed: Run) -> None:
    assert failed.evidence == directory_for(failed.artifacts, "test_child.py::test_that_fails[a/b c]")


def test_the_failure_names_the_place_and_a_command_that_opens_it(failed: Run) -> None:
    assert f"in {failed.evidence}" in failed.output
    assert f"less {failed.evidence / 'journal.txt'}" in failed.output


def test_last_leads_to_the_newest_evidence(failed: Run) -> None:
    assert (failed.artifacts / "last").resolve() == failed.evidence.resolve()


@pytest.mark.parametrize("name", FILES.split())
def test_the_evidence_is_complete(name: str, failed: Run) -> None:
    assert (failed.evidence / name).exists()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("journal.txt", "a word in the journal"),
        ("kernel.txt", "a word of the kernel"),
        ("console.log", "a word of the kernel"),
        ("nft-ruleset.txt", "table inet tentaflake"),
        ("docker-ps.txt", "hermes-"),
        ("failed-units.txt", "broken.service"),
    ],
)
def test_the_evidence_is_of_the_failed_tests_machine(name: str, word: str, failed: Run) -> None:
    assert word in (failed.evidence / name).read_text()


def test_the_containers_are_there_as_json(failed: Run, plan: Plan) -> None:
    inspected = json.loads((failed.evidence / "docker-inspect.json").read_text())
    assert len(inspected) == len(plan.agents)


def test_keep_on_failure_keeps_the_failed_machine_alone(failed: Run) -> None:
    [kept] = (failed.artifacts / "machines").iterdir()
    assert {"overlay.qcow2", "console.log"} <= {path.name for path in kept.iterdir()}


def test_a_kept_disk_can_be_opened_with_what_the_test_wrote(failed: Run) -> None:
    """Found in the raw bytes of the overlay: a file this small lies in one cluster."""
    [kept] = (failed.artifacts / "machines").iterdir()
    for command in (["check"], ["info", "--backing-chain"]):
        opened = subprocess.run(
            ["qemu-img", *command, "overlay.qcow2"], cwd=kept, capture_output=True, text=True, check=False
        )
        assert opened.returncode == 0, opened.stdout + opened.stderr
    assert b"kept\n" in (kept / "overlay.qcow2").read_bytes()


def test_keep_always_keeps_the_machines_of_passed_tests_too(lab: Lab, plan: Plan, tmp_path: Path) -> None:
    done = run(lab, plan, tmp_path, "always")
    assert len(list((done.artifacts / "machines").iterdir())) == 2


DEAD = """
def test_that_loses_its_machine(machine):
    machine.process.popen.kill()
    machine.run("true")
"""


def test_a_dead_machine_leaves_its_console_and_how_it_died(lab: Lab, plan: Plan, tmp_path: Path) -> None:
    stale = tmp_path / "found" / "test_child-test_that_loses_its_machine" / "of an earlier run"
    stale.mkdir(parents=True)
    lab.activated(plan)
    done = run_pytest(tmp_path, DEAD, *vm_options(lab.settings), "--vm-artifacts=found")
    assert "GuestDied" in done.stdout
    assert not stale.exists()
    last = tmp_path / "found" / "last"
    assert (last / "console.log").exists()
    assert "SIGKILL" in (last / "guest-did-not-answer.txt").read_text()


NETWORK_TEST = """
def test_that_fails(machine, lan):
    lan.run("logger a word of the neighbour").check()
    assert False
"""


def test_the_evidence_of_a_network_is_of_all_its_machines(lab: Lab, plan: Plan, tmp_path: Path) -> None:
    lab.activated(plan)
    lab.peer("lan")
    done = run_pytest(tmp_path, NETWORK_TEST, *vm_options(lab.settings), "--vm-artifacts=found")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    evidence = tmp_path / "found" / "test_child-test_that_fails"
    assert f"less {evidence}/*/journal.txt" in done.stdout
    assert sorted(path.name for path in evidence.iterdir()) == ["host-0", "lan-1"]
    assert "a word of the neighbour" in (evidence / "lan-1" / "journal.txt").read_text()
    assert (evidence / "host-0" / "plan.json").exists()


def test_the_shell_of_a_failed_test_has_the_terminal(lab: Lab, plan: Plan, tmp_path: Path) -> None:
    """pytest keeps standard input from everybody: a shell that were given it would end at once."""
    lab.activated(plan)
    test = "def test_that_fails(machine):\n    assert machine.run('false').exit == 0\n"
    command = pytest_command(tmp_path, test, [*vm_options(lab.settings), "--vm-shell"])
    with pexpect.spawn(command[0], command[1:], cwd=str(tmp_path), env=environment(), timeout=BOOT_PATIENCE) as child:
        child.expect_exact("root@agent-host")
        child.sendline("echo $((6 * 7))-is-said; exit")
        child.expect_exact("42-is-said")
        child.expect_exact("1 failed")
        child.expect(pexpect.EOF)


def test_without_a_terminal_there_is_no_shell(lab: Lab, plan: Plan, tmp_path: Path) -> None:
    lab.activated(plan)
    test = "def test_that_fails(machine):\n    assert machine.run('false').exit == 0\n"
    done = run_pytest(tmp_path, test, *vm_options(lab.settings), "--vm-shell")
    assert "no root shell in the machine of" in done.stdout
    assert "1 failed" in done.stdout
