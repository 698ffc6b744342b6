"""What the tests of failures share."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.lab import Lab
from harness.policy import Plan
from tests.faults.support import BOOT_PATIENCE, Child, child_with_machine, vm_options


def wait_for(path: Path) -> str:
    """The content of a file, once it is there."""
    deadline = time.monotonic() + BOOT_PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not come: {(path.parent / 'output').read_text()}"
        time.sleep(0.05)
    return path.read_text()


@pytest.fixture
def options(lab: Lab, plan: Plan) -> list[str]:
    """The options that give a child pytest our machines; their template is there."""
    lab.activated(plan)
    return vm_options(lab.settings)


@pytest.fixture
def child(tmp_path: Path, options: list[str], pytestconfig: pytest.Config) -> Iterator[Child]:
    """A pytest in the middle of a test that has a machine."""
    with child_with_machine(tmp_path, wait_for, *options) as made:
        yield made
