"""What NixOS makes of a plan is what the Debian activation makes of it, for any host."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from harness.fuzz.parsers import Stage
from harness.guests import activate
from harness.nixpkgs import EVALUATE
from harness.policy import REPOSITORY, evaluate_specs, reference_plan, run_nix
from tests.nixos.support import Configuration, Evaluate, Host, docker_run, hosts, quick, script


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


def unit(text: str) -> dict[str, list[str]]:
    """The settings of a unit file, each with its lines."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def service(config: Configuration, agent: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["services"][agent["service"]["name"]]
    return found


def test_the_reference_host_is_the_same_plan(configure: Evaluate) -> None:
    reference = json.loads(reference_plan().to_json())
    host = {name: value for name, value in reference["host"].items() if value is not None}
    from_modules = configure(agents=_specs(), host=host)["plan"]
    assert from_modules == reference


def _specs() -> list[dict[str, Any]]:
    """The specs of agents.nix, as data."""
    expression = f"import {REPOSITORY}/agents.nix {{ mkHermesAgent = spec: spec; }}"
    specs: list[dict[str, Any]] = json.loads(run_nix([*EVALUATE, "--expr", expression], subject="agents.nix"))
    return specs


@quick
@given(hosts)
def test_typed_options_come_to_the_plan_of_the_specs(configure: Evaluate, host: Host) -> None:
    config = configure(**host)
    assert config["assertions"] == []
    plan = evaluate_specs(host["agents"], host=host["host"])
    assert json.dumps(config["plan"], sort_keys=True) == json.dumps(json.loads(plan.to_json()), sort_keys=True)


@quick
@given(hosts)
def test_users_and_groups_are_the_same(configure: Evaluate, host: Host) -> None:
    config = configure(**host)
    lines = [shlex.split(line) for line in activate.sysusers(config["plan"]).splitlines() if line]
    # The audit daemon's have no fixed number, on either.
    assert ("hermes-auditd" in config["users"]) == any(line[1] == "hermes-auditd" for line in lines)
    lines = [line for line in lines if line[1] not in ("hermes-auditd", "hermes-audit")]
    ours = {name: user for name, user in config["users"].items() if name != "hermes-auditd"}
    assert sorted(line[:-1] for line in lines if line[0] == "u") == [
        ["u", name, f"{user['uid']}:{user['group']}", user["description"], user["home"]]
        for name, user in sorted(ours.items())
    ]
    groups = {name: group for name, group in config["groups"].items() if name != "hermes-audit"}
    assert sorted(line for line in lines if line[0] == "g") == [
        ["g", name, str(group["gid"])] for name, group in sorted(groups.items())
    ]
    assert not any(group["members"] for group in groups.values())
    assert all(user["isSystemUser"] and not user["extraGroups"] for user in ours.values())
    # nologin on both; on NixOS it is every system user's shell.
    assert all(line[-1] == "/usr/sbin/nologin" for line in lines if line[0] == "u")


@quick
@given(hosts)
def test_directories_are_the_same(configure: Evaluate, host: Host) -> None:
    config = configure(**host)
    settings = config["tmpfiles"]["settings"].get("10-tentaflake", {})
    lines = [
        f"{kind} {path} {rule['mode']} {rule['user']} {rule['group']} {rule['age']}"
        for path, rules in settings.items()
        for kind, rule in rules.items()
    ]
    assert sorted(lines) == sorted(activate.tmpfiles(config["plan"]).splitlines())


@quick
@given(hosts)
def test_containers_are_run_with_the_same_flags(configure: Evaluate, host: Host) -> None:
    config = configure(**host)
    assert config["backend"] == "docker" or not host["agents"]
    assert len(config["containers"]) == len(host["agents"])
    for agent in config["plan"]["agents"].values():
        name = agent["container"]["name"]
        container = config["containers"][name]
        assert container["serviceName"] == agent["service"]["name"]
        debian, nixos = activate.run_arguments(agent), docker_run(name, container)
        # The daemon's own setting, which oci-containers says once more.
        nixos.remove(f"--log-driver={config['plan']['docker']['settings']['log-driver']}")
        tail = len(container["cmd"]) + 1
        assert nixos[-tail:] == debian[-tail:]
        assert sorted(nixos[:-tail]) == sorted(debian[:-tail])


@quick
@given(hosts)
def test_what_comes_before_a_container_is_the_same(configure: Evaluate, stage: Stage, host: Host) -> None:
    """Mount point, quota and network: both scripts are run where every program only notes down its arguments."""
    config = configure(**host)
    for agent in config["plan"]["agents"].values():
        *_, prepare = service(config, agent)["serviceConfig"]["ExecStartPre"]
        nixos = stage.run(script(prepare))
        debian = [c for c in stage.run(activate.start_script(agent)) if c[1] not in ("rm", "run")]
        assert _labels_read(nixos) == _labels_read(debian)
        assert ["docker", "network", "create"] in [command[:3] for command in nixos]


