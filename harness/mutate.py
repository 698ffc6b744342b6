"""Runs mutants: each in a pytest of its own, on the tests that have to notice it and on cheap ones of other claims.

A mutant is *killed* when a test of its claim fails by an assertion, *untried* when none does and one of them came to no
verdict (a control failed, the host did not come up), else it has *survived*, and the suite has a hole.
"""

import inspect
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import msgspec
import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.cache import Cache
from harness.errors import HarnessError
from harness.mutants import InSources, Mutant, patch
from harness.pace import measure_pace, stretch
from harness.policy import REPOSITORY
from harness.probes.ways import WAYS
from harness.report import EXIT_BROKEN, EXIT_HELD, EXIT_UNTRIED, SLOWEST, TestOutcome
from harness.report.live import Board

MutantOutcome = Literal["killed", "survived", "untried"]
STYLES: dict[MutantOutcome, str] = {"killed": "green", "survived": "bold red", "untried": "bold yellow"}
TIMEOUT = 900.0
"""Seconds for the tests of one mutant; the longest take 140 under TCG."""
LOGS = REPOSITORY / ".artifacts" / "mutants"
BYTECODE = REPOSITORY / ".artifacts" / "bytecode"


@dataclass(frozen=True)
class ClaimTest:
    """A test as far as the choice goes: ``machines`` are the fixtures that cost a machine."""

    id: str
    function: str
    claims: frozenset[str]
    is_recorded: bool
    machines: frozenset[str]
    way: str | None = None
    """By which it attacks, if it has one for a parameter."""
    changes: bool = False
    """Whether it switches a host or makes machines itself: it asks for the lab."""

    @property
    def names(self) -> frozenset[str]:
        """What a mutant may call it: by its function, or with its parameters in brackets too."""
        return frozenset([self.function, self.id.rpartition("::")[2]])


class MutantVerdict(msgspec.Struct, frozen=True):
    """What ``harness mutate --json`` writes of each mutant. ``killed_by`` are tests, ``seconds`` what they took."""

    id: str
    claim: str
    killed: bool
    outcome: MutantOutcome
    also_broken: list[str]
    killed_by: list[str]
    seconds: float


class Hunt(msgspec.Struct, frozen=True):
    """What ``harness mutate --json`` writes; ``plan`` is the digest of the sound one, ``shard`` K/N if it was one."""

    mutants: list[MutantVerdict]
    seconds: float
    plan: str = ""
    shard: str = ""

    @property
    def exit_code(self) -> int:
        outcomes = {mutant.outcome for mutant in self.mutants}
        if "survived" in outcomes:
            return EXIT_BROKEN
        return EXIT_UNTRIED if "untried" in outcomes else EXIT_HELD


# --- which tests


@dataclass
class _Lister:
    """A pytest plugin that notes what is collected."""

    tests: list[ClaimTest] = field(default_factory=list)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.tests.append(
                ClaimTest(
                    item.nodeid,
                    getattr(item, "originalname", None) or item.name,
                    frozenset(marker.args[0] for marker in item.iter_markers("claim")),
                    item.get_closest_marker("recorded") is not None,
                    frozenset(filter(_costs_a_machine, getattr(item, "fixturenames", ()))),
                    item.callspec.params.get("way") if hasattr(item, "callspec") else None,
                    isinstance(item, pytest.Function) and "lab" in inspect.signature(item.obj).parameters,
                )
            )


def _costs_a_machine(fixture: str) -> bool:
    return fixture in (*OWN, "busy") or fixture.endswith(("_machine", "_network"))


OWN = ("machine", "network")
"""Fixtures that give each test a machine of its own."""


def collect_tests() -> list[ClaimTest]:
    """All tests of claims, as pytest finds them."""
    lister = _Lister()
    quiet = ("--collect-only", "-p", "no:terminal", "-p", "no:cacheprovider")
    code = pytest.main([*_pytest_arguments(REPOSITORY), *quiet, *IGNORE_IMPORTED, str(TESTS)], plugins=[lister])
    if code != pytest.ExitCode.OK:
        raise HarnessError(f"the tests of the claims cannot be collected (pytest: {pytest.ExitCode(code).name})")
    return lister.tests


TESTS = REPOSITORY / "tests" / "contract"
IGNORE_IMPORTED = ("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning")
"""For a pytest in a process that has imported the harness before."""


def _pytest_arguments(root: Path) -> list[str]:
    # Its tests are chosen by name: what the environment says of shards and plans is not about them.
    return [f"--rootdir={root}", "-c", str(root / "pyproject.toml"), "--vm-shard=", "--vm-plan="]


def own_tests(mutant: Mutant, tests: Iterable[ClaimTest]) -> list[ClaimTest]:
    """The tests of its claim that have to notice the mutant; raises ``HarnessError`` if there is none."""
    own = [test for test in tests if mutant.claim in test.claims]
    if unknown := set(mutant.tests).difference(*(test.names for test in own)):
        raise HarnessError(f"mutant {mutant.id}: {mutant.claim} has no test {' and no test '.join(sorted(unknown))}")
    chosen = [test for test in own if (test.names & set(mutant.tests) if mutant.tests else not test.is_recorded)]
    if not chosen:
        raise HarnessError(
            f"mutant {mutant.id}: all tests of {mutant.claim} take long (`recorded`)",
            hint="name the one that has to notice it: tests=[…] in harness/mutants.py",
        )
    return chosen


