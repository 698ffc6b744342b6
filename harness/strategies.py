"""Hypothesis strategies for hosts: right, wrong in exactly one way, and hostile. For tests of any flake that uses the
policy (docs/fuzzing.md):

    @given(hosts())
    def test_my_rule(host: Written) -> None:
        [plan] = evaluate_many([host["agents"]], [host["host"]])

    @given(mistakes())
    def test_my_errors(mistake: Mistake) -> None:
        [error] = evaluate_many([mistake.host["agents"]], [mistake.host["host"]])

A host is written as ``{"agents": [spec, ...], "host": {...}}``, the arguments of the policy's ``check``.
"""

from harness.host_strategies import (
    FIELDS,
    HOSTILE,
    SETTINGS,
    Spec,
    Written,
    host_settings,
    hostile,
    hostile_hosts,
    hosts,
    identity_of,
    specs,
    variables,
)
from harness.mistakes import Mistake, mistakes

__all__ = [
    "FIELDS",
    "HOSTILE",
    "SETTINGS",
    "Mistake",
    "Spec",
    "Written",
    "host_settings",
    "hostile",
    "hostile_hosts",
    "hosts",
    "identity_of",
    "mistakes",
    "specs",
    "variables",
]
