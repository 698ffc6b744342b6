"""Every kind of mistake that is drawn is exactly its error: none is missed because it is rarely drawn."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from harness.mistakes import KINDS, WRONG_PAIRS, WRONG_SETTINGS, WRONG_SPECS, Kind, Mistake, Wrong, mistake_of
from harness.policy import PolicyError, evaluate_many
from harness.strategies import hosts, mistakes

few = settings(
    max_examples=3,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def draw_some(kind: Wrong | Kind) -> list[Mistake]:
    drawn: list[Mistake] = []

    @few
    @given(hosts(max_agents=2).flatmap(lambda host: mistake_of(kind, host, 0)))
    def draw(mistake: Mistake) -> None:
        drawn.append(mistake)

    draw()
    return drawn


def test_every_mistake_is_its_error() -> None:
    kinds: list[Wrong | Kind] = [*WRONG_SPECS, *KINDS * 5]
    drawn = [mistake for kind in kinds for mistake in draw_some(kind)]
    results = evaluate_many([each.host["agents"] for each in drawn], [each.host["host"] for each in drawn])
    for mistake, result in zip(drawn, results, strict=True):
        check(mistake, result)
    assert {mistake.rule for mistake in drawn} >= {rule for _, _, rule in WRONG_PAIRS}


def check(mistake: Mistake, result: object) -> None:
    assert isinstance(result, PolicyError), f"{mistake.field} is taken: {mistake.rule}"
    [error] = result.errors
    assert (error.agent, error.field) == (mistake.agent, mistake.field), error.message
    assert mistake.rule in error.message


@pytest.mark.parametrize(
    "rule", [*(each.rule for each in [*WRONG_SPECS, *WRONG_SETTINGS]), *(rule for _, _, rule in WRONG_PAIRS)]
)
def test_a_rule_fits_few_errors(rule: str) -> None:
    assert len(rule) >= 10


def test_mistakes_are_drawn_from_all_of_them() -> None:
    seen: set[str | None] = set()

    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mistakes())
    def draw(mistake: Mistake) -> None:
        seen.add(None if mistake.agent is None else mistake.rule)

    draw()
    assert None in seen  # the host's
    assert len(seen) > 30
