"""Gathers the verdict from test reports, and settles each claim as soon as the last of its tests is done."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from rich.text import Text

from harness.contract import CLAIMS
from harness.report import (
    STYLES,
    Cell,
    ClaimVerdict,
    Failure,
    Part,
    Result,
    TestOutcome,
    judge,
)
from harness.report.live import Board
from harness.selection import Listing, test_id
from harness.shards import Shard

BETTER_FIRST: tuple[TestOutcome, ...] = get_args(TestOutcome)


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Collector:
    """A pytest plugin. What is to be run it reads from ``listing`` (``--vm-listing``), once workers have written it; a
    listed test of which nothing was heard is untried. ``board`` shows how far it is."""

    board: Board | None = None
    listing: Path | None = None
    shard: Shard | None = None
    tests: dict[str, list[tuple[str, TestOutcome]]] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    recorded: dict[str, float] = field(default_factory=dict)
    failures: list[pytest.TestReport | pytest.CollectReport] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    listed: Listing = field(default_factory=Listing)
    _outcomes: dict[str, list[TestOutcome]] = field(default_factory=lambda: defaultdict(list))
    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _waiting: dict[str, set[str]] = field(default_factory=dict)
    """The tests that each claim waits for."""

    # --- what is to be done

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        self.read_listing()

    def pytest_collection_finish(self) -> None:
        self.read_listing()

    def read_listing(self) -> None:
        """Learn what is to be run; all workers have written the same."""
        if self._waiting or self.listing is None or not self.listing.exists():
            return
        self.listed = msgspec.json.decode(self.listing.read_bytes(), type=Listing)
        for test, listed in self.listed.tests.items():
            for claim in listed.claims:
                self._waiting.setdefault(claim, set()).add(test)
        if self.board:
            self.board.expect(self.listed.seconds)

    # --- what is done

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(report)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.board:
            self.board.begin(test_id(nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties: list[tuple[str, Any]] = report.user_properties
        test = test_id(report.nodeid)
        self.cells += [msgspec.convert(cell, Cell) for name, value in properties if name == "cells" for cell in value]
        self.recorded |= {test_id(report.nodeid): value for name, value in properties if name == "recorded"}
        self._seconds[test] += report.duration
        if report.failed:
            self.failures.append(report)
        outcome = outcome_of(report)
        if outcome is not None:
            self._outcomes[test].append(outcome)
            for claim in dict.fromkeys(value for name, value in properties if name == "claim"):
                self.tests.setdefault(claim, []).append((test, outcome))
        if report.when not in ("setup", "call"):  # of a worker that has died there is one report without a phase
            self._finish(test)

    def _finish(self, test: str) -> None:
        if self.board:
            self.board.finish(test)
        for claim, waiting in self._waiting.items():
            if test in waiting:
                waiting.remove(test)
                if not waiting and self.board:
                    self.board.say(self._describe(self.judge_claim(claim)))

    def _describe(self, claim: ClaimVerdict) -> Text:
        whole = self.listed.claims.get(claim.id, 0)
        count = f"{len(claim.tests)} of {whole}" if whole > len(claim.tests) else f"{len(claim.tests)}"
        words = Text.assemble(f"{claim.id} ", (claim.verdict, STYLES[claim.verdict]))
        return words.append(f" ({count} test{'' if count == '1' else 's'})")

    # --- the verdict

    def judge_claim(self, claim: str) -> ClaimVerdict:
        """What came of a claim; a listed test of which nothing was heard is untried."""
        found = list(self.tests.get(claim, ()))
        heard = {test for test, _ in found}
        for test, listed in self.listed.tests.items():
            if claim in listed.claims and test not in heard:
                found.append((test, "untried"))
        whole = self.listed.claims.get(claim, 0) if self.shard else 0
        return judge(claim, CLAIMS[claim].to_come, found, self.recorded, whole)

    def claims(self) -> list[ClaimVerdict]:
        return [self.judge_claim(claim) for claim in CLAIMS]

    def runs(self) -> dict[str, Result]:
        """What came of each test, in the order in which they were done."""
        names = [*self._outcomes, *(test for test in self.listed.tests if test not in self._outcomes)]
        return {test: Result(worst_of(self._outcomes.get(test, ())), round(self._seconds[test], 2)) for test in names}

    def part(self) -> Part | None:
        """Which part this is, if it is one."""
        if self.shard is None:
            return None
        listed = self.listed
        return Part(self.shard.number, self.shard.total, listed.partition, list(listed.tests), listed.claims)

    def failed(self) -> list[Failure]:
        return [
            Failure(
                test_id(report.nodeid),
                [value for name, value in getattr(report, "user_properties", []) if name == "claim"],
                _message(report),
                "\n".join(text for title, text in report.sections if title == "evidence"),
            )
            for report in self.failures
        ]


def outcome_of(report: pytest.TestReport) -> TestOutcome | None:
    """What a phase of a test says of its claims, if it says anything."""
    if report.when not in ("setup", "call", "teardown"):  # pytest-xdist's own, on a worker that has died
        return None
    properties: list[tuple[str, Any]] = report.user_properties
    if ("inapplicable", True) in properties:
        return "inapplicable" if report.when == "call" else None
    if report.failed or (report.skipped and not hasattr(report, "wasxfail")):
        return "untried" if report.skipped or ("untried", True) in properties else "broken"
    return "held" if report.when == "call" else None


def worst_of(outcomes: Sequence[TestOutcome]) -> TestOutcome:
    """What counts of a test's phases; of one without any nothing is known."""
    return max(outcomes, key=BETTER_FIRST.index, default="untried")


def _message(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The exception's own message, without the traceback."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message) if crash is not None else str(report.longrepr)
