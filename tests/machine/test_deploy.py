"""`harness switch` and its like, on the machine that a `harness shell` would hold: by the real ssh."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.deploy import publish_way_in
from harness.lab import Lab
from harness.policy import Plan, evaluate_specs, host_of, specs_of
from harness.vm.machine import Machine

Call = Callable[..., int]
# The commands take the one machine that is open: two of these at once would have two.
pytestmark = pytest.mark.xdist_group("open machine")


@pytest.fixture
def call(machine: Machine, lab: Lab) -> Call:
    """Runs a command about this machine; returns its exit code."""
    publish_way_in(machine)

    def call(*arguments: str, given: str = "") -> int:
        done = CliRunner().invoke(app, [*arguments, "--cache", str(lab.cache.root)], input=given)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return done.exit_code

    return call


def test_a_machine_is_switched_and_rolled_back_from_another_terminal(
    machine: Machine, call: Call, plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    agents, host = tmp_path / "agents.json", machine.host
    agents.write_text(json.dumps([*specs_of(plan), {"name": "idle", "autoStart": False}]))
    assert call("switch", "--agents", str(agents)) == 0
    assert "adds idle; keeps " in capfd.readouterr().err
    assert host.user("hermes-idle").exists
    assert call("rollback") == 0
    assert not host.user("hermes-idle").exists
    capfd.readouterr()
    assert call("generations") == 0
    listing = capfd.readouterr().out.splitlines()
    assert [line.split()[1] == "current" for line in listing][-2:] == [True, False]
    assert listing[-1].endswith(" ".join(sorted([*plan.agents, "idle"])))
    assert call("purge", "id") == 2
    assert "did you mean idle?" in capfd.readouterr().err
    assert call("purge", "idle", given="y\n") == 0
    assert "idle  /var/lib/hermes-idle  uid" in capfd.readouterr().out
    assert not host.file("/var/lib/hermes-idle").exists
    assert call("purge", next(iter(plan.agents)), "--yes") == 2
    assert call("rollback", "99") == 2


def test_a_machine_is_switched_to_a_plan_that_was_written_before(
    machine: Machine, call: Call, plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whose agents are those that run, and one that is idle; what is no plan changes nothing."""
    idle = evaluate_specs([*specs_of(plan), {"name": "idle", "autoStart": False}], host=host_of(plan))
    file = tmp_path / "plan.json"
    file.write_text(idle.to_json())
    assert call("switch", str(file), "--json") == 0
    assert machine.host.user("hermes-idle").exists
    shown = capfd.readouterr().out
    assert call("generations", "--json") == 0
    assert capfd.readouterr().out == shown
    *_, last = json.loads(shown)
    assert last["current"] and last["agents"] == sorted([*plan.agents, "idle"])
