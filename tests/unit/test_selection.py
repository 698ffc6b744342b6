"""Shards of a run of pytest, and the plan that it is given: every test once, and one plan from start to end."""

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from harness.cache import Cache
from harness.deploy import read_plan
from harness.durations import Durations, read_recorded, record_durations
from harness.errors import HarnessError
from harness.plugin import OnRecord
from harness.policy import evaluate_specs, reference_plan
from harness.selection import Listing, units_of
from harness.selection import test_id as id_of
from tests.faults.support import run_pytest

USAGE_ERROR = int(pytest.ExitCode.USAGE_ERROR)
CHILD = """
import pytest

@pytest.fixture
def restarted():  # a name that marks what is expensive and shared
    pass

@pytest.mark.claim("D2")
@pytest.mark.parametrize("number", range(4))
def test_shared(restarted, number):
    pass

@pytest.mark.claim("D4")
@pytest.mark.parametrize("number", ["a@b", "c", "d", "e", "f"])
def test_alone(number):
    pass

@pytest.mark.claim("D2")
@pytest.mark.recorded
def test_long():
    pass
"""


def run_shard(directory: Path, shard: str, *options: str, child: str = CHILD) -> tuple[str, Listing]:
    """What pytest said, and the list of what it was to run."""
    listing = directory / f"listing-{shard.replace('/', '-')}.json"
    done = run_pytest(
        directory, child, f"--vm-shard={shard}", f"--vm-listing={listing}", f"--vm-cache={directory}", "-v", *options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, msgspec.json.decode(listing.read_bytes(), type=Listing)


def passed(said: str) -> set[str]:
    """The tests that passed, as pytest names them, without groups."""
    lines = [line for line in said.splitlines() if " PASSED" in line or line.startswith("test_child.py::")]
    names = [word for line in lines if "PASSED" in line for word in line.split() if word.startswith("test_child.py::")]
    return {id_of(name) for name in names}


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "with workers"])
def test_every_test_is_in_one_shard_and_a_group_in_one(tmp_path: Path, workers: list[str]) -> None:
    found = [run_shard(tmp_path, f"{number}/3", *workers) for number in (1, 2, 3)]
    ran = [passed(said) for said, _ in found]
    assert sorted(test for part in ran for test in part) == sorted(set().union(*ran))
    assert len(set().union(*ran)) == 10
    assert [len([test for test in part if "test_shared" in test]) for part in ran].count(0) == 2
    assert [set(listing.tests) for _, listing in found] == ran
    assert len({listing.partition for _, listing in found}) == 1
    assert {tuple(sorted(listing.claims.items())) for _, listing in found} == {(("D2", 5), ("D4", 5))}


def test_durations_decide_who_does_what_and_those_of_this_machine_do_not(tmp_path: Path) -> None:
    durations = tmp_path / "durations.json"
    record_durations(Cache(tmp_path / "cache"), "debian", Durations({"test_child.py::test_long": 9000.0}))
    options = ("--vm-claim=D2", f"--vm-cache={tmp_path / 'cache'}")
    _, other = run_shard(tmp_path, "1/2", *options)
    assert list(other.tests) == ["test_child.py::test_long"]  # 30 s, a guess
    durations.write_text('{"debian": {"tests": {"test_child.py::test_shared[0]": 1000}}}')
    _, mine = run_shard(tmp_path, "1/2", *options, f"--vm-durations={durations}")
    assert len(mine.tests) == 4
    assert mine.partition != other.partition


def test_what_is_chosen_by_name_is_what_is_divided(tmp_path: Path) -> None:
    found = [run_shard(tmp_path, f"{number}/2", "-k", "alone", "--vm-claim=D4")[1] for number in (1, 2)]
    assert sorted(len(listing.tests) for listing in found) == [2, 3]


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "with workers"])
def test_a_shard_without_tests_is_no_error_and_says_so(tmp_path: Path, workers: list[str]) -> None:
    said, listing = run_shard(tmp_path, "3/3", "-k", "test_long", *workers)
    assert "vm: shard 3/3 has none of the 1 tests" in said
    assert listing.tests == {} and listing.claims == {"D2": 1}


