"""Deploying to a host: what is sent, how it is found, and what the user hears when it is not to be had."""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from harness.cache import Cache
from harness.cli import app
from harness.deploy import AS_ROOT, WAY_IN, Remote, find_remote
from harness.errors import HarnessError
from harness.policy import REPOSITORY, reference_plan

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


@pytest.mark.parametrize("given", ["plan.json", "plan", "-"])
def test_a_switch_sends_a_plan_that_was_written_before(ssh: Ssh, tmp_path: Path, given: str) -> None:
    """As it is, with the age files that lie beside it."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "search-token.age").write_bytes(b"age")
    written = CliRunner().invoke(app, ["plan", "--json"]).output
    (tmp_path / given).write_text(written)
    where = [given, "--root", str(tmp_path)] if given == "-" else [str(tmp_path / given)]
    done = CliRunner().invoke(app, ["switch", *where, "--to", "host"], input=written)
    assert done.exit_code == 0, done.output
    assert ssh.files() == {"plan.json": written.strip().encode(), "secrets/search-token.age": b"age"}


@pytest.mark.parametrize("name", ["agents.nix", "agents.json", "-"])
def test_agents_may_be_given_in_the_place_of_a_plan(ssh: Ssh, tmp_path: Path, name: str) -> None:
    text = '[{"name":"one"}]' if name != "agents.nix" else '{ ... }: [ { name = "one"; } ]'
    (tmp_path / name).write_text(text)
    given = "-" if name == "-" else str(tmp_path / name)
    done = CliRunner().invoke(app, ["switch", given, "--to", "host"], input=text)
    assert done.exit_code == 0, done.output
    assert list(json.loads(ssh.files()["plan.json"])["agents"]) == ["one"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as a plan"),
        ('{"agents": {}}', "neither a plan nor a list of agents"),
        ('"plan"', "neither a plan nor a list of agents"),
        ('{"version": 2}', "is no plan that this harness knows"),
        ('{"version": 1}', "is no plan that this harness knows: Object missing required field"),
        ('[{"name": "A B"}]', "name"),
    ],
)
def test_what_is_no_plan_is_refused_with_how_to_have_one(ssh: Ssh, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(HarnessError, match=said):
        call("switch", str(tmp_path / "plan.json"), "--to", "host")
    assert not (tmp_path / "arguments").exists()


@pytest.mark.parametrize("option", ["--agents", "--flake"])
def test_a_plan_and_agents_exclude_each_other(ssh: Ssh, option: str) -> None:
    with pytest.raises(HarnessError, match=f"plan.json and {option} exclude"):
        call("switch", "plan.json", option, "x", "--to", "host")


def test_a_plan_that_is_not_there_is_named(ssh: Ssh, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"none\.json cannot be read as a plan.*No such file"):
        call("switch", str(tmp_path / "none.json"), "--to", "host")


@pytest.mark.parametrize(("code", "ours"), [(0, 0), (1, 1), (2, 2), (3, 3), (137, 1)])
def test_the_exit_code_tells_what_came_of_it(ssh: Ssh, code: int, ours: int) -> None:
    ssh.answer(code)
    assert call("rollback", "3", "--to", "host") == ours
    assert "activate.py rollback 3" in ssh.arguments()


@pytest.mark.parametrize("command", ["switch", "rollback", "generations"])
def test_programs_are_told_the_generations_as_json(ssh: Ssh, tmp_path: Path, command: str) -> None:
    arguments = [str(REPOSITORY / "agents.nix")] if command == "switch" else []
    assert call(command, *arguments, "--json", "--to", "host") == 0
    assert f"activate.py {command} --json" in ssh.arguments()


def test_a_host_that_cannot_be_reached_is_named(ssh: Ssh) -> None:
    ssh.answer(255)
    with pytest.raises(HarnessError, match="somewhere cannot be reached"):
        call("generations", "--to", "somewhere")


def test_on_a_host_without_the_program_nixos_is_remembered(ssh: Ssh) -> None:
    ssh.answer(90)
    with pytest.raises(HarnessError, match="nixos-rebuild switch"):
        call("switch", "--to", "somewhere")


def test_a_login_that_cannot_be_root_is_told_so(ssh: Ssh) -> None:
    """Before anything is tried: the exit code of sudo would be that of a switch that has failed."""
    ssh.answer(91)
    with pytest.raises(HarnessError, match=r"me@host: the login is not root's[\s\S]*NOPASSWD"):
        call("rollback", "--to", "me@host")


SUDO = """#!/bin/sh
[ -e {directory}/no-password ] || exit 1
shift; exec "$@"
"""


@pytest.mark.parametrize(("user", "without_password", "code"), [(0, False, 90), (1000, True, 90), (1000, False, 91)])
def test_the_command_there_runs_as_root_or_not_at_all(
    tmp_path: Path, user: int, without_password: bool, code: int
) -> None:
    """90 is what comes next: that there is no activation program here."""
    for name, text in {"sudo": SUDO.format(directory=tmp_path), "id": f"#!/bin/sh\necho {user}\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    if without_password:
        (tmp_path / "no-password").touch()
    command = AS_ROOT.format(script="'exit 90'", no_root=91)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(["sh", "-c", command], env=path, check=False).returncode == code


def test_an_interrupted_command_says_that_it_goes_on_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(HarnessError, match=r"goes on there[\s\S]*harness generations"):
        Remote("host", ("ssh", "host")).run("true")


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


def test_purging_looks_and_then_asks(ssh: Ssh) -> None:
    done = CliRunner().invoke(app, ["purge", "old", "--to", "host"], input="n\n")
    assert done.exit_code == 1 and "Delete that on host" in done.output
    assert "purge --show -- old" in ssh.arguments()
    done = CliRunner().invoke(app, ["purge", "old", "--to", "host"], input="y\n")
    assert done.exit_code == 0 and "purge --yes -- old" in ssh.arguments()


def test_nobody_is_asked_about_an_agent_that_left_nothing(ssh: Ssh) -> None:
    ssh.answer(2)
    done = CliRunner().invoke(app, ["purge", "old", "--to", "host"], input="y\n")
    assert done.exit_code == 2 and "Delete" not in done.output
    assert "--yes" not in ssh.arguments()


def test_a_hostile_name_is_one_word_there(ssh: Ssh) -> None:
    call("purge", "a;reboot", "--yes", "--to", "host")
    assert "'a;reboot'" in ssh.arguments().replace("'\"'\"'", "'")
