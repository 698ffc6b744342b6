"""Deploying to a host: what is sent, how it is found, and what the user hears when it is not to be had."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cache import Cache
from harness.cli import app
from harness.deploy import WAY_IN, find_remote
from harness.errors import HarnessError
from harness.policy import reference_plan

# Notes its arguments and its input, says something, and ends as it is told to.
SSH = """#!/bin/sh
printf '%s\\n' "$@" > {directory}/arguments
cat > {directory}/input
echo said
exit "$(cat {directory}/code)"
"""


class Ssh:
    """A program ``ssh`` that goes nowhere."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answer(0)

    def answer(self, code: int) -> None:
        (self.directory / "code").write_text(str(code))

    def arguments(self) -> str:
        return (self.directory / "arguments").read_text()

    def files(self) -> dict[str, bytes]:
        """What was in the archive that it was given."""
        with tarfile.open(fileobj=io.BytesIO((self.directory / "input").read_bytes())) as tar:
            return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(SSH.format(directory=tmp_path))
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("TENTAFLAKE_CACHE", str(tmp_path / "cache"))
    return Ssh(tmp_path)


def call(*arguments: str) -> int:
    done = CliRunner().invoke(app, list(arguments))
    if isinstance(done.exception, HarnessError):
        raise done.exception
    return done.exit_code


def test_a_switch_sends_the_plan_and_the_age_files_that_are_there(ssh: Ssh, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "search-token.age").write_bytes(b"age\xff")
    assert call("switch", "--to", "me@host", "--root", str(tmp_path)) == 0
    assert ssh.arguments().startswith("me@host\n")
    sent = ssh.files()
    assert json.loads(sent.pop("plan.json")) == json.loads(reference_plan().to_json())
    assert sent == {"secrets/search-token.age": b"age\xff"}


@pytest.mark.parametrize(("code", "ours"), [(0, 0), (1, 1), (2, 2), (3, 1)])
def test_the_exit_code_tells_what_came_of_it(ssh: Ssh, code: int, ours: int) -> None:
    ssh.answer(code)
    assert call("rollback", "3", "--to", "host") == ours
    assert "activate.py rollback 3" in ssh.arguments()


def test_a_host_that_cannot_be_reached_is_named(ssh: Ssh) -> None:
    ssh.answer(255)
    with pytest.raises(HarnessError, match="somewhere cannot be reached"):
        call("generations", "--to", "somewhere")


def test_on_a_host_without_the_program_nixos_is_remembered(ssh: Ssh) -> None:
    ssh.answer(90)
    with pytest.raises(HarnessError, match="nixos-rebuild switch"):
        call("switch", "--to", "somewhere")


@pytest.mark.parametrize("command", ["switch", "rollback", "generations", "purge"])
def test_without_a_host_and_a_machine_the_user_is_told_how_to_have_one(ssh: Ssh, command: str) -> None:
    with pytest.raises(HarnessError, match=r"none is open[\s\S]*harness shell"):
        call(command)


def test_an_option_is_no_host(ssh: Ssh, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="not"):
        find_remote("-oProxyCommand=evil", Cache(tmp_path))


def test_the_machine_of_a_shell_is_found_while_it_lives(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.run_directory() as directory:
        (directory / WAY_IN).write_text('{"port": 2222, "key": "/key"}')
        remote = find_remote(None, cache)
        assert remote.is_machine and "2222" in remote.ssh
    with pytest.raises(HarnessError, match="none is open"):
        find_remote(None, cache)


def test_two_machines_are_one_too_many(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.run_directory() as one, cache.run_directory() as other:
        for directory in (one, other):
            (directory / WAY_IN).write_text('{"port": 2222, "key": "/key"}')
        with pytest.raises(HarnessError, match="2 are open"):
            find_remote(None, cache)


def test_purging_asks_first(ssh: Ssh) -> None:
    done = CliRunner().invoke(app, ["purge", "old", "--to", "host"], input="n\n")
    assert done.exit_code == 1 and "Delete the state of old" in done.output
    assert not (ssh.directory / "arguments").exists()
    assert call("purge", "old", "--yes", "--to", "host") == 0
    assert "purge --yes -- old" in ssh.arguments()


def test_a_hostile_name_is_one_word_there(ssh: Ssh) -> None:
    call("purge", "a;reboot", "--yes", "--to", "host")
    assert "'a;reboot'" in ssh.arguments().replace("'\"'\"'", "'")
