"""One verdict of the verdicts of all shards (``harness report --merge``), or why they are not parts of one whole."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from harness.contract import CLAIMS
from harness.errors import HarnessError
from harness.report import ClaimVerdict, Part, Result, TestOutcome, Verdict, judge

AGREE: dict[str, Callable[[Verdict], Any]] = {
    "plans": lambda verdict: verdict.plan,
    "commits": lambda verdict: verdict.source,
    "guests": lambda verdict: verdict.guest,
    "images": lambda verdict: verdict.image,
    "accelerators": lambda verdict: verdict.accelerator.get("accelerator"),
}
"""What parts of one verdict have in common."""


def merge_verdicts(parts: Mapping[str, Verdict]) -> Verdict:
    """One verdict of the parts, which are named by their files; each claim is judged by all of its tests.

    Raises ``HarnessError`` if they are not all the parts of one whole, each once.
    """
    shards = {name: find_part(name, verdict) for name, verdict in parts.items()}
    for what, read in AGREE.items():
        check_same({name: read(verdict) for name, verdict in parts.items()}, what)
    check_same({name: shard.total for name, shard in shards.items()}, "numbers of shards")
    check_same({name: shard.partition for name, shard in shards.items()}, "choices of tests or durations")
    check_complete(shards)
    verdicts = [parts[name] for name in sorted(parts, key=lambda name: shards[name].number)]
    started = min(verdict.started for verdict in verdicts)
    ended = max(verdict.started + verdict.timings["total"] for verdict in verdicts)
    timings = {name: max(verdict.timings.get(name, 0.0) for verdict in verdicts) for name in verdicts[0].timings}
    first = verdicts[0]
    return Verdict(
        claims=judge_claims(verdicts),
        matrix=list(chain.from_iterable(verdict.matrix for verdict in verdicts)),
        timings=timings | {"total": ended - started},
        guest=first.guest,
        accelerator=first.accelerator,
        plan=first.plan,
        host=first.host,
        agents=first.agents,
        started=started,
        machine=join_machines(verdicts),
        failures=list(chain.from_iterable(verdict.failures for verdict in verdicts)),
        tests=dict(chain.from_iterable(verdict.tests.items() for verdict in verdicts)),
        source=first.source,
        image=first.image,
        parts=len(verdicts),
    )


def find_part(name: str, verdict: Verdict) -> Part:
    """Which part this is; raises ``HarnessError`` if it is none."""
    if verdict.shard is None:
        raise HarnessError(f"{name} is a whole verdict, and no part of one", hint="merge what `--shard K/N` wrote")
    if not verdict.shard.partition:
        raise HarnessError(
            f"{name} (shard {verdict.shard}) ended before its tests were chosen", hint="run that shard again"
        )
    return verdict.shard


def check_same(values: Mapping[str, Any], what: str) -> None:
    """That the parts agree; raises ``HarnessError`` that names the first two that do not."""
    first, *others = values
    for other in others:
        if values[other] != values[first]:
            raise HarnessError(
                f"these parts are of different {what}: {first} of {describe(values[first])}, "
                f"{other} of {describe(values[other])}",
                hint="merge the parts of one run; run all shards again if there is none",
            )


def describe(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {text}" for name, text in value.items()) or "nothing that is known"
    return str(value)


def check_complete(shards: Mapping[str, Part]) -> None:
    """That each part is there, once; raises ``HarnessError``."""
    found: dict[int, str] = {}
    for name, shard in shards.items():
        if shard.number in found:
            raise HarnessError(f"shard {shard} is there twice: {found[shard.number]} and {name}", hint="leave out one")
        found[shard.number] = name
    total = next(iter(shards.values())).total
    missing = [f"{number}/{total}" for number in range(1, total + 1) if number not in found]
    if missing:
        raise HarnessError(
            f"of {total} shards there is no verdict of: {', '.join(missing)}",
            hint="look why it wrote none (it failed or was killed), and run it again: --shard K/N",
        )


def judge_claims(verdicts: list[Verdict]) -> list[ClaimVerdict]:
    """Each claim anew, by its tests in all parts. One that no part was asked for is left out, as they did."""
    runs: dict[str, Result] = dict(chain.from_iterable(verdict.tests.items() for verdict in verdicts))
    found: dict[str, list[ClaimVerdict]] = {}
    for each in chain.from_iterable(verdict.claims for verdict in verdicts):
        found.setdefault(each.id, []).append(each)
    judged = []
    for claim, parts in found.items():
        tests = [(test, outcome_in(runs, test)) for part in parts for test in part.tests]
        recorded = dict(chain.from_iterable(part.on_record.items() for part in parts))
        judged.append(judge(claim, claim in CLAIMS and CLAIMS[claim].to_come, tests, recorded))
    return judged


def outcome_in(runs: Mapping[str, Result], test: str) -> TestOutcome:
    return runs[test].outcome if test in runs else "untried"


def join_machines(verdicts: list[Verdict]) -> dict[str, str]:
    """Where they ran: one value, or all that there are."""
    names = dict.fromkeys(chain.from_iterable(verdict.machine for verdict in verdicts))
    return {name: " / ".join(dict.fromkeys(verdict.machine.get(name, "?") for verdict in verdicts)) for name in names}
