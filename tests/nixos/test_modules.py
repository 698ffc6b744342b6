"""Each module by itself, what is said of a host with mistakes, and what the options' reference holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.nixpkgs import EVALUATE, NoNixpkgs, find_nixpkgs, options_page
from harness.policy import REPOSITORY, PolicyError, run_nix
from tests.nixos.support import Evaluate

AGENT = {"name": "coding"}
SECRET = {"name": "key", "file": "key.age"}
MODULES = ["agents", "firewall", "host", "secrets", "switch", "tailscale"]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_evaluates_by_itself(configure: Evaluate, name: str) -> None:
    config = configure(agents=[AGENT], host={"tailnetInterface": "tailscale0"}, modules=[f"modules/{name}.nix"])
    assert config["plan"]["agents"].keys() == {"coding"}
    assert bool(config["containers"]) == (name == "agents")
    assert bool(config["networking"]["nftables"]["tables"]) == (name == "firewall")
    assert config["tailscale"]["enable"] == (name == "tailscale")


def test_a_host_without_agents_has_its_firewall_and_no_docker(configure: Evaluate) -> None:
    config = configure(agents=[])
    assert not config["containers"] and not config["users"] and not config["tmpfiles"]["settings"]
    assert config["networking"]["nftables"]["tables"].keys() == {"tentaflake"}
    assert "tentaflake/container-init" in config["etc"]  # Docker's settings name it, whoever needs it
    assert configure(agents=[AGENT])["containers"]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "agents.coding.memory": ({"agents": [AGENT | {"memory": "1x"}]}, 'memory = "1x"'),
    "agents.coding.secrets[0].file": (
        {"agents": [AGENT | {"secrets": [SECRET | {"file": "/etc/shadow"}]}]},
        "must be the relative path of an age file",
    ),
    "agents.coding.image": ({"agents": [AGENT | {"image": "busybox:latest"}]}, "busybox:latest"),
    "agents.coding.egress[0].network": (
        {"agents": [AGENT | {"egress": [{"network": "10.0.0.1/8"}]}]},
        "write 10.0.0.0/8",
    ),
    "agents.Coding.name": ({"agents": [{"name": "Coding"}]}, "lower-case letters"),
    "host.allowedTCPPorts[0]": ({"agents": [], "host": {"allowedTCPPorts": [5001]}}, "speech server's port"),
}


@pytest.mark.parametrize("field", MISTAKES)
def test_what_the_policy_refuses_is_a_failed_assertion_with_its_words(configure: Evaluate, field: str) -> None:
    host, words = MISTAKES[field]
    [assertion] = configure(**host)["assertions"]  # and all else still evaluates
    assert not assertion["assertion"]
    assert assertion["message"].startswith(f"tentaflake.{field}: ")
    assert words in assertion["message"]


def test_all_mistakes_are_told_at_once(configure: Evaluate) -> None:
    config = configure(agents=[{"name": "a", "uid": 1}, {"name": "b", "memory": 1}])
    assert len(config["assertions"]) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"tts": "yes"}, {"egress": "all"}, {"publish": [70000]}, {"pids": -1}, {"secrets": ["key"]}, {"colour": "red"}],
)
def test_what_has_the_wrong_type_names_the_option(configure: Evaluate, wrong: dict[str, Any]) -> None:
    [field] = wrong
    with pytest.raises(PolicyError, match=rf"tentaflake\.agents\.coding\.{field}"):
        configure(agents=[AGENT | wrong])


def test_the_plan_is_not_for_setting(configure: Evaluate) -> None:
    with pytest.raises(PolicyError, match=r"tentaflake\.plan. is read-only"):
        configure(agents=[AGENT], extra={"tentaflake": {"plan": {}}})


def test_definitions_of_several_modules_are_merged(configure: Evaluate) -> None:
    extra = {"tentaflake": {"agents": {"coding": {"settings": {"agent": {"b": 2}}, "environment": {"B": "2"}}}}}
    spec = AGENT | {"settings": {"agent": {"a": 1}}, "environment": {"A": "1"}}
    agent = configure(agents=[spec], extra=extra)["plan"]["agents"]["coding"]
    assert json.loads(agent["config"]["content"]) == {"agent": {"a": 1, "b": 2}}
    assert agent["container"]["environment"].items() >= {"A": "1", "B": "2"}.items()


def test_a_port_that_only_nixos_firewall_opens_is_warned_of(configure: Evaluate) -> None:
    def warnings(*ports: int) -> list[str]:
        extra = {"networking": {"firewall": {"allowedTCPPorts": list(ports)}}}
        found: list[str] = configure(agents=[], host={"allowedTCPPorts": [22]}, extra=extra)["warnings"]
        return found

    assert warnings(22) == []
    [warning] = warnings(22, 8443)
    assert "8443" in warning and "tentaflake.host.allowedTCPPorts" in warning


def test_what_is_audited_is_what_the_plan_says(configure: Evaluate) -> None:
    assert "hermes-auditd" in configure(agents=[AGENT])["services"]
    assert "hermes-auditd" not in configure(agents=[])["services"]


def test_speech_is_for_who_the_plan_says(configure: Evaluate) -> None:
    config = configure(agents=[AGENT | {"tts": True}, {"name": "writer"}])
    speech, socket = config["plan"]["speech"], config["sockets"]["tentaflake-tts"]
    planned = speech["units"]["tentaflake-tts.socket"]["Socket"]
    assert socket["listenStreams"] == speech["listen"] == planned["ListenStream"]
    assert socket["socketConfig"] == {name: value for name, value in planned.items() if name != "ListenStream"}
    unit = speech["units"]["tentaflake-tts.service"]["Service"]
    assert config["services"]["tentaflake-tts"]["serviceConfig"].items() >= unit.items()
    without = configure(agents=[AGENT])
    assert "tentaflake-tts" not in without["services"] | without["sockets"]


# --- the reference of the options


def options(nixpkgs: Path) -> list[dict[str, Any]]:
    command = [*EVALUATE, str(REPOSITORY / "harness" / "options.nix"), "--argstr", "nixpkgs", str(nixpkgs)]
    found: list[dict[str, Any]] = json.loads(
        run_nix([*command, "--arg", "repository", str(REPOSITORY)], subject="options")
    )
    return found


def test_every_option_has_a_description_and_an_example(nixpkgs: Path) -> None:
    ours = [option for option in options(nixpkgs) if option["name"].startswith("tentaflake.")]
    assert len(ours) > 25
    assert [option["name"] for option in ours if not option["description"].strip() or option["example"] is None] == []


def test_the_page_of_options_is_what_the_command_writes(nixpkgs: Path) -> None:
    """But for the types' own descriptions, which are nixpkgs' and change with it."""

    def without_types(page: str) -> str:
        return re.sub(r"(?m)^\*Type:\* .*$", "", page)

    written = (REPOSITORY / "docs" / "options.md").read_text()
    assert without_types(written) == without_types(options_page(nixpkgs)), "ci/harness options > docs/options.md"


# --- where nixpkgs is looked for


def test_a_directory_that_is_not_nixpkgs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoNixpkgs, match=r"has no lib/default\.nix"):
        find_nixpkgs(tmp_path)


def test_nixpkgs_is_found_on_nix_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nixpkgs" / "lib").mkdir(parents=True)
    (tmp_path / "nixpkgs" / "lib" / "default.nix").touch()
    monkeypatch.setenv("NIX_PATH", str(tmp_path))
    assert find_nixpkgs() == tmp_path / "nixpkgs"


def test_without_nixpkgs_the_reason_says_where_was_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIX_PATH", raising=False)
    monkeypatch.setattr("harness.nixpkgs.STORE", Path("/nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    with pytest.raises(NoNixpkgs, match=r"--nixpkgs was not given, NIX_PATH has none"):
        find_nixpkgs()


# --- images that are built on the host

DOCKER = """\
#!/bin/sh
case "$1 $2" in
  "image inspect") cat {here}/id 2> /dev/null ;;
  "load ") id=$(sha256sum | cut -c 1-12); echo "$id" > {here}/id; echo "$id" >> {here}/loaded ;;
  *) exit 9 ;;
