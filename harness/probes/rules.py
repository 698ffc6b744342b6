"""The rules that are in force, as the guard compares them: a line for each chain, rule and set."""

from functools import cache

from harness.policy import reference_plan


@cache
def rules_listing() -> str:
    """A script for sh(1) that prints the lines on a host (modules/policy/guard.nix); it is the same in every plan."""
    return reference_plan().nftables.listing
