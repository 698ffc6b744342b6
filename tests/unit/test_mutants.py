"""The mutants themselves: every claim has one, each breaks what it says, and what counts as noticed."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.contract import CLAIMS, missing_mutants
from harness.errors import HarnessError
from harness.mutants import MUTANTS, InGuest, InPolicy, InSources, Moment, Mutant, find_mutant, mutants_of, script
from harness.mutate import ClaimTest, Hunt, MutantVerdict, in_order, judge, other_tests, own_tests, sources_of, waits
from harness.mutation import change_plan, patch_policy
from harness.policy import POLICY, Plan, policy_from, reference_plan
from harness.probes.attempts import Attacker, Attempt, is_among
from tests.faults.support import run_pytest
from tests.unit.support import REPOSITORY

LIST = """
import json, sys
from dataclasses import asdict
from harness.mutate import collect_tests
json.dump([asdict(test) for test in collect_tests()], sys.stdout, default=sorted)
"""


@cache
def all_tests() -> list[ClaimTest]:
    """By asking pytest, in a process of its own."""
    command = [sys.executable, "-W", "ignore::UserWarning", "-c", LIST]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [msgspec.convert(fields, ClaimTest) for fields in json.loads(done.stdout)]


@cache
def sound_plan() -> Plan:
    return reference_plan()


def test_every_claim_that_has_tests_has_a_mutant() -> None:
    assert missing_mutants({mutant.claim for mutant in MUTANTS.values()}) == []
    assert {mutant.claim for mutant in MUTANTS.values()} <= set(CLAIMS)


def test_a_claim_without_a_mutant_is_named() -> None:
    assert missing_mutants(set(CLAIMS) - {"D2"}) == ["D2"]


@pytest.mark.parametrize("mutant", mutants_of([]), ids=lambda mutant: mutant.id)
def test_a_mutant_has_tests_of_its_claim_that_have_to_notice(mutant: Mutant) -> None:
    assert all(mutant.claim in test.claims for test in own_tests(mutant, all_tests()))


@pytest.mark.parametrize(
    "mutant",
    [mutant for mutant in MUTANTS.values() if "policy" in mutant.places or "plan" in mutant.places],
    ids=lambda mutant: mutant.id,
)
def test_a_mutant_of_policy_or_plan_makes_another_plan(mutant: Mutant, tmp_path: Path) -> None:
    """Of the firewall alone, unless it says that it has to be there before."""
    with policy_from(patch_policy(mutant, tmp_path)):
        broken = change_plan(mutant, reference_plan())
    assert reference_plan() == sound_plan() != broken
    if mutant.moment == "running":
        assert msgspec.structs.replace(broken, nftables=sound_plan().nftables) == sound_plan()


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=lambda mutant: mutant.id)
def test_commands_for_the_guest_are_a_shell_script(mutant: Mutant) -> None:
    for act in mutant.acts:
        if isinstance(act, InGuest):
            text = script(act.commands, sound_plan())
            done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
            assert done.stderr == ""


@pytest.mark.parametrize(
    "mutant", [mutant for mutant in MUTANTS.values() if mutant.places == "sources"], ids=lambda mutant: mutant.id
)
def test_a_mutant_of_the_sources_is_a_copy_of_them(mutant: Mutant, tmp_path: Path) -> None:
    copy = sources_of(mutant, tmp_path)
    assert (copy / "harness" / "mutants.py").read_bytes() == (REPOSITORY / "harness" / "mutants.py").read_bytes()
    for act in mutant.acts:
        assert isinstance(act, InSources)
        assert (copy / act.file).read_text() != (REPOSITORY / act.file).read_text()


def test_a_cache_in_the_repository_is_not_copied_into_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "cache" / "run" / "1"
    directory.mkdir(parents=True)
    (tmp_path / "flake.lock").write_text("old")
    monkeypatch.setattr("harness.mutate.REPOSITORY", tmp_path)
    copy = sources_of(replace(MUTANT, acts=[InSources("flake.lock", "old", "new")]), directory)
    assert [path.name for path in copy.iterdir()] == ["flake.lock"] and (copy / "flake.lock").read_text() == "new"


def test_words_name_the_first_the_second_and_the_last_agent() -> None:
    text = script('echo "$a_name $b_name $z_name $a_secret"', sound_plan())
    said = subprocess.run(["sh"], input=text, text=True, capture_output=True, check=True).stdout
    assert said == "coding research writer /run/agenix/coding-model-key\n"


def test_the_sound_policy_can_be_had_in_the_middle_of_a_broken_one(tmp_path: Path) -> None:
    with policy_from(patch_policy(MUTANTS["lan-let-in"], tmp_path)):
        broken = reference_plan()
        with policy_from(POLICY):
            assert reference_plan() == sound_plan()
        assert reference_plan() == broken != sound_plan()
    assert reference_plan() == sound_plan()


def test_text_that_is_no_longer_in_the_policy_is_named(tmp_path: Path) -> None:
    gone = replace(MUTANTS["lan-let-in"], acts=[InPolicy("firewall.nix", "no such text", "")])
    with pytest.raises(HarnessError, match=r"'no such text' stands 0 times in firewall\.nix"):
        patch_policy(gone, tmp_path)


def test_a_mistyped_mutant_is_told_which_are_near() -> None:
    with pytest.raises(HarnessError, match="did you mean state-0755"):
        find_mutant("state-755")
    with pytest.raises(HarnessError, match="harness mutate --list"):
        find_mutant("xyz")


def test_mutants_are_found_by_claim() -> None:
    assert {mutant.claim for mutant in mutants_of(["D1", "D2"])} == {"D1", "D2"}
    to_come = {claim.id for claim in CLAIMS.values() if claim.to_come}
    assert mutants_of([]) == [mutant for mutant in MUTANTS.values() if mutant.claim not in to_come]


# --- which tests


def claim_test(name: str, claim: str, *machines: str, recorded: bool = False) -> ClaimTest:
    return ClaimTest(f"test_x.py::{name}", name, frozenset([claim]), recorded, frozenset(machines))


QUICK = claim_test("test_quick", "D1", "shared_machine")
SLOW = claim_test("test_slow", "D1", "machine", recorded=True)
SAME_MACHINE = claim_test("test_same_machine", "D2", "shared_machine")
IN_A_BATCH, TOO = (claim_test(name, claim, "attacked_machine") for name, claim in (("test_a", "D3"), ("test_b", "S1")))
TESTS = [
    QUICK,
    SLOW,
    SAME_MACHINE,
    IN_A_BATCH,
    TOO,
    claim_test("test_of_a_claim_that_is_tried", "S1", "attacked_machine"),
    claim_test("test_that_takes_another_batch", "A4", "attacked_machine"),
    claim_test("test_of_another_letter", "C1", "shared_machine"),
    claim_test("test_other_machine", "F2", "attacked_network"),
    claim_test("test_own_machine", "C6", "machine"),
    claim_test("test_of_no_machine", "S2"),
    claim_test("test_slow_too", "C2", "shared_machine", recorded=True),
    replace(claim_test("test_that_switches", "D3", "shared_machine"), changes=True),
]
MUTANT = Mutant("x", "D1", "X.", [])


def test_by_default_quick_tests_of_the_claim_have_to_notice() -> None:
    assert own_tests(MUTANT, TESTS) == [QUICK]
    assert own_tests(replace(MUTANT, tests=["test_slow"]), TESTS) == [SLOW]


def test_a_mutant_without_a_test_is_an_error() -> None:
    with pytest.raises(HarnessError, match="D1 has no test test_gone"):
        own_tests(replace(MUTANT, tests=["test_gone"]), TESTS)
    with pytest.raises(HarnessError, match="all tests of D1 take long"):
        own_tests(MUTANT, [SLOW])


def test_others_are_asked_that_look_at_the_same_machine_and_cost_little() -> None:
    assert other_tests([QUICK], TESTS) == [SAME_MACHINE]
    assert other_tests([IN_A_BATCH], TESTS) == [TOO]
    assert other_tests([SLOW], TESTS) == []


def test_what_takes_long_begins_first_and_one_of_each_claim() -> None:
    def make(name: str, claim: str = "D2", moment: Moment = "running") -> Mutant:
        return replace(MUTANT, id=name, claim=claim, moment=moment)

    mutants = [make("quick"), make("restarts", moment="before"), make("slow"), make("slow too"), make("other", "D4")]
    own = {mutant.id: [SLOW if mutant.id.startswith(("slow", "other")) else QUICK] for mutant in mutants}
    assert [each.id for each in in_order(mutants, own)] == ["slow", "other", "slow too", "restarts", "quick"]


def test_what_waits_more_than_it_works_is_told() -> None:
    far = claim_test("test_far", "F2", "attacked_network")
    assert waits(MUTANT, [far]) and waits(replace(MUTANT, waits=True), [QUICK])
    assert not waits(MUTANT, [QUICK]) and not waits(MUTANT, [far, QUICK])


def test_over_the_network_others_are_asked_that_attack_in_the_same_way() -> None:
    tests = [
        replace(claim_test(name, claim, "attacked_network"), way=way)
        for name, claim, way in (("a", "F1", "connect"), ("b", "F3", "ping"), ("c", "N1", "connect"))
    ]
    assert other_tests(tests[:1], tests) == [tests[2]]
    assert other_tests(tests[1:2], tests) == []


def test_only_what_is_asked_for_is_attacked() -> None:
    attempt = Attempt("D2", "read a file", Attacker("root"), "a", "true", "refused")
    assert is_among(None, attempt)
    assert is_among({("D2", "read a file"), ("S1", None)}, attempt) and is_among({("D2", None)}, attempt)
    assert not is_among({("D2", "list a directory"), ("S1", "read a file"), ("S1", None)}, attempt)


# --- what counts as noticed


def verdict(own: str, **others: str) -> MutantVerdict:
    found: dict[str, Any] = {"D1": [("a", "held"), ("b", own)], **{claim: [("c", it)] for claim, it in others.items()}}
    return judge(MUTANT, {"a", "b"}, found, 1.23)


def test_a_mutant_is_killed_by_an_attack_that_got_through() -> None:
    found = verdict("broken", C1="broken", C2="untried", D2="held")
    assert (found.killed, found.outcome, found.killed_by, found.also_broken) == (True, "killed", ["b"], ["C1"])


def test_a_mutant_that_no_test_of_its_claim_notices_survives() -> None:
    found = verdict("held", C1="broken")
    assert (found.killed, found.outcome, found.also_broken) == (False, "survived", ["C1"])


def test_a_control_that_failed_kills_nothing() -> None:
    assert verdict("untried").outcome == "untried"
    assert verdict("inapplicable").outcome == "untried"
    assert judge(MUTANT, {"a"}, {}, 0.0).outcome == "untried"


def test_a_test_of_the_claim_that_was_not_to_notice_kills_nothing() -> None:
    assert judge(MUTANT, {"a"}, {"D1": [("a", "held"), ("b", "broken")]}, 0.0).outcome == "survived"


@pytest.mark.parametrize(("outcomes", "code"), [(["held"], 1), (["untried"], 2), (["held", "untried"], 1), ([], 0)])
def test_the_exit_code_is_that_of_the_worst(outcomes: list[str], code: int) -> None:
    assert Hunt([verdict("broken"), *map(verdict, outcomes)], 1.0).exit_code == code


# --- pytest --vm-mutant

CHILD = """
import pytest
from harness import plugin

