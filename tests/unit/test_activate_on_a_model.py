"""Switches on a model of a host: killed before any step, failed, rolled back, chosen at boot; what is kept, what goes.

The program is real, and so are its files; what its commands do to a host is played on files too, so that a process
that is killed leaves them as they were. tests/contract/test_deployment.py tries the same on machines.
"""

import copy
import getpass
import grp
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.guests import activate
from harness.policy import reference_plan
from tests.unit.support import REPOSITORY

PlanData = dict[str, Any]
GENERATOR = REPOSITORY / "harness" / "guests" / "files" / "unit-generator"
STEPS = frozenset(
    "os.rename os.remove os.mkdir os.rmdir os.symlink os.chmod os.chown os.truncate model.command".split()
)


class Model:
    """A host on files below ``root``: its users, the units that systemd knows, who runs with what, which rules hold."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.refuse = 0
        """The command that fails, counted from 1; the others do not."""
        for name in ("running", "users", "networks", "docker", "etc", "var"):
            (root / name).mkdir(parents=True)
        for name, path in {
            "ROOT": root / "tentaflake",
            "CURRENT": root / "tentaflake" / "current",
            "SECRETS": root / "agenix",
            "SECRETS_STORE": root / "agenix.d",
            "BOOTED": root / "booted",
            "KERNEL_COMMAND_LINE": root / "cmdline",
            "DOCKER_SETTINGS": root / "docker" / "daemon.json",
        }.items():
            monkeypatch.setattr(activate, name, path)
        for function in (self.run, self.stop_units, self.uid_of, self.remove_user, self.remove_networks):
            monkeypatch.setattr(activate, function.__name__, function)
        monkeypatch.setattr(activate, "wait_running", lambda number: None)
        self.programs = {"crun"}
        monkeypatch.setattr(shutil, "which", lambda name: name if name in self.programs else None)
        # The value of a secret is its file's name. All files here are this test's own.
        monkeypatch.setattr(activate, "decrypt", lambda number, plan, name: plan["secrets"][name]["file"].encode())
        monkeypatch.setattr(activate, "owner_of", lambda plan, name: (os.getuid(), os.getgid()))
        present = activate.present_value
        monkeypatch.setattr(activate, "present_value", lambda name, uid: present(name, os.getuid()))
        monkeypatch.setattr(os, "sync", lambda: None)
        monkeypatch.setattr(os, "fsync", lambda _: None)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a real command"))
        self.popen = subprocess.Popen

    def plan(self, data: PlanData) -> PlanData:
        """A plan whose paths are in here, and whose files are ours."""
        text = json.dumps(data).replace("/var/lib/hermes-", f"{self.root}/var/hermes-")
        plan: PlanData = json.loads(text.replace("/etc/", f"{self.root}/etc/"))
        group = grp.getgrgid(os.getgid()).gr_name
        for agent in plan["agents"].values():
            agent["config"] |= {"user": getpass.getuser(), "group": group}
        return plan

    # --- what commands do

    def run(self, *command: str) -> None:
        sys.audit("model.command")
        self.refuse -= 1
        if self.refuse == 0:
            raise activate.Failed(f"{' '.join(command)} failed")
        match command:
            case ("systemd-sysusers", file):
                for line in Path(file).read_text().splitlines():
                    kind, name, ids, *_ = line.split()
                    if kind == "u" and not (path := self.root / "users" / name).exists():
                        path.write_text(ids.partition(":")[0])
            case ("systemd-tmpfiles", "--create", file):
                for line in Path(file).read_text().splitlines():
                    Path(line.split()[1]).mkdir(parents=True, exist_ok=True)
            case ("userdel", name):
                (self.root / "users" / name).unlink()
            case ("systemctl", "daemon-reload"):
                self.load_units()
            case ("systemctl", "reload-or-restart", "nftables.service"):
                shutil.copyfile(activate.CURRENT / "nftables.nft", self.root / "table")
            case ("systemctl", "start", "--no-block", *units):
                self.start([unit for unit in units if unit.startswith("docker-")])
            case ("nft", text) if "delete table" in text:
                (self.root / "table").unlink(missing_ok=True)
        sys.audit("model.command")

    def load_units(self) -> None:
        """By the real generator."""
        script = GENERATOR.read_text()
        for path in ("/var/lib/tentaflake", "/run/tentaflake-booted", "/proc/cmdline"):
            script = script.replace(path, f"{self.root}/{path.rpartition('/')[2].removeprefix('tentaflake-')}")
        shutil.rmtree(self.root / "units", ignore_errors=True)
        (self.root / "units").mkdir()
        with self.popen(["/bin/sh", "-c", script, "generator", str(self.root / "units")]) as generator:
            assert generator.wait() == 0

    def start(self, units: list[str]) -> None:
        """Each that systemd knows, with what it is started with now; one that runs already goes on."""
        plan = activate.read_plan(activate.current_generation())
        for agent in plan["agents"].values():
            unit = agent["service"]["name"] + ".service"
            if unit in units and (self.root / "units" / unit).exists():
                (self.root / "networks" / agent["network"]["name"]).touch()
                if not (path := self.root / "running" / unit).exists():
                    script = (activate.CURRENT / "agents" / agent["name"] / "start").read_text()
                    path.write_text(f"{script}\n{Path(agent['config']['path']).read_text()}")

    def stop_units(self, agents: list[dict[str, Any]]) -> None:
        sys.audit("model.command")
        for agent in agents:
            (self.root / "running" / f"{agent['service']['name']}.service").unlink(missing_ok=True)
        sys.audit("model.command")

    def uid_of(self, user: str) -> int | None:
        path = self.root / "users" / user
        return int(path.read_text()) if path.exists() else None

    def remove_user(self, user: str) -> None:
        self.run("userdel", user)

    def remove_networks(self, wanted: set[str]) -> None:
        for path in (self.root / "networks").iterdir():
            if path.name not in wanted:
                path.unlink()

    def boot(self, words: str = "") -> int:
        """All that is in memory is gone; then what systemd does at boot, in its order."""
        (self.root / "cmdline").write_text(f"root=/dev/vda {words} quiet\n")
        for name in ("booted", "table"):
            (self.root / name).unlink(missing_ok=True)
        for path in (self.root / "running").iterdir():
            path.unlink()
        shutil.rmtree(activate.SECRETS_STORE, ignore_errors=True)
        activate.SECRETS.unlink(missing_ok=True)
        self.load_units()
        code = activate.main(["boot"]) or activate.main(["secrets"])
        if (self.root / "units" / "nftables.service").exists():
            self.run("systemctl", "reload-or-restart", "nftables.service")
        target = self.root / "units" / "tentaflake.target"
        if target.exists():
            self.start([line.removeprefix("Wants=") for line in target.read_text().splitlines()])
        return code or activate.main(["recover"])

    # --- what is there

    def state(self) -> dict[str, str]:
        """All of the host that follows from a plan, file by file; not agents' state, nor files half written."""
        found = {"current": activate._text(activate.CURRENT / "plan.json"), "switching": str(activate.unfinished())}
        for name in ("running", "users", "networks", "docker", "etc", "units", "table", "agenix"):
            path = self.root / name
            for file in [path] if path.is_file() else sorted(path.resolve().rglob("[!.]*")):
                place = f"{name}/{file.relative_to(path.resolve())}".removesuffix("/.")
                found[place] = file.read_text() if file.is_file() else "directory"
        return found


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    return Model(tmp_path / "host", monkeypatch)


