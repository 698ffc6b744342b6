"""The reference hosts as NixOS evaluates them, whole, where all of nixpkgs is at hand and Nix is new enough for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.nixpkgs import EVALUATE, find_input, whole_obstacle
from harness.policy import REPOSITORY, reference_plan, run_nix


@pytest.fixture(scope="module")
def hosts(nixpkgs: Path) -> dict[str, Any]:
    if reason := whole_obstacle(nixpkgs):
        pytest.skip(reason)
    command = [*EVALUATE, str(Path(__file__).with_name("whole.nix")), "--argstr", "nixpkgs", str(nixpkgs)]
    agenix = find_input("agenix")
    given = ["--argstr", "agenix", str(agenix)] if agenix else []
    output = run_nix([*command, "--arg", "repository", str(REPOSITORY), *given], subject="the flake's hosts")
    found: dict[str, Any] = json.loads(output)
    return found


def test_every_host_evaluates_to_a_system(hosts: dict[str, Any]) -> None:
    systems = {name: host["system"] for name, host in hosts.items()}
    assert systems == {"agent-host": "x86_64-linux", "agent-host-aarch64": "aarch64-linux"}
    for host in hosts.values():
        assert (host["failed"], host["warnings"]) == ([], [])
        assert re.fullmatch(r"/nix/store/\w{32}-nixos-system-agent-host-.*\.drv", host["toplevel"])


def test_every_host_has_the_agents_that_the_harness_attacks(hosts: dict[str, Any]) -> None:
    plan = json.loads(reference_plan().to_json())
    units = {agent["service"]["name"] for agent in plan["agents"].values()} | {"nftables", "tentaflake-routing"}
    for host in hosts.values():
        assert host["plan"] == plan
        assert units <= set(host["services"])


# --- when they are not


def test_a_library_alone_is_no_nixos(tmp_path: Path) -> None:
    assert whole_obstacle(tmp_path) == f"{tmp_path} is nixpkgs' library alone: a whole host takes nixos/ and pkgs/ too"


def test_a_nix_that_is_too_old_is_told_what_it_lacks(tmp_path: Path) -> None:
    for name in ("nixos/lib/eval-config.nix", "lib/minfeatures.nix"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{ missing = [ ]; }")
    assert whole_obstacle(tmp_path) is None
    (tmp_path / "lib" / "minfeatures.nix").write_text('{ missing = [ { description = "Nix 99"; } ]; }')
    assert whole_obstacle(tmp_path) == f"this Nix is too old for {tmp_path}, which asks for: Nix 99"
