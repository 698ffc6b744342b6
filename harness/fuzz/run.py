"""``harness fuzz``: properties tried until the time is up, a corpus that is kept, a test for each thing found."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import Flaky
from hypothesis.reporting import with_reporter
from hypothesis.stateful import run_state_machine_as_test

from harness.fuzz.blame import describe, is_finding
from harness.fuzz.live import LiveHost, machine_of
from harness.fuzz.properties import PROPERTIES, Case, prove, written_of
from harness.fuzz.regressions import write_live_regression, write_regression
from harness.lab import Lab
from harness.progress import Step
from harness.shards import Shard

ROUND = 20
"""Examples of a property before the next one's turn."""
STEPS = 4
"""Changes, faults and attacks that a host sees."""
LIVE = "After each step the kernel, Docker, nftables and systemd are as the plan says, and untouched agents run on."
ONCE = "it did not show when the same was tried again: a race, or something that this machine did"


class Finding(msgspec.Struct, frozen=True):
    """A case that breaks a property: what was said, and the file of the test that shows it from now on."""

    property: str
    message: str
    file: str


class Tried(msgspec.Struct, frozen=True):
    """What became of a property: ``examples`` tried, with as many ``specs``, in ``seconds``; or why not.

    On running hosts, examples are hosts that saw at least one step, and specs are steps.
    """

    property: str
    text: str
    examples: int
    specs: int
    seconds: float
    obstacle: str | None = None


