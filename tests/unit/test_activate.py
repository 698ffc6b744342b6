"""The activation program: what it writes from a plan, however hostile, and what a failed switch leaves."""

import copy
import errno
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.fuzz.parsers import Stage
from harness.guests import activate
from harness.policy import evaluate_specs, reference_plan
from harness.strategies import hostile
from tests.unit.support import PROPERTY

PlanData = dict[str, Any]
WORD = hostile()


@pytest.fixture(scope="module")
def plan() -> PlanData:
    """The plan of the reference host, as the activation program reads it."""
    data: PlanData = json.loads(reference_plan().to_json())
    data["secrets"] = {}  # test_activate_secrets.py has them
    for agent in data["agents"].values():
        agent["secrets"] = []
    return data


@pytest.fixture(scope="module")
def whole() -> PlanData:
    """A smaller one: of one agent, with a secret that nobody can decrypt."""
    data: PlanData = json.loads(
        evaluate_specs([{"name": "one", "secrets": [{"name": "key", "file": "k.age"}]}]).to_json()
    )
    return data


@pytest.fixture(scope="module")
def agent(plan: PlanData) -> dict[str, Any]:
    agent: dict[str, Any] = plan["agents"]["coding"]
    return agent


def changed(data: dict[str, Any], **container: Any) -> dict[str, Any]:
    """A copy of the agent with another container."""
    agent = copy.deepcopy(data)
    agent["container"] |= container
    return agent


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


def test_the_stage_keeps_words_apart(stage: Stage) -> None:
    assert stage.run("docker 'a\nb' ''; setpriv") == [["docker", "a\nb", ""], ["setpriv"]]


# --- the start script


@PROPERTY
@given(value=WORD)
def test_an_environment_value_is_one_word_of_docker_run(stage: Stage, agent: dict[str, Any], value: str) -> None:
    command = stage.run(activate.start_script(changed(agent, environment={"NAME": value})))[-1]
    assert [word for word in command if word.startswith("--env=")] == [f"--env=NAME={value}"]


@PROPERTY
@given(words=st.lists(WORD, max_size=4))
def test_a_command_arrives_word_by_word_behind_the_image(stage: Stage, agent: dict[str, Any], words: list[str]) -> None:
    command = stage.run(activate.start_script(changed(agent, command=words)))[-1]
    assert command[command.index(agent["container"]["image"]) + 1 :] == words


@PROPERTY
@given(value=WORD, words=st.lists(WORD, max_size=3))
def test_no_free_text_runs_a_command_of_its_own(
    stage: Stage, agent: dict[str, Any], value: str, words: list[str]
) -> None:
    commands = stage.run(activate.start_script(changed(agent, environment={"NAME": value}, command=words)))
    assert [command[:3] for command in commands] == [
        ["setpriv", f"--reuid={agent['uid']}", f"--regid={agent['gid']}"],
        ["findmnt", "-n", "-o"],
        ["setquota", "-u", str(agent["uid"])],
        ["docker", "rm", "--force"],
        ["docker", "network", "inspect"],
        ["docker", "network", "rm"],
        ["docker", "network", "create"],
        ["docker", "run", f"--name={agent['container']['name']}"],
    ]


@PROPERTY
@given(value=WORD, words=st.lists(WORD, max_size=3))
def test_the_start_script_reads_the_same_to_any_posix_lexer(
    agent: dict[str, Any], value: str, words: list[str]
) -> None:
    hostile = changed(agent, environment={"NAME": value}, command=words)
    _, _, line = activate.start_script(hostile).rpartition("exec docker run ")
    assert shlex.split(line) == activate.run_arguments(hostile)


def test_every_flag_of_the_policy_is_given_before_the_image(stage: Stage, agent: dict[str, Any]) -> None:
    command = stage.run(activate.start_script(agent))[-1]
    flags = command[: command.index(agent["container"]["image"])]
    assert set(agent["container"]["options"]) <= set(flags)


def test_the_container_runs_as_the_agents_own_user(stage: Stage, agent: dict[str, Any]) -> None:
    assert f"--user={agent['uid']}:{agent['gid']}" in stage.run(activate.start_script(agent))[-1]