def _labels_read(commands: list[list[str]]) -> list[list[list[str]]]:
    """Nix and Python quote the same words differently for a shell, which is what the network's label is."""
    return [[shlex.split(word) if word.startswith("tentaflake=") else [word] for word in c] for c in commands]


def test_a_network_that_is_as_it_should_be_stays(configure: Evaluate, stage: Stage) -> None:
    config = configure(agents=[{"name": "a"}])
    *_, prepare = service(config, config["plan"]["agents"]["a"])["serviceConfig"]["ExecStartPre"]
    [created] = [c for c in stage.run(script(prepare)) if c[:3] == ["docker", "network", "create"]]
    label = created[created.index("--label") + 1].removeprefix("tentaflake=")
    assert [c[2] for c in stage.run(script(prepare), label) if c[0] == "docker"] == ["inspect"]


@quick
@given(hosts)
def test_units_are_ordered_and_restarted_the_same(configure: Evaluate, host: Host) -> None:
    config = configure(**host)
    wanted = unit(activate.target_unit(config["plan"])).get("Wants", [])
    for agent in config["plan"]["agents"].values():
        debian, nixos = unit(activate.agent_unit(agent)), service(config, agent)
        ours = {activate.DECIDED}  # NixOS decides about generations before there is any unit
        for setting, option in (("After", "after"), ("Requires", "requires"), ("Wants", "wants"), ("PartOf", "partOf")):
            assert set(debian[setting][0].split()) - ours == set(nixos[option])
        assert debian["StartLimitIntervalSec"] == [str(nixos["startLimitIntervalSec"])]
        for name in ("Restart", "RestartSec"):
            assert debian[name] == [str(nixos["serviceConfig"][name])]
        started = config["containers"][agent["container"]["name"]]["autoStart"]
        assert started == (agent["service"]["name"] + ".service" in wanted)


@quick
@given(hosts)
def test_the_firewall_is_the_same(configure: Evaluate, host: Host) -> None:
    config = configure(**host)
    [(name, table)] = config["networking"]["nftables"]["tables"].items()
    assert config["networking"]["nftables"]["enable"] and table["enable"]
    assert not config["networking"]["firewall"]["enable"]
    # As nixos/modules/services/networking/nftables.nix writes a table.
    head = f"table {table['family']} {name}"
    assert activate.firewall(config["plan"]) == f"{head}\ndelete {head}\n{head} {{\n{table['content']}\n}}\n"


@quick
@given(hosts)
def test_secrets_are_the_same(configure: Evaluate, host: Host) -> None:
    config = configure(**host)
    plan = config["plan"]
    assert config["age"]["secrets"].keys() == plan["secrets"].keys()
    if plan["secrets"]:
        assert config["age"]["identityPaths"] == [plan["host"]["secretsIdentity"]]
    for name, secret in config["age"]["secrets"].items():
        assert secret["path"] == str(activate.SECRETS / name)
        assert secret["file"] == f"/flake/{plan['secrets'][name]['file']}"
        owner = config["users"][secret["owner"]]["uid"], config["groups"][secret["group"]]["gid"]
        assert owner == activate.owner_of(plan, name)
        assert secret["mode"] == plan["secrets"][name]["mode"] == "0400"
    for agent in plan["agents"].values():
        condition = service(config, agent)["serviceConfig"].get("ExecCondition")
        assert bool(condition) == bool(agent["secrets"]) == ("ExecCondition" in unit(activate.agent_unit(agent)))
        for text in [script(condition), activate.condition_script(agent)] if condition else []:
            paths = re.findall(r"/run/agenix/[\w.@-]+", text)
            assert set(paths) == {mounted["path"] for mounted in agent["secrets"]}


@quick
@given(hosts)
def test_configurations_are_the_same(configure: Evaluate, host: Host) -> None:
    config = configure(**host)
    for agent in config["plan"]["agents"].values():
        wanted = agent["config"]
        file = config["etc"][wanted["path"].removeprefix("/etc/")]
        assert (
            file["text"]
            == wanted["content"]
            == activate.render(config["plan"])[f"agents/{agent['name']}/config.yaml"][1]
        )
        assert [file[part] for part in ("mode", "user", "group")] == [
            wanted[part] for part in ("mode", "user", "group")
        ]
        assert file["source"] in service(config, agent)["restartTriggers"]


