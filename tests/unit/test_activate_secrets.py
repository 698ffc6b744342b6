"""Secrets at activation: decrypted with the real age; what fails is named, keeps its old value, and stops one agent."""

import copy
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.guests import activate
from harness.policy import reference_plan

PlanData = dict[str, Any]
VALUE = b"a value with \xff, a NUL \0 and a newline\n"


class Host:
    """Stands in for this machine: age and ssh-keygen are real, all else that a switch runs is noted only."""

    def __init__(self, directory: Path) -> None:
        self.key = directory / "ssh_host_ed25519_key"
        self.files = directory / "files"
        self.restarted: list[str] = []
        self.mounted: list[tuple[str, ...]] = []
        make_key(self.key)
        (self.files / "secrets").mkdir(parents=True)

    def encrypt(self, name: str, value: bytes = VALUE, *, key: Path | None = None) -> Path:
        """Write the age file ``secrets/<name>.age``, for this host's key or another."""
        path = self.files / "secrets" / f"{name}.age"
        command = ["age", "--encrypt", "--recipients-file", f"{key or self.key}.pub", "--output", str(path)]
        subprocess.run(command, input=value, check=True)
        return path

    def run(self, *command: str) -> None:
        if command[0] == "mount":
            self.mounted.append(command)


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    root = tmp_path / "tentaflake"
    for name, path in {
        "ROOT": root,
        "CURRENT": root / "current",
        "SECRETS": tmp_path / "agenix",
        "SECRETS_STORE": tmp_path / "agenix.d",
        "BOOTED": tmp_path / "booted",
    }.items():
        monkeypatch.setattr(activate, name, path)
    monkeypatch.setattr(activate, "run", host.run)
    monkeypatch.setattr(activate, "check_runtimes", lambda settings: None)
    monkeypatch.setattr(activate, "prepare", lambda number: None)
    monkeypatch.setattr(activate, "configure", lambda number, agent: host.restarted.append(agent["name"]))
    monkeypatch.setattr(activate, "stop_units", lambda agents: None)
    monkeypatch.setattr(activate, "wait_running", lambda number: None)
    monkeypatch.setattr(activate, "remove_networks", lambda wanted: None)
    for name in ("coding-model-key", "research-model-key", "search-token", "writer-model-key"):
        host.encrypt(name, VALUE.replace(b"\0", b"") + name.encode())
    return host


@pytest.fixture(scope="module")
def reference() -> PlanData:
    """The reference host's plan, with this test's user for every agent's."""
    plan: PlanData = json.loads(reference_plan().to_json())
    for agent in plan["agents"].values():
        agent |= {"uid": os.getuid(), "gid": os.getgid()}
    for user in plan["users"].values():
        user["uid"] = os.getuid()
    for group in plan["groups"].values():
        group["gid"] = os.getgid()
    return plan


@pytest.fixture
def plan(reference: PlanData, host: Host) -> PlanData:
    plan = copy.deepcopy(reference)
    plan["host"]["secretsIdentity"] = str(host.key)
    return plan


Switch = Callable[[PlanData], int]


@pytest.fixture
def switch(host: Host, monkeypatch: pytest.MonkeyPatch) -> Switch:
    """``activate.py switch -`` with a plan on its standard input; its exit code."""

    def switch(plan: PlanData) -> int:
        host.restarted.clear()
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(plan)))
        return activate.main(["switch", "-", "--files", str(host.files)])

    return switch


def there() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in activate.SECRETS.iterdir()}


def test_every_secret_is_there_with_its_value(switch: Switch, plan: PlanData, host: Host) -> None:
    for name in ("research-model-key", "search-token"):
        host.encrypt(name)
    assert switch(plan) == 0
    assert there().keys() == plan["secrets"].keys()
    assert there()["research-model-key"] == there()["search-token@coding"] == there()["search-token@research"] == VALUE


def test_a_secret_is_for_its_owner_to_read_and_nobody_else(switch: Switch, plan: PlanData) -> None:
    switch(plan)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in activate.SECRETS.iterdir()}
    assert modes == {0o400}
    assert stat.S_IMODE(activate.SECRETS.stat().st_mode) == 0o751


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_is_its_agents(switch: Switch, plan: PlanData) -> None:
    for number, user in enumerate(plan["users"]):
        plan["users"][user]["uid"] = plan["groups"][user]["gid"] = 5000 + number
    switch(plan)
    for name, secret in plan["secrets"].items():
        found, uid = (activate.SECRETS / name).stat(), plan["users"][secret["owner"]]["uid"]
        assert (found.st_uid, found.st_gid) == (uid, uid)


