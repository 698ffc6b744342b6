"""The contract itself: every claim is attacked, or said to be to come."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import testinfra

from harness.contract import CLAIMS, ClaimBroken, ControlFailed, Inapplicable, find_claim, missing_tests
from harness.durations import COMMITTED, read_durations
from harness.errors import HarnessError
from harness.plugin import check_outcomes, is_untried
from harness.policy import evaluate
from harness.probes.attempts import Attacker, Attempt, Outcome, Seen
from harness.probes.containers import foreign_mounts, parse_mountinfo, parse_status

ROOT = Path(__file__).parent.parent.parent


LIST_TESTS = """
import json, sys, pytest
from harness.selection import test_id
class Lister:
    def pytest_collection_finish(self, session):
        found = [
            {
                "test": test_id(item.nodeid),
                "claims": [mark.args[0] for mark in item.iter_markers("claim")],
                "is_long": item.get_closest_marker("recorded") is not None,
            }
            for item in session.items
        ]
        print("listed", json.dumps(found))
pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests/contract"], plugins=[Lister()])
"""


@dataclass(frozen=True)
class Listed:
    """A test of the contract; ``is_long``: it is marked as ``recorded``."""

    test: str
    claims: list[str]
    is_long: bool


@pytest.fixture(scope="module")
def contract_tests() -> list[Listed]:
    """All tests of the contract, as pytest collects them in a process of its own."""
    command = [sys.executable, "-W", "ignore::UserWarning", "-c", LIST_TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("listed ")] or [f"none {done.stderr}"]
    return msgspec.json.decode(line.partition(" ")[2], type=list[Listed])


def test_every_claim_that_is_not_to_come_has_a_test(contract_tests: list[Listed]) -> None:
    tested = {claim for each in contract_tests for claim in each.claims}
    assert "D2" in tested
    assert missing_tests(tested) == []


def test_the_committed_durations_are_those_of_the_tests_that_there_are(contract_tests: list[Listed]) -> None:
    """None of a test that is gone, and one of each function that is marked to take long: with some parameters it takes
    none. `harness durations --write` brings them. What only NixOS has takes none on the Debian guest.
    """
    known = {name for name in read_durations(COMMITTED, "debian").tests if name.startswith("tests/contract/")}
    assert known <= {each.test for each in contract_tests}
    functions = {test.partition("[")[0] for test in known}
    long = {each.test.partition("[")[0] for each in contract_tests if each.is_long}
    assert {function for function in long if "test_nixos_" not in function} <= functions


def test_a_claim_without_a_test_is_named() -> None:
    assert missing_tests(set(CLAIMS) - {"D2"}) == ["D2"]


def test_an_unknown_claim_lists_those_that_exist() -> None:
    with pytest.raises(HarnessError, match="no claim 'Z9'") as caught:
        find_claim("Z9")
    assert "U1, U2, U3" in str(caught.value)


def test_the_documentation_lists_every_claim() -> None:
    text = (ROOT / "docs" / "contract.md").read_text()
    for claim in CLAIMS.values():
        assert f"**{claim.id}** {claim.text}{' *(to come)*' if claim.to_come else ''}\n" in text


def outcome(expected: Seen, seen: Seen) -> Outcome:
    return Outcome(Attempt("D2", "a way", Attacker("root"), "host", "true", expected), seen, b"")


def test_an_attack_that_gets_through_breaks_the_claim() -> None:
    with pytest.raises(ClaimBroken, match="D2 is broken"):
        check_outcomes("a way", [outcome("reached", "reached"), outcome("refused", "reached")])


@pytest.mark.parametrize(
    "outcomes",
    [
        [outcome("refused", "refused")],
        [outcome("reached", "refused"), outcome("refused", "refused")],
        [outcome("reached", "reached"), outcome("refused", "unknown")],
    ],
)
def test_an_attack_without_a_working_control_proves_nothing(outcomes: list[Outcome]) -> None:
    with pytest.raises(ControlFailed, match="proves nothing"):
        check_outcomes("a way", outcomes)


@pytest.mark.parametrize("outcomes", [[], [outcome("reached", "reached")]])
def test_where_there_is_nobody_to_attack_nothing_is_said(outcomes: list[Outcome]) -> None:
    with pytest.raises(Inapplicable):
        check_outcomes("a way", outcomes)


def test_a_refused_attack_with_its_control_holds() -> None:
    check_outcomes("a way", [outcome("reached", "reached"), outcome("refused", "refused")])


def fail_by_assertion() -> None:
    assert sorted("b") == ["a"]


def fail_by_attack() -> None:
    check_outcomes("a way", [outcome("reached", "reached"), outcome("refused", "reached")])


def fail_by_control() -> None:
    check_outcomes("a way", [outcome("refused", "refused")])


def fail_by_command() -> None:
    testinfra.get_host("local://").check_output("false")


def fail_by_no_refusal() -> None:
    with pytest.raises(HarnessError):
        pass


@pytest.mark.parametrize(
    ("fail", "untried"),
    [
        (fail_by_assertion, False),
        (fail_by_attack, False),
        (fail_by_no_refusal, False),
        (fail_by_control, True),
        (fail_by_command, True),
    ],
)
def test_a_claim_is_broken_by_what_was_seen_and_untried_by_what_was_not(
    fail: Callable[[], None], untried: bool
) -> None:
    with pytest.raises((AssertionError, HarnessError, pytest.fail.Exception)) as caught:
        fail()
    assert is_untried(caught) == untried


AGENT = next(iter(evaluate(ROOT / "agents.nix").agents.values()))
OWN = f"1 2 8:1 {AGENT.state_dir} {AGENT.state_dir} rw,relatime - ext4 /dev/vda rw"


@pytest.mark.parametrize(
    "line",
    [
        "1 2 0:5 /docker.sock /run/docker.sock rw - tmpfs tmpfs rw".replace("tmpfs tmpfs", "ext4 /dev/vda"),
        "1 2 8:1 / /host ro - ext4 /dev/vda rw",
        f"1 2 8:1 {AGENT.state_dir}-other {AGENT.state_dir} rw - ext4 /dev/vda rw",
        f"1 2 8:1 {AGENT.config.path} {AGENT.state_dir}/config.yaml rw - ext4 /dev/vda rw",
        "1 2 8:1 /etc/hosts /etc/hosts ro - ext4 /dev/vda rw",
        "1 2 8:1 /a\\040b /with\\040space rw - ext4 /dev/vda rw",
        "1 2 0:5 / /tmp/proc rw - proc proc rw",
        "1 2 0:5 /sys /proc/sys rw - proc proc rw",
        "1 2 0:6 / /tmp/cgroup rw - cgroup2 cgroup2 rw",
        "1 2 0:7 /vda /proc/kcore ro - devtmpfs none rw",
        "1 2 0:7 /null /proc/kcore rw - devtmpfs none rw",
        "1 2 0:7 /null /etc/passwd ro - devtmpfs none rw",
    ],
)
def test_a_mount_of_the_host_is_found(line: str) -> None:
    assert foreign_mounts(parse_mountinfo(f"{OWN}\n{line}\n"), AGENT) == parse_mountinfo(line)


def test_a_file_may_be_hidden_behind_the_null_device() -> None:
    line = "1 2 0:7 /null /proc/kcore ro - devtmpfs none rw"
    assert foreign_mounts(parse_mountinfo(f"{OWN}\n{line}\n"), AGENT) == []


UNPRIVILEGED = "\n".join(
    ["Pid:\t7", "Uid:\t5\t5\t5\t5", "Gid:\t5\t5\t5\t5", "Groups:\t5 "]
    + [f"{name}:\t0000000000000000" for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    + ["NoNewPrivs:\t1", "Seccomp:\t2"]
)


def test_an_unprivileged_process_has_nothing_to_find() -> None:
    assert parse_status(UNPRIVILEGED).privileges(5, 5) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Uid:\t5\t5", "Uid:\t5\t0"),
        ("Gid:\t5", "Gid:\t0"),
        ("Groups:\t5", "Groups:\t5 998"),
        ("CapBnd:\t0000000000000000", "CapBnd:\t0000000000000400"),
        ("CapInh:\t0000000000000000", "CapInh:\t0000000000000001"),
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
        ("Seccomp:\t2", "Seccomp:\t0"),
    ],
)
def test_each_privilege_is_found(before: str, after: str) -> None:
    assert before in UNPRIVILEGED
    assert len(parse_status(UNPRIVILEGED.replace(before, after)).privileges(5, 5)) == 1
