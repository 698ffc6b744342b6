"""Who does what, and when: units of work dealt out to shards, and put in order for the workers of one machine.

A *unit* is what stays together: a test, or a group of tests that share an expensive fixture (pytest-xdist's
``xdist_group``). Both decisions follow from durations, and are the same whoever makes them.
"""

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

AHEAD = 2
"""With more tests than this waiting for it, a worker of pytest-xdist's gets no further unit."""
TOLERANCE = 1.05
"""What an early first claim may add to the time of all of them."""


@dataclass(frozen=True)
class Unit:
    """``seconds`` of its ``tests``; ``fixtures`` that others may share, with theirs; the ``claims`` that need it."""

    key: str
    tests: tuple[str, ...]
    seconds: float
    fixtures: Mapping[str, float] = field(default_factory=dict)
    claims: frozenset[str] = frozenset()


# --- shards


def deal_units(units: Sequence[Unit], total: int) -> list[list[Unit]]:
    """Each unit in one of ``total`` parts, all parts as long as can be: the longest first, to the part that is then
    shortest. A shared fixture counts once in each part that needs it, and twice where it is made anew for a second one,
    so that those who share one come together.
    """
    parts: list[list[Unit]] = [[] for _ in range(total)]
    loads = [0.0] * total
    fixtures: list[set[str]] = [set() for _ in range(total)]

    def load_with(unit: Unit, part: int) -> float:
        missing = unit.fixtures.keys() - fixtures[part]
        return loads[part] + unit.seconds + sum(unit.fixtures[name] for name in missing)

    def weigh(unit: Unit, part: int) -> float:
        again = (unit.fixtures.keys() & set().union(*fixtures)) - fixtures[part]
        return load_with(unit, part) + sum(unit.fixtures[name] for name in again)

    for unit in sorted(units, key=lambda unit: (-unit.seconds - sum(unit.fixtures.values()), unit.key)):
        # Of two that come to the same, the one with fewer units: what takes no time is spread too.
        chosen = min(range(total), key=lambda part: (weigh(unit, part), len(parts[part]), part))
        loads[chosen] = load_with(unit, chosen)
        fixtures[chosen] |= unit.fixtures.keys()
        parts[chosen].append(unit)
    return parts


# --- the workers of one machine


def order_units(units: Sequence[Unit], workers: int) -> list[Unit]:
    """Cheap claims first, long units last, the longest of them first.

    A unit that would be left alone at the end comes right after the first claim.
    """
    costs = cost_units(units)
    cheap = order_by_claims(units, costs)
    first = [unit for unit in cheap if cheap[0].claims & unit.claims] if cheap else []
    rest = [unit for unit in cheap if not cheap[0].claims & unit.claims]
    head, tail = _split_half(rest, costs)
    longest_first = sorted(units, key=lambda unit: -costs[unit.key])
    limit = TOLERANCE * simulate(longest_first, costs, workers)
    early = 0
    while True:  # none of the longest, one, two, four … all
        order = [*first, *tail[:early], *head, *tail[early:]]
        if early >= len(tail) or simulate(order, costs, workers) <= limit:
            return order
        early = max(1, 2 * early)


def cost_units(units: Iterable[Unit]) -> dict[str, float]:
    """Seconds by unit, each with its part of the fixtures that it shares with other units."""
    units = list(units)
    users = Counter(name for unit in units for name in unit.fixtures)
    return {
        unit.key: unit.seconds + sum(seconds / users[name] for name, seconds in unit.fixtures.items()) for unit in units
    }


def order_by_claims(units: Sequence[Unit], costs: Mapping[str, float]) -> list[Unit]:
    """All units of the claim that needs least, then what the next one needs besides, and so on; then those of no
    claim, as they are."""
    members: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        for claim in sorted(unit.claims):
            members[claim].append(unit)
    done: dict[str, Unit] = {}

    def missing(claim: str) -> list[Unit]:
        return [unit for unit in members[claim] if unit.key not in done]

    while members:
        claim = min(members, key=lambda claim: (sum(costs[unit.key] for unit in missing(claim)), claim))
        done |= {unit.key: unit for unit in missing(claim)}
        del members[claim]
    return [*done.values(), *(unit for unit in units if unit.key not in done)]


def _split_half(units: Sequence[Unit], costs: Mapping[str, float]) -> tuple[list[Unit], list[Unit]]:
    """The first half of the time as it is; of the second half, the longest first."""
    half, passed = sum(costs[unit.key] for unit in units) / 2, 0.0
    head: list[Unit] = []
    for unit in units:
        passed += costs[unit.key]
        if passed > half:
            break
        head.append(unit)
    return head, sorted(units[len(head) :], key=lambda unit: -costs[unit.key])


def simulate(units: Sequence[Unit], costs: Mapping[str, float], workers: int) -> float:
    """Seconds until pytest-xdist (``LoadScopeScheduling``) is done with the units in this order: whoever has few tests
    left gets the next unit, and keeps it."""
    waiting = deque(units)
    queues: list[deque[float]] = [deque() for _ in range(workers)]

    def give(worker: int) -> None:
        if waiting and len(queues[worker]) <= AHEAD:
            unit = waiting.popleft()
            queues[worker].extend([costs[unit.key] / len(unit.tests)] * len(unit.tests))

    for _ in range(2):  # at the start each gets two
        for worker in range(workers):
            give(worker)
    clock = [(queue[0], worker) for worker, queue in enumerate(queues) if queue]
    heapq.heapify(clock)
    now = 0.0
    while clock:
        now, worker = heapq.heappop(clock)
        queues[worker].popleft()
        give(worker)
        if queues[worker]:
            heapq.heappush(clock, (now + queues[worker][0], worker))
    return now
