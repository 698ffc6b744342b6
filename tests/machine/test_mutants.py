"""A machine of a run with ``--vm-mutant`` is broken when its test gets it."""

from pathlib import Path

import pytest

from harness.lab import Lab
from tests.faults.support import run_pytest, vm_options

CHILD = """
def test_of_its_own(machine, agents):
    check(machine, agents["coding"])

def test_of_a_shared_one(shared_machine, agents):
    check(shared_machine, agents["coding"])

def check(machine, agent):
    assert machine.host.file(agent.state_dir).mode == 0o755
    assert "iifname != \\"h-*\\" accept" not in machine.host.check_output("nft list table inet tentaflake")
"""


@pytest.mark.parametrize(("mutant", "came"), [("state-0755", "2 passed"), ("ipv6-forgotten", "2 failed")])
def test_every_machine_is_broken(lab: Lab, tmp_path: Path, mutant: str, came: str) -> None:
    done = run_pytest(tmp_path, CHILD, f"--vm-mutant={mutant}", *vm_options(lab.settings))
    assert came in done.stdout, done.stdout
