"""What a run of pytest leaves out unless it is asked for: one table, and a line at the end for each that was left out.

    ci/test              all but these
    ci/test --all        these too (pytest's option is ``--vm-all``)
    ci/test -m power     those of one of them; a marker that ``-m`` names is left to ``-m``

What takes long and has passed before on the same host is another matter: see ``harness.records``.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Rare:
    """A marker of tests that are left out by default: what they do, and how long it takes."""

    marker: str
    reason: str
    duration: str


RARE = [
    Rare("hermes", "they run the real Hermes Agent", "a quarter of an hour the first time"),
    Rare("live", "random changes, faults and attacks on running machines", "minutes"),
    Rare("power", "fifty power cuts", "minutes"),
    Rare("nixos", "they build a NixOS and hold it beside the Debian guest", "a quarter of an hour the first time"),
    Rare("auditd", "floods, crashes and random acts on the audit daemon", "minutes"),
]
LEFT_OUT = pytest.StashKey[Counter[str]]()
"""How many tests were left out, by marker."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vm")
    names = [rare.marker for rare in RARE]
    group.addoption("--vm-all", action="store_true", help=f"run what is left out else: {', '.join(names)}")
    group.addoption(
        "--vm-with", metavar="MARKER", action="append", choices=names, help="run this too (may be repeated)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()
    for rare in RARE:
        config.addinivalue_line("markers", f"{rare.marker}: left out by default: {rare.reason} ({rare.duration})")


def find_left_out(config: pytest.Config) -> list[str]:
    """The markers of tests that this run leaves out."""
    if config.getoption("vm_all"):
        return []
    asked = {*(config.getoption("vm_with") or []), *re.findall(r"\w+", config.getoption("markexpr") or "")}
    return [rare.marker for rare in RARE if rare.marker not in asked]


@pytest.hookimpl(trylast=True)  # what -k, -m and --vm-claim have taken away is not counted
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take away the tests that are left out, and count them."""
    markers, kept, deselected = find_left_out(config), [], []
    for item in items:
        found = next((marker for marker in markers if item.get_closest_marker(marker)), None)
        if found is None:
            kept.append(item)
        else:
            config.stash[LEFT_OUT][found] += 1
            deselected.append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = kept


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With workers, each has collected all: it tells who prints the summary."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        counts: Counter[str] = session.config.stash[LEFT_OUT]
        output["left_out"] = dict(counts)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Of the workers that came to their end, any will do."""
    counts: Counter[str] = node.config.stash[LEFT_OUT]
    counts |= Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in describe_left_out(config.stash[LEFT_OUT]):
        terminalreporter.write_line(line)


def describe_left_out(counts: Counter[str]) -> list[str]:
    """A line for each marker by which tests were left out."""
    return [
        f"left out: {count} test{'s' * (count != 1)} marked {rare.marker} ({rare.reason}: {rare.duration}); "
        f"ci/test --all runs {'them' if count != 1 else 'it'}"
        for rare in RARE
        if (count := counts[rare.marker])
    ]
