"""What was found, as a test file that fails until it is mended."""

from __future__ import annotations

import hashlib
import pprint
from pathlib import Path

from harness.fuzz.live import Step
from harness.fuzz.properties import Case

TEST = '''"""Found by `harness fuzz`: a host that broke a property of the policy."""

from harness.fuzz.properties import prove
{imports}
CASE = {case}


def test_{name}_{digest}() -> None:
    prove({property}, CASE)
'''
LIVE_TEST = '''"""Found by `harness fuzz --live`: steps that left a host wrong."""

import pytest

from harness.fuzz.live import replay
from harness.lab import Lab

STEPS = {steps}


@pytest.mark.live
def test_live_{digest}(lab: Lab) -> None:
    replay(lab, STEPS)
'''


def write_regression(directory: Path, name: str, case: Case) -> Path:
    """A test file that fails until this case keeps the property; its name follows from the case."""
    text = pprint.pformat(case, width=100, sort_dicts=False)
    digest = _digest(f"{name} {text}")
    imports = "from harness.strategies import Mistake\n" if text.startswith("Mistake(") else ""
    path = directory / f"test_found_{name}_{digest}.py"
    path.write_text(TEST.format(imports=imports, case=text, name=name, digest=digest, property=f'"{name}"'))
    return path


def write_live_regression(directory: Path, steps: list[Step]) -> Path:
    """A test file that fails until these steps leave the host as they should."""
    text = pprint.pformat(steps, width=100, sort_dicts=False)
    digest = _digest(text)
    path = directory / f"test_found_live_{digest}.py"
    path.write_text(LIVE_TEST.format(steps=text, digest=digest))
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
