"""The workflows of GitHub Actions: what they may do, and that what they call is there."""

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from _pytest.mark.expression import Expression

from harness.left_out import RARE
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


def rows() -> list[dict[str, str]]:
    """The jobs of the matrix of tests."""
    text = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text()
    matrix = text.partition("        include:\n")[2].partition("    env:\n")[0]
    return [dict(re.findall(r"(\w+): (.+)", row)) for row in matrix.split("          - ")[1:]]


def test_guests_and_suites_are_crossed() -> None:
    found = {(row["guest"], row["suite"].split()[0]) for row in rows()}
    assert found >= {("debian", suite) for suite in ("policy", "contract", "services", "fuzz")}
    assert found >= {("nixos", suite) for suite in ("contract", "fuzz")}  # the others have no machine
    assert {row.get("debian") for row in rows() if row["guest"] == "debian"} == {None, "forky"}
    new = [row for row in rows() if row["guest"] == "nixos" or "debian" in row]
    assert new == [row for row in rows() if row.get("unproven") == "true"]


def test_every_test_is_in_one_shard() -> None:
    shards: dict[tuple[str, str], set[int]] = {}
    for row in rows():
        if part := re.search(r"--vm-shard (\d+)/(\d+) (.+)", row["tests"]):
            guest = row["guest"] + row.get("debian", "")
            shards.setdefault((guest, f"{part[2]} {part[3]}"), set()).add(int(part[1]))
    assert shards
    for (_, suite), numbers in shards.items():
        assert numbers == set(range(1, int(suite.split()[0]) + 1)), suite


def test_the_shards_of_the_verdict_are_all_there_and_end_in_one() -> None:
    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    shards = jobs["verify"]["strategy"]["matrix"]["shard"]
    assert shards == list(range(1, len(shards) + 1)) and len(shards) > 1
    assert jobs["verify"]["env"] == {"SHARD": "${{ matrix.shard }}", "SHARDS": "${{ strategy.job-total }}"}
    [attack] = [step["run"] for step in jobs["verify"]["steps"] if "ci/verify" in step.get("run", "")]
    assert attack == 'ci/verify --shard "$SHARD/$SHARDS" --json "verdict-$SHARD.json"'
    assert jobs["verdict"]["needs"] == "verify" and jobs["verdict"]["if"] == "always()"
    [merge] = [step["run"] for step in jobs["verdict"]["steps"] if "--merge" in step.get("run", "")]
    assert "$GITHUB_STEP_SUMMARY" in merge and "--json verdict.json" in merge
    [upload, *_] = [step["with"] for step in jobs["verify"]["steps"] if "upload" in step.get("uses", "")]
    [download] = [step["with"] for step in jobs["verdict"]["steps"] if "download" in step.get("uses", "")]
    assert fnmatch(upload["name"].replace("${{ matrix.shard }}", "2"), download["pattern"])


def test_every_marker_that_pytest_leaves_out_is_asked_for_where_it_is_used() -> None:
    asked = [(row["tests"].split(), Expression.compile(row["marks"])) for row in rows() if "marks" in row]
    for rare in RARE:
        mark: Any = rare.marker
        files = [path for path in REPOSITORY.glob("tests/*/**/*.py") if f"pytest.mark.{mark}" in path.read_text()]
        folders = {"/".join(path.relative_to(REPOSITORY).parts[:2]) for path in files} - {"tests/unit"}
        assert folders
        for folder in folders:
            assert any(folder in tests and each.evaluate(mark.__eq__) for tests, each in asked), (folder, mark)


def test_the_weekly_jobs_run_everything_and_on_a_busy_machine_too() -> None:
    text = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text()
    weekly = text.partition("\n  weekly:\n")[2].partition("\n  verify:\n")[0]
    assert "github.event_name == 'schedule'" in weekly and "$SUDO ci/test $OPTIONS" in weekly
    assert re.findall(r"options: (--\w+)", weekly) == ["--all", "--busy"]


def test_a_name_of_an_artefact_can_be_a_file() -> None:
    assert all(re.fullmatch(r"[a-z0-9 ]+", row["guest"] + row["suite"]) for row in rows())
