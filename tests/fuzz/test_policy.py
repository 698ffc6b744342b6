"""The policy's properties on a few random hosts each; `harness fuzz` tries many."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from harness.fuzz.properties import PROPERTIES, Case, prove

few = settings(
    max_examples=15,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # no shrinking, which `harness fuzz` does: each try is an evaluation
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", PROPERTIES)
def test_any_host_keeps_the_property(name: str) -> None:
    if reason := PROPERTIES[name].obstacle():
        pytest.skip(reason)

    @few
    @given(PROPERTIES[name].cases)
    def holds(case: Case) -> None:
        prove(name, case)

    holds()