class Report(msgspec.Struct, frozen=True):
    """A whole run; ``seed`` if one was given.

    It may have ended before its time: ``interrupted`` by somebody, or by some ``trouble`` of this machine after
    something had been found.
    """

    seed: int | None
    seconds: float
    tried: list[Tried]
    findings: list[Finding]
    interrupted: bool = False
    trouble: str | None = None
    shard: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all was tried, and so nothing is known."""
        return not self.findings and all(tried.examples == 0 for tried in self.tried)


class TimeUp(KeyboardInterrupt):
    """The one kind of exception that hypothesis lets through at once, shrinking or not."""


class Untried(KeyboardInterrupt):
    """This machine cannot go on, as ``error`` says."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def stopping() -> Iterator[None]:
    """An error that is no finding ends the run, and is not made small."""
    try:
        yield
    except Exception as error:
        if is_finding(error):
            raise
        raise Untried(error) from error


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise what has ended the run as it was."""
    try:
        yield
    except Untried as untried:
        raise untried.error from None


def options(database: Path, phases: Sequence[Phase], **more: Any) -> settings:
    return settings(
        deadline=None,
        database=DirectoryBasedExampleDatabase(database),
        phases=phases,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        **more,
    )


class Trial:
    """One property, tried round after round until it breaks."""

    def __init__(self, name: str, database: Path) -> None:
        self.name = name
        self.examples = self.specs = 0
        self.seconds = 0.0
        self.broken: tuple[Case, str] | None = None
        self.obstacle = PROPERTIES[name].obstacle()
        self._options = options(
            database / name, [Phase.reuse, Phase.generate, Phase.target, Phase.shrink], max_examples=ROUND
        )

    def round(self, number: int | None) -> None:
        """A few more examples, those of a number or others each time; the smallest that breaks the property is then
        in ``broken``. Those of a number know no corpus. Raises what is this machine's, and no finding.
        """
        started = time.monotonic()
        test = self._options(given(PROPERTIES[self.name].cases)(self._check))
        try:
            with unwrapped(), with_reporter(lambda text: None):
                (test if number is None else seed(number)(test))()
        except Exception as error:
            if self.broken is None:
                raise
            if isinstance(error, Flaky):
                case, message = self.broken
                self.broken = case, f"{message}\n{ONCE}"
        finally:
            self.seconds += time.monotonic() - started

    def _check(self, case: Case) -> None:
        self.examples += 1
        agents = written_of(case)["agents"]
        self.specs += len(agents) if isinstance(agents, list) else 0
        with stopping():
            try:
                prove(self.name, case)
            except Exception as error:
                if is_finding(error):
                    self.broken = case, describe(error)
                raise

    @property
    def tried(self) -> Tried:
        text = PROPERTIES[self.name].text
        return Tried(self.name, text, self.examples, self.specs, round(self.seconds, 1), self.obstacle)


ALL = Shard(1, 1)


def fuzz(
    minutes: float,
    corpus: Path,
    tests: Path,
    progress: Step,
    number: int | None = None,
    only: Sequence[str] = (),
    shard: Shard | None = None,
) -> Report:
    """Try the properties in turn for so long; a regression test of each that breaks is written to ``tests``.

    With a ``number`` the same examples come again, as many as there is time for; of N shards, the K-th has every N-th
    of the rounds that one run would have. Ctrl-C ends it with what there is.
    """
    started = time.monotonic()
    part = shard or ALL
    trials = [Trial(name, corpus) for name in only or PROPERTIES]
    findings: list[Finding] = []
    interrupted, trouble = False, None

    def keep() -> None:
        for trial in trials:
            if trial.broken is not None and trial.name not in {finding.property for finding in findings}:
                case, message = trial.broken
                findings.append(Finding(trial.name, message, str(write_regression(tests, trial.name, case))))

    try:
        for turn in itertools.count(part.number - 1, part.total):
            whole = [trial for trial in trials if trial.broken is None and trial.obstacle is None]
            if not whole or time.monotonic() - started >= minutes * 60:
                break
            trial = whole[turn % len(whole)]
            progress.update(f"{trial.name}: {sum(each.examples for each in trials)} hosts, {len(findings)} found")
            trial.round(None if number is None else number + turn)
            keep()
    except KeyboardInterrupt:
        interrupted = True
    except Exception as error:
        if not findings:
            raise
        trouble = describe(error)
    keep()
    seconds = round(time.monotonic() - started, 1)
    tried = [trial.tried for trial in trials]
    return Report(number, seconds, tried, findings, interrupted, trouble, str(shard) if shard else None)


def fuzz_live(
    lab: Lab,
    minutes: float,
    corpus: Path,
    tests: Path,
    progress: Step,
    number: int | None = None,
    shard: Shard | None = None,
) -> Report:
    """Change, break and attack forks of a running host for so long; see ``harness.fuzz.live``.

    Once something is found, the rest of the time goes into making it small. Ctrl-C ends it with what there is; raises
    what is this machine's, and no finding. Of one ``number`` each shard draws other changes.
    """
    started = time.monotonic()
    hosts: list[LiveHost] = []

    def admit(host: LiveHost) -> None:
        if time.monotonic() - started > minutes * 60:
            raise TimeUp
        hosts.append(host)
        steps = sum(len(each.steps) for each in hosts)
        progress.update(f"{len(hosts)} hosts, {steps} steps{', one is wrong' if any(h.error for h in hosts) else ''}")

    machine = machine_of(lab, admit, stopping)
    if number is not None:
        seed(number if shard is None else f"{number} {shard}")(machine)
    phases = [Phase.reuse, Phase.generate, Phase.shrink]
    whole = options(corpus / "live", phases, max_examples=1_000_000, stateful_step_count=STEPS)
    interrupted = once = False
    trouble = None
    try:
        with suppress(TimeUp), unwrapped(), with_reporter(lambda text: None):
            run_state_machine_as_test(machine, settings=whole)
    except KeyboardInterrupt:
        interrupted = True
    except Exception as error:
        if not any(host.error for host in hosts):
            raise
        once = isinstance(error, Flaky)
        trouble = None if is_finding(error) or once else describe(error)
    findings = [find_smallest(hosts, tests, once=once)] if any(host.error for host in hosts) else []
    seconds = round(time.monotonic() - started, 1)
    tried = [host for host in hosts if host.steps]
    steps = sum(len(host.steps) for host in tried)
    found = [Tried("live", LIVE, len(tried), steps, seconds)]
    return Report(number, seconds, found, findings, interrupted, trouble, str(shard) if shard else None)


def find_smallest(hosts: Sequence[LiveHost], tests: Path, *, once: bool) -> Finding:
    """The finding of the fewest steps, with its test; of two, hypothesis has made the later one simpler."""
    host = min((host for host in reversed(hosts) if host.error), key=lambda each: len(each.steps))
    message = f"{host.error}\n{ONCE}" if once else str(host.error)
    return Finding("live", message, str(write_live_regression(tests, host.steps)))