esac
"""


def test_an_image_is_loaded_once_and_again_when_it_is_another_or_gone(configure: Evaluate, tmp_path: Path) -> None:
    """The script of the unit, with a Docker that has one image at most."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "docker": DOCKER.format(here=tmp_path),
        "one": "#!/bin/sh\necho one",
        "other": "#!/bin/sh\necho other",
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def start(stream: str) -> list[str]:
        image = "example.invalid/image:1"
        built = {"type": "derivation", "name": stream, "outPath": str(programs / stream)}
        spec = {"name": "a", "image": image, "allowMutableImage": True}
        config = configure(agents=[spec], extra={"tentaflake": {"imageStreams": {image: built}}})
        assert config["services"]["docker-hermes-a"]["wants"] == ["docker.service", "tentaflake-images.service"]
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "STATE_DIRECTORY": str(tmp_path)}
        script = config["services"]["tentaflake-images"]["script"]
        subprocess.run(["bash", "-euc", script], env=environment, check=True)
        return (tmp_path / "loaded").read_text().split()

    assert len(start("one")) == 1
    assert len(start("one")) == 1
    assert len(start("other")) == 2
    (tmp_path / "id").unlink()
    assert len(start("other")) == 3
    assert len(set((tmp_path / "loaded").read_text().split())) == 2


def test_no_unit_loads_images_where_none_is_built(configure: Evaluate) -> None:
    config = configure(agents=[{"name": "a"}])
    assert "tentaflake-images" not in config["services"]
    assert config["services"]["docker-hermes-a"]["wants"] == ["docker.service"]


def test_the_module_for_quotas_is_loaded_where_a_file_system_has_them(configure: Evaluate) -> None:
    """By any of the words that mount(8) takes for users' quotas on ext4, and also while there are no agents."""
    for options, modules in {
        "usrquota": ["quota_v2"],
        "quota": ["quota_v2"],
        "usrjquota=aquota.user": ["quota_v2"],
        "noatime": [],
    }.items():
        config = configure(agents=[], extra={"fileSystems": {"/": {"options": [options]}}})
        assert config["initrd"] == modules, options
