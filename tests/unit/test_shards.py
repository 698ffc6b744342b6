"""Which part is this machine's: what a user says, and what CI engines say of their parallel jobs."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.shards import Shard, parse_shard
from tests.unit.test_report import harness

GITLAB = {"CI_NODE_INDEX": "2", "CI_NODE_TOTAL": "3"}
BUILDKITE = {"BUILDKITE_PARALLEL_JOB": "0", "BUILDKITE_PARALLEL_JOB_COUNT": "3"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "2"}


def slurm(index: int, first: int, last: int, count: int, step: int | None = 1) -> dict[str, str]:
    numbers = {"ID": index, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in numbers.items() if number is not None}


@pytest.mark.parametrize(("text", "shard"), [("1/1", Shard(1, 1)), ("2/4", Shard(2, 4)), ("4/4", Shard(4, 4))])
def test_a_part_is_named_from_one(text: str, shard: Shard) -> None:
    assert parse_shard(text, {}) == shard
    assert str(shard) == text


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "x", "1", "1/", "-1/4", "1/4/2", "1 /4", "٢/٤", "/x", "AUTO"])
def test_what_names_no_part_is_one_error_that_says_how_to_write_it(text: str) -> None:
    with pytest.raises(HarnessError, match="write K/N"):
        parse_shard(text, {})


@pytest.mark.parametrize("text", [None, ""])
def test_the_environment_decides_nothing_unless_asked(text: str | None) -> None:
    assert parse_shard(text, {**GITLAB, "TENTAFLAKE_SHARDS": "4"}) is None
    assert parse_shard("1/2", GITLAB) == Shard(1, 2)


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        pytest.param(GITLAB, Shard(2, 3), id="GitLab, from 1"),
        pytest.param({"CI_NODE_TOTAL": "1"}, Shard(1, 1), id="GitLab, a job that is not parallel"),
        pytest.param(BUILDKITE, Shard(1, 3), id="Buildkite, from 0"),
        pytest.param({**KUBERNETES, "TENTAFLAKE_SHARDS": "3"}, Shard(3, 3), id="Kubernetes, from 0"),
        pytest.param(slurm(1, 1, 4, 4), Shard(1, 4), id="Slurm, from 1"),
        pytest.param(slurm(0, 0, 3, 4), Shard(1, 4), id="Slurm, from 0"),
        pytest.param(slurm(17, 10, 24, 3, 7), Shard(2, 3), id="Slurm, from 10 in steps of 7"),
        pytest.param(slurm(11, 10, 24, 15), Shard(2, 15), id="Slurm, from 10"),
        pytest.param(slurm(5, 1, 7, 4, None), Shard(3, 4), id="Slurm, a list that is regular"),
        pytest.param(slurm(5, 1, 7, 4, 1), Shard(3, 4), id="Slurm, a regular list that has no step"),
        pytest.param(slurm(9, 9, 9, 1), Shard(1, 1), id="Slurm, one task"),
        pytest.param(slurm(6, 1, 10, 2, 5), Shard(2, 2), id="Slurm, an end that is no task"),
    ],
)
def test_each_engine_says_which_part_this_is(environment: Mapping[str, str], shard: Shard) -> None:
    assert parse_shard("auto", environment) == shard
    assert parse_shard(f"/{shard.total}", environment) == shard


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        ("auto", {}, "no parallel job is known here.*CI_NODE_INDEX"),
        ("/4", {}, "no parallel job is known here"),
        ("auto", KUBERNETES, "Kubernetes says that this is shard 3, and not of how many.*TENTAFLAKE_SHARDS=N"),
        ("/2", KUBERNETES, "shard 3/2: there is no such part"),
        ("auto", {**KUBERNETES, "TENTAFLAKE_SHARDS": "x"}, "TENTAFLAKE_SHARDS is 'x'"),
        ("/4", GITLAB, "GitLab has 3 parallel jobs, and 4 shards are asked for"),
        ("auto", {**GITLAB, "CI_NODE_INDEX": ""}, "CI_NODE_INDEX is ''"),
        ("auto", {"CI_NODE_INDEX": "4", "CI_NODE_TOTAL": "3"}, "shard 4/3"),
        ("auto", {"BUILDKITE_PARALLEL_JOB": "1"}, "BUILDKITE_PARALLEL_JOB_COUNT is ''"),
        ("auto", {**GITLAB, **BUILDKITE}, "several engines say which shard this is: GitLab 2/3, Buildkite 1/3"),
        ("auto", slurm(3, 1, 7, 3), "no rule says which of them"),
        ("auto", slurm(1, 1, 8, 4), "no rule says which of them"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN is ''"),
    ],
)
def test_what_an_engine_does_not_say_is_one_error(text: str, environment: Mapping[str, str], words: str) -> None:
    with pytest.raises(HarnessError, match=f"(?s){words}"):
        parse_shard(text, environment)


def test_engines_that_say_the_same_are_one() -> None:
    assert parse_shard("auto", {**GITLAB, "JOB_COMPLETION_INDEX": "1", "TENTAFLAKE_SHARDS": "3"}) == Shard(2, 3)


@pytest.mark.parametrize("command", ["verify", "mutate", "fuzz"])
def test_each_command_refuses_a_shard_that_is_none_before_it_does_anything(command: str, tmp_path: Path) -> None:
    done = harness(command, "--shard", "3/2", "--cache", tmp_path / "cache")
    assert done.returncode == 2 and "shard 3/2: there is no such part" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "cache").exists()


def test_durations_that_are_none_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    done = harness("verify", "--durations", tmp_path / "none.json", "--cache", tmp_path / "cache")
    assert done.returncode == 2 and "has no durations" in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "cache").exists()