def test_an_agent_without_its_secret_does_not_start(configure: Evaluate, tmp_path: Path) -> None:
    config = configure(agents=[{"name": "a", "secrets": [{"name": "key", "file": "key.age"}]}, {"name": "b"}])
    plan = config["plan"]
    condition = service(config, plan["agents"]["a"])["serviceConfig"]["ExecCondition"]
    assert "ExecCondition" not in service(config, plan["agents"]["b"])["serviceConfig"]
    for text in (script(condition), activate.condition_script(plan["agents"]["a"])):
        assert _run(text.replace("/run/agenix/key", str(tmp_path / "key"))) == (
            1,
            "agent a does not start without its secret key",
        )
    (tmp_path / "key").touch()
    for text in (script(condition), activate.condition_script(plan["agents"]["a"])):
        assert _run(text.replace("/run/agenix/key", str(tmp_path / "key"))) == (0, "")


def _run(text: str) -> tuple[int, str]:
    """The exit code, and the message up to its first colon."""
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip().partition(":")[0]


@quick
@given(hosts)
def test_the_host_is_the_same(configure: Evaluate, host: Host) -> None:
    """What is no agent's: Docker's settings, the slice, routing, the guard, the program that exports secrets."""
    config = configure(**host)
    plan, files = config["plan"], activate.render(config["plan"])
    assert config["docker"] == plan["docker"]["settings"] | {"live-restore": False}  # which is Docker's default
    assert json.loads(files["daemon.json"][1]) == plan["docker"]["settings"]
    name = plan["slice"]["name"].removesuffix(".slice")
    limits = unit(files[f"units/{name}.slice"][1])
    for limit in ("MemoryMax", "MemorySwapMax"):
        assert limits[limit] == [str(config["slices"][name]["sliceConfig"][limit])]
    init = config["etc"][plan["containerInit"]["path"].removeprefix("/etc/")]
    assert (init["text"], init["mode"]) == (plan["containerInit"]["content"], plan["containerInit"]["mode"])

    debian = unit(files["units/tentaflake-routing.service"][1])
    nixos = config["services"]["tentaflake-routing"]
    for setting in ("ExecStart", "ExecStop"):
        steps = [line.split("/bin/ip ")[1] for line in nixos["serviceConfig"][setting]]
        assert sorted(steps) == sorted(line.split("/sbin/ip ")[1] for line in debian[setting])
    assert set(debian["Before"][0].split()) == set(nixos["before"])
    assert "docker.service" in config["services"]["nftables"]["before"]

    timer = unit(files["units/tentaflake-guard.timer"][1])
    ours = config["timers"]["tentaflake-guard"]
    assert timer == {"Description": [ours["description"]]} | {
        name: [str(value)] for name, value in ours["timerConfig"].items()
    }
    assert ours["wantedBy"] == ["timers.target"]


@quick
@given(hosts)
def test_audit_and_speech_are_the_same(configure: Evaluate, host: Host) -> None:
    """The services that a plan describes by unit: on both hosts all that it says, and what to run."""
    config = configure(**host)
    plan, files = config["plan"], activate.render(config["plan"])
    described = activate.services(plan)
    for name, sections in described.items():
        base, _, kind = name.partition(".")
        nixos = config[f"{kind}s"][base]
        section, settings = (
            ("Service", nixos["serviceConfig"])
            if kind == "service"
            else ("Socket", nixos["socketConfig"] | {"ListenStream": nixos["listenStreams"]})
        )
        assert settings.items() >= sections[section].items()
        to_run = {setting.partition("=")[0] for setting in activate.PROGRAMS.get(name, [])}
        assert settings.keys() - sections[section].keys() <= to_run
        assert nixos["description"] == sections["Unit"]["Description"]
        for option, setting in (("after", "After"), ("requires", "Requires")):
            assert nixos[option] == str(sections["Unit"].get(setting, "")).split()
        debian = unit(files[f"units/{name}"][1])
        for key, value in sections[section].items():
            said = [line for line in debian[key] if f"{key}={line}" not in activate.PROGRAMS.get(name, [])]
            assert said == ([value] if isinstance(value, str) else value)
    ours = {f"{name}.{kind}" for kind in ("service", "socket") for name in config[f"{kind}s"]}
    assert {name for name in ours if name.startswith(("hermes-auditd", "tentaflake-tts"))} == described.keys()
    written = config["etc"].get("hermes-auditd/config.json", {}).get("json")
    assert written == (json.loads(files["audit.json"][1]) if plan["agents"] else None)


