"""The service: what systemd is told, its settings, its sandbox, its metrics."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hermes_auditd import config, service
from hermes_auditd.errors import AuditError

from tests.services.auditd.conftest import Locally, Start
from tests.services.auditd.support import (
    PACKAGE,
    Program,
    eventually,
    let_pass,
    obstacle_to_others,
    settings,
    time_limit,
    told,
)


def test_ready_is_who_has_watched_everything(start: Start, home: Path) -> None:
    home.mkdir()
    for number in range(300):
        (home / f"{number}/sub").mkdir(parents=True)
    running = start()
    assert "watching 601 directories" in running.log
    (home / "299/sub/file").touch()
    running.wait_row(path="*/299/sub/file", origin="live")


def test_the_watchdog_is_fed(start: Start) -> None:
    running = start()
    running.wait_told("WATCHDOG=1")
    running.said.clear()
    running.wait_told("WATCHDOG=1")


def test_a_systemd_that_does_not_listen_keeps_the_daemon_from_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, time_limit(20):
        listener.bind(address)
        for _ in range(2000):  # far more than fit into its queue
            service.notify("WATCHDOG=1")
        assert listener.recv(100) == b"WATCHDOG=1"


def test_a_hanging_daemon_does_not_feed_the_watchdog(start: Start) -> None:
    running = start()
    running.signal(signal.SIGSTOP)
    running.hear()
    running.said.clear()
    with pytest.raises(AssertionError, match="not within"):
        running.wait_told("WATCHDOG=1", 2.5)


def test_a_stop_is_recorded_and_the_heads_are_noted(start: Start) -> None:
    running = start()
    running.stop()
    assert running.rows()[-1]["kind"] == "stop"
    assert re.search(r"head a:[0-9]+:[0-9a-f]{64}$", running.log, re.MULTILINE)


def test_a_second_daemon_is_refused(start: Start, tmp_path: Path) -> None:
    running = start()
    second = [sys.executable, "-m", "hermes_auditd.daemon", f"--config={running.config}"]
    done = subprocess.run(
        second, env=os.environ | {"PYTHONPATH": str(PACKAGE)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "another hermes-auditd writes" in done.stderr


def reload(running: Program, data: dict[str, Any]) -> None:
    before = len(running.rows(kinds=("reload",)))
    running.config.write_text(json.dumps(data))
    running.signal(signal.SIGHUP)
    eventually(lambda: len(running.rows(kinds=("reload",))) > before, "it is reloaded")


def test_a_reload_takes_agents_in_and_out_and_leaves_the_others_alone(start: Start, tmp_path: Path) -> None:
    running = start("a", "b")
    reload(running, settings(tmp_path, "b", "c"))
    for agent in ("a", "b", "c"):
        (tmp_path / agent / "file").touch()
    for agent in ("b", "c"):
        running.wait_row(path=f"*/{agent}/file")
    running.stop()
    assert told(running.rows(agent="a"), tmp_path / "a") == []
    kinds = {agent: [row["kind"] for row in running.rows(agent=agent)][:3] for agent in ("a", "b")}
    assert kinds == {"a": ["watch", "rescan", "unwatch"], "b": ["watch", "rescan", "create"]}


def test_a_reload_of_wrong_settings_changes_nothing(start: Start, home: Path) -> None:
    running = start()
    running.config.write_text("{")
    running.signal(signal.SIGHUP)
    eventually(lambda: "the former settings stay" in running.log, "it is said")
    (home / "file").touch()
    running.wait_row(path="*/file")


@pytest.mark.auditd
def test_metrics_are_in_prometheus_format(start: Start, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "metrics.prom"
    running = start(metrics=str(file))
    (home / "file").touch()

    def events() -> float:
        found = re.search(r'^hermes_auditd_events_total\{agent="a"\} ([0-9]+)$', file.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0

    eventually(lambda: file.exists() and events() > 2, "the file is counted")
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'hermes_auditd_[a-z_]+(\{agent="a"\})? [0-9.]+', line) for line in lines)
    names = {re.split(r"[{ ]", line)[0].removeprefix("hermes_auditd_") for line in lines}
    assert {"events_total", "overflows_total", "rescans_total", "queue_bytes", "lag_seconds"} <= names
    assert running.log


@pytest.mark.auditd
def test_idle_is_idle(start: Start) -> None:
    """A turn a second. How much processor that takes is in docs/audit.md."""
    running = start()
    assert running.process is not None
    status = Path(f"/proc/{running.process.pid}/status")

    def switches() -> int:
        found = re.search(r"^voluntary_ctxt_switches:\s+([0-9]+)", status.read_text(), re.MULTILINE)
        assert found
        return int(found[1])

    running.wait_told("WATCHDOG=1")
    before = switches()
    for _ in range(2):
        running.said.clear()
        running.wait_told("WATCHDOG=1")
    assert switches() - before < 30


# --- settings


GOOD = {"directories": [{"agent": "a", "path": "/var/lib/a", "uid": 1}]}
BAD: list[tuple[Any, str]] = [
    ([], "must be a JSON object"),
    ({}, "lacks the field 'directories'"),
    (GOOD | {"maxByte": 1}, "a field 'maxByte' that does not exist"),
    (GOOD | {"maxBytes": "1"}, "maxBytes is '1'"),
    (GOOD | {"maxBytes": True}, "maxBytes is True"),
    (GOOD | {"maxBytes": 5}, "maxBytes is 5, and must be at least 1048576"),
    (GOOD | {"coalesceMs": 5000}, "coalesceMs is 5000"),
    (GOOD | {"exclude": [1]}, "exclude holds 1"),
    ({"directories": [{"agent": "a", "path": "var", "uid": 1}]}, "path is 'var'"),
    ({"directories": [{"agent": "a", "path": "/var/../x", "uid": 1}]}, "path is '/var/../x'"),
    ({"directories": [{"agent": "", "path": "/x", "uid": 1}]}, "agent is ''"),
    ({"directories": [{"agent": "a", "path": "/x"}]}, "directories[0] lacks the field 'uid'"),
    ({"directories": GOOD["directories"] * 2}, "two agents have the name 'a'"),
]


@pytest.mark.parametrize(("data", "what"), BAD, ids=[what for _, what in BAD])
def test_wrong_settings_get_one_error(data: Any, what: str) -> None:
    with pytest.raises(AuditError, match=re.escape(what)):
        config.parse(data)


def test_an_agents_own_limits_go_before_those_of_all() -> None:
    data = {"directories": [GOOD["directories"][0] | {"maxWatches": 7}], "maxWatches": 5, "maxAgeDays": 3}
    [agent] = config.parse(data).agents
    assert (agent.limits.max_watches, agent.limits.max_age_days) == (7, 3)


def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, start: Start) -> None:
    running = start(maxWatches="many", ready=False)
    assert running.wait() == 1 and "maxWatches is 'many'" in running.log


# --- the unit


def unit() -> str:
    """The unit as Debian has it: unit.json and the two commands."""
    data = json.loads((PACKAGE / "unit.json").read_text())
    data["Service"] |= {"ExecStart": "/bin/true", "ExecReload": "/bin/kill -HUP $MAINPID"}
    lines = []
    for section, fields in data.items():
        lines.append(f"[{section}]")
        for name, value in fields.items():
            lines += [f"{name}={text}" for text in ([value] if isinstance(value, str) else value)]
    return "\n".join(lines) + "\n"


def analyze(*arguments: str) -> str:
    program = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_sandbox_leaves_little_exposed(tmp_path: Path) -> None:
    file = tmp_path / "hermes-auditd.service"
    file.write_text(unit())
    found = re.search(
        r"Overall exposure level for hermes-auditd.service: ([0-9.]+)", analyze("security", "--offline=true", str(file))
    )
    assert found and float(found[1]) <= 2.0
    file.write_text(re.sub(r"^(Protect|Private|Restrict|Capab|SystemCall).*\n", "", unit(), flags=re.MULTILINE))
    found = re.search(
        r"Overall exposure level for hermes-auditd.service: ([0-9.]+)", analyze("security", "--offline=true", str(file))
    )
    assert found and float(found[1]) > 5  # the control: what is measured is the sandbox


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    file = tmp_path / "hermes-auditd.service"
    file.write_text(unit())
    assert "hermes-auditd.service:" not in analyze("verify", "--man=no", str(file))


@pytest.mark.skipif(obstacle_to_others() is not None, reason=str(obstacle_to_others()))
def test_the_one_capability_of_the_unit_is_enough_and_is_needed(start: Start, tmp_path: Path) -> None:
    data = json.loads((PACKAGE / "unit.json").read_text())
    assert data["Service"]["CapabilityBoundingSet"] == "CAP_DAC_READ_SEARCH"
    (tmp_path / "record").mkdir()
    os.chown(tmp_path / "record", 61184, 61184)
    (tmp_path / "a/private").mkdir(parents=True)
    for directory in ("a", "a/private"):
        os.chown(tmp_path / directory, 61185, 61185)
        (tmp_path / directory).chmod(0o700)
    let_pass(tmp_path)
    with_it = unprivileged("+dac_read_search")
    running = start(wrapper=with_it)
    (tmp_path / "a/private/file").touch()
    running.wait_row(path="*/private/file")
    running.stop()
    running.wrapper = unprivileged("")
    running.start()
    assert [row["path"] for row in running.rows(kinds=("limit",))] == [str(tmp_path / "a")]


def unprivileged(capability: str) -> list[str]:
    """Another user, with one capability or none."""
    sets = [
        f"--{name}=-all{',' * bool(capability)}{capability}" for name in ("inh-caps", "ambient-caps", "bounding-set")
    ]
    return ["setpriv", "--reuid=61184", "--regid=61184", "--clear-groups", "--no-new-privs", *sets]


def test_nix_parses_the_module() -> None:
    program = shutil.which("nix-instantiate") or pytest.skip("nix-instantiate is not installed")
    done = subprocess.run(
        [program, "--parse", str(PACKAGE / "default.nix")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_settings_of_the_plan_are_settings(locally: Locally) -> None:
    """What modules/policy/plan.nix has under ``audit`` is enough."""
    agents = [{"agent": "coding", "path": "/var/lib/hermes-coding", "uid": 1900000000}]
    assert config.parse({"directories": agents}).agents[0].name == "coding"