BATCHES = frozenset({"attacked_machine", "attacked_network"})
"""Machines on which all attacks are one batch, so that more of them cost little."""
IN_ONE_BATCH = frozenset(way.claim for way in WAYS.values())
"""Claims whose attacks on the first of these need nothing but that batch."""
NETWORK = frozenset({"attacked_network"})
"""There an attack is a thousand packets."""


def other_tests(own: Sequence[ClaimTest], tests: Iterable[ClaimTest]) -> list[ClaimTest]:
    """The first test of each other claim that looks at the same machines: of a claim that has the same letter; where
    the attacks are one batch, of one that needs no more; over the network, one that attacks in one of the same ways."""
    machines = frozenset[str]().union(*(test.machines for test in own if not test.changes)) - set(OWN)
    ways = {test.way for test in own}
    claims = frozenset[str]().union(*(test.claims for test in own))
    letters = {claim[0] for claim in claims}

    def is_cheap(test: ClaimTest) -> bool:
        if test.is_recorded or test.changes or not test.machines or not test.machines <= machines:
            return False
        if test.machines <= BATCHES:
            return test.way in ways if test.machines == NETWORK else test.claims <= IN_ONE_BATCH
        return bool({claim[0] for claim in test.claims} & letters)

    found = dict[frozenset[str], ClaimTest]()
    for test in tests:
        if test.claims and not test.claims & claims and is_cheap(test):
            found.setdefault(test.claims, test)
    return list(found.values())


# --- running them


