"""The claims once more, attacked by the agents themselves: the real Hermes, doing what a prompt injection tells it."""

from collections.abc import Callable

import pytest

from harness.probes.hijacked import TRIED

pytestmark = pytest.mark.hermes


@pytest.mark.parametrize(("claimed", "way"), [pytest.param(*each, marks=pytest.mark.claim(each[0])) for each in TRIED])
def test_a_hijacked_agent_gets_no_further(claimed: str, way: str, hijack_outcomes: Callable[[str, str], None]) -> None:
    hijack_outcomes(claimed, way)
