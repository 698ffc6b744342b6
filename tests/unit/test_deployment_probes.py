"""What a comparison of two hosts sees."""

import pytest

from harness.probes.deployment import QUESTIONS, Snapshot, differences, network_of_rule

TABLE = ["chain forward {", "iifname br-a drop", "accept", "}"]
RULES = [
    "ip *nat -A POSTROUTING -s 10.0.0.0/29 ! -o br-a -j MASQUERADE",
    "ip *filter -A FORWARD -j DOCKER-FORWARD",
    "ip *filter -A DOCKER -i br-a -j ACCEPT",
    "ip *filter -A DOCKER -i br-a -j DROP",
    "ip *filter -A DOCKER -i br-b -j ACCEPT",
]


def snapshot(**changed: list[str]) -> Snapshot:
    return {name: ["a line"] for name in QUESTIONS} | {"table": TABLE} | changed


def test_the_same_host_is_no_different() -> None:
    assert differences(snapshot(), snapshot()) == []


def test_a_line_that_only_one_has_is_a_difference() -> None:
    one, other = snapshot(users=["a", "b"]), snapshot(users=["b", "c"])
    assert differences(one, other) == ["- users: a", "+ users: c"]


def test_a_rule_that_is_there_twice_is_a_difference() -> None:
    twice = [*TABLE[:2], *TABLE[1:]]
    assert differences(snapshot(), snapshot(table=twice)) == ["+ table: iifname br-a drop"]
    assert differences(snapshot(table=twice), snapshot()) == ["- table: iifname br-a drop"]


def test_rules_in_another_order_are_a_difference() -> None:
    other = [TABLE[0], TABLE[2], TABLE[1], TABLE[3]]
    assert differences(snapshot(), snapshot(table=other)) == ["~ table: accept, where there was iifname br-a drop"]


@pytest.mark.parametrize(
    ("order", "is_same"),
    [
        ([0, 1, 4, 2, 3], True),  # the networks in another order, as Docker may make them
        ([0, 1, 3, 2, 4], False),  # the rules of one network in another order
        ([2, 3, 4, 0, 1], True),  # other tables and chains: no packet minds
    ],
)
def test_of_dockers_rules_the_order_counts_within_a_network(order: list[int], is_same: bool) -> None:
    one, other = (sorted(rules, key=network_of_rule) for rules in (RULES, [RULES[i] for i in order]))
    assert (one == other) is is_same
