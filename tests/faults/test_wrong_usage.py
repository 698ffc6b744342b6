"""What is asked wrongly is refused with one clear sentence, quickly, and never with a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.support import environment, run_pytest
from tests.unit.support import PATIENCE, REPOSITORY

TEST = "def test_nothing(): pass\n"
USAGE_ERROR = int(pytest.ExitCode.USAGE_ERROR)
OPTIONS = {
    "--vm-guest=nope": "guest is 'nope', which is none of: debian",
    "--vm-suite=nope": "suite is 'nope', which is none of: trixie, forky",
    "--vm-accel=foo": "accel is 'foo', which is none of: auto, kvm, tcg",
    "--vm-keep=perhaps": "--vm-keep is 'perhaps', which is none of: never, on-failure, always",
    "--vm-cpus=x": "--vm-cpus is 'x': not a whole number",
    "--vm-cpus=0": "cpus is 0: a machine has 1 to 64",
    "--vm-memory=64": "memory is 64 MiB",
    "--vm-claim=Z9": "Z9",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_bad_option_is_one_sentence(option: str, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, TEST, option)
    said = done.stdout + done.stderr
    assert done.returncode == USAGE_ERROR, said
    assert OPTIONS[option] in said
    assert "Traceback" not in said and "INTERNALERROR" not in said


@pytest.mark.parametrize(("name", "value"), [("MEMORY", "abc"), ("GUEST", "nope"), ("KEEP", "perhaps")])
def test_a_bad_variable_is_one_sentence(name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_pytest(tmp_path, TEST, variables={f"TENTAFLAKE_{name}": value})
    said = done.stdout + done.stderr
    assert done.returncode == USAGE_ERROR, said
    assert repr(value) in said and name.lower() in said.lower()
    assert "Traceback" not in said and "INTERNALERROR" not in said


def harness(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment() | {"COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def check_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, every word said on standard error, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.stderr


SPECS = {
    "no JSON": ("[{", "not valid JSON"),
    "an unknown field": ('[{"name": "coding", "imge": "x"}]', "imge"),
    "a bad name": ('[{"name": "Coding!"}]', "Coding!"),
    "no list": ('{"name": "coding"}', "list"),
}


@pytest.mark.parametrize("wrong", SPECS)
def test_verify_names_what_is_wrong_with_a_spec(wrong: str, tmp_path: Path) -> None:
    text, word = SPECS[wrong]
    (tmp_path / "agents.json").write_text(text)
    check_refused(harness("verify", "--agents", tmp_path / "agents.json", "--cache", tmp_path / "cache"), word)


def test_verify_names_a_missing_file(tmp_path: Path) -> None:
    done = harness("verify", "--agents", tmp_path / "none.json", "--cache", tmp_path / "cache")
    check_refused(done, str(tmp_path / "none.json"))


def test_verify_names_an_unknown_claim(tmp_path: Path) -> None:
    check_refused(harness("verify", "--claim", "Z9", "--cache", tmp_path / "cache"), "Z9")


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_verify_says_at_once_where_it_cannot_write(option: str, tmp_path: Path) -> None:
    done = harness("verify", option, tmp_path / "nowhere" / "verdict", "--cache", tmp_path / "cache")
    check_refused(done, "there is no directory", str(tmp_path / "nowhere"))


def test_verify_names_an_unknown_guest(tmp_path: Path) -> None:
    check_refused(harness("verify", "--guest", "nope", "--cache", tmp_path / "cache"), "'nope'", "debian")


def test_verify_takes_one_subject_only(tmp_path: Path) -> None:
    done = harness("verify", "--agents", "a.json", "--flake", ".#x", "--cache", tmp_path / "cache")
    check_refused(done, "--agents", "--flake")


def test_a_cache_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_refused(harness("verify", "--cache", tmp_path / "file"), str(tmp_path / "file"), "--vm-cache")


def test_a_mistyped_command_is_answered_with_the_right_one() -> None:
    check_refused(harness("verfy"), "verfy", "verify")


def test_a_mistyped_option_is_answered_with_the_right_one() -> None:
    check_refused(harness("verify", "--agent", "x"), "--agent", "--agents")


@pytest.mark.parametrize(
    "command", ["", "verify", "report", "plan", "image", "image show", "image build", "image prune", "shell", "bench"]
)
def test_every_command_explains_itself(command: str) -> None:
    done = harness(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
