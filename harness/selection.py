"""A pytest plugin: which of the collected tests are this shard's (``--vm-shard``), in which order, and a list of them.

All workers of a run come to the same list, and all shards to the same partition: it follows from the collected tests
and from the durations that they share, never from what this machine has on record.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.cache import key_of
from harness.durations import Durations, Estimator
from harness.schedule import Unit, cost_units, deal_units, order_units
from harness.shards import Shard


class Listed(msgspec.Struct, frozen=True):
    """A test that is to run: its claims, and the seconds that it will take by what is known."""

    claims: list[str]
    seconds: float


class Listing(msgspec.Struct, frozen=True):
    """What a run is to do: its ``tests`` by id, and how many each claim has in all shards together.

    ``partition`` names who does what: parts of one whole have the same.
    """

    tests: dict[str, Listed] = {}
    claims: dict[str, int] = {}
    partition: str = ""

    @property
    def seconds(self) -> dict[str, float]:
        return {test: listed.seconds for test, listed in self.tests.items()}


def test_id(nodeid: str) -> str:
    """The id without the group that pytest-xdist appends; a parameter may hold the same sign."""
    return nodeid.rpartition("@")[0] if nodeid.rfind("@") > nodeid.rfind("]") else nodeid


def group_of(item: pytest.Item) -> str:
    """What pytest-xdist keeps together: the item's groups, or the item."""
    marks = item.iter_markers("xdist_group")
    names = {str(mark.args[0] if mark.args else mark.kwargs.get("name", "default")) for mark in marks}
    return "_".join(sorted(names)) or test_id(item.nodeid)


def claims_of(item: pytest.Item) -> list[str]:
    return list(dict.fromkeys(marker.args[0] for marker in item.iter_markers("claim")))


def units_of(items: Sequence[pytest.Item], durations: Durations) -> list[Unit]:
    """The units that the items make, with what they are known to take."""
    estimator = Estimator(durations)
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item)
    return [_unit_of(key, group, estimator, durations) for key, group in groups.items()]


def _unit_of(key: str, items: Sequence[pytest.Item], estimator: Estimator, durations: Durations) -> Unit:
    names = {name for item in items for name in getattr(item, "fixturenames", ())}
    return Unit(
        key,
        tuple(test_id(item.nodeid) for item in items),
        sum(estimator.estimate(test_id(item.nodeid), is_long=_is_long(item)) for item in items),
        {name: durations.fixtures[name] for name in sorted(names & durations.fixtures.keys())},
        frozenset(claim for item in items for claim in claims_of(item)),
    )


def _is_long(item: pytest.Item) -> bool:
    return item.get_closest_marker("recorded") is not None


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Selection:
    """``shared`` durations decide about shards; ``recorded`` ones, those of this machine, about the order.

    The order is changed for several ``workers`` only. The list is written to ``listing``.
    """

    shard: Shard | None
    shared: Durations
    recorded: Durations
    workers: int = 0
    listing: Path | None = None
    collected: int | None = None
    """How many tests all shards have together, and how many this one has; a controller learns it from its workers."""
    selected: int = 0
    _listing: Listing = field(default_factory=Listing)

    @pytest.hookimpl(trylast=True)  # of those that are left: -m, -k and --vm-claim have chosen
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self.collected = len(items)
        counts = _count_claims(items)
        partition = self._take_part(config, items)
        self.selected = len(items)
        self._order(items)
        self._listing = Listing(self._expect(items), counts, partition)

    def _take_part(self, config: pytest.Config, items: list[pytest.Item]) -> str:
        """Leave only this shard's items; returns the name of the partition."""
        units = units_of(items, self.shared)
        parts = deal_units(units, self.shard.total if self.shard else 1)
        if self.shard:
            mine = {test for unit in parts[self.shard.number - 1] for test in unit.tests}
            others = [item for item in items if test_id(item.nodeid) not in mine]
            items[:] = [item for item in items if test_id(item.nodeid) in mine]
            if others:
                config.hook.pytest_deselected(items=others)
        return key_of(parts=[sorted(test for unit in part for test in unit.tests) for part in parts])

    def _order(self, items: list[pytest.Item]) -> None:
        if not self.workers:
            return
        places = {unit.key: place for place, unit in enumerate(order_units(self._units(items), self.workers))}
        items.sort(key=lambda item: places[group_of(item)])

    def _units(self, items: Sequence[pytest.Item]) -> list[Unit]:
        """As they will be here: what is on record costs nothing."""
        passed = {test_id(item.nodeid): 0.0 for item in items if is_on_record(item)}
        known = msgspec.structs.replace(self.recorded, tests=self.recorded.tests | passed)
        return units_of(items, known)

    def _expect(self, items: Sequence[pytest.Item]) -> dict[str, Listed]:
        """Each test with its part of what its unit will take."""
        units = self._units(items)
        costs = cost_units(units)
        extra = {test: (costs[unit.key] - unit.seconds) / len(unit.tests) for unit in units for test in unit.tests}
        estimator = Estimator(self.recorded)
        found = {}
        for item in items:
            test = test_id(item.nodeid)
            own = 0.0 if is_on_record(item) else estimator.estimate(test, is_long=_is_long(item)) + extra[test]
            found[test] = Listed(claims_of(item), round(own, 2))
        return found

    @pytest.hookimpl(tryfirst=True)  # before a worker tells its controller
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput |= {"collected": self.collected, "selected": self.selected}
        if self.listing is not None and self.collected is not None:
            partial = self.listing.with_name(f".{self.listing.name}.{os.getpid()}.partial")
            partial.write_bytes(msgspec.json.encode(self._listing))
            partial.rename(self.listing)

    @property
    def _is_empty(self) -> bool:
        """Whether the other shards have all there is to do."""
        return bool(self.shard and self.collected and not self.selected)

    # --- in a controller

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """All workers know the same: another run may record something meanwhile."""
        node.workerinput["recorded"] = msgspec.json.encode(self.recorded).decode()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        told = getattr(node, "workeroutput", {})
        self.collected = told.get("collected", self.collected)
        self.selected = told.get("selected", self.selected)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """That a shard has nothing to do is no error; that nothing was there for any is."""
        if self._is_empty and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._is_empty:
            terminalreporter.write_line(f"vm: shard {self.shard} has none of the {self.collected} tests")


def is_on_record(item: pytest.Item) -> bool:
    """Whether the item stands for a test that has passed before; see ``harness.records``."""
    return any(name == "recorded" for name, _ in item.user_properties)


def _count_claims(items: Sequence[pytest.Item]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        for claim in claims_of(item):
            counts[claim] = counts.get(claim, 0) + 1
    return counts
