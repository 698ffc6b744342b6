"""``harness mutate``: all mutants, or a shard's, tried on one plan, with what is known as soon as it is."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from harness.cache import CacheUnusable
from harness.durations import Durations, read_recorded, record_durations
from harness.errors import HarnessError
from harness.lab import Lab
from harness.mutants import Mutant
from harness.mutate import STYLES, Hunt, MutantVerdict, run_mutants
from harness.policy import Plan
from harness.report.live import Board, describe_seconds, show_board
from harness.schedule import Unit, deal_units
from harness.shards import Shard

UNKNOWN = 20.0
"""Seconds of a mutant that nobody has timed."""


def take_part(mutants: Sequence[Mutant], shard: Shard | None, durations: Durations) -> list[Mutant]:
    """The mutants of a shard, in their order: all shards are as long as can be, and the same whoever asks."""
    if shard is None:
        return list(mutants)
    units = [Unit(each.id, (each.id,), durations.mutants.get(each.id, UNKNOWN)) for each in mutants]
    mine = {unit.key for unit in deal_units(units, shard.total)[shard.number - 1]}
    return [each for each in mutants if each.id in mine]


@dataclass
class Tally:
    """What came of the mutants of each claim; ``board`` is told when the last of a claim is done."""

    board: Board
    mutants: Iterable[Mutant]
    done: list[MutantVerdict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waiting: dict[str, set[str]] = {}
        for mutant in self.mutants:
            self._waiting.setdefault(mutant.claim, set()).add(mutant.id)

    def add(self, verdict: MutantVerdict) -> None:
        self.done.append(verdict)
        waiting = self._waiting[verdict.claim]
        waiting.discard(verdict.id)
        if not waiting:
            self.board.say(self._describe(verdict.claim))

    def _describe(self, claim: str) -> Text:
        outcomes = [verdict.outcome for verdict in self.done if verdict.claim == claim]
        words = Text(f"{claim} ")
        for outcome, style in STYLES.items():
            if count := outcomes.count(outcome):
                words.append(f"{', ' if len(words) > len(claim) + 1 else ''}{count} {outcome}", style)
        return words


def announce(plan: Plan, expected: Mapping[str, float], workers: int) -> None:
    """Say on stderr what begins, before what it needs is made."""
    left = describe_seconds(sum(expected.values()) / workers)
    count = f"{len(expected)} mutant{'' if len(expected) == 1 else 's'}"
    text = f"{count} of plan {plan.digest[:12]}, about {left} once the host is there"
    Console(stderr=True, highlight=False, emoji=False).print(text, markup=False, soft_wrap=True)


def hunt_mutants(
    lab: Lab,
    mutants: Sequence[Mutant],
    options: Sequence[str],
    workers: int,
    evaluate: Callable[[], Plan],
    shard: Shard | None = None,
) -> Hunt:
    """Try the mutants on the plan that ``evaluate`` gives.

    Each mutant makes its broken plan anew, from the same source. Raises ``HarnessError`` if that has moved meanwhile:
    then it is not known which host was broken.
    """
    started = time.monotonic()
    plan = evaluate()
    known = read_recorded(lab.cache, lab.settings.label).mutants
    expected = {each.id: known.get(each.id, UNKNOWN) for each in mutants}
    announce(plan, expected, workers)
    lab.activated(lab.adapt(plan))
    # Those beside wait, and are no part of what keeps the processors busy.
    with show_board("trying mutants", workers) as board:
        board.expect(expected)
        tally = Tally(board, mutants)
        for verdict in run_mutants(lab.cache, mutants, options, workers, board):
            tally.add(verdict)
    with suppress(CacheUnusable):
        seconds = {verdict.id: verdict.seconds for verdict in tally.done if verdict.outcome != "untried"}
        record_durations(lab.cache, lab.settings.label, Durations(mutants=seconds))
    if (now := evaluate().digest) != plan.digest:
        raise HarnessError(
            f"the agents have changed during the run: plan {plan.digest[:12]} became {now[:12]}",
            hint="run it again, and leave agents.nix, host.nix and the policy alone meanwhile",
        )
    return Hunt(tally.done, round(time.monotonic() - started, 1), plan.digest, str(shard) if shard else "")
