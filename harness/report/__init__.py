"""The verdict: claims and the isolation matrix, as JSON and on the terminal.

``harness.report.collect`` gathers it from test reports, ``merge`` makes one of the verdicts of shards, ``page`` makes a
page of it, and ``summary`` a few lines of Markdown.
"""

import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.contract import CLAIMS
from harness.errors import HarnessError
from harness.pace import describe_pace
from harness.vm.qemu import host_cpu, qemu_version

Outcome = Literal["held", "partial", "broken", "untried", "to-come"]
"""Of a claim; ``partial``: what this shard tried is held, and other shards have more of its tests."""
TestOutcome = Literal["inapplicable", "held", "untried", "broken"]
"""Of a test, the better ones first."""
STYLES: dict[Outcome, str] = {
    "held": "green",
    "partial": "cyan",
    "broken": "bold red",
    "untried": "bold yellow",
    "to-come": "dim",
}
SLOWEST = 10
"""Tests that are named at the end."""
WORST: tuple[Outcome, ...] = ("broken", "untried", "partial")
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


class Result(msgspec.Struct, frozen=True):
    """What came of a test, and how many seconds it took, with all that was made for it."""

    outcome: TestOutcome
    seconds: float


class Part(msgspec.Struct, frozen=True):
    """Which part of how many a shard's verdict is: the tests that it was to do.

    ``claims`` is how many tests each claim has in all parts; ``partition`` is the same in all parts of one whole.
    """

    number: int
    total: int
    partition: str
    tests: list[str]
    claims: dict[str, int]

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


class Verdict(msgspec.Struct, frozen=True):
    """What ``harness verify --json`` writes. ``timings`` are seconds, ``started`` is in seconds since 1970.

    ``source`` is the harness that said it, and ``image`` what the machines booted, as far as parts must agree on them.
    """

    claims: list[ClaimVerdict]
    matrix: list[Cell]
    timings: dict[str, float]
    guest: str
    accelerator: dict[str, str]
    plan: str
    host: str = ""
    agents: list[str] = []
    """The names of the agents that were attacked."""
    started: float = 0.0
    machine: dict[str, str] = {}
    """Where it ran: what ``describe_machine`` says."""
    failures: list[Failure] = []
    tests: dict[str, Result] = {}
    source: dict[str, str] = {}
    image: dict[str, str] = {}
    shard: Part | None = None
    parts: int = 0
    """Of how many shards' verdicts this one was made."""

    @property
    def exit_code(self) -> int:
        """Of a shard, 0 only says that what it tried is held."""
        verdicts = {claim.verdict for claim in self.claims}
        if "broken" in verdicts:
            return EXIT_BROKEN
        return EXIT_UNTRIED if "untried" in verdicts else EXIT_HELD

    @property
    def is_part(self) -> bool:
        """Whether other shards have more; one of one has all."""
        return self.shard is not None and self.shard.total > 1

    @property
    def counts(self) -> dict[Outcome, int]:
        """How many claims have each verdict that any has, in the order of ``STYLES``."""
        found = [claim.verdict for claim in self.claims]
        return {outcome: found.count(outcome) for outcome in STYLES if outcome in found}

    @property
    def worst(self) -> Outcome:
        """The verdict that decides about the whole."""
        return next((name for name in WORST if name in self.counts), "held")

    def count_tests(self, claim: ClaimVerdict) -> str:
        """How many tests a claim has here, and in all shards, if those are more."""
        whole = self.shard.claims.get(claim.id, 0) if self.shard else 0
        count = f"{len(claim.tests)} of {whole}" if whole > len(claim.tests) else f"{len(claim.tests)}"
        return f"{count} test{'' if count == '1' else 's'}"

    def slowest(self) -> list[tuple[str, float]]:
        """The tests that took longest, with their seconds."""
        ordered = sorted(self.tests.items(), key=lambda item: -item[1].seconds)
        return [(test, run.seconds) for test, run in ordered[:SLOWEST] if run.seconds]


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


