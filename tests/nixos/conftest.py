"""Where nixpkgs' lib is; without it, nothing here can be evaluated."""

from pathlib import Path
from typing import Any

import pytest

from harness.nixpkgs import NoNixpkgs, find_nixpkgs
from tests.nixos.support import Configuration, Evaluate, evaluate_modules


@pytest.fixture(scope="session")
def nixpkgs(pytestconfig: pytest.Config) -> Path:
    given = pytestconfig.getoption("nixpkgs")
    try:
        return find_nixpkgs(given and Path(given))
    except NoNixpkgs as reason:
        if given:
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def configure(nixpkgs: Path) -> Evaluate:
    """``configure(agents=[...], host={...}, extra={...}, modules=[...])``: the NixOS configuration of one host."""

    def evaluate(**host: Any) -> Configuration:
        [configuration] = evaluate_modules(nixpkgs, [host])
        return configuration

    return evaluate