def run_mutants(
    cache: Cache, mutants: Sequence[Mutant], options: Sequence[str], workers: int, board: Board
) -> Iterator[MutantVerdict]:
    """Run mutants, ``workers`` at a time, those that take long first; gives each verdict when it is there, and
    ``board`` what runs.

    Those that wait more than they work run beside them, half as many: three that work would keep each other from two
    processors.
    """
    measure_pace()  # before there are processes, who inherit it
    tests = collect_tests()
    chosen = {mutant.id: own_tests(mutant, tests) for mutant in mutants}
    LOGS.mkdir(parents=True, exist_ok=True)
    order = in_order(mutants, chosen)

    def run(mutant: Mutant) -> MutantVerdict:
        own = chosen[mutant.id]
        board.begin(mutant.id)
        try:
            return run_mutant(cache, mutant, own, other_tests(own, tests), options)
        finally:
            board.finish(mutant.id)

    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor((workers + 1) // 2) as beside:
        futures = [(beside if waits(each, chosen[each.id]) else pool).submit(run, each) for each in order]
        try:
            for future in as_completed(futures):
                yield future.result()
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()  # and so its machines
            raise
        finally:
            beside.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(cancel_futures=True)


def waits(mutant: Mutant, own: Sequence[ClaimTest]) -> bool:
    """Whether it waits more than it works: over the network, for answers that do not come."""
    return mutant.waits or all(test.machines == NETWORK for test in own)


def in_order(mutants: Iterable[Mutant], own: Mapping[str, Sequence[ClaimTest]]) -> list[Mutant]:
    """Those that take long first, so that none is alone at the end; among them one of each claim, then a second one:
    what the first has made in the cache, others of its claim would only wait for."""
    numbers: Counter[tuple[str, bool, bool]] = Counter()
    ranks = dict[str, tuple[bool, bool, int]]()
    for mutant in mutants:
        group = not any(test.is_recorded for test in own[mutant.id]), mutant.moment == "running"
        ranks[mutant.id] = *group, numbers[mutant.claim, *group]
        numbers[mutant.claim, *group] += 1
    return sorted(mutants, key=lambda each: ranks[each.id])


def run_mutant(
    cache: Cache, mutant: Mutant, own: Sequence[ClaimTest], others: Sequence[ClaimTest], options: Sequence[str]
) -> MutantVerdict:
    """Run a mutant's tests and those of others; what pytest says is kept in .artifacts/mutants."""
    started = time.monotonic()
    with cache.run_directory() as directory:
        root, file = sources_of(mutant, directory), directory / "outcomes.json"
        arguments = [
            *("-p", "harness.plugin", "-p", "no:cacheprovider", *IGNORE_IMPORTED, *_pytest_arguments(root)),
            *(f"--vm-mutant={mutant.id}", f"--vm-outcomes={file}", *options, *(test.id for test in (*own, *others))),
        ]
        process = warm.Process(target=_run_pytest, args=(root, arguments, LOGS / f"{mutant.id}.txt"))
        process.start()
        process.join(stretch(TIMEOUT))
        process.kill()
        process.join()
        # Who did not come to an end has not written it: then all is untried.
        text = file.read_bytes() if file.exists() else b"{}"
        found = msgspec.json.decode(text, type=dict[str, list[tuple[str, TestOutcome]]])
    return judge(mutant, {test.id for test in own}, found, time.monotonic() - started)


warm = multiprocessing.get_context("forkserver")
"""Processes that are forked from one that has imported what takes as long as a quick mutant's tests."""
warm.set_forkserver_preload(["harness.cli", "hypothesis", "openai", "miniaudio", "soundfile", "soxr"])


def _run_pytest(root: Path, arguments: Sequence[str], log: Path) -> NoReturn:
    """In a process of its own, which ends with its parent; and so do its machines."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("wb") as file:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    if root != REPOSITORY:  # the sources are others: what is imported here is of no use
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])
    # What pytest makes of the tests' sources takes as long as a quick mutant's tests: it is made once.
    sys.pycache_prefix, sys.dont_write_bytecode = str(BYTECODE), False
    code = pytest.main(list(arguments))
    print(f"{sum(os.times()[:4]):.1f} s of processor")  # its machines' too
    sys.exit(code)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(EXIT_UNTRIED)


def sources_of(mutant: Mutant, directory: Path) -> Path:
    """This repository, or a copy of it in ``directory`` if it is the mutant."""
    acts = [act for act in mutant.acts if isinstance(act, InSources)]
    if not acts:
        return REPOSITORY
    ignored = shutil.ignore_patterns(".*", "__pycache__", "result*")

    def ignore(place: str, names: list[str]) -> set[str]:
        """The cache too, which a user may have put here, and where the copy is."""
        return {*ignored(place, names), *(name for name in names if Path(place, name) in directory.parents)}

    copy = Path(shutil.copytree(REPOSITORY, directory / "sources", ignore=ignore))
    for act in acts:
        patch(copy / act.file, act, mutant)
    return copy


Outcomes = Mapping[str, Sequence[tuple[str, TestOutcome]]]
"""By claim, each test and what came of it."""


def judge(mutant: Mutant, own: set[str], found: Outcomes, seconds: float) -> MutantVerdict:
    """Killed is who broke a test of its claim by an assertion."""
    results = [(test, outcome) for test, outcome in found.get(mutant.claim, ()) if test in own]
    killed_by = list(dict.fromkeys(test for test, outcome in results if outcome == "broken"))
    unsure = not results or any(outcome != "held" for _, outcome in results)
    outcome: MutantOutcome = "killed" if killed_by else "untried" if unsure else "survived"
    also = [
        claim
        for claim, tests in found.items()
        if claim != mutant.claim and any(outcome == "broken" for _, outcome in tests)
    ]
    return MutantVerdict(mutant.id, mutant.claim, bool(killed_by), outcome, sorted(also), killed_by, round(seconds, 1))


# --- the table


WIDE = 110
"""Columns of a terminal from which on there is room for what each mutant breaks; `--list` says it on any."""


def mutants_table(verdicts: Iterable[MutantVerdict], mutants: Mapping[str, Mutant], *, is_wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("claim", "mutant", "", "seconds", "also broken"):
        table.add_column(column, no_wrap=column != "also broken", justify="right" if column == "seconds" else "left")
    if is_wide:
        table.add_column("what is broken")
    for each in verdicts:
        also = " ".join(each.also_broken)
        outcome = Text(each.outcome, STYLES[each.outcome])
        text = [mutants[each.id].text] if is_wide else []
        table.add_row(each.claim, each.id, outcome, f"{each.seconds:.0f}", also, *text)
    return table


def print_hunt(console: Console, hunt: Hunt, mutants: Mapping[str, Mutant]) -> None:
    """The table, what to look at, and one closing line."""
    order = list(mutants)
    verdicts = sorted(hunt.mutants, key=lambda each: order.index(each.id))
    console.print(mutants_table(verdicts, mutants, is_wide=console.width >= WIDE))
    for each in hunt.mutants:
        if not each.killed:
            log = (LOGS / f"{each.id}.txt").relative_to(REPOSITORY)
            console.print(f"{each.id} {each.outcome}: look: less {log}", markup=False)
    for each in sorted(hunt.mutants, key=lambda each: -each.seconds)[:SLOWEST] if len(hunt.mutants) > SLOWEST else ():
        console.print(f"{each.seconds:6.1f} s  {each.id}", markup=False)
    counts = {name: sum(each.outcome == name for each in hunt.mutants) for name in STYLES}
    worst: MutantOutcome = "survived" if counts["survived"] else "untried" if counts["untried"] else "killed"
    shard = f"; shard {hunt.shard}, the others have more" if hunt.shard not in ("", "1/1") else ""
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    console.print(Text.assemble((summary or "no mutant", STYLES[worst]), f"; {hunt.seconds:.0f} s{shard}"))


def list_table(mutants: Iterable[Mutant]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("claim", "mutant", "where", "what is broken"):
        table.add_column(column, no_wrap=column in ("claim", "mutant"))
    for mutant in mutants:
        table.add_row(mutant.claim, mutant.id, mutant.places, mutant.text)
    return table