def judge(
    claim: str,
    to_come: bool,
    tests: Sequence[tuple[str, TestOutcome]],
    recorded: Mapping[str, float] = MappingProxyType({}),
    whole: int = 0,
) -> ClaimVerdict:
    """A claim is held when it has tests and all of them passed, but for those to which the host gives no occasion;
    broken when an attack got through. With fewer tests than the ``whole`` it is held in part at best."""
    outcomes = {outcome for _, outcome in tests} - {"inapplicable"}
    names = list(dict.fromkeys(name for name, _ in tests))
    verdict: Outcome = "held"
    if "broken" in outcomes:
        verdict = "broken"
    elif outcomes <= {"held"} and len(names) < whole:
        verdict = "partial"
    elif not tests:
        verdict = "to-come" if to_come else "untried"
    elif outcomes != {"held"}:
        verdict = "untried"
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


def claims_table(verdict: Verdict) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in ("id", "verdict", "tests"):
        table.add_column(column, no_wrap=True, justify="right" if column == "tests" else "left")
    table.add_column("text")
    for claim in verdict.claims:
        if claim.verdict != "to-come":
            tests = verdict.count_tests(claim)
            tests += f", {len(claim.on_record)} on record" if claim.on_record else ""
            table.add_row(claim.id, Text(claim.verdict, STYLES[claim.verdict]), tests, claim.text)
    return table


def describe_pairs(verdict: Verdict) -> str:
    """Which agents attacked which (``harness.probes.pairs``), in one sentence; nothing where none attacked another."""
    agents = set(verdict.agents)
    others: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for cell in verdict.matrix:
        own = cell.attacker.partition(" (")[0]
        if own != cell.target and {own, cell.target} <= agents:
            others[own, cell.claim, cell.way].add(cell.target)
    if not others:
        return ""
    tried = {(own, other) for (own, _, _), targets in others.items() for other in targets}
    said = f"{len(tried)} of {len(agents) * (len(agents) - 1)} ordered pairs of agents were tried"
    if (most := max(map(len, others.values()))) < len(agents) - 1:
        said += f": in each way an agent attacks at most {most} of the {len(agents) - 1} others, in another way others"
    return f"{said}."


def slowest_table(verdict: Verdict) -> Table:
    table = Table(title="slowest tests", title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column("s", justify="right")
    table.add_column("test", overflow="fold")
    for test, seconds in verdict.slowest():
        table.add_row(f"{seconds:.1f} s", Text(test))
    return table


def print_verdict(console: Console, verdict: Verdict) -> None:
    """The whole report for a person: failures first, then matrix, slowest tests, claims and one closing line."""
    for failure in verdict.failures:
        console.rule(Text(failure.test, "bold"), align="left")
        console.print(failure.message, markup=False, highlight=False)
        if failure.evidence:
            console.print(f"evidence {failure.evidence}", markup=False, highlight=False)
    if verdict.matrix:
        console.print(matrix_table(verdict.matrix))
    if verdict.slowest():
        console.print(slowest_table(verdict))
    console.print(claims_table(verdict))
    to_come = [claim.id for claim in verdict.claims if claim.verdict == "to-come"]
    if to_come:
        console.print(Text(f"to come: {' '.join(to_come)}", "dim"))
    console.print(
        Text.assemble(
            (", ".join(f"{count} {name}" for name, count in verdict.counts.items()), STYLES[verdict.worst]),
            f"; {len(verdict.matrix)} attempts, {verdict.timings['total']:.1f} s, "
            f"{verdict.guest} guest under {verdict.accelerator['accelerator'].upper()}"
            + (f", from {verdict.parts} shards" if verdict.parts else ""),
        )
    )
    for sentence in (describe_nixos(verdict), describe_pairs(verdict), describe_part(verdict)):
        if sentence:
            console.print(sentence, soft_wrap=True)
    print_records(console, verdict)


def describe_nixos(verdict: Verdict) -> str:
    """Which NixOS was attacked, in one sentence; nothing where another guest was."""
    made_of = verdict.image.get("nixos", "")
    return f"NixOS of {made_of}: docs/nixos.md says what is true to NixOS in it." if made_of else ""


def describe_part(verdict: Verdict) -> str:
    """What a shard's verdict is not; nothing of a whole one."""
    part = verdict.shard
    if part is None or not verdict.is_part:
        return ""
    return (
        f"This is shard {part}, with {len(part.tests)} tests: no verdict of the whole. "
        "`harness report --merge JSON…` makes one of all shards' verdicts."
    )


def print_records(console: Console, verdict: Verdict) -> None:
    """Say what was not run again, and since when."""
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