@pytest.fixture(scope="module")
def reference() -> PlanData:
    data: PlanData = json.loads(reference_plan().to_json())
    return data


def without(plan: PlanData, name: str) -> PlanData:
    """``plan`` with an agent less, and with none of its rules."""
    other = copy.deepcopy(plan)
    agent = other["agents"].pop(name)
    for users in (other["users"], other["groups"]):
        del users[agent["user"]]
    for secret in agent["secrets"]:
        del other["secrets"][secret["id"]]
    other["directories"] = [each for each in plan["directories"] if each["group"] != agent["group"]]
    other["nftables"]["content"] = f"# nothing of {name}"
    other["docker"]["settings"]["debug"] = name == "coding"
    return other


def switch(model: Model, plan: PlanData) -> int:
    path = model.root / "plan.json"
    path.write_text(json.dumps(plan))
    return activate.main(["switch", str(path)])


@pytest.fixture
def plans(model: Model, reference: PlanData) -> tuple[PlanData, PlanData]:
    """The one in force, and another: one agent goes, one comes, one is changed, one stays. All have secrets; one has
    another value in the other.
    """
    plan = model.plan(reference)
    one, other = without(plan, "coding"), without(plan, "writer")
    other["agents"]["research"]["config"]["content"] = '{"changed":true}'
    stays = copy.deepcopy(plan["agents"]["coding"])
    stays |= {"name": "stays", "user": "hermes-stays", "uid": 1999, "stateDir": f"{model.root}/var/hermes-stays"}
    stays["service"] = stays["service"] | {"name": "docker-hermes-stays"}
    stays["network"] = stays["network"] | {"name": "hermes-stays"}
    stays["config"] = stays["config"] | {"path": f"{model.root}/etc/hermes/stays/config.yaml"}
    stays["secrets"] = [stays["secrets"][0] | {"id": "stays-key", "path": f"{model.root}/agenix/stays-key"}]
    [changed, *_] = other["agents"]["research"]["secrets"]
    other["secrets"][changed["id"]] |= {"file": "secrets/rotated.age"}
    for each in (one, other):
        each["secrets"]["stays-key"] = plan["secrets"][plan["agents"]["coding"]["secrets"][0]["id"]]
        each["agents"]["stays"] = stays
        each["users"]["hermes-stays"] = plan["users"]["hermes-coding"] | {"uid": 1999}
        each["directories"].append({"path": f"{model.root}/etc/hermes/stays", "mode": "0750", "user": "", "group": "s"})
    return one, other


