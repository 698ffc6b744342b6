"""The NixOS guest where it can be tried without a machine: when it is refused, what it sends, how it waits."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from harness.cache import Cache
from harness.errors import HarnessError
from harness.guests import nixos
from harness.lab import Settings
from harness.policy import Plan, evaluate_specs
from harness.vm.machine import Machine
from harness.vm.shell import Result
from tests.faults.support import run_pytest

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install("nix", "exit 1")``: a program of that name, before all others."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def write(name: str, text: str) -> None:
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    nixos.find_obstacle.cache_clear()
    yield write
    nixos.find_obstacle.cache_clear()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has a Nix store."""
    monkeypatch.setattr(nixos, "STORE", Path("/"))


# --- when it is refused


def test_without_a_store_the_reason_says_so(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixos, "STORE", Path("/nowhere"))
    assert nixos.find_obstacle() == "this machine has no Nix store (/nowhere)"


@pytest.mark.usefixtures("store")
def test_without_nixpkgs_the_reason_is_nix_own(install: Install) -> None:
    install("nix", "echo 'warning: x' >&2; echo 'error: unable to download nixpkgs' >&2; exit 1")
    assert nixos.find_obstacle() == "unable to download nixpkgs"


LISTING = """\
these derivations will be built:
  /nix/store/aaa-{built}.drv
these paths will be fetched:
  /nix/store/bbb-{fetched}
"""


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("built", "fetched", "reason"),
    [
        ("linux-6.12.40", "bash-5.3", "no binary cache answers: the kernel itself would have to be built"),
        ("unit-docker.service", "linux-6.12.40", None),
    ],
)
def test_a_kernel_that_would_have_to_be_built_is_no_guest(
    install: Install, tmp_path: Path, built: str, fetched: str, reason: str | None
) -> None:
    (tmp_path / "listing").write_text(LISTING.format(built=built, fetched=fetched))
    install("nix", f"cat {tmp_path}/listing >&2")
    assert nixos.find_obstacle() == reason


@pytest.mark.usefixtures("store")
def test_a_build_that_cannot_be_is_one_clear_error(install: Install, tmp_path: Path) -> None:
    install("nix", "echo 'error: no network' >&2; exit 1")
    with pytest.raises(HarnessError, match="nixos guest cannot be built here: no network"):
        nixos.NixosGuest().build(Cache(tmp_path))


# --- what it sends


class Recorder:
    """In place of a machine: notes what it is to run, and has the paths of ``there``."""

    def __init__(self, there: Sequence[str]) -> None:
        self.there = there
        self.ran: list[tuple[str | Sequence[str], bytes]] = []

    def run(self, command: str | Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> Result:
        self.ran.append((command, stdin))
        text = "\n".join(self.there) if "--requisites" in command else ""
        return Result(command=str(command), exit=0, stdout=text.encode(), stderr=b"", timed_out=False, seconds=0.0)


@pytest.fixture
def plan() -> Plan:
    return evaluate_specs([{"name": "coding", "memory": "512m"}], host={"name": "elsewhere"})


def test_a_switch_sends_what_the_machine_lacks_and_no_more(install: Install, tmp_path: Path, plan: Plan) -> None:
    install("nix", f'cp "$(echo "$@" | grep -o "/[^ ]*host-[^ ]*json")" {tmp_path}/given; echo /nix/store/new')
    install(
        "nix-store",
        'if [ "$1" = --export ]; then echo "$@"; else echo /nix/store/glibc /nix/store/unit /nix/store/new; fi',
    )
    machine = Recorder(["/nix/store/glibc", "/nix/store/old"])
    nixos.NixosGuest().activate(cast(Machine, machine), plan)
    [_, (switch, sent), (waited, _)] = machine.ran
    assert sent == b"--export /nix/store/unit /nix/store/new\n"
    assert switch == ["sh", "-c", nixos.SWITCH, "sh", "/nix/store/new"]
    assert waited == nixos.WAIT
    given: dict[str, Any] = json.loads((tmp_path / "given").read_text())
    assert evaluate_specs(given["agents"], host=given["host"]) == plan
    assert given["secrets"] is None


def test_the_flakes_own_image_is_on_the_same_wire() -> None:
    assert json.loads((nixos.EXPRESSION.parent / "files" / "lan.json").read_text()) == nixos.lan()


# --- how it waits


def wait() -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", nixos.WAIT], capture_output=True, text=True, check=False, timeout=20)


SYSTEMCTL = """case $2 in
--property=Wants) echo sshd.service docker-hermes-a.service docker.service docker-hermes-b.service ;;
--property=Result) echo {result} ;;
--property=NRestarts) echo {restarts} ;;
esac"""


def test_it_waits_for_every_agent_and_for_nobody_else(install: Install, tmp_path: Path) -> None:
    install("systemctl", SYSTEMCTL.format(result="success", restarts=0))
    install("docker", f'echo "$4" >> {tmp_path}/asked; [ $(grep -c "$4" {tmp_path}/asked) -gt 1 ] && echo true')
    assert wait().returncode == 0
    assert (tmp_path / "asked").read_text().split() == ["hermes-a", "hermes-a", "hermes-b", "hermes-b"]


def test_an_agent_that_keeps_failing_is_named_with_its_last_words(install: Install) -> None:
    install("systemctl", SYSTEMCTL.format(result="exit-code", restarts=3))
    install("docker", "exit 1")
    install("journalctl", "echo its last words")
    done = wait()
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["agent container hermes-a does not come up:", "its last words"]


def test_an_agent_that_lacks_a_secret_is_not_waited_for(install: Install) -> None:
    install("systemctl", SYSTEMCTL.format(result="exec-condition", restarts=0))
    install("docker", "exit 1")
    assert wait().returncode == 0


# --- what pytest says of it


@pytest.mark.usefixtures("install")
def test_tests_skip_with_the_reason_that_the_header_gives(install: Install, tmp_path: Path) -> None:
    install("nix", "echo 'error: there is no network' >&2; exit 1")
    test = "def test_with(machine): pass\ndef test_without(): pass\n"
    path = {"PATH": os.environ["PATH"]}
    done = run_pytest(
        tmp_path,
        test,
        "--vm-guest=nixos",
        "--vm-nixos-packages=nixpkgs",
        "-rs",
        f"--vm-cache={tmp_path}",
        variables=path,
    )
    reason = f"there is no nixos guest here: {nixos.find_obstacle()}"
    assert f"vm: no test has a machine: {reason}" in done.stdout
    assert f": {reason}" in done.stdout.partition("short test summary")[2]
    assert "1 passed, 1 skipped" in done.stdout


def test_only_debian_has_suites() -> None:
    assert Settings(suite="forky").label == "debian forky"
    with pytest.raises(HarnessError, match="suite is forky, and the nixos guest has none"):
        Settings(guest="nixos", suite="forky")
