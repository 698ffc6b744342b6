"""The flake: its lock file, its outputs, its template."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.nixpkgs import EVALUATE
from harness.policy import REPOSITORY, Plan, evaluate_flake, reference_plan, run_nix
from tests.policy.test_evaluation import git

Node = dict[str, Any]


# --- flake.lock


@pytest.fixture(scope="module")
def nodes() -> dict[str, Node]:
    found: dict[str, Node] = json.loads((REPOSITORY / "flake.lock").read_text())["nodes"]
    return found


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    """The inputs of flake.nix."""
    expression = f"(import {REPOSITORY}/flake.nix).inputs"
    found: dict[str, Any] = json.loads(run_nix([*EVALUATE, "--expr", expression], subject="flake.nix"))
    return found


def locked(nodes: dict[str, Node], path: list[str]) -> str:
    """The node that an input path leads to, from the root; one that follows another is that other."""
    name = "root"
    for step in path:
        target = nodes[name]["inputs"][step]
        name = target if isinstance(target, str) else locked(nodes, target)
    return name


def test_every_input_is_locked_and_no_other(nodes: dict[str, Node], declared: dict[str, Any]) -> None:
    assert nodes["root"]["inputs"].keys() == declared.keys()


def test_every_input_is_locked_from_where_the_flake_says(nodes: dict[str, Node], declared: dict[str, Any]) -> None:
    for name, source in declared.items():
        original = nodes[locked(nodes, [name])]["original"]
        assert source["url"] == "/".join(
            ["github:" + original["owner"], original["repo"], *([original["ref"]] if "ref" in original else [])]
        )


def test_what_follows_another_input_does_so_in_the_lock(nodes: dict[str, Node], declared: dict[str, Any]) -> None:
    overrides = [
        (name, inner, override["follows"])
        for name, source in declared.items()
        for inner, override in source.get("inputs", {}).items()
    ]
    assert ("agenix", "nixpkgs", "nixpkgs") in overrides
    for name, inner, follows in overrides:
        assert nodes[locked(nodes, [name])]["inputs"][inner] == [step for step in follows.split("/") if step]


def test_every_node_has_a_revision_and_a_hash(nodes: dict[str, Node]) -> None:
    for name, node in nodes.items():
        if name != "root":
            source = node["locked"]
            assert re.fullmatch(r"[0-9a-f]{40}", source["rev"]), name
            assert re.fullmatch(r"sha256-[A-Za-z0-9+/]{43}=", source["narHash"]), name
            assert source["lastModified"] > 0
            assert {source[part] for part in ("type", "owner", "repo")} == {
                node["original"][part] for part in ("type", "owner", "repo")
            }


def test_every_node_is_somebodys_input(nodes: dict[str, Node]) -> None:
    used = {locked(nodes, [step]) for step in nodes["root"]["inputs"]}
    for node in nodes.values():
        for target in node.get("inputs", {}).values():
            used.add(target if isinstance(target, str) else locked(nodes, target))
    assert used | {"root"} >= nodes.keys()


def test_there_is_one_nixpkgs(nodes: dict[str, Node]) -> None:
    assert [name for name, node in nodes.items() if node.get("original", {}).get("repo") == "nixpkgs"] == ["nixpkgs"]


# --- outputs


@pytest.fixture(scope="module")
def outputs(nixpkgs: Path) -> dict[str, Any]:
    command = [*EVALUATE, str(Path(__file__).with_name("flake.nix")), "--argstr", "nixpkgs", str(nixpkgs)]
    found: dict[str, Any] = json.loads(
        run_nix([*command, "--arg", "repository", str(REPOSITORY)], subject="the flake's outputs")
    )
    return found


def test_the_hosts_are_what_the_harness_attacks(outputs: dict[str, Any]) -> None:
    plan = json.loads(reference_plan().to_json())
    assert outputs["plans"] == {"agent-host": plan}
    assert outputs["platforms"] == {"agent-host": "x86_64-linux", "agent-host-aarch64": "aarch64-linux"}
    for configuration in outputs["configurations"].values():
        assert configuration == {"plan": plan, "assertions": []}


def test_the_image_that_agents_have_by_default_is_built_by_the_flake(outputs: dict[str, Any]) -> None:
    images = {agent["container"]["image"] for agent in outputs["plans"]["agent-host"]["agents"].values()}
    assert images & set(outputs["imageStreams"]) == images


def test_every_module_is_an_output(outputs: dict[str, Any]) -> None:
    modules = REPOSITORY / "modules"
    files = {path.stem for path in modules.glob("*.nix")} - {"options", "hermes-image"}
    assert files | {path.parent.name for path in modules.glob("*/default.nix")} - {"policy"} == set(outputs["modules"])


def test_what_has_secrets_brings_agenix(outputs: dict[str, Any]) -> None:
    assert outputs["withAgenix"] == ["default", "secrets"]


def test_both_systems_have_everything(outputs: dict[str, Any]) -> None:
    assert all(systems == ["aarch64-linux", "x86_64-linux"] for systems in outputs["perSystem"].values())
    programs = {"default", "harness", "hermes-auditd", "hermes-image", "tentaflake-tts"}
    assert all(programs <= set(packages) for packages in outputs["packages"].values())
    assert [system for system, packages in outputs["packages"].items() if "guest-image" in packages] == ["x86_64-linux"]
    assert all({"formatting", "hosts", "plan", "tests"} <= set(checks) for checks in outputs["checks"].values())
    assert [system for system, checks in outputs["checks"].items() if "suite" in checks] == ["x86_64-linux"]


def test_the_guest_is_a_host_with_a_way_in_for_the_harness(outputs: dict[str, Any]) -> None:
    guest = outputs["guest"]
    assert guest["assertions"] == []
    assert guest["shell"]["ExecStart"].endswith("guest_shell.py")
    assert guest["disk"] == {"device": "/dev/vda", "fsType": "ext4", "options": ["usrquota"]}
    assert guest["interfaces"] == ["eth0", "eth1"]
    assert (guest["tailscale"], guest["resolver"]) == (False, "/etc/resolv.upstream")


# --- the template


def test_the_template_is_a_host_with_two_agents(outputs: dict[str, Any]) -> None:
    assert outputs["template"]["my-host"]["agents"].keys() == {"coding", "writer"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This flake, without the files that no plan needs."""
    source = tmp_path_factory.mktemp("tentaflake")
    for name in ("flake.nix", "flake.lock", "agents.nix", "host.nix"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(REPOSITORY / "modules", source / "modules", ignore=shutil.ignore_patterns("__pycache__"))
    return source


def evaluate_with(source: Path, host: Path) -> Plan:
    """The plan of the host in this directory, whose flake has ``source`` for its input."""
    written = (host / "flake.nix").read_text()
    assert "github:OWNER/tentaflake" in written
    (host / "flake.nix").write_text(written.replace("github:OWNER/tentaflake", f"path:{source}"))
    git(host, "init")
    git(host, "add", ".")
    return evaluate_flake(f"{host}#my-host")


def test_the_template_can_be_verified_as_it_is(source: Path, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "template", tmp_path / "host")
    plan = evaluate_with(source, tmp_path / "host")
    assert plan.host.name == "my-host"
    assert {name: agent.egress for name, agent in plan.agents.items()} == {"coding": "internet", "writer": "none"}


def test_the_flake_in_the_documentation_can_be_verified(source: Path, tmp_path: Path) -> None:
    [flake] = re.findall(r"```nix\n(\{\n  inputs.*?)```", (REPOSITORY / "docs" / "nixos.md").read_text(), re.DOTALL)
    (tmp_path / "flake.nix").write_text(flake)
    shutil.copy(REPOSITORY / "template" / "agents.nix", tmp_path)
    plan = evaluate_with(source, tmp_path)
    assert plan.host.tailnet_interface == "tailscale0"
    assert plan.agents.keys() == {"coding", "writer"}