def differences(seen: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """What is not as wanted, by name."""
    return sorted(name for name in seen.keys() | wanted.keys() if seen.get(name) != wanted.get(name))


def killed_before(step: int | None, act: Callable[[], object]) -> int | None:
    """Do ``act`` in a process that is killed before its step of this number; how many steps it had, if it was not."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in STEPS or writes:
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.addaudithook(look)
            act()
            os.write(sender, str(count).encode())
        finally:
            os._exit(0)
    os.close(sender)
    with open(receiver) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    assert bool(said) != os.WIFSIGNALED(status), "it failed by itself"
    return int(said) if said else None


@pytest.fixture
def kept(model: Model, tmp_path: Path) -> Callable[[], None]:
    """Brings the host back to what it is now."""
    copied = tmp_path / "kept"

    def restore() -> None:
        if copied.exists():
            shutil.rmtree(model.root)
        shutil.copytree(*((copied, model.root) if copied.exists() else (model.root, copied)), symlinks=True)

    return restore


def each_kill(model: Model, plan: PlanData, restore: Callable[[], None], stride: int = 1) -> Iterator[int]:
    """For every ``stride``-th step of a switch to ``plan``: the host after a kill before that step.

    What writes the new generation changes nothing that is in force: every twentieth of its steps will do.
    """
    restore()
    writing = killed_before(None, lambda: activate.write_generation(plan, model.root))
    assert writing
    yield from each_kill_of(lambda: switch(model, plan), restore, stride, writing)


def each_kill_of(
    act: Callable[[], object], restore: Callable[[], None], stride: int = 1, writing: int = 0
) -> Iterator[int]:
    """The same of anything else; of its first steps, as many as ``writing``, every twentieth."""
    restore()
    before = activate.current_generation()
    step = 0
    while killed_before(step, act) is None:
        yield step
        if activate.unfinished() or activate.current_generation() != before or activate.generations()[-1:] != [before]:
            restore()
        step += stride if step >= writing else 20
    assert step > writing + 40
    restore()


def test_the_model_follows_the_plan(model: Model, plans: tuple[PlanData, PlanData]) -> None:
    seen = []
    for plan in (*plans, plans[0]):
        assert switch(model, plan) == 0
        seen.append(model.state())
    assert seen[0] == seen[2] != seen[1]
    assert {path.name for path in (model.root / "users").iterdir()} > {"hermes-stays", "hermes-research"}
    assert "etc/hermes/coding/config.yaml" in seen[1].keys() - seen[0].keys()
    assert "running/docker-hermes-writer.service" in seen[0].keys() - seen[1].keys()


def test_a_host_without_the_runtime_of_its_containers_stays_as_it_is(
    model: Model, plans: tuple[PlanData, PlanData], capsys: pytest.CaptureFixture[str]
) -> None:
    assert switch(model, plans[0]) == 0  # the control: with it, it works
    former = model.state()
    model.programs.clear()
    assert switch(model, plans[1]) == 1
    assert differences(model.state(), former) == []
    assert "the container runtime crun is not installed: there is no program crun" in capsys.readouterr().err


def is_committed(number: int) -> bool:
    """Whether the switch to this generation was killed after its last step: then it is in force, and whole."""
    return not activate.unfinished() and activate.current_generation() == number


def test_recovering_from_a_kill_brings_the_former_host_back(
    model: Model, plans: tuple[PlanData, PlanData], kept: Callable[[], None]
) -> None:
    assert switch(model, plans[0]) == 0
    former, committed = model.state(), 0
    stays = model.root / "running" / "docker-hermes-stays.service"
    for step in each_kill(model, plans[1], kept):
        inode, wanted = stays.stat().st_ino, model.state() if is_committed(2) else former
        assert activate.main(["recover"]) == 0
        assert (step, differences(model.state(), wanted)) == (step, [])
        assert stays.stat().st_ino == inode, "the agent that is the same in both was restarted"
        committed += wanted is not former
    assert committed < 10


def test_a_killed_rollback_leaves_the_host_that_was_there_and_the_next_one_works(
    model: Model, plans: tuple[PlanData, PlanData], kept: Callable[[], None]
) -> None:
    """Before even steps it is recovered from, before odd ones done again."""
    assert switch(model, plans[0]) == 0
    wanted = model.state()
    for plan in (plans[1], without(plans[1], "coding")):
        assert switch(model, plan) == 0
    before = model.state()
    assert len(differences(before, wanted)) > 8
    for step in each_kill_of(lambda: activate.main(["rollback", "1"]), kept, stride=3):
        committed = is_committed(1)
        assert activate.main(["rollback", "1"] if step % 2 else ["recover"]) == 0
        assert (step, differences(model.state(), wanted if step % 2 or committed else before)) == (step, [])
        kept()


def test_a_boot_after_a_kill_brings_the_former_host_back(
    model: Model, plans: tuple[PlanData, PlanData], kept: Callable[[], None]
) -> None:
    assert switch(model, plans[0]) == 0
    former = model.state()
    for step in each_kill(model, plans[1], kept):
        wanted = model.state() if is_committed(2) else former
        assert model.boot() == 0
        assert (step, differences(model.state(), wanted)) == (step, [])


def test_the_switch_after_a_kill_works(
    model: Model, plans: tuple[PlanData, PlanData], kept: Callable[[], None]
) -> None:
    assert switch(model, plans[1]) == 0
    wanted = model.state()
    assert switch(model, plans[0]) == 0
    for step in each_kill(model, plans[1], kept, stride=2):
        committed = is_committed(3)
        assert switch(model, plans[1]) == 0
        assert (step, differences(model.state(), wanted)) == (step, [])
        assert activate.generations()[-2] == 2 + committed, "what a rollback goes to"


def test_a_killed_recovery_can_be_done_again(
    model: Model, plans: tuple[PlanData, PlanData], kept: Callable[[], None]
) -> None:
    assert switch(model, plans[0]) == 0
    former = model.state()
    for _ in each_kill(model, plans[1], kept, stride=5):
        if activate.current_generation() == 2:
            break
    shutil.rmtree(model.root.parent / "kept")
    kept()
    step = 0
    while killed_before(step, lambda: activate.main(["recover"])) is None:
        assert activate.main(["recover"]) == 0
        assert (step, differences(model.state(), former)) == (step, [])
        kept()
        step += 2
    assert step > 20


def test_whatever_command_fails_the_former_host_is_back(
    model: Model, plans: tuple[PlanData, PlanData], kept: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert switch(model, plans[0]) == 0
    former, failed = model.state(), 0
    kept()
    for number in range(1, 100):
        model.refuse = number
        code = switch(model, plans[1])
        if model.refuse > 0:
            break
        said = capsys.readouterr().err
        assert code == 1 or "a service of the host" in said or "nobody goes back" in said
        if code == 1:
            assert (number, differences(model.state(), former)) == (number, [])
            failed += 1
        kept()
    assert failed > 8


def test_a_first_switch_that_is_killed_leaves_nothing(
    model: Model, plans: tuple[PlanData, PlanData], kept: Callable[[], None]
) -> None:
    activate.main(["recover"])
    for step in each_kill(model, plans[0], kept, stride=3):
        if not is_committed(1):
            assert activate.main(["recover"]) == 0
            left = [name for name in model.state() if name.startswith(("running/", "table", "users/hermes-stays"))]
            assert (step, left, activate.current_generation()) == (step, [], None)
        assert switch(model, plans[0]) == 0
        assert len([name for name in model.state() if name.startswith("running/")]) == 3


# --- the choice at boot


def test_a_boot_with_a_generation_on_its_command_line_is_a_rollback(
    model: Model, plans: tuple[PlanData, PlanData]
) -> None:
    assert switch(model, plans[0]) == 0
    former = model.state()
    assert switch(model, plans[1]) == 0
    assert model.boot("tentaflake.generation=1") == 0
    assert model.state() == former
    assert model.boot() == 0
    assert model.state() == former


@pytest.mark.parametrize("word", ["3", "02", "x", "", "../1", "1x", "-1"])
def test_a_boot_without_such_a_generation_has_the_current_one(
    model: Model, plans: tuple[PlanData, PlanData], capsys: pytest.CaptureFixture[str], word: str
) -> None:
    for plan in plans:
        assert switch(model, plan) == 0
    current = model.state()
    assert model.boot(f"tentaflake.generation={word}") == 0
    assert model.state() == current
    assert "which is not kept" in capsys.readouterr().err


def test_a_generation_that_was_never_in_force_cannot_be_chosen(
    model: Model, plans: tuple[PlanData, PlanData], kept: Callable[[], None]
) -> None:
    assert switch(model, plans[0]) == 0
    former = model.state()
    for _ in each_kill(model, plans[1], kept, stride=5):
        if activate.current_generation() == 2:
            break
    assert model.boot("tentaflake.generation=2") == 0
    assert differences(model.state(), former) == []


# --- the way back


def test_a_rollback_to_any_generation_that_is_kept_brings_back_that_host(
    model: Model, plans: tuple[PlanData, PlanData]
) -> None:
    """Neither the one before nor the current one: what came and went in between is as it was then."""
    hosts = []
    for plan in (plans[0], plans[1], without(plans[1], "research")):
        assert switch(model, plan) == 0
        hosts.append(model.state())
    for number in (1, 3, 2, 1):
        assert activate.main(["rollback", str(number)]) == 0
        assert activate.current_generation() == number
        assert (number, differences(model.state(), hosts[number - 1])) == (number, [])
    assert hosts[0] != hosts[1] != hosts[2] != hosts[0]


# --- what is kept, and what goes


def test_the_last_generations_are_kept(
    model: Model, plans: tuple[PlanData, PlanData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activate, "KEPT", 3)
    for number in range(6):
        assert switch(model, plans[number % 2]) == 0
    assert activate.generations() == activate.written_generations() == [4, 5, 6]


def test_the_current_generation_is_kept_however_old(
    model: Model, plans: tuple[PlanData, PlanData], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        assert switch(model, plans[number % 2]) == 0
    monkeypatch.setattr(activate, "KEPT", 2)
    assert activate.main(["rollback", "1"]) == 0
    assert activate.generations() == [1, 3, 4]


def test_a_rollback_to_what_is_not_kept_names_what_is(
    model: Model, plans: tuple[PlanData, PlanData], capsys: pytest.CaptureFixture[str]
) -> None:
    for plan in plans:
        assert switch(model, plan) == 0
    assert activate.main(["rollback", "7"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "activate: there is no generation 7; kept are: 1 2"


def test_generations_are_listed_with_their_agents(
    model: Model, plans: tuple[PlanData, PlanData], capsys: pytest.CaptureFixture[str]
) -> None:
    for plan in plans:
        switch(model, plan)
    capsys.readouterr()
    assert activate.main(["generations"]) == 0
    heading, former, current = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heading == ["NUMBER", "SWITCHED", "TO", "AGENTS"]
    assert (former[0], former[3:]) == ("1", ["research", "stays", "writer"])
    assert (current[0], current[1], current[4:]) == ("2", "current", ["coding", "research", "stays"])


def test_generations_are_listed_for_programs(
    model: Model, plans: tuple[PlanData, PlanData], capsys: pytest.CaptureFixture[str]
) -> None:
    assert activate.main(["generations"]) == 0
    assert capsys.readouterr().out == "no generation yet: nothing was switched to\n"
    for plan in plans:
        switch(model, plan)
    capsys.readouterr()
    assert activate.main(["generations", "--json"]) == 0
    former, current = json.loads(capsys.readouterr().out)
    assert (former["number"], former["current"], former["agents"]) == (1, False, ["research", "stays", "writer"])
    assert (current["number"], current["current"], current["agents"]) == (2, True, ["coding", "research", "stays"])


def test_a_switch_says_who_comes_who_goes_and_who_is_changed(
    model: Model, plans: tuple[PlanData, PlanData], capsys: pytest.CaptureFixture[str]
) -> None:
    for plan in plans:
        assert switch(model, plan) == 0
    said = capsys.readouterr().err.splitlines()
    assert "to generation 1: adds research stays writer" in said
    assert "to generation 2: adds coding; removes writer; changes research; keeps stays" in said


def test_a_switch_whose_listener_is_gone_goes_on(
    model: Model, plans: tuple[PlanData, PlanData], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the connection breaks, or somebody interrupts `harness switch`."""
    receiver, sender = os.pipe()
    os.close(receiver)
    with open(sender, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        with pytest.raises(BrokenPipeError):  # the control
            os.write(sender, b"x")
        assert switch(model, plans[0]) == 0
    assert activate.current_generation() == 1


@pytest.mark.parametrize("number", activate.STOPPED_BY)
def test_a_switch_that_is_asked_to_end_goes_back(
    model: Model,
    plans: tuple[PlanData, PlanData],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    assert switch(model, plans[0]) == 0
    former, handler = model.state(), signal.getsignal(number)
    flip, stopped = activate.flip, False

    def flip_and_stop(to: int | None) -> None:
        nonlocal stopped
        flip(to)
        os.kill(os.getpid(), number)  # the second time, while it goes back, nobody listens
        stopped = True

    monkeypatch.setattr(activate, "flip", flip_and_stop)
    assert switch(model, plans[1]) == 1
    assert stopped and f"stopped by {number.name}" in capsys.readouterr().err
    assert differences(model.state(), former) == []
    assert signal.getsignal(number) == handler


def test_a_switch_that_is_asked_to_end_while_it_writes_leaves_nothing(
    model: Model, plans: tuple[PlanData, PlanData], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert switch(model, plans[0]) == 0
    monkeypatch.setattr(os, "sync", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert switch(model, plans[1]) == 1
    assert "stopped by SIGINT\nnothing was changed" in capsys.readouterr().err
    assert [path.name for path in (activate.ROOT / "generations").iterdir()] == ["1"]


@pytest.fixture
def states(model: Model, plans: tuple[PlanData, PlanData], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A file in the state directory of each agent, by name. Writer was removed."""
    agents = {name: agent for plan in plans for name, agent in plan["agents"].items()}
    owners = {agent["stateDir"]: agent["uid"] for agent in agents.values()}
    monkeypatch.setattr(activate, "owner_uid", lambda path: owners[path] if Path(path).exists() else None)
    found = {name: Path(agent["stateDir"]) / "file" for name, agent in agents.items()}
    for plan in plans:
        assert switch(model, plan) == 0
    for name, path in found.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{name}'s")
    return found


def with_heir(plan: PlanData, model: Model, **fields: Any) -> PlanData:
    """``plan`` with one more agent, of these fields."""
    other = copy.deepcopy(plan)
    heir = copy.deepcopy(other["agents"]["stays"])
    heir |= {"name": "heir", "user": "hermes-heir", "uid": 1998, "stateDir": f"{model.root}/var/hermes-heir"} | fields
    heir["service"]["name"], heir["network"]["name"], heir["secrets"] = "docker-hermes-heir", "hermes-heir", []
    heir["config"]["path"] = f"{model.root}/etc/hermes/heir/config.yaml"
    other["agents"]["heir"], other["users"]["hermes-heir"] = heir, other["users"]["hermes-stays"] | {"uid": heir["uid"]}
    other["directories"].append({"path": f"{model.root}/etc/hermes/heir", "mode": "0750", "user": "", "group": "s"})
    return other


def test_a_kept_state_is_nobody_elses(
    model: Model, plans: tuple[PlanData, PlanData], states: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by the uid nor by the directory; to the agent itself it is given back."""
    writer = plans[0]["agents"]["writer"]
    mine = writer["stateDir"]
    for how, heir in {
        f"uid {writer['uid']}, which is": {"uid": writer["uid"]},
        f"stateDir {mine}, which is": {"stateDir": mine},
        f"stateDir {Path(mine).parent}, which encloses": {"stateDir": str(Path(mine).parent)},
        f"stateDir {mine}/sub, which lies inside": {"stateDir": f"{mine}/sub"},
    }.items():
        assert switch(model, with_heir(plans[1], model, **heir)) == 1
        said = capsys.readouterr().err
        assert f"agent heir has the {how} that of an agent that is no more" in said and "harness purge writer" in said
    assert activate.written_generations() == [1, 2] and activate.current_generation() == 2
    beside = with_heir(plans[1], model, stateDir=f"{mine}-2")
    assert switch(model, beside) == 0  # the control: it begins alike, and is another
    assert switch(model, plans[0]) == 0
    assert states["writer"].read_text() == "writer's"


def test_purging_deletes_what_a_removed_agent_left_and_nothing_else(model: Model, states: dict[str, Path]) -> None:
    assert activate.main(["purge", "writer", "--yes"]) == 0
    assert {name for name, path in states.items() if path.exists()} == {"coding", "research", "stays"}
    assert activate.main(["purge", "writer", "--yes"]) == 2


def test_a_killed_purge_can_be_done_again(model: Model, states: dict[str, Path], kept: Callable[[], None]) -> None:
    """At any step of it nothing else is touched, and afterwards nothing is left."""
    former, step = model.state(), 0
    kept()
    while killed_before(step, lambda: activate.main(["purge", "writer", "--yes"])) is None:
        code = 0 if states["writer"].parent.exists() else 2
        assert activate.main(["purge", "writer", "--yes"]) == code
        assert not states["writer"].parent.exists()
        assert {name for name, path in states.items() if path.exists()} == {"coding", "research", "stays"}
        assert (step, differences(model.state(), former)) == (step, [])
        kept()
        step += 1
    assert step > 5 and not states["writer"].parent.exists()


def test_purging_shows_what_it_would_delete(
    model: Model, states: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert activate.main(["purge", "writer", "--show"]) == 0
    assert capsys.readouterr().out.startswith(f"writer  {states['writer'].parent}  uid ")
    assert activate.main(["purge", "writ", "--show"]) == 2
    assert "did you mean writer?" in capsys.readouterr().err
    assert states["writer"].exists()


@pytest.mark.parametrize("name", ["coding", "nobody", "", "../coding"])
def test_purging_refuses_who_is_there_and_who_never_was(model: Model, states: dict[str, Path], name: str) -> None:
    assert activate.main(["purge", name, "--yes"]) == 2
    assert all(path.exists() for path in states.values())


def test_purging_without_anybody_to_ask_deletes_nothing(
    model: Model, states: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert activate.main(["purge", "writer"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert activate.main(["purge"]) == 0
    assert f"writer  {states['writer'].parent}" in capsys.readouterr().out
    assert states["writer"].exists()


def test_purging_does_not_follow_a_link(model: Model, states: dict[str, Path]) -> None:
    (states["writer"].parent / "link").symlink_to(states["coding"].parent)
    assert activate.main(["purge", "writer", "--yes"]) == 0
    assert states["coding"].exists()
