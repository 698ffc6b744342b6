"""The reference hosts as NixOS evaluates them, whole, where all of nixpkgs is at hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from harness.lab import Lab
from harness.nixpkgs import EVALUATION, Nix, find_input, find_nix, missing_features, whole_obstacle
from harness.policy import REPOSITORY, reference_plan, run_nix


@pytest.fixture(scope="module")
def hosts(nixpkgs: Path, lab: Lab) -> dict[str, Any]:
    if reason := whole_obstacle(nixpkgs):
        pytest.skip(reason)
    command = [*find_nix(lab.cache, nixpkgs).command("nix-instantiate"), *EVALUATION]
    command += [str(Path(__file__).with_name("whole.nix")), "--argstr", "nixpkgs", str(nixpkgs)]
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


def test_a_switch_is_checked_by_scripts_that_nixpkgs_builds(hosts: dict[str, Any], tmp_path: Path) -> None:
    """By its writeShellApplication, which lets pass what ShellCheck says nothing of."""
    for host in hosts.values():
        checks = {name: text for name, text in host["checks"].items() if name.startswith("tentaflake-")}
        assert checks.keys() == {f"tentaflake-{name}" for name in ("state", "secrets", "table", "docker")}
        program = shutil.which("shellcheck") or pytest.skip("shellcheck is not installed")
        for name, text in checks.items():
            (tmp_path / name).write_text(f"#!/bin/bash\nset -euo pipefail\n{text}")
        done = subprocess.run([program, *tmp_path.iterdir()], capture_output=True, text=True, check=False)
        assert done.stdout == ""


LISTS = {
    *("Environment", "ExecReload", "ExecStart", "ExecStartPost", "ExecStartPre", "ExecStop"),
    *("IPAddressAllow", "ListenStream", "SystemCallFilter"),
}
"""Settings of a unit of which each line is one more (systemd.exec(5), systemd.socket(5) and their like)."""


def settings_of(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            found.setdefault(name, []).append(value)
    return found


def test_what_nixpkgs_says_of_an_agents_unit_too_is_the_plans(hosts: dict[str, Any]) -> None:
    """oci-containers has its own word on most settings of a container's unit."""
    for host in hosts.values():
        for agent in host["plan"]["agents"].values():
            service, unit = agent["service"], settings_of(host["units"][f"{agent['service']['name']}.service"])
            assert unit["Restart"] == [service["restart"]]
            assert unit["RestartSec"] == [str(service["restartSec"])]
            assert unit["StartLimitIntervalSec"] == [str(service["startLimitIntervalSec"])]
            assert unit["Requires"] == [" ".join(service["requires"])]
            assert unit["PartOf"] == [" ".join(service["partOf"])]
            assert set(service["wants"]) <= set(unit["Wants"][0].split())
            assert set(service["after"]) <= set(unit["After"][0].split())
            assert [re.sub(".*/", "", path) for path in unit["ExecStartPre"]] == [
                f"check-state-{agent['user']}",
                "pre-start",
                f"prepare-{agent['user']}",
            ]


def test_no_setting_of_our_units_is_there_twice(hosts: dict[str, Any]) -> None:
    for host in hosts.values():
        for name, text in host["units"].items():
            assert {key for key, values in settings_of(text).items() if len(values) > 1} <= LISTS, name


def test_the_root_file_system_with_quotas_can_be_mounted(hosts: dict[str, Any]) -> None:
    """The kernel asks for the format's module while it mounts /, where there is nothing yet to load it from."""
    for host in hosts.values():
        assert "usrquota" in host["root"] and "quota_v2" in host["initrd"]


def test_no_agent_may_ask_the_nix_daemon(hosts: dict[str, Any]) -> None:
    for host in hosts.values():
        assert host["mayAskNix"] == ["root", "@wheel"]
        assert not set(host["wheel"]) & {agent["user"] for agent in host["plan"]["agents"].values()}


def test_nothing_asks_an_agent_for_an_address(hosts: dict[str, Any]) -> None:
    """And the host's own interfaces are asked as before: that is the control."""
    for host in hosts.values():
        bridges = [agent["network"]["bridge"] for agent in host["plan"]["agents"].values()]
        for manager, patterns in host["unmanaged"].items():
            globs = [pattern.removeprefix("interface-name:") for pattern in patterns]
            for name in (*bridges, "veth12ab34c"):
                assert any(fnmatchcase(name, glob) for glob in globs), (manager, name)
            for name in ("eth0", "enp3s0", "wlan0", "br0"):
                assert not any(fnmatchcase(name, glob) for glob in globs), (manager, name)


def test_images_are_loaded_by_one_unit(hosts: dict[str, Any]) -> None:
    for host in hosts.values():
        unit = settings_of(host["units"]["tentaflake-images.service"])
        assert unit["Type"] == ["oneshot"] and "RemainAfterExit" not in unit  # so each start of an agent asks again
        for agent in host["plan"]["agents"].values():
            of_agent = settings_of(host["units"][f"{agent['service']['name']}.service"])
            assert "tentaflake-images.service" in of_agent["Wants"][0]


# --- when they are not


def test_a_library_alone_is_no_nixos(tmp_path: Path) -> None:
    assert whole_obstacle(tmp_path) == f"{tmp_path} is nixpkgs' library alone: a whole host takes nixos/ and pkgs/ too"


def test_what_a_nix_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "minfeatures.nix").write_text('{ missing = [ { description = "Nix 99"; } ]; }')
    assert missing_features(Nix(), tmp_path) == "Nix 99"
    (tmp_path / "lib" / "minfeatures.nix").write_text("{ missing = [ ]; }")
    assert missing_features(Nix(), tmp_path) == ""
