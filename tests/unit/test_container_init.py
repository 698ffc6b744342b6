"""The program that an agent with secrets in its environment starts through, run here by this machine's shell."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.policy import reference_plan


@pytest.fixture(scope="module")
def script() -> str:
    return reference_plan().container_init.content


def start(
    script: str, directory: Path, *command: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """As Docker would start ``command``, with the container's /run/environment in ``directory``."""
    init = directory / "init"
    init.write_text(script.replace("/run/environment", f"{directory}/environment"))
    init.chmod(0o755)
    return subprocess.run(
        [init, "--", *command], env={"PATH": os.defpath, **(environment or {})}, capture_output=True, check=False
    )


def variables(printed: bytes) -> dict[bytes, bytes]:
    """From what ``env -0`` printed."""
    return dict(line.split(b"=", 1) for line in printed.split(b"\0") if line)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    (tmp_path / "environment").mkdir()
    return tmp_path / "environment"


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"plain", b"plain"),
        (b"line\n", b"line"),
        (b"two\nlines\n\n", b"two\nlines"),
        (b"", b""),
        (b"$(touch pwned) `id` $HOME \"'\\ *", b"$(touch pwned) `id` $HOME \"'\\ *"),
        ("ünï©ødé ☂".encode(), "ünï©ødé ☂".encode()),
        (b"-n", b"-n"),
    ],
)
def test_a_secret_becomes_a_variable_as_it_is(
    script: str, secrets: Path, tmp_path: Path, content: bytes, value: bytes
) -> None:
    (secrets / "KEY").write_bytes(content)
    done = start(script, tmp_path, "env", "-0")
    assert (done.returncode, variables(done.stdout)[b"KEY"]) == (0, value)


def test_nothing_but_the_secrets_comes_into_the_environment(script: str, secrets: Path, tmp_path: Path) -> None:
    for name in ("A", "b_2", "file", "value"):
        (secrets / name).write_text(name)
    found = variables(start(script, tmp_path, "env", "-0", environment={"OTHER": "1"}).stdout)
    own = {name.encode(): name.encode() for name in ("A", "b_2", "file", "value")}
    assert {name: value for name, value in found.items() if name not in (b"PATH", b"PWD")} == own | {b"OTHER": b"1"}


def test_a_command_arrives_word_by_word(script: str, secrets: Path, tmp_path: Path) -> None:
    words = ["a b", "", "--", "$HOME", "'"]
    done = start(script, tmp_path, "printf", "[%s]", *words)
    assert done.stdout.decode() == "".join(f"[{word}]" for word in words)


def test_without_secrets_the_command_runs_all_the_same(script: str, tmp_path: Path) -> None:
    assert start(script, tmp_path, "echo", "there").stdout == b"there\n"


def test_a_secret_that_is_no_file_keeps_the_command_from_running(script: str, secrets: Path, tmp_path: Path) -> None:
    (secrets / "KEY").mkdir()
    done = start(script, tmp_path, "echo", "there")
    assert (done.returncode, done.stdout) == (1, b"")


def test_docker_is_told_a_version(script: str, tmp_path: Path) -> None:
    (tmp_path / "init").write_text(script)
    done = subprocess.run(["sh", tmp_path / "init", "--version"], capture_output=True, text=True, check=True)
    assert "version" in done.stdout


def test_shellcheck_finds_nothing(script: str, tmp_path: Path) -> None:
    program = shutil.which("shellcheck") or pytest.skip("shellcheck is not installed")
    (tmp_path / "init").write_text(script)
    done = subprocess.run([program, tmp_path / "init"], capture_output=True, text=True, check=False)
    assert done.stdout == ""
