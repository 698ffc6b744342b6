"""`harness mutate` over shards: every mutant once, each claim said when it is settled, on one plan."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from harness import hunt
from harness.cache import Cache
from harness.durations import Durations, read_recorded
from harness.errors import HarnessError
from harness.hunt import Tally, hunt_mutants, take_part
from harness.lab import Lab, Settings
from harness.mutants import MUTANTS, mutants_of
from harness.mutate import Hunt, MutantVerdict, print_hunt
from harness.policy import Plan, evaluate_specs
from harness.report.live import Board
from harness.shards import Shard

ALL = list(MUTANTS.values())


def verdict(mutant: str, outcome: Any = "killed", seconds: float = 3.0) -> MutantVerdict:
    return MutantVerdict(mutant, MUTANTS[mutant].claim, outcome == "killed", outcome, [], [], seconds)


@pytest.mark.parametrize("total", [1, 3, len(ALL) + 1])
def test_every_mutant_is_in_one_shard(total: int) -> None:
    parts = [take_part(ALL, Shard(number, total), Durations()) for number in range(1, total + 1)]
    assert sorted(mutant.id for part in parts for mutant in part) == sorted(MUTANTS)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_durations_balance_the_shards() -> None:
    slow = ALL[5]
    known = Durations(mutants={slow.id: 1e5})
    assert take_part(ALL, Shard(1, 2), known) == [slow]
    assert take_part(ALL, Shard(2, 2), known) == [mutant for mutant in ALL if mutant != slow]
    assert take_part(ALL, None, known) == ALL


def test_a_claim_is_said_when_its_last_mutant_is_done() -> None:
    output = io.StringIO()
    board = Board("trying mutants", 2, Console(file=output, width=100))
    chosen = mutants_of(["D1", "D2"])
    tally = Tally(board, chosen)
    first, *others = [mutant for mutant in chosen if mutant.claim == "D1"]
    for mutant in others:
        tally.add(verdict(mutant.id))
    assert output.getvalue() == ""
    tally.add(verdict(first.id, "survived"))
    assert output.getvalue() == f"D1 {len(others)} killed, 1 survived\n"


# --- the run


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """One that makes no machines, where each mutant is killed."""

    def run(cache: Cache, mutants: Any, options: Any, workers: int, board: Board) -> Iterator[MutantVerdict]:
        for mutant in mutants:
            board.begin(mutant.id)
            board.finish(mutant.id)
            yield verdict(mutant.id)

    monkeypatch.setattr(hunt, "run_mutants", run)
    parts: dict[str, Any] = {
        "cache": Cache(tmp_path),
        "settings": Settings(cache=tmp_path),
        "adapt": lambda plan: plan,
        "activated": lambda plan: None,
    }
    return cast("Lab", SimpleNamespace(**parts))


def plan_of(name: str) -> Plan:
    return evaluate_specs([{"name": name}])


def test_a_hunt_names_plan_and_shard_and_records_what_each_mutant_took(lab: Lab) -> None:
    plan = plan_of("coding")
    found = hunt_mutants(lab, ALL[:3], [], 2, lambda: plan, Shard(1, 2))
    assert (found.plan, found.shard, len(found.mutants)) == (plan.digest, "1/2", 3)
    recorded = read_recorded(lab.cache, "debian").mutants
    assert {name: recorded[name] for name in (each.id for each in ALL[:3])} == {each.id: 3.0 for each in ALL[:3]}


def test_a_source_that_moves_meanwhile_is_an_error(lab: Lab) -> None:
    plans = iter([plan_of("coding"), plan_of("other")])
    with pytest.raises(HarnessError, match="the agents have changed during the run"):
        hunt_mutants(lab, ALL[:1], [], 2, lambda: next(plans))


def test_the_slowest_mutants_are_named_where_there_are_many() -> None:
    output = io.StringIO()
    verdicts = [verdict(each.id, seconds=float(number)) for number, each in enumerate(ALL[:12])]
    print_hunt(Console(file=output, width=80), Hunt(verdicts, 9.0, "", "1/2"), MUTANTS)
    slowest = [line for line in output.getvalue().splitlines() if line.startswith("  ") and " s  " in line]
    assert slowest[0].split() == ["11.0", "s", ALL[11].id] and len(slowest) == 10
    assert "12 killed; 9 s; shard 1/2, the others have more" in output.getvalue()
