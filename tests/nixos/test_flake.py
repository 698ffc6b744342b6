"""The flake: its lock file, its outputs, its template."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.nixpkgs import EVALUATE
from harness.policy import REPOSITORY, Plan, PolicyError, evaluate_flake, reference_plan, run_nix
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
def outputs(nixpkgs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    host = tmp_path_factory.mktemp("host")
    shutil.copytree(REPOSITORY / "template", host, dirs_exist_ok=True)
    (host / "hardware-configuration.nix").write_text('{ nixpkgs.hostPlatform = "x86_64-linux"; }')
    command = [*EVALUATE, str(Path(__file__).with_name("flake.nix")), "--argstr", "nixpkgs", str(nixpkgs)]
    arguments = ["--arg", "repository", str(REPOSITORY), "--argstr", "template", str(host)]
    found: dict[str, Any] = json.loads(run_nix([*command, *arguments], subject="the flake's outputs"))
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


PLACEHOLDER = "git+file:///where/tentaflake/is"


def test_the_template_is_a_host_with_two_agents(outputs: dict[str, Any]) -> None:
    [plan] = outputs["template"]["plans"].values()
    assert plan["agents"].keys() == {"coding", "writer"}
    assert outputs["template"]["configurations"] == {"my-host": {"plan": plan, "assertions": []}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a clone of this flake, without the files that no plan needs."""
    source = tmp_path_factory.mktemp("tentaflake")
    for name in ("flake.nix", "flake.lock", "agents.nix", "host.nix"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("modules", "template"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    git(source, "init")
    git(source, "add", ".")
    git(source, "commit", "-m", "tentaflake")
    return f"git+file://{source}"


def evaluate_with(source: str, host: Path) -> Plan:
    """The plan of the host in this directory, whose flake gets ``source`` for its input."""
    written = (host / "flake.nix").read_text()
    assert PLACEHOLDER in written
    (host / "flake.nix").write_text(written.replace(PLACEHOLDER, source))
    git(host, "init")
    git(host, "add", ".")
    return evaluate_flake(f"{host}#my-host")


@pytest.fixture
def host(source: str, tmp_path: Path) -> Path:
    """What `nix flake init -t` makes in an empty directory. It takes a store whose paths are where they say."""
    directory, store = tmp_path / "host", tmp_path / "nix"
    directory.mkdir()
    places = {f"NIX_{name}_DIR": str(store / name.lower()) for name in ("STORE", "STATE", "LOG")}
    command = ["nix", "--extra-experimental-features", "nix-command flakes", "flake", "init", "-t", source]
    variables = os.environ | places | {"XDG_CACHE_HOME": str(store / "cache")}
    subprocess.run(command, cwd=directory, env=variables, stdin=subprocess.DEVNULL, check=True)
    return directory


def test_the_template_can_be_verified_as_it_is(source: str, host: Path) -> None:
    plan = evaluate_with(source, host)
    assert plan.host.name == "my-host"
    assert {name: agent.egress for name, agent in plan.agents.items()} == {"coding": "internet", "writer": "none"}


def test_whoever_forgets_to_say_where_the_flake_is_gets_nobody_elses(host: Path) -> None:
    git(host, "init")
    git(host, "add", ".")
    with pytest.raises(PolicyError, match="/where/tentaflake/is"):
        evaluate_flake(f"{host}#my-host")


def test_a_line_adds_an_agent_and_changes_no_other(source: str, host: Path) -> None:
    before = evaluate_with(source, host)
    agents = (host / "agents.nix").read_text()
    (host / "agents.nix").write_text(agents.replace("\n]", '\n  (mkHermesAgent { name = "third"; memory = "1g"; })\n]'))
    after = evaluate_flake(f"{host}#my-host")
    assert after.agents.keys() == {"coding", "third", "writer"}
    assert {name: after.agents[name] for name in before.agents} == before.agents


def test_a_mistake_is_told_in_the_policys_words(source: str, host: Path) -> None:
    evaluate_with(source, host)
    agents = (host / "agents.nix").read_text()
    (host / "agents.nix").write_text(agents.replace('"internet"', '"everywhere"'))
    with pytest.raises(PolicyError, match=r"agent coding: egress = \"everywhere\""):
        evaluate_flake(f"{host}#my-host")


def test_the_flake_in_the_documentation_can_be_verified(source: str, tmp_path: Path) -> None:
    [flake] = re.findall(r"```nix\n(\{\n  inputs.*?)```", (REPOSITORY / "docs" / "nixos.md").read_text(), re.DOTALL)
    (tmp_path / "flake.nix").write_text(flake)
    shutil.copy(REPOSITORY / "template" / "agents.nix", tmp_path)
    plan = evaluate_with(source, tmp_path)
    assert plan.host.tailnet_interface == "tailscale0"
    assert plan.agents.keys() == {"coding", "writer"}


def test_the_commands_in_the_documentation_name_the_same_place() -> None:
    text = (REPOSITORY / "docs" / "nixos.md").read_text()
    assert text.count(PLACEHOLDER) == 3
    assert f"nix flake init -t {PLACEHOLDER} " in text and f"nix run {PLACEHOLDER}#verify --" in text