def test_the_container_joins_the_agents_own_network_and_no_other(stage: Stage, agent: dict[str, Any]) -> None:
    command = stage.run(activate.start_script(agent))[-1]
    assert [word for word in command if word.startswith("--network")] == [f"--network={agent['network']['name']}"]


def test_the_mount_point_is_made_by_the_agent_and_not_by_root(stage: Stage, agent: dict[str, Any]) -> None:
    [first, *_] = stage.run(activate.start_script(agent))
    assert first[:4] == ["setpriv", f"--reuid={agent['uid']}", f"--regid={agent['gid']}", "--clear-groups"]
    assert first[4:] == ["touch", f"{agent['stateDir']}/config.yaml"]


def test_a_quota_that_cannot_be_set_keeps_the_agent_from_starting(stage: Stage, agent: dict[str, Any]) -> None:
    script = activate.start_script(agent)
    assert ["setquota", "-u", str(agent["uid"]), "0", "1048576", "0", "65536"] in [c[:7] for c in stage.run(script)]
    failing = script.replace("setquota -u", "false -u")
    done = subprocess.run(
        ["/bin/sh", "-c", failing], env=stage.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "disk quota of agent coding" in done.stderr


def test_an_agent_without_a_quota_starts_where_there_are_none(stage: Stage, plan: PlanData) -> None:
    script = activate.start_script(plan["agents"]["research"]).replace("setquota -u", "false -u")
    assert stage.run(script)[-1][:2] == ["docker", "run"]


def label_of(commands: list[list[str]]) -> str:
    """What the network is marked with, so that the next start knows how it was made."""
    [create] = [command for command in commands if command[:3] == ["docker", "network", "create"]]
    return create[create.index("--label") + 1].removeprefix("tentaflake=")


def test_a_network_that_is_as_wanted_is_kept(stage: Stage, agent: dict[str, Any]) -> None:
    script = activate.start_script(agent)
    again = stage.run(script, label=label_of(stage.run(script)))
    assert not {"create", "rm"} & {command[2] for command in again if command[:2] == ["docker", "network"]}


def test_a_network_that_is_not_as_wanted_is_made_anew(stage: Stage, agent: dict[str, Any]) -> None:
    other = copy.deepcopy(agent)
    other["network"]["internal"] = not agent["network"]["internal"]
    label = label_of(stage.run(activate.start_script(other)))
    assert label_of(stage.run(activate.start_script(agent), label=label)) != label


def test_an_agent_without_egress_has_an_internal_network(stage: Stage, plan: PlanData) -> None:
    script = activate.start_script(plan["agents"]["writer"])
    [create] = [command for command in stage.run(script) if "create" in command]
    assert "--internal" in create


# --- the other files of a generation


def units(plan: PlanData) -> dict[str, str]:
    return {name: text for name, (_, text) in activate.render(plan).items() if name.startswith("units/")}


@PROPERTY
@given(value=WORD)
def test_no_unit_holds_free_text_of_a_spec(plan: PlanData, value: str) -> None:
    hostile = copy.deepcopy(plan)
    for agent in hostile["agents"].values():
        agent["container"] |= {"environment": {"NAME": value}, "command": [value], "image": value}
        agent["config"]["content"] = value
    assert units(hostile) == units(plan)


def test_every_agent_has_its_unit(plan: PlanData) -> None:
    wanted = {f"units/docker-hermes-{name}.service" for name in ("coding", "research", "writer")}
    host = {"nftables.service", "tentaflake.target", "tentaflake-routing.service"}
    host |= {"tentaflake-guard.service", "tentaflake-guard.timer", "tentaflake-secrets.service", "hermes.slice"}
    host |= {"tentaflake-tts.service", "tentaflake-tts.socket", "tentaflake-watch.service"}
    host |= {"hermes-auditd.service"}
    assert units(plan).keys() == wanted | {f"units/{unit}" for unit in host}


def test_no_agent_starts_before_the_firewall(plan: PlanData) -> None:
    for name, text in units(plan).items():
        if name.startswith("units/docker-hermes-"):
            assert re.search(r"^Requires=.*\bnftables\.service", text, re.MULTILINE)
            assert re.search(r"^After=.*\bnftables\.service", text, re.MULTILINE)


def test_an_agent_that_does_not_start_by_itself_is_not_wanted_at_boot(plan: PlanData) -> None:
    other = copy.deepcopy(plan)
    other["agents"]["writer"]["service"]["wantedBy"] = []
    assert "Wants=docker-hermes-writer" in activate.target_unit(plan)
    assert "Wants=docker-hermes-writer" not in activate.target_unit(other)


def test_systemd_finds_nothing_wrong_with_the_units(plan: PlanData, tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not installed")
    for name, text in units(plan).items():
        installed = re.sub(r"^(Exec\w+=-?)\S+", r"\1/bin/true", text, flags=re.MULTILINE)
        (tmp_path / Path(name).name).write_text(installed)
    for name in ("docker.service", activate.DECIDED):
        (tmp_path / name).write_text("[Service]\nExecStart=/bin/true\n")
    files = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run([verify, "verify", "--man=no", *files], capture_output=True, text=True, check=False)
    assert str(tmp_path) not in done.stderr and "hermes" not in done.stderr


def test_a_generation_is_read_by_root_only_but_for_what_others_need(plan: PlanData) -> None:
    shared = {name for name, (mode, _) in activate.render(plan).items() if mode & 0o077}
    assert shared == units(plan).keys() | {"daemon.json"}


def test_a_generation_keeps_its_files_in_its_own_directory(plan: PlanData) -> None:
    assert all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in activate.render(plan))


def test_users_and_groups_have_the_ids_of_the_plan(plan: PlanData) -> None:
    for name, user in plan["users"].items():
        lines = [shlex.split(line) for line in activate.sysusers(plan).splitlines() if line.split()[1] == name]
        assert lines == [
            ["g", name, str(plan["groups"][name]["gid"])],
            ["u", name, f"{user['uid']}:{user['group']}", user["description"], user["home"], "/usr/sbin/nologin"],
        ]


def test_systemd_makes_the_users_that_the_plan_names(plan: PlanData, tmp_path: Path) -> None:
    program = shutil.which("systemd-sysusers") or pytest.skip("systemd-sysusers is not installed")
    (tmp_path / "plan.conf").write_text(activate.sysusers(plan))
    (tmp_path / "etc").mkdir()
    subprocess.run([program, f"--root={tmp_path}", str(tmp_path / "plan.conf")], check=True, capture_output=True)
    made = [line.split(":") for line in (tmp_path / "etc" / "passwd").read_text().splitlines()]
    wanted = {name: (str(user["uid"]), user["home"]) for name, user in plan["users"].items()}
    found = {name: (uid, home) for name, _, uid, _, _, home, _ in made}
    assert found.keys() == wanted.keys() | {"hermes-auditd"} and wanted.items() <= found.items()
    groups = [line.split(":") for line in (tmp_path / "etc" / "group").read_text().splitlines()]
    [readers] = [gid for name, _, gid, _ in groups if name == "hermes-audit"]
    assert [gid for name, _, _, gid, *_ in made if name == "hermes-auditd"] == [readers]


def test_directories_have_the_owner_and_the_mode_of_the_plan(plan: PlanData) -> None:
    lines = [line.split() for line in activate.tmpfiles(plan).splitlines()]
    wanted = [["d", d["path"], d["mode"], d["user"], d["group"], "-"] for d in plan["directories"]]
    assert lines == wanted and ["d", "/var/lib/hermes-coding", "0700", "hermes-coding", "hermes-coding", "-"] in lines


def test_the_firewall_replaces_its_table_in_one_transaction(plan: PlanData) -> None:
    lines = activate.firewall(plan).splitlines()
    assert lines[:3] == ["table inet tentaflake", "delete table inet tentaflake", "table inet tentaflake {"]


# --- generations


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for generations that is not this machine's."""
    root = tmp_path / "tentaflake"
    (root / "generations").mkdir(parents=True)
    monkeypatch.setattr(activate, "ROOT", root)
    monkeypatch.setattr(activate, "CURRENT", root / "current")
    monkeypatch.setattr(activate, "SECRETS", tmp_path / "agenix")
    monkeypatch.setattr(activate, "SECRETS_STORE", tmp_path / "agenix.d")
    monkeypatch.setattr(activate, "BOOTED", tmp_path / "booted")
    return root


class Host:
    """Stands in for what a switch changes outside of its root: notes it, and fails where it is told to."""

    def __init__(self) -> None:
        self.configured: list[str] = []
        self.stopped: list[str] = []
        self.failures: list[str] = []
        self.commands: list[tuple[str, ...]] = []
        self.refused: tuple[str, ...] = ()
        self.done: list[tuple[str, int | None]] = []
        """Each command's first word, and the generation that was in force when it ran."""

    def run(self, *command: str) -> None:
        self.commands.append(command)
        self.done.append((command[0], activate.current_generation()))
        if command == self.refused:
            raise activate.Failed(f"{' '.join(command)} failed")
        if self.failures and self.failures[0] in command:
            raise activate.Failed(f"{self.failures.pop(0)} failed")

    def configure(self, _: int, agent: dict[str, Any]) -> None:
        self.configured.append(agent["name"])

    def stop_units(self, agents: list[dict[str, Any]]) -> None:
        self.stopped += [agent["name"] for agent in agents]


@pytest.fixture
def host(root: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(activate, "run", host.run)
    monkeypatch.setattr(activate, "check_runtimes", lambda settings: None)
    monkeypatch.setattr(activate, "prepare", lambda number: host.run("prepare", str(number)))
    monkeypatch.setattr(activate, "configure", host.configure)
    monkeypatch.setattr(activate, "stop_units", host.stop_units)
    monkeypatch.setattr(activate, "wait_running", lambda _: None)
    monkeypatch.setattr(activate, "remove_networks", lambda wanted: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a real command"))
    return host


@pytest.fixture
def switch(host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], int]:
    """``activate.py switch -`` with a plan on its standard input; its exit code."""

    def switch(plan: Any) -> int:
        text = plan if isinstance(plan, str) else json.dumps(plan)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return activate.main(["switch", "-"])

    return switch


Switch = Callable[[Any], int]


def with_command(plan: PlanData, name: str, word: str) -> PlanData:
    other = copy.deepcopy(plan)
    other["agents"][name]["container"]["command"] = [word]
    return other


def test_a_switch_puts_its_generation_in_force(switch: Switch, plan: PlanData, root: Path) -> None:
    assert switch(plan) == 0
    assert json.loads((root / "current" / "plan.json").read_text()) == plan


def test_a_generation_is_prepared_before_it_is_in_force(switch: Switch, plan: PlanData, host: Host) -> None:
    switch(plan)
    assert host.done.index(("prepare", None)) < host.done.index(("systemctl", 1))


def test_a_written_file_is_what_was_rendered(switch: Switch, plan: PlanData, root: Path) -> None:
    switch(plan)
    for name, (mode, text) in activate.render(plan).items():
        path = root / "current" / name
        assert (path.read_bytes().decode(), path.stat().st_mode & 0o777) == (text, mode)


def test_generations_count_up(switch: Switch, plan: PlanData) -> None:
    for _ in range(3):
        switch(plan)
    assert (activate.generations(), activate.current_generation()) == ([1, 2, 3], 3)


def test_generations_are_readable_by_root_only(switch: Switch, plan: PlanData, root: Path) -> None:
    switch(plan)
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_generation_that_can_not_be_written_is_not_there(root: Path, plan: PlanData) -> None:
    with pytest.raises(activate.Failed, match="surrogates not allowed"):
        activate.write_generation(with_command(plan, "writer", "\ud800"), root)
    assert list((root / "generations").iterdir()) == []


def test_a_full_disk_is_said_in_one_sentence_and_nothing_is_left(
    switch: Switch, plan: PlanData, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert switch(plan) == 0
    capsys.readouterr()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patched:
        patched.setattr(os, "sync", Mock(side_effect=full))
        assert switch(plan) == 1
    said = capsys.readouterr().err
    assert said == f"activate: generation 2 cannot be written to {root}: {full}\nnothing was changed\n"
    assert [path.name for path in (root / "generations").iterdir()] == ["1"]
    assert switch(plan) == 0


def test_what_a_killed_writer_left_is_not_in_the_next_generation(root: Path, plan: PlanData) -> None:
    left = root / "generations" / ".1.partial" / "units" / "evil.service"
    left.parent.mkdir(parents=True)
    left.touch()
    activate.write_generation(plan, root)
    assert not (root / "generations" / "1" / "units" / "evil.service").exists()


def test_a_rollback_goes_to_the_generation_before(switch: Switch, plan: PlanData) -> None:
    switch(plan)
    switch(with_command(plan, "writer", "another"))
    assert activate.main(["rollback"]) == 0
    assert activate.current_generation() == 1


def test_a_rollback_lists_the_generations_for_programs(
    switch: Switch, plan: PlanData, capsys: pytest.CaptureFixture[str]
) -> None:
    switch(plan)
    switch(with_command(plan, "writer", "another"))
    capsys.readouterr()
    assert activate.main(["rollback", "--json"]) == 0
    assert [(each["number"], each["current"]) for each in json.loads(capsys.readouterr().out)] == [
        (1, True),
        (2, False),
    ]


def test_a_rollback_to_nowhere_is_a_wrong_usage(switch: Switch, plan: PlanData) -> None:
    switch(plan)
    assert activate.main(["rollback"]) == 2
    assert activate.current_generation() == 1


@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_rollback_to_no_number_of_a_generation_is_refused(
    switch: Switch, plan: PlanData, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    switch(plan)
    switch(plan)
    assert activate.main(["rollback", number]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"activate: there is no generation {number}; kept are: 1 2"
    assert activate.current_generation() == 2


def test_agents_that_stay_the_same_are_not_touched(switch: Switch, plan: PlanData, host: Host) -> None:
    switch(plan)
    host.configured.clear()
    switch(with_command(plan, "writer", "another"))
    assert (host.stopped, host.configured) == (["writer"], ["writer"])


def without_speech(plan: PlanData) -> PlanData:
    return plan | {"speech": plan["speech"] | {"units": {}}}


def test_the_speech_server_is_there_for_who_is_granted_it(plan: PlanData) -> None:
    rendered = units(plan)
    for address in plan["speech"]["listen"]:
        assert f"ListenStream={address}\n" in rendered["units/tentaflake-tts.socket"]
    assert "tentaflake-tts.service" in rendered["units/tentaflake.target"]
    assert not [name for name, text in units(without_speech(plan)).items() if "tentaflake-tts" in name + text]


def test_the_speech_server_is_stopped_when_it_is_to_listen_elsewhere_or_nowhere(
    switch: Switch, plan: PlanData, host: Host
) -> None:
    stop = ("systemctl", "stop", "tentaflake-tts.socket")
    assert switch(plan) == switch(plan) == 0
    assert stop not in host.commands
    assert switch(without_speech(plan)) == 0
    assert host.commands.count(stop) == 1


def test_agents_do_not_depend_on_the_speech_server(
    switch: Switch, plan: PlanData, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.failures = ["tentaflake-tts.service"]
    assert switch(plan) == 0
    assert "a service of the host" in capsys.readouterr().err


AUDITD = "hermes-auditd.service"


def with_audit(plan: PlanData, **changed: Any) -> PlanData:
    return plan | {"audit": plan["audit"] | changed}


def done_to(host: Host, unit: str) -> list[str]:
    """What systemctl was to do to this unit since the last time that this was asked."""
    verbs = [command[1] for command in host.commands if command[0] == "systemctl" and unit in command]
    host.commands.clear()
    return verbs


def test_the_audit_daemon_runs_as_the_plan_says_with_the_settings_in_force(plan: PlanData) -> None:
    unit = units(plan)[f"units/{AUDITD}"].splitlines()
    assert "User=hermes-auditd" in unit and "NoNewPrivileges=yes" in unit
    assert len([line for line in unit if line.startswith("SystemCallFilter=")]) == 2
    [start] = [line for line in unit if line.startswith("ExecStart=")]
    assert start.endswith("--config=/var/lib/tentaflake/current/audit.json")
    assert json.loads(activate.render(plan)["audit.json"][1]) == plan["audit"]["config"]
    assert f"Wants={AUDITD}" in activate.target_unit(plan)


def test_the_audit_daemon_goes_on_when_nothing_of_it_changes(switch: Switch, plan: PlanData, host: Host) -> None:
    switch(plan)
    assert done_to(host, AUDITD) == ["start"]
    switch(plan)
    assert done_to(host, AUDITD) == ["start"]  # of what runs: nothing happens


def test_the_audit_daemon_reads_new_settings_and_a_rollback_brings_back_the_old(
    switch: Switch, plan: PlanData, host: Host, root: Path
) -> None:
    switch(plan)
    switch(with_audit(plan, config=plan["audit"]["config"] | {"maxAgeDays": 7}))
    host.commands.clear()
    assert activate.main(["rollback"]) == 0
    assert done_to(host, AUDITD) == ["start", "reload"]
    assert "maxAgeDays" not in (root / "current" / "audit.json").read_text()


def test_the_audit_daemon_is_restarted_when_its_unit_changes(switch: Switch, plan: PlanData, host: Host) -> None:
    switch(plan)
    host.commands.clear()
    unit = plan["audit"]["units"][AUDITD]
    switch(with_audit(plan, units={AUDITD: unit | {"Service": unit["Service"] | {"Nice": "0"}}}))
    assert done_to(host, AUDITD) == ["stop", "start"]


def test_the_audit_daemon_is_stopped_when_it_goes(switch: Switch, plan: PlanData, host: Host) -> None:
    switch(plan)
    host.commands.clear()
    without = with_audit(plan, units={})
    assert AUDITD not in "".join(units(without).values())
    switch(without)
    assert done_to(host, AUDITD) == ["stop"]


@pytest.mark.parametrize("verb", ["start", "stop", "reload"])
def test_agents_do_not_depend_on_the_audit_daemon(
    switch: Switch, plan: PlanData, host: Host, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    switch(plan)
    without = with_audit(plan, units={} if verb == "stop" else plan["audit"]["units"], config={})
    host.refused = ("systemctl", verb, AUDITD)
    assert switch(without) == 0
    assert f"a service of the host: systemctl {verb} {AUDITD} failed" in capsys.readouterr().err
    assert activate.current_generation() == 2


def test_a_carriage_return_is_a_change(switch: Switch, plan: PlanData, host: Host) -> None:
    switch(with_command(plan, "writer", "a\nb"))
    switch(with_command(plan, "writer", "a\rb"))
    assert host.stopped == ["writer"]


# --- switches that fail


@pytest.mark.parametrize("plan", [{"version": 2}, {"version": "1"}, {}, [], None, "", "{", '"plan"', "\x00"], ids=repr)
def test_what_is_no_plan_of_this_version_is_refused_in_one_sentence(
    switch: Switch, plan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert switch(plan) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert activate.generations() == []


def parts_of(data: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in the plan something is: the up to four keys that lead there."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data if isinstance(data, list) else []):
        yield (*above, key)
        if len(above) < 3:
            yield from parts_of(value, (*above, key))


def damaged(plan: PlanData, part: tuple[Any, ...], value: Any) -> PlanData:
    """A copy of the plan in which a part has another value, or for ``...`` is not there."""
    *above, last = part
    other = copy.deepcopy(plan)
    inner: Any = other
    for key in above:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return other


@pytest.mark.parametrize("value", [..., ["of another kind"]], ids=repr)
def test_a_plan_with_a_part_missing_or_of_another_kind_is_refused_in_one_sentence(
    switch: Switch, whole: PlanData, host: Host, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    """Or that part is one that a host can do without. Nothing is done half, and nothing is left."""
    assert switch(whole) == 3
    refused = 0
    for part in parts_of(whole):
        capsys.readouterr()
        written, code = activate.written_generations(), switch(damaged(whole, part, value))
        assert code in (0, 2, 3), part
        if code == 2:
            refused += 1
            assert (capsys.readouterr().err.count("\n"), activate.written_generations()) == (1, written), part
    assert refused > 40


def test_a_plan_that_is_not_there_is_refused_in_one_sentence(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert activate.main(["switch", "no-such-file"]) == 2
    assert "no-such-file" in capsys.readouterr().err


def test_a_plan_that_is_no_text_is_refused(host: Host, tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"\xff")
    assert activate.main(["switch", str(tmp_path / "plan")]) == 2


@pytest.mark.parametrize("step", ["prepare", "daemon-reload", "reload-or-restart", "tentaflake.target"])
def test_a_failed_switch_leaves_the_former_generation_in_force(
    switch: Switch, plan: PlanData, host: Host, step: str
) -> None:
    switch(plan)
    host.failures = [step]
    assert switch(with_command(plan, "writer", "another")) == 1
    assert (activate.current_generation(), activate.generations()) == (1, [1])


@pytest.mark.parametrize("step", ["prepare", "daemon-reload", "tentaflake.target"])
def test_a_failed_first_switch_leaves_nothing_in_force(switch: Switch, plan: PlanData, host: Host, step: str) -> None:
    host.failures = [step]
    assert switch(plan) == 1
    assert activate.current_generation() is None


def test_agents_are_configured_after_a_first_switch_that_failed(switch: Switch, plan: PlanData, host: Host) -> None:
    host.failures = ["daemon-reload"]
    switch(plan)
    host.configured.clear()
    assert switch(plan) == 0
    assert sorted(host.configured) == ["coding", "research", "writer"]


def test_a_switch_that_can_not_go_back_keeps_what_current_names(
    switch: Switch, plan: PlanData, host: Host, root: Path
) -> None:
    switch(plan)
    host.failures = ["daemon-reload", "prepare"]
    assert switch(with_command(plan, "writer", "another")) == 1
    assert (root / "current" / "nftables.nft").exists()


def test_a_failure_says_what_failed_and_what_is_in_force(
    switch: Switch, plan: PlanData, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    switch(plan)
    host.failures = ["daemon-reload"]
    switch(with_command(plan, "writer", "another"))
    assert capsys.readouterr().err.endswith("\nactivate: daemon-reload failed\ngeneration 1 is in force\n")


def test_the_link_to_the_current_generation_works_wherever_the_disk_is_mounted(
    switch: Switch, plan: PlanData, root: Path
) -> None:
    switch(plan)
    assert (root / "current").readlink() == Path("generations/1")


# --- Docker's answers


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n[{"Name": "a"}]\n', [{"Name": "a"}]),
        (b"HTTP/1.0 204 No Content\r\n\r\n", None),
        (b'HTTP/1.0 403 Forbidden\r\n\r\n{"message": "in use"}', 'Docker refuses GET /x: {"message": "in use"}'),
        (b'HTTP/1.0 200 OK\r\n\r\n[{"Na', "Docker gives no whole answer to GET /x"),
        (b"", "Docker gives no whole answer to GET /x"),
    ],
)
def test_dockers_answer_is_read_to_its_end_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes, means: Any
) -> None:
    monkeypatch.setattr(activate, "DOCKER_SOCKET", str(tmp_path / "socket"))
    asked: list[bytes] = []

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            asked.append(connection.recv(1000))
            connection.sendall(said)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(activate.DOCKER_SOCKET)
        server.listen()
        docker = threading.Thread(target=answer)
        docker.start()
        if isinstance(means, str):
            with pytest.raises(activate.Failed, match=re.escape(means)):
                activate.ask_docker("GET", "/x")
        else:
            assert activate.ask_docker("GET", "/x") == means
        docker.join()
    assert asked == [b"GET /x HTTP/1.0\r\nHost: docker\r\n\r\n"]