def test_the_store_is_a_ramfs(switch: Switch, plan: PlanData, host: Host) -> None:
    switch(plan)
    [mount] = host.mounted
    assert (
        mount[:3] == ("mount", "-t", "ramfs") and "mode=0751" in mount[4] and mount[-1] == str(activate.SECRETS_STORE)
    )


def test_a_host_without_secrets_has_an_empty_directory(switch: Switch, plan: PlanData) -> None:
    plan["secrets"] = {}
    for agent in plan["agents"].values():
        agent["secrets"] = []
    assert switch(plan) == 0
    assert there() == {}


def test_no_value_is_in_a_generation(switch: Switch, plan: PlanData) -> None:
    switch(plan)
    assert any(text.startswith(b"age-encryption.org/v1") for text in written())
    assert not any(b"a value with" in text for text in written())


def written() -> list[bytes]:
    """All that is on the disk of generations."""
    return [path.read_bytes() for path in activate.ROOT.rglob("*") if path.is_file()]


def test_a_value_in_the_clear_is_not_taken_for_an_age_file(switch: Switch, plan: PlanData, host: Host) -> None:
    plain(host)
    assert switch(plan) == 3
    assert not any(b"a value with" in text for text in written())


def test_a_generation_keeps_its_own_files(switch: Switch, plan: PlanData, host: Host) -> None:
    """So that a rollback brings back the former values."""
    switch(plan)
    before = there()
    host.encrypt("writer-model-key", b"rotated")
    switch(plan)
    assert there()["writer-model-key"] == b"rotated"
    shutil.rmtree(host.files)
    assert activate.main(["rollback"]) == 0
    assert there() == before


def test_only_the_last_values_are_kept(switch: Switch, plan: PlanData) -> None:
    for _ in range(3):
        switch(plan)
    assert [path.name for path in activate.SECRETS_STORE.iterdir()] == ["3"]
    assert activate.SECRETS.readlink() == activate.SECRETS_STORE / "3"


def test_a_rotated_secret_restarts_its_agent_alone(switch: Switch, plan: PlanData, host: Host) -> None:
    switch(plan)
    host.encrypt("writer-model-key", b"rotated")
    assert switch(plan) == 0
    assert host.restarted == ["writer"]


def test_a_rotated_secret_that_is_shared_restarts_all_who_share_it(switch: Switch, plan: PlanData, host: Host) -> None:
    switch(plan)
    host.encrypt("search-token", b"rotated")
    switch(plan)
    assert sorted(host.restarted) == ["coding", "research"]


def test_a_secret_that_was_encrypted_anew_restarts_nobody(switch: Switch, plan: PlanData, host: Host) -> None:
    host.encrypt("writer-model-key", b"the same")
    switch(plan)
    host.encrypt("writer-model-key", b"the same")
    switch(plan)
    assert host.restarted == []


# --- what cannot be decrypted


def wrong_key(host: Host) -> None:
    host.encrypt("writer-model-key", key=make_key(host.files / "other"))


def truncated(host: Host) -> None:
    path = host.encrypt("writer-model-key")
    path.write_bytes(path.read_bytes()[:-10])


def truncated_header(host: Host) -> None:
    path = host.encrypt("writer-model-key")
    path.write_bytes(path.read_bytes()[:60])


def tampered(host: Host) -> None:
    path = host.encrypt("writer-model-key")
    data = path.read_bytes()
    path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])


def tampered_late(host: Host) -> None:
    """What comes before is in order, and age prints it."""
    path = host.encrypt("writer-model-key", b"x" * 200_000)
    data = path.read_bytes()
    path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])


def plain(host: Host) -> None:
    (host.files / "secrets" / "writer-model-key.age").write_bytes(VALUE)


def empty(host: Host) -> None:
    (host.files / "secrets" / "writer-model-key.age").write_bytes(b"")


def missing(host: Host) -> None:
    (host.files / "secrets" / "writer-model-key.age").unlink()


BREAKS: dict[Callable[[Host], None], str] = {
    wrong_key: "ssh_host_ed25519_key.pub",
    truncated: "cannot be decrypted",
    truncated_header: "cannot be decrypted",
    tampered: "cannot be decrypted",
    tampered_late: "cannot be decrypted",
    plain: "no such age file",
    empty: "no such age file",
    missing: "no such age file",
}


@pytest.fixture(params=BREAKS, ids=lambda way: way.__name__)
def broken(request: pytest.FixtureRequest) -> Callable[[Host], None]:
    way: Callable[[Host], None] = request.param
    return way


