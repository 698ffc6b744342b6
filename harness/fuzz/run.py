"""``harness fuzz``: properties tried until the time is up, a corpus that is kept, a test for each thing found."""

from __future__ import annotations

import hashlib
import pprint
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.reporting import with_reporter
from hypothesis.stateful import run_state_machine_as_test

from harness.fuzz.live import LiveHost, machine_of
from harness.fuzz.live import Step as LiveStep
from harness.fuzz.properties import PROPERTIES, Case, prove, written_of
from harness.lab import Lab
from harness.progress import Step

ROUND = 20
"""Examples of a property before the next one's turn."""


class Finding(msgspec.Struct, frozen=True):
    """A case that breaks a property: what was said, and the file of the test that shows it from now on."""

    property: str
    message: str
    file: str


class Tried(msgspec.Struct, frozen=True):
    """What became of a property: ``examples`` tried, with as many ``specs``, in ``seconds``; or why not."""

    property: str
    text: str
    examples: int
    specs: int
    seconds: float
    obstacle: str | None = None


class Report(msgspec.Struct, frozen=True):
    """A whole run; ``seed`` if one was given."""

    seed: int | None
    seconds: float
    tried: list[Tried]
    findings: list[Finding]


class Trial:
    """One property, tried round after round until it breaks."""

    def __init__(self, name: str, database: Path) -> None:
        self.name = name
        self.examples = self.specs = 0
        self.seconds = 0.0
        self.broken: tuple[Case, str] | None = None
        self.obstacle = PROPERTIES[name].obstacle()
        self._options = settings(
            max_examples=ROUND,
            deadline=None,
            database=DirectoryBasedExampleDatabase(database / name),
            phases=[Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )

    def round(self, number: int | None) -> None:
        """A few more examples, those of a number or others each time; the smallest that breaks the property is then
        in ``broken``. Those of a number know no corpus.
        """

        def holds(case: Case) -> None:
            self.examples += 1
            agents = written_of(case)["agents"]
            self.specs += len(agents) if isinstance(agents, list) else 0
            try:
                prove(self.name, case)
            except AssertionError as error:
                self.broken = case, "\n".join([str(error), *getattr(error, "__notes__", [])])
                raise

        started = time.monotonic()
        try:
            test = self._options(given(PROPERTIES[self.name].cases)(holds))
            (test if number is None else seed(number)(test))()
        except AssertionError:
            assert self.broken, "hypothesis failed by itself"
        finally:
            self.seconds += time.monotonic() - started

    @property
    def tried(self) -> Tried:
        text = PROPERTIES[self.name].text
        return Tried(self.name, text, self.examples, self.specs, round(self.seconds, 1), self.obstacle)


def fuzz(
    minutes: float, corpus: Path, tests: Path, progress: Step, number: int | None = None, only: Sequence[str] = ()
) -> Report:
    """Try the properties in turn for so long; a regression test of each that breaks is written to ``tests``.

    With a ``number`` the same examples come again, as many as there is time for.
    """
    started = time.monotonic()
    trials = [Trial(name, corpus) for name in only or PROPERTIES]
    findings: list[Finding] = []
    turn = 0
    while time.monotonic() - started < minutes * 60 and (
        whole := [trial for trial in trials if trial.broken is None and trial.obstacle is None]
    ):
        trial = whole[turn % len(whole)]
        progress.update(f"{trial.name}: {sum(each.examples for each in trials)} hosts, {len(findings)} found")
        trial.round(None if number is None else number + turn)
        turn += 1
        if trial.broken is not None:
            case, message = trial.broken
            path = write_regression(tests, trial.name, case)
            findings.append(Finding(trial.name, message, str(path)))
    return Report(number, round(time.monotonic() - started, 1), [trial.tried for trial in trials], findings)


class TimeUp(KeyboardInterrupt):
    """The one kind of exception that hypothesis lets through at once, shrinking or not."""


def fuzz_live(lab: Lab, minutes: float, corpus: Path, tests: Path, progress: Step, number: int | None = None) -> Report:
    """Change, break and attack forks of a running host for so long; see ``harness.fuzz.live``.

    Once something is found, the rest of the time goes into making it small.
    """
    started = time.monotonic()
    hosts: list[LiveHost] = []

    def admit(host: LiveHost) -> None:
        if time.monotonic() - started > minutes * 60:
            raise TimeUp
        hosts.append(host)
        steps = sum(len(each.steps) for each in hosts)
        progress.update(f"{len(hosts)} hosts, {steps} steps{', one is wrong' if any(h.error for h in hosts) else ''}")

    machine = machine_of(lab, admit)
    if number is not None:
        seed(number)(machine)
    options = settings(
        max_examples=1_000_000,
        stateful_step_count=STEPS,
        deadline=None,
        database=DirectoryBasedExampleDatabase(corpus / "live"),
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    with suppress(TimeUp, AssertionError), with_reporter(lambda text: None):
        run_state_machine_as_test(machine, settings=options)
    wrong = [host for host in hosts if host.error]
    findings = []
    if wrong:
        host = min(
            reversed(wrong), key=lambda each: len(each.steps)
        )  # of two, hypothesis has made the later one simpler
        path = write_live_regression(tests, host.steps)
        findings = [Finding("live", f"{host.error}\nthe steps: {host.steps}", str(path))]
    seconds = round(time.monotonic() - started, 1)
    steps = sum(len(host.steps) for host in hosts)
    return Report(number, seconds, [Tried("live", LIVE, len(hosts), steps, seconds)], findings)


STEPS = 4
"""Changes, faults and attacks that a host sees."""
LIVE = "After each step the kernel, Docker, nftables and systemd are as the plan says, and untouched agents run on."
LIVE_TEST = '''"""Found by `harness fuzz --live`: steps that left a host wrong."""

import pytest

from harness.fuzz.live import replay
from harness.lab import Lab

STEPS = {steps}


@pytest.mark.live
def test_live_{digest}(lab: Lab) -> None:
    replay(lab, STEPS)
'''


def write_live_regression(directory: Path, steps: list[LiveStep]) -> Path:
    """A test file that fails until these steps leave the host as they should."""
    text = pprint.pformat(steps, width=100, sort_dicts=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    path = directory / f"test_found_live_{digest}.py"
    path.write_text(LIVE_TEST.format(steps=text, digest=digest))
    return path


TEST = '''"""Found by `harness fuzz`: a host that broke a property of the policy."""

from harness.fuzz.properties import prove
{imports}
CASE = {case}


def test_{name}_{digest}() -> None:
    prove({property}, CASE)
'''


def write_regression(directory: Path, name: str, case: Case) -> Path:
    """A test file that fails until this case keeps the property; its name follows from the case."""
    text = pprint.pformat(case, width=100, sort_dicts=False)
    digest = hashlib.sha256(f"{name} {text}".encode()).hexdigest()[:8]
    imports = "from harness.mistakes import Mistake\n" if text.startswith("Mistake(") else ""
    path = directory / f"test_found_{name}_{digest}.py"
    path.write_text(TEST.format(imports=imports, case=text, name=name, digest=digest, property=f'"{name}"'))
    return path
