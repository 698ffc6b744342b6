"""What becomes of a good spec."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hermes_auditd.config import parse as parse_audit_settings

from harness.guests import hermes_image
from harness.policy import Agent, Plan, PolicyError, evaluate, evaluate_many, substitute_image
from harness.strategies import HOSTILE

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "@sha256:" + "0" * 64


def plans_of(*hosts: Sequence[dict[str, Any]]) -> list[Plan]:
    results = evaluate_many(hosts)
    for result in results:
        if isinstance(result, PolicyError):
            raise result
    return [result for result in results if isinstance(result, Plan)]


def agent_of(**spec: Any) -> Agent:
    [plan] = plans_of([{"name": "coding", **spec}])
    return plan.agents["coding"]


@pytest.fixture(scope="module")
def reference() -> Plan:
    return evaluate(ROOT / "agents.nix")


@pytest.fixture(scope="module")
def default() -> Agent:
    return agent_of()


def test_the_reference_host_has_three_ways_out(reference: Plan) -> None:
    ways = {name: agent.egress for name, agent in reference.agents.items()}
    assert ways["coding"] == "internet"
    assert isinstance(ways["research"], list)
    assert ways["writer"] == "none"
    assert reference.speech.agents == ["research"]


def hermes_version() -> str:
    """Of what the image is made of."""
    [version] = re.findall(r"^hermes-agent==(\S+)", hermes_image.REQUIREMENTS.read_text(), re.MULTILINE)
    return str(version)


def test_the_speech_server_listens_for_the_host_and_for_who_is_granted_it() -> None:
    [plan] = plans_of([{"name": "a", "tts": True}, {"name": "b"}, {"name": "c", "tts": True}])
    loopback = ["127.0.0.1:5001", "[::1]:5001"]
    granted = [plan.agents[name].network for name in ("a", "c")]
    gateways = [text for n in granted for text in (f"{n.ipv4.gateway}:5001", f"[{n.ipv6.gateway}]:5001")]
    assert plan.speech.listen == loopback + gateways
    assert plan.speech.clients == [text for n in granted for text in (n.ipv4.subnet, n.ipv6.subnet)]
    socket = plan.speech.units["tentaflake-tts.socket"]["Socket"]
    assert socket["ListenStream"] == plan.speech.listen
    assert (socket["IPAddressDeny"], socket["IPAddressAllow"]) == ("any", ["localhost", *plan.speech.clients])
    [without] = plans_of([{"name": "a"}])
    assert (without.speech.listen, without.speech.clients, without.speech.agents) == (loopback, [], [])
    assert without.speech.units == {}


def test_defaults(default: Agent) -> None:
    assert default.state_dir == "/var/lib/hermes-coding"
    assert (default.limits.memory, default.limits.cpus, default.limits.pids) == (1 << 30, 1, 256)
    assert (default.egress, default.publish, default.secrets) == ("none", [], [])
    assert (default.tts, default.auto_start, default.allow_mutable_image) == (False, True, False)
    assert default.config.content == "{}"
    assert default.container.image == f"{hermes_image.NAME}:{hermes_version()}"


def test_a_uid_derives_from_the_name_alone(default: Agent) -> None:
    slot = int(hashlib.sha256(b"coding").hexdigest()[:5], 16)
    assert default.uid == default.gid == 1900000000 + slot
    assert default.network.ipv4.subnet == str(IPv4Network((0x0A800000 + 8 * slot, 29)))
    assert default.network.ipv6.subnet == str(IPv6Network(((0xFD74656E7461 << 80) + (slot << 48), 80)))


@pytest.mark.parametrize("uid", [400, 60000, 65536, 524287, 1879048192, 1900000000, 1901048575, 1901048576, 2147483646])
def test_every_allowed_uid_has_a_canonical_network(uid: int) -> None:
    network = agent_of(uid=uid).network
    for family in (network.ipv4, network.ipv6):
        subnet = ip_network(family.subnet)
        assert str(subnet) == family.subnet
        assert [str(ip_address(int(subnet.network_address) + i)) for i in (1, 2)] in (
            [family.gateway, family.address],
            [str(subnet[1]), str(subnet[2])],
        )
        assert (str(subnet[1]), str(subnet[2])) == (family.gateway, family.address)


@pytest.mark.parametrize("name", ["a", "a" * 13, "a" * 14, "abcde--------mnop", "ab----------------cd", "z" * 24])
def test_names_fit_where_linux_wants_them_short(name: str) -> None:
    [plan] = plans_of([{"name": name}])
    agent = plan.agents[name]
    assert len(agent.network.bridge) <= 15
    assert agent.network.bridge.startswith("h-")
    assert "--" not in agent.network.bridge
    assert len(agent.user) <= 31


@pytest.mark.parametrize(
    ("written", "size"),
    [("16m", 1 << 24), ("512M", 1 << 29), ("2g", 1 << 31), ("1GiB", 1 << 30), ("1gb", 1 << 30), (1 << 25, 1 << 25)],
)
def test_memory_is_bytes_in_the_plan(written: str | int, size: int) -> None:
    agent = agent_of(memory=written)
    assert agent.limits.memory == size
    assert f"--memory={size}" in agent.container.options
    assert f"--memory-swap={size}" in agent.container.options


@pytest.mark.parametrize(("written", "flag"), [(2, "2"), (2.0, "2"), (0.5, "0.5"), (0.01, "0.01"), (1.125, "1.125")])
def test_one_number_of_cpus_is_written_in_one_way(written: float, flag: str) -> None:
    assert f"--cpus={flag}" in agent_of(cpus=written).container.options


@pytest.mark.parametrize(
    "image",
    [
        "busybox" + DIGEST,
        "busybox:1.36" + DIGEST,
        "docker.io/library/busy_box__x.y--z" + DIGEST,
        "localhost:5000/a/b/c" + DIGEST,
        "[2001:db8::1]:443/a" + DIGEST,
        "EXAMPLE.org/a" + DIGEST,
    ],
)
def test_images_that_docker_can_read_are_taken(image: str) -> None:
    assert agent_of(image=image).container.image == image


def test_a_mutable_image_is_taken_when_the_spec_says_so() -> None:
    assert agent_of(image="busybox:1.36", allowMutableImage=True).container.image == "busybox:1.36"


def test_the_container_gains_nothing_and_writes_nothing_but_its_state(default: Agent) -> None:
    container = default.container
    assert container.user == f"{default.uid}:{default.gid}"
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(container.options)
    mounts = [option for option in container.options if option.startswith("--mount=")]
    assert mounts == [
        "--mount=type=bind,source=/var/lib/hermes-coding,target=/var/lib/hermes-coding",
        "--mount=type=bind,source=/etc/hermes/coding/config.yaml,target=/var/lib/hermes-coding/config.yaml,readonly",
    ]
    assert container.environment["HOME"] == container.environment["HERMES_HOME"] == container.workdir


def test_all_agents_are_in_the_slice(reference: Plan) -> None:
    for agent in reference.agents.values():
        assert f"--cgroup-parent={reference.slice.name}" in agent.container.options


def test_each_agent_has_a_user_a_group_and_two_directories(reference: Plan) -> None:
    for agent in reference.agents.values():
        user = reference.users[agent.user]
        assert (user.uid, user.group, user.shell) == (agent.uid, agent.user, "/usr/sbin/nologin")
        assert reference.groups[agent.group].gid == agent.gid
        modes = {d.path: (d.mode, d.user, d.group) for d in reference.directories if d.group == agent.group}
        assert modes == {
            agent.state_dir: ("0700", agent.user, agent.group),
            f"/etc/hermes/{agent.name}": ("0750", "root", agent.group),
        }


def test_no_agent_starts_without_the_firewall(reference: Plan) -> None:
    for agent in reference.agents.values():
        assert "nftables.service" in agent.service.requires
        assert "nftables.service" in agent.service.after


def test_an_agent_that_does_not_start_by_itself_is_wanted_by_nothing() -> None:
    assert agent_of(autoStart=False).service.wanted_by == []


def test_a_network_without_a_way_out_is_internal_unless_it_has_to_answer() -> None:
    assert agent_of().network.internal
    assert agent_of(egress=[]).egress == "none"
    assert not agent_of(egress="internet").network.internal
    assert not agent_of(publish=[8080]).network.internal


def test_ports_are_published_only_where_there_is_a_tailnet(tmp_path: Path) -> None:
    agents = tmp_path / "agents.json"
    agents.write_text(json.dumps([{"name": "a", "publish": [80, {"port": 53, "target": 5353, "protocol": "udp"}]}]))
    without = evaluate(agents)
    within = evaluate(agents, host={"tailnetInterface": "tailscale0"})
    assert without.agents["a"].container.ports == []
    assert "tailscale" not in without.nftables.content
    assert within.agents["a"].container.ports == ["80:80/tcp", "53:5353/udp"]
    assert '"h-a" . udp . 5353' in within.nftables.content


def test_free_text_survives_as_data() -> None:
    keys = {f"key {text}": text for text in HOSTILE}
    settings: dict[str, Any] = {**keys, "list": HOSTILE, "other": [None, True, 1, -0.5, {}]}
    agent = agent_of(command=HOSTILE, environment={f"V{i}": text for i, text in enumerate(HOSTILE)}, settings=settings)
    assert agent.container.command == HOSTILE
    assert [agent.container.environment[f"V{i}"] for i in range(len(HOSTILE))] == HOSTILE
    assert json.loads(agent.config.content) == settings


def test_json_and_nix_specs_give_the_same_plan(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"name": "a", "cpus": 0.5, "settings": {"k": [1, null]}}]')
    (tmp_path / "a.nix").write_text('[ { name = "a"; cpus = 0.5; settings.k = [ 1 null ]; } ]')
    assert evaluate(tmp_path / "a.json").to_json() == evaluate(tmp_path / "a.nix").to_json()


def test_a_plan_survives_its_own_json(reference: Plan) -> None:
    again = msgspec.json.decode(reference.to_json(), type=Plan)
    assert again == reference
    assert again.digest == reference.digest


def test_substituting_the_image_changes_nothing_else(reference: Plan) -> None:
    substituted = substitute_image(reference, "probe" + DIGEST)
    assert {(a.container.image, *a.container.command) for a in substituted.agents.values()} == {("probe" + DIGEST,)}
    before, after = json.loads(reference.to_json()), json.loads(substituted.to_json())
    for agent in [*before["agents"].values(), *after["agents"].values()]:
        del agent["container"]["image"], agent["container"]["command"]
    assert before == after


def test_no_path_of_this_machine_is_in_the_plan(reference: Plan) -> None:
    assert str(ROOT) not in reference.to_json()
    assert "/nix/store" not in reference.to_json()


def test_every_example_of_the_documentation_is_a_host(tmp_path: Path) -> None:
    examples = re.findall(r"```nix\n(.*?)```", (ROOT / "docs" / "agents.md").read_text(), re.DOTALL)
    assert len(examples) == 2
    for number, example in enumerate(examples):
        agents = tmp_path / f"{number}.nix"
        agents.write_text(example)
        assert evaluate(agents).agents


def test_the_documentation_lists_every_field() -> None:
    with pytest.raises(PolicyError) as caught:
        plans_of([{"name": "a", "zzzzzz": 1}])
    _, _, fields = str(caught.value).partition("the fields are ")
    reference, _, _ = (ROOT / "docs" / "agents.md").read_text().partition("## The host")
    documented = re.findall(r"^\| `(\w+)` \|", reference, re.MULTILINE)
    assert sorted(documented) == sorted(fields.split(", "))


SECRETS = [
    {"name": "a-file", "file": "secrets/a.age"},
    {"name": "a-variable", "file": "secrets/b.age", "as": "env", "variable": "KEY"},
    {"name": "common", "file": "secrets/c.age", "shared": True},
]


def test_a_secret_is_its_agents_alone() -> None:
    [plan] = plans_of([{"name": "coding", "secrets": SECRETS}, {"name": "other", "secrets": SECRETS[2:]}])
    found = {key: (secret.file, secret.path, secret.mode, secret.owner) for key, secret in plan.secrets.items()}
    assert found == {
        "a-file": ("secrets/a.age", "/run/agenix/a-file", "0400", "hermes-coding"),
        "a-variable": ("secrets/b.age", "/run/agenix/a-variable", "0400", "hermes-coding"),
        "common@coding": ("secrets/c.age", "/run/agenix/common@coding", "0400", "hermes-coding"),
        "common@other": ("secrets/c.age", "/run/agenix/common@other", "0400", "hermes-other"),
    }


def test_each_secret_is_mounted_by_itself_and_read_only() -> None:
    mounts = {option for option in agent_of(secrets=SECRETS).container.options if "/run/" in option}
    assert mounts == {
        "--mount=type=bind,source=/run/agenix/a-file,target=/run/secrets/a-file,readonly",
        "--mount=type=bind,source=/run/agenix/a-variable,target=/run/environment/KEY,readonly",
        "--mount=type=bind,source=/run/agenix/common@coding,target=/run/secrets/common,readonly",
    }


def test_only_an_agent_with_a_secret_in_its_environment_starts_through_the_init(reference: Plan) -> None:
    assert "--init" in agent_of(secrets=SECRETS[1:2]).container.options
    assert "--init" not in agent_of(secrets=[SECRETS[0], SECRETS[2]]).container.options
    assert reference.docker.settings["init-path"] == reference.container_init.path


def test_a_variable_is_named_as_its_secret_unless_it_has_a_name() -> None:
    agent = agent_of(secrets=[{"name": "KEY", "file": "k.age", "as": "env"}])
    assert [secret.variable for secret in agent.secrets] == ["KEY"]


def test_an_agent_keeps_its_secrets_when_another_comes_to_share_them() -> None:
    both = [{"name": "a", "secrets": SECRETS}, {"name": "b", "secrets": SECRETS[2:]}]
    one, two = plans_of(both[:1], both)
    assert one.agents["a"].secrets == two.agents["a"].secrets


@pytest.mark.parametrize(("egress", "named"), [("none", False), ("internet", True), ([{"network": "::/0"}], True)])
def test_only_an_agent_with_a_way_out_looks_up_names(egress: Any, named: bool) -> None:
    assert ("--dns=127.0.0.1" in agent_of(egress=egress).container.options) == (not named)


def test_a_disk_quota_is_bytes_or_none() -> None:
    assert (agent_of().limits.disk, agent_of(disk="64m").limits.disk) == (None, 64 << 20)


def test_every_state_directory_is_audited_with_the_settings_that_the_daemon_reads(reference: Plan) -> None:
    watched = [(agent.name, agent.path, agent.uid) for agent in parse_audit_settings(reference.audit.config).agents]
    assert watched == [(agent.name, agent.state_dir, agent.uid) for agent in reference.agents.values()]
    assert reference.audit.units.keys() == {"hermes-auditd.service"}


def test_without_agents_there_is_no_audit_daemon() -> None:
    [plan] = plans_of([])
    assert plan.audit.units == {}
