"""The verdict: claims and the isolation matrix, from test reports to JSON and to the terminal.

``harness.report.page`` makes a page of it, ``harness.report.summary`` a few lines of Markdown.
"""

import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec
import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.contract import CLAIMS
from harness.errors import HarnessError
from harness.pace import describe_pace
from harness.vm.qemu import host_cpu, qemu_version

Outcome = Literal["held", "broken", "untried", "to-come"]
TestOutcome = Literal["held", "broken", "untried", "inapplicable"]
STYLES: dict[Outcome, str] = {"held": "green", "broken": "bold red", "untried": "bold yellow", "to-come": "dim"}
EXIT_HELD, EXIT_BROKEN, EXIT_UNTRIED = 0, 1, 2


class Cell(msgspec.Struct, frozen=True):
    """One way tried by one attacker on one target; ``seen`` is reached, refused or unknown."""

    claim: str
    attacker: str
    target: str
    way: str
    expected: str
    seen: str

    @property
    def mark(self) -> tuple[str, str]:
        """A character that needs no colour, and its colour."""
        if self.seen == "unknown":
            return "?", "bold yellow"
        if self.seen == self.expected:
            return ("+", "dim") if self.expected == "reached" else (".", "green")
        return ("X", "bold red") if self.expected == "refused" else ("-", "bold yellow")


class ClaimVerdict(msgspec.Struct, frozen=True):
    id: str
    verdict: Outcome
    tests: list[str]
    on_record: dict[str, float]
    """Those of the tests that were not run again, and when they passed (seconds since 1970)."""

    @property
    def text(self) -> str:
        """The claim's sentence; nothing for one that another version of the harness has."""
        return CLAIMS[self.id].text if self.id in CLAIMS else ""


class Failure(msgspec.Struct, frozen=True):
    """A test that failed: its claims, what it said, and where the evidence is (nothing, if it had no machine)."""

    test: str
    claims: list[str]
    message: str
    evidence: str


class Verdict(msgspec.Struct, frozen=True):
    """What ``harness verify --json`` writes. ``timings`` are seconds, ``started`` is in seconds since 1970."""

    claims: list[ClaimVerdict]
    matrix: list[Cell]
    timings: dict[str, float]
    guest: str
    accelerator: dict[str, str]
    plan: str
    host: str = ""
    started: float = 0.0
    machine: dict[str, str] = {}
    """Where it ran: what ``describe_machine`` says."""
    failures: list[Failure] = []

    @property
    def exit_code(self) -> int:
        verdicts = {claim.verdict for claim in self.claims}
        if "broken" in verdicts:
            return EXIT_BROKEN
        return EXIT_UNTRIED if "untried" in verdicts else EXIT_HELD

    @property
    def counts(self) -> dict[Outcome, int]:
        """How many claims have each verdict that any has, in the order of ``STYLES``."""
        found = [claim.verdict for claim in self.claims]
        return {outcome: found.count(outcome) for outcome in STYLES if outcome in found}