def test_that_there_is_no_test_at_all_is_an_error_in_a_shard_too(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, CHILD, "--vm-shard=1/2", "-k", "nothing", f"--vm-cache={tmp_path}")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_parallel_job_of_an_engine_is_a_shard_when_asked(tmp_path: Path) -> None:
    variables = {"CI_NODE_INDEX": "2", "CI_NODE_TOTAL": "5"}
    chosen = ("--collect-only", "-k", "alone", f"--vm-cache={tmp_path}")
    for option, count in (["--vm-shard=auto", "1/10 tests"], ["--vm-shard=", "5/10 tests"]):
        done = run_pytest(tmp_path, CHILD, option, *chosen, variables=variables)
        assert f"{count} collected" in done.stdout and "has none" not in done.stdout, done.stdout
        assert (", shard 2/5" in done.stdout) == (option == "--vm-shard=auto")
    by_variable = run_pytest(tmp_path, CHILD, *chosen, variables={"TENTAFLAKE_SHARD": "3/5"})
    assert ", shard 3/5" in by_variable.stdout and "1/10 tests collected" in by_variable.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vm-shard=3/2"], "shard 3/2: there is no such part"),
        (["--vm-shard=auto"], "no parallel job is known here"),
        (["--vm-durations=none.json"], "none.json has no durations"),
        (["--vm-plan=none.json"], "none.json cannot be read as a plan"),
        (["--vm-plan=list.json", "--vm-mutant=state-0755"], "--vm-plan and --vm-mutant exclude each other"),
    ],
)
def test_what_is_wrong_with_an_option_is_one_sentence(tmp_path: Path, options: list[str], words: str) -> None:
    done = run_pytest(tmp_path, CHILD, *options)
    said = done.stdout + done.stderr
    assert done.returncode == USAGE_ERROR, said
    assert words in said
    assert "Traceback" not in said and "INTERNALERROR" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read as a plan"),
        ("agents.nix", "cannot be read as a plan"),
        ("[]", "is a list of agents, and no plan of a host"),
        ("{}", "is neither a plan nor a list"),
        ('{"version": 1}', "is no plan that this harness knows"),
    ],
)
def test_what_is_no_plan_is_named_with_what_to_do(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "p.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(HarnessError, match=rf"(?s)p\.json {words}.*hint: harness plan --json"):
        read_plan(file)


# --- what is on record changes no shard


def test_a_test_on_record_counts_as_before_for_shards(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    known = Durations({id_of(request.node.nodeid): 7.0}, {"tmp_path": 3.0})
    stand_in: OnRecord = OnRecord.from_parent(request.node.parent, name="x", nodeid=request.node.nodeid)
    stand_in.fixturenames = request.node.fixturenames
    assert units_of([stand_in], known) == units_of([request.node], known)
    assert units_of([stand_in], known)[0].fixtures == {"tmp_path": 3.0}


@pytest.mark.parametrize(
    ("nodeid", "test"),
    [("t.py::a@group", "t.py::a"), ("t.py::a[x@y]", "t.py::a[x@y]"), ("t.py::a[x@y]@b", "t.py::a[x@y]"), ("a", "a")],
)
def test_a_group_is_no_part_of_a_tests_name(nodeid: str, test: str) -> None:
    assert id_of(nodeid) == test


# --- what tests take is measured

MEASURED = """
import time
import pytest

@pytest.fixture(scope="session")
def inner():
    time.sleep(0.5)

@pytest.fixture(scope="session")
def outer(request):
    request.getfixturevalue("inner")
    time.sleep(0.3)

@pytest.fixture
def own():
    time.sleep(0.3)

def test_first(outer, own):
    pass

def test_second(outer):
    assert False

@pytest.mark.skip
def test_third():
    pass
"""
# It records what is in this repository only: the child is told that it is.
HERE = """
import pathlib
from harness import plugin
plugin.REPOSITORY = pathlib.Path(__file__).parent
"""


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "with workers"])
def test_shared_fixtures_are_measured_apart_and_what_failed_is_not_recorded(tmp_path: Path, workers: list[str]) -> None:
    (tmp_path / "conftest.py").write_text(HERE)
    run_pytest(tmp_path, MEASURED, f"--vm-cache={tmp_path}", *workers)
    known = read_recorded(Cache(tmp_path), "debian")
    mine = {name: seconds for name, seconds in known.tests.items() if name.startswith("test_child.py")}
    assert mine.keys() == {"test_child.py::test_first"}
    assert 0.3 <= mine["test_child.py::test_first"] < 0.8 <= 0.3 + known.fixtures["inner"]
    assert 0.3 <= known.fixtures["outer"] < 0.5 <= known.fixtures["inner"]


def test_a_run_of_another_tree_records_nothing(tmp_path: Path) -> None:
    run_pytest(tmp_path, CHILD, f"--vm-cache={tmp_path}")
    assert not (tmp_path / "durations.json").exists()


# --- one plan

MOVING = """
import json
from pathlib import Path
import pytest
from harness import plugin

SOURCE = Path(__file__).with_name("agents.json")
SOURCE.write_text('[{"name": "another"}]')  # whoever reads it from here on reads this

class Lab:
    has_image = True
    def evaluate(self, evaluate):
        return evaluate()

plugin.lab_of = lambda config: Lab()

@pytest.mark.parametrize("number", range(6))
def test_attack(pytestconfig, number):
    assert list(plugin.plan_of(pytestconfig).agents) == ["PLANNED"]
    assert plugin.plan_of(pytestconfig).digest == "DIGEST"
"""


@pytest.mark.parametrize(("given", "count"), [({"--vm-plan": "plan.json"}, "6 passed"), ({}, "6 failed")])
def test_a_source_that_moves_meanwhile_changes_nothing(tmp_path: Path, given: Mapping[str, str], count: str) -> None:
    """The control: without the plan, workers read the source that has moved."""
    (tmp_path / "agents.json").write_text('[{"name": "coding"}]')
    plan = evaluate_specs([{"name": "coding"}])
    (tmp_path / "plan.json").write_text(plan.to_json())
    options = [f"{name}={value}" for name, value in ({"--vm-agents": "agents.json"} | dict(given)).items()]
    child = MOVING.replace("PLANNED", "coding").replace("DIGEST", plan.digest)
    done = run_pytest(tmp_path, child, *options, "-n", "2", f"--vm-cache={tmp_path}")
    assert count in done.stdout, done.stdout
    assert json.loads((tmp_path / "agents.json").read_text()) == [{"name": "another"}]


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = reference_plan()
    (tmp_path / "plan.json").write_text(plan.to_json())
    done = run_pytest(tmp_path, CHILD, "--vm-plan=plan.json", "--collect-only", f"--vm-cache={tmp_path}")
    assert f"agents agents.nix as in plan.json ({plan.digest[:12]})" in done.stdout
