"""The policy's properties on a few random hosts each; `harness fuzz` tries many."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from harness.fuzz.properties import PROPERTIES, Case, prove

few = settings(max_examples=20, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", PROPERTIES)
def test_any_host_keeps_the_property(name: str) -> None:
    @few
    @given(PROPERTIES[name].cases)
    def holds(case: Case) -> None:
        prove(name, case)

    holds()
