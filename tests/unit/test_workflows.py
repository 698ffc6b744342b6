"""The workflows of GitHub Actions: what they may do, and that what they call is there."""

import re
from pathlib import Path

import pytest

from tests.unit.support import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))


def test_there_is_a_workflow() -> None:
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_commit_with_its_version_beside(path: Path) -> None:
    actions = re.findall(r"uses: *(.+)", path.read_text())
    assert actions
    for action in actions:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v[0-9.]+", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_may_read_the_source_and_nothing_else(path: Path) -> None:
    text = path.read_text()
    assert "\npermissions: {}\n" in text
    assert set(re.findall(r"\n    permissions:\n((?:      .+\n)+)", text)) == {"      contents: read\n"}
    assert text.count("persist-credentials: false") == text.count("uses: actions/checkout@")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_is_called_is_there(path: Path) -> None:
    text = path.read_text()
    called = set(re.findall(r"(?<![\w./~-])(?:\.?ci/\w+|tests/[\w/]+)", text))
    assert {"ci/test", "tests/contract"} <= called
    assert [name for name in called if not (REPOSITORY / name).exists()] == []


def test_every_suite_of_tests_is_run() -> None:
    """tests/nixos and the like by name: a new folder is not forgotten."""
    text = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text()
    suites = [path.parent.name for path in REPOSITORY.glob("tests/*/__init__.py")]
    assert [suite for suite in suites if f"tests/{suite}" not in text] == []