def read_verdict(path: Path) -> Verdict:
    """The verdict that ``harness verify --json`` wrote; raises ``HarnessError`` if this is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path} is no verdict: {error}", hint="name what `harness verify --json` wrote") from None


def describe_machine() -> dict[str, str]:
    """The machine that this runs on, as far as a verdict can depend on it."""
    [model, *_] = [line.partition(": ")[2] for line in host_cpu().splitlines() if line.startswith("model name")] or [""]
    return {
        "system": platform.platform(),
        "processor": f"{os.cpu_count()} x {model or platform.machine()}",
        "qemu": ".".join(map(str, qemu_version())),
        "python": platform.python_version(),
        "pace": describe_pace(),
    }


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Collector:
    """A pytest plugin that gathers what the tests of the claims found; ``progress`` is told after each test."""

    progress: Any = None
    tests: dict[str, list[tuple[str, TestOutcome]]] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    recorded: dict[str, float] = field(default_factory=dict)
    failures: list[pytest.TestReport | pytest.CollectReport] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _done: int = 0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties: list[tuple[str, Any]] = report.user_properties
        self.cells += [msgspec.convert(cell, Cell) for name, value in properties if name == "cells" for cell in value]
        self.recorded |= {_test_id(report): value for name, value in properties if name == "recorded"}
        if report.failed:
            self.failures.append(report)
        outcome: TestOutcome | None = None
        if ("inapplicable", True) in properties:
            outcome = "inapplicable" if report.when == "call" else None
        elif report.failed or (report.skipped and not hasattr(report, "wasxfail")):
            outcome = "untried" if report.skipped or ("untried", True) in properties else "broken"
        elif report.when == "call":
            outcome = "held"
        if outcome is not None:
            for claim in dict.fromkeys(value for name, value in properties if name == "claim"):
                self.tests.setdefault(claim, []).append((_test_id(report), outcome))
        if report.when == "teardown":
            self._done += 1
            if self.progress is not None:
                self.progress.update(f"{self._done} tests")

    def claims(self) -> list[ClaimVerdict]:
        return [
            judge(claim.id, claim.to_come, self.tests.get(claim.id, []), self.recorded) for claim in CLAIMS.values()
        ]

    def failed(self) -> list[Failure]:
        return [
            Failure(
                _test_id(report),
                [value for name, value in getattr(report, "user_properties", []) if name == "claim"],
                _message(report),
                "\n".join(text for title, text in report.sections if title == "evidence"),
            )
            for report in self.failures
        ]


def judge(
    claim: str,
    to_come: bool,
    tests: Sequence[tuple[str, TestOutcome]],
    recorded: Mapping[str, float] = MappingProxyType({}),
) -> ClaimVerdict:
    """A claim is held when it has tests and all of them passed, but for those to which the host gives no occasion;
    broken when an attack got through."""
    outcomes = {outcome for _, outcome in tests} - {"inapplicable"}
    verdict: Outcome = "held"
    if not tests:
        verdict = "to-come" if to_come else "untried"
    elif "broken" in outcomes:
        verdict = "broken"
    elif outcomes != {"held"}:
        verdict = "untried"
    names = list(dict.fromkeys(name for name, _ in tests))
    return ClaimVerdict(claim, verdict, names, {name: recorded[name] for name in names if name in recorded})


def matrix_table(cells: Iterable[Cell]) -> Table:
    """Attackers down, targets across, a mark per way tried; the paths of a container are one column."""
    cells = in_order(cells)
    columns = list(dict.fromkeys(column_of(cell) for cell in cells))
    table = Table(title="isolation matrix", title_justify="left", caption_justify="left", pad_edge=False)
    table.caption = ". refused   + reached, as it should be   X reached   - refused, but should not be   ? unknown"
    table.add_column("attacker", no_wrap=True)
    for column in columns:
        table.add_column(column, overflow="fold", min_width=8)
    for attacker in dict.fromkeys(cell.attacker for cell in cells):
        row: list[Text] = [Text(attacker)]
        for column in columns:
            marks = Text()
            for cell in cells:
                if cell.attacker == attacker and column_of(cell) == column:
                    marks.append(*cell.mark)
            row.append(marks)
        table.add_row(*row)
    return table


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Attempts as the rows and columns of the matrix have them: agents first, then root; agents, host, files."""
    return sorted(
        cells, key=lambda cell: (cell.attacker == "root", cell.attacker, cell.target == "host", cell.target[:1] == "/")
    )


def column_of(cell: Cell) -> str:
    """The column of the matrix that an attempt is in."""
    return "own files" if cell.target.startswith("/") else cell.target


def claims_table(claims: Iterable[ClaimVerdict]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in ("id", "verdict", "tests"):
        table.add_column(column, no_wrap=True, justify="right" if column == "tests" else "left")
    table.add_column("text")
    for claim in claims:
        if claim.verdict != "to-come":
            tests = f"{len(claim.tests)} test{'s' if len(claim.tests) != 1 else ''}"
            tests += f", {len(claim.on_record)} on record" if claim.on_record else ""
            table.add_row(claim.id, Text(claim.verdict, STYLES[claim.verdict]), tests, claim.text)
    return table


def print_verdict(console: Console, verdict: Verdict) -> None:
    """The whole report for a person: failures first, then matrix, claims and one closing line."""
    for failure in verdict.failures:
        console.rule(Text(failure.test, "bold"), align="left")
        console.print(failure.message, markup=False, highlight=False)
        if failure.evidence:
            console.print(f"evidence {failure.evidence}", markup=False, highlight=False)
    if verdict.matrix:
        console.print(matrix_table(verdict.matrix))
    console.print(claims_table(verdict.claims))
    to_come = [claim.id for claim in verdict.claims if claim.verdict == "to-come"]
    if to_come:
        console.print(Text(f"to come: {' '.join(to_come)}", "dim"))
    worst: Outcome = next((name for name in ("broken", "untried") if name in verdict.counts), "held")
    console.print(
        Text.assemble(
            (", ".join(f"{count} {name}" for name, count in verdict.counts.items()), STYLES[worst]),
            f"; {len(verdict.matrix)} attempts, {verdict.timings['total']:.1f} s, "
            f"{verdict.guest} guest under {verdict.accelerator['accelerator'].upper()}",
        )
    )
    passed = {test: time for claim in verdict.claims for test, time in claim.on_record.items()}
    if passed:
        since = datetime.fromtimestamp(min(passed.values())).astimezone()
        console.print(
            Text(
                f"{len(passed)} tests that take long passed on the same host from {since:%Y-%m-%d %H:%M} on, "
                "and were not run again: --fresh does",
                "dim",
            )
        )


def _test_id(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The test's id, without the group that pytest-xdist appends."""
    return report.nodeid.rsplit("@", 1)[0]


def _message(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The exception's own message, without the traceback."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message) if crash is not None else str(report.longrepr)