def test_a_secret_that_cannot_be_decrypted_is_named_in_one_line(
    switch: Switch, plan: PlanData, host: Host, capsys: pytest.CaptureFixture[str], broken: Callable[[Host], None]
) -> None:
    broken(host)
    assert switch(plan) == 3
    _progress, line = capsys.readouterr().err.splitlines()
    assert line.startswith("activate: secret writer-model-key of agent writer (secrets/writer-model-key.age) cannot be")
    assert BREAKS[broken] in line and line.endswith(": the agent does not start")
    assert "xxxx" not in line and "a value with" not in line


def test_only_the_agent_without_its_secret_is_kept_from_starting(
    switch: Switch, plan: PlanData, host: Host, broken: Callable[[Host], None]
) -> None:
    broken(host)
    switch(plan)
    assert [name for name, agent in plan["agents"].items() if activate.lacks_secret(agent)] == ["writer"]
    assert there().keys() == plan["secrets"].keys() - {"writer-model-key"}
    assert activate.current_generation() == 1


def test_a_secret_that_can_no_longer_be_decrypted_keeps_its_value(
    switch: Switch, plan: PlanData, host: Host, capsys: pytest.CaptureFixture[str], broken: Callable[[Host], None]
) -> None:
    switch(plan)
    before = there()
    broken(host)
    assert switch(plan) == 3
    assert there() == before
    assert host.restarted == []
    assert capsys.readouterr().err.endswith(": the agent keeps its old value\n")


def test_a_value_does_not_go_over_to_another_owner(switch: Switch, plan: PlanData, host: Host) -> None:
    """A name that another agent takes over, with a file that cannot be decrypted, must not bring the old value."""
    switch(plan)
    plan["users"]["hermes-writer"]["uid"] += 1
    wrong_key(host)
    assert switch(plan) == 3
    assert "writer-model-key" not in there()


def test_an_agent_starts_once_its_secret_is_repaired(switch: Switch, plan: PlanData, host: Host) -> None:
    wrong_key(host)
    switch(plan)
    host.encrypt("writer-model-key", b"repaired")
    assert switch(plan) == 0
    assert host.restarted == ["writer"]


def test_a_variable_with_a_nul_is_refused(
    switch: Switch, plan: PlanData, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.encrypt("coding-model-key", VALUE)
    assert switch(plan) == 3
    assert "coding-model-key" in (said := capsys.readouterr().err) and "a NUL" in said


def test_without_the_hosts_key_every_secret_is_named(
    switch: Switch, plan: PlanData, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    plan["host"]["secretsIdentity"] = "/nowhere/key"
    assert switch(plan) == 3
    _progress, *lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(plan["secrets"]) and all("/nowhere/key" in line for line in lines)


def test_without_age_every_secret_is_named(
    switch: Switch,
    plan: PlanData,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert switch(plan) == 3
    assert capsys.readouterr().err.count("the program age is not installed") == len(plan["secrets"])


# --- at boot


def test_at_boot_the_current_generations_secrets_come_back(switch: Switch, plan: PlanData) -> None:
    switch(plan)
    before = there()
    activate.SECRETS.unlink()
    shutil.rmtree(activate.SECRETS_STORE)
    assert activate.main(["secrets"]) == 0
    assert there() == before


def test_at_boot_what_fails_is_named(
    switch: Switch, plan: PlanData, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_key(host)
    switch(plan)
    capsys.readouterr()
    assert activate.main(["secrets"]) == 3
    assert "writer-model-key" in capsys.readouterr().err


def test_before_the_first_switch_there_is_nothing_to_decrypt(host: Host) -> None:
    assert activate.main(["secrets"]) == 0
    assert not activate.SECRETS.exists()


# --- units


def test_secrets_are_there_before_docker_at_boot() -> None:
    assert "Before=docker.service\n" in activate.SECRETS_UNIT
    assert "tentaflake-secrets.service" in activate.HOST_UNITS


def test_a_start_without_a_secret_is_refused_by_name(plan: PlanData, tmp_path: Path) -> None:
    script = activate.condition_script(plan["agents"]["coding"]).replace("/run/agenix", str(tmp_path))
    (tmp_path / "search-token@coding").touch()
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("agent coding does not start without its secret coding-model-key: ")
    (tmp_path / "coding-model-key").touch()
    assert subprocess.run(["sh", "-c", script], check=False).returncode == 0


def test_only_an_agent_with_secrets_has_a_condition(plan: PlanData) -> None:
    plan["agents"]["writer"]["secrets"] = []
    conditions = {name for name in activate.render(plan) if name.endswith("/condition")}
    assert conditions == {"agents/coding/condition", "agents/research/condition"}
    assert "ExecCondition" not in activate.agent_unit(plan["agents"]["writer"])
    assert f"ExecCondition={activate.CURRENT}/agents/coding/condition\n" in activate.agent_unit(
        plan["agents"]["coding"]
    )