COMPARED = {
    "plan.json": "test_typed_options_come_to_the_plan_of_the_specs",
    "nftables.nft": "test_the_firewall_is_the_same",
    "(note|guard)-table": "test_the_guard_compares_what_is_loaded_with_what_was",
    r"watch-agents|units/tentaflake-watch\.service": "test_agents_are_watched_the_same",
    "sysusers.conf": "test_users_and_groups_are_the_same",
    "tmpfiles.conf": "test_directories_are_the_same",
    "audit.json": "test_audit_and_speech_are_the_same",
    "daemon.json": "test_the_host_is_the_same",
    r"agents/[^/]+/start": "test_containers_are_run_with_the_same_flags",
    r"agents/[^/]+/condition": "test_an_agent_without_its_secret_does_not_start",
    r"agents/[^/]+/config\.yaml": "test_configurations_are_the_same",
    r"units/docker-hermes-[^/]+\.service": "test_units_are_ordered_and_restarted_the_same",
    r"units/(hermes-auditd|tentaflake-tts)\.(service|socket)": "test_audit_and_speech_are_the_same",
    r"units/[a-z-]+\.slice": "test_the_host_is_the_same",
    r"units/tentaflake-(routing\.service|guard\.timer)": "test_the_host_is_the_same",
    r"units/tentaflake-guard\.service": "test_the_guard_compares_what_is_loaded_with_what_was",
    r"units/nftables\.service": "test_the_guard_compares_what_is_loaded_with_what_was",
}
# agenix' own; and NixOS' targets.
ON_DEBIAN_ONLY = ["units/tentaflake-secrets.service", "units/tentaflake.target"]


@quick
@given(hosts)
def test_no_file_of_the_debian_host_has_been_forgotten(host: Host) -> None:
    plan = json.loads(evaluate_specs(host["agents"], host=host["host"]).to_json())
    for name in activate.render(plan).keys() - set(ON_DEBIAN_ONLY):
        [test] = [test for pattern, test in COMPARED.items() if re.fullmatch(pattern, name)]
        assert callable(globals()[test])


def test_the_guard_compares_what_is_loaded_with_what_was(configure: Evaluate, tmp_path: Path) -> None:
    """What both scripts do, tests/policy/test_guard.py tries; here they are the plan's, where it says so."""
    config = configure(agents=[{"name": "a"}])
    services, plan = config["services"], config["plan"]
    note = script(services["nftables"]["serviceConfig"]["ExecStartPost"][0])
    assert script(services["nftables"]["serviceConfig"]["ExecReload"][0]) == note
    assert note == f"export PATH=/nix/store/jq/bin:/nix/store/nftables/bin:$PATH\n{plan['nftables']['note']}\n"
    assert services["tentaflake-guard"]["script"].rstrip() == plan["nftables"]["guard"].rstrip()
    files = activate.render(plan)
    for unit_name, name, settings in (
        ("nftables.service", "note", ("ExecStart", "ExecReload")),
        ("tentaflake-guard.service", "guard", ("ExecStart",)),
    ):
        assert files[f"{name}-table"][1] == plan["nftables"][name]
        for setting in settings:
            assert f"/bin/sh {activate.CURRENT}/{name}-table" in unit(files[f"units/{unit_name}"][1])[setting]


def test_agents_are_watched_the_same(configure: Evaluate) -> None:
    """What the script does, tests/policy/test_watch.py tries; the guard's timer calls it."""
    config = configure(agents=[{"name": "a"}])
    services, plan, files = config["services"], config["plan"], activate.render(config["plan"])
    service, debian = services["tentaflake-watch"], unit(files["units/tentaflake-watch.service"][1])
    assert service["script"].rstrip() == plan["watch"].rstrip() == files["watch-agents"][1].rstrip()
    assert debian["ExecStart"] == [f"/bin/sh {activate.CURRENT}/watch-agents"]
    assert debian["Description"] == [service["description"]]
    guard = unit(files["units/tentaflake-guard.service"][1])
    assert guard["Wants"] == services["tentaflake-guard"]["wants"] == ["tentaflake-watch.service"]


def test_an_agent_does_not_start_on_what_another_has_left(configure: Evaluate, tmp_path: Path) -> None:
    """NixOS knows no agents but those of its configuration: so it looks first whose the files are."""
    config = configure(agents=[{"name": "a"}])
    agent = config["plan"]["agents"]["a"]
    check, *_ = service(config, agent)["serviceConfig"]["ExecStartPre"]
    (tmp_path / "left").touch()
    if os.geteuid() == 0:
        os.chown(tmp_path / "left", 4711, 4711)  # root's own files do not matter
    refusing = script(check).replace(agent["stateDir"], str(tmp_path))
    done = subprocess.run(["sh", "-euc", refusing], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"agent a: {tmp_path} holds what is another user's" in done.stderr
    own = refusing.replace(str(agent["uid"]), str((tmp_path / "left").stat().st_uid))
    assert subprocess.run(["sh", "-euc", own], check=False).returncode == 0
