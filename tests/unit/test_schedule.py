"""Shards and order follow from durations: every test once, in balance, cheap claims first, nothing long alone."""

import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.schedule import Unit, cost_units, deal_units, order_units, simulate
from tests.unit.support import PROPERTY


def unit(key: str, seconds: float, claim: str = "", tests: int = 1, **fixtures: float) -> Unit:
    names = tuple(f"{key}-{number}" for number in range(tests))
    return Unit(key, names, seconds, fixtures, frozenset([claim] if claim else []))


units_of_any_kind = st.lists(
    st.builds(
        unit,
        st.text("abcdef", min_size=1, max_size=6),
        st.floats(0, 300),
        st.sampled_from(["", "A1", "B1", "C1", "D1"]),
        st.integers(1, 5),
    ),
    max_size=25,
    unique_by=lambda unit: unit.key,
)


def load(part: Sequence[Unit]) -> float:
    """Seconds of a part, each fixture once."""
    fixtures = {name: seconds for unit in part for name, seconds in unit.fixtures.items()}
    return sum(unit.seconds for unit in part) + sum(fixtures.values())


# --- shards


@PROPERTY
@given(units_of_any_kind, st.integers(1, 7), st.randoms(use_true_random=False))
def test_every_unit_is_in_one_shard_whatever_order_they_come_in(
    units: list[Unit], total: int, generator: random.Random
) -> None:
    parts = deal_units(units, total)
    assert len(parts) == total
    assert sorted(unit.key for part in parts for unit in part) == sorted(unit.key for unit in units)
    assert deal_units(generator.sample(units, len(units)), total) == parts


@PROPERTY
@given(units_of_any_kind, st.integers(1, 7))
def test_no_two_shards_differ_by_more_than_the_longest_unit(units: list[Unit], total: int) -> None:
    loads = [load(part) for part in deal_units(units, total)]
    assert max(loads) - min(loads) <= max((unit.seconds for unit in units), default=0) + 1e-6


def test_those_that_share_an_expensive_fixture_come_together() -> None:
    units = [unit(f"stage-{number}", 5, stage=60) for number in range(4)] + [unit(f"x{n}", 20) for n in range(4)]
    parts = deal_units(units, 2)
    assert [len([unit for unit in part if unit.fixtures]) for part in parts] in ([4, 0], [0, 4])
    assert sorted(map(load, parts)) == [80, 80]


def test_units_that_take_no_time_are_spread_too() -> None:
    assert [len(part) for part in deal_units([unit(f"u{number}", 0) for number in range(9)], 3)] == [3, 3, 3]


def test_a_shard_too_many_has_nothing() -> None:
    assert deal_units([unit("only", 1)], 3) == [[unit("only", 1)], [], []]


# --- order


def keys(units: Sequence[Unit], workers: int = 2) -> list[str]:
    return [unit.key for unit in order_units(units, workers)]


def test_the_cheapest_claim_is_first_and_the_longest_tests_come_last_the_longest_first() -> None:
    units = [unit("l1", 90, "X1"), unit("l2", 100, "X2"), unit("b", 5, "B1"), unit("a", 2, "A1"), unit("c", 9, "C1")]
    units += [unit(f"d{number}", 8, f"D{number}") for number in range(20)]
    order = keys(units)
    assert order[:2] == ["a", "b"]
    assert order[-2:] == ["l2", "l1"]


def test_all_of_a_cheap_claim_comes_before_a_part_of_the_next() -> None:
    units = [unit("b1", 1, "B1"), unit("a1", 5, "A1"), unit("b2", 20, "B1"), unit("a2", 5, "A1")]
    assert keys(units)[:2] == ["a1", "a2"]


def test_what_would_be_alone_at_the_end_starts_right_after_the_first_claim() -> None:
    units = [unit("giant", 100, "Z1"), *(unit(f"a{number}", 5, f"A{number}") for number in range(21))]
    order = keys(units)
    assert order[0] == "a0" and order[1] == "giant"


def test_those_of_no_claim_keep_their_order() -> None:
    units = [unit(key, 1) for key in "hdbfca"]
    assert keys(units) == list("hdbfca")


def first_settled(order: Sequence[Unit], costs: Mapping[str, float], workers: int) -> float:
    """When the first claim is settled at the latest: all up to its last unit are done."""
    claims = {claim for unit in order for claim in unit.claims}
    ends = [max(n for n, unit in enumerate(order) if claim in unit.claims) for claim in claims]
    return simulate(order[: min(ends) + 1], costs, workers)


@PROPERTY
@given(units_of_any_kind, st.integers(1, 4))
def test_an_order_has_every_unit_and_costs_little_more_than_the_longest_first(units: list[Unit], workers: int) -> None:
    order, costs = order_units(units, workers), cost_units(units)
    assert sorted(unit.key for unit in order) == sorted(unit.key for unit in units)
    longest_first = sorted(units, key=lambda unit: -costs[unit.key])
    first = sum(costs[unit.key] for unit in order if order[0].claims & unit.claims)
    slack = first + 3 * max(costs.values(), default=0)  # what a worker keeps that has begun
    assert simulate(order, costs, workers) <= 1.05 * simulate(longest_first, costs, workers) + slack + 1e-6


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_first_claim_is_settled_long_before_the_end(workers: int) -> None:
    """Something like the suite: 60 claims, a few with tests of minutes."""
    generator = random.Random(1)
    units = [unit(f"u{n}", generator.uniform(1, 12), f"C{n % 60}") for n in range(240)]
    units += [unit(f"long{n}", generator.uniform(60, 150), f"X{n % 4}") for n in range(8)]
    order, costs = order_units(units, workers), cost_units(units)
    whole = simulate(order, costs, workers)
    assert first_settled(order, costs, workers) < whole / 20
    assert whole <= 1.06 * max(sum(costs.values()) / workers, *costs.values())


# --- the model of pytest-xdist


@pytest.mark.parametrize(
    ("seconds", "workers", "whole"),
    [
        ([5, 5], 2, 5),
        ([5, 5, 5, 5], 2, 10),
        ([10, 1, 1, 1], 2, 11),  # the third waits behind the ten: it has been given away at the start
        ([3], 4, 3),
        ([], 2, 0),
    ],
)
def test_a_worker_keeps_what_it_was_given(seconds: list[float], workers: int, whole: float) -> None:
    units = [unit(f"u{number}", each) for number, each in enumerate(seconds)]
    assert simulate(units, cost_units(units), workers) == whole


def test_a_group_stays_with_one_worker() -> None:
    units = [unit("group", 8, tests=4), unit("a", 1), unit("b", 1)]
    assert simulate(units, cost_units(units), 2) == 8