plugin.records_of = lambda config: Shelf

class Shelf:
    def find(test):
        raise AssertionError("asked for a record")
    def write(test, duration):
        print("written", test)
    def forget(test):
        print("forgotten", test)

@pytest.fixture(autouse=True, scope="session")
def planned(pytestconfig):
    pytestconfig.stash[plugin.PLAN] = "a plan"

@pytest.mark.recorded
@pytest.mark.claim("D1")
@pytest.mark.parametrize("good", [True, False])
def test_it(good):
    assert good
"""


def test_a_run_with_a_mutant_says_what_came_of_it_and_neither_uses_nor_keeps_records(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("")
    file = tmp_path / "outcomes.json"
    options = ("--vm-records", "-s", "--vm-mutant=state-0755", f"--vm-outcomes={file}", f"--vm-cache={tmp_path}")
    done = run_pytest(tmp_path, CHILD, *options)
    assert "1 failed, 1 passed" in done.stdout
    assert "written" not in done.stdout and "forgotten" not in done.stdout
    assert [outcome for _, outcome in json.loads(file.read_text())["D1"]] == ["held", "broken"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--vm-mutant=state-755"], "did you mean state-0755"),
        (["--vm-mutant=state-0755", "--vm-flake=.#x"], "exclude each other"),
    ],
)
def test_a_wrong_option_is_an_error_of_usage(tmp_path: Path, options: list[str], why: str) -> None:
    done = run_pytest(tmp_path, CHILD, *options)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert why in done.stdout + done.stderr
