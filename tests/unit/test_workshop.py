"""NixOS of Debian's packages: when it can be had, when it is taken, and what a machine of it boots."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness import lab
from harness.guests import workshop
from harness.guests.debian import pack_initrd
from harness.guests.nixos import NixosGuest
from harness.guests.nixos_debian import DebianNixosGuest
from harness.lab import Settings
from harness.nixpkgs import INPUTS

Put = Callable[[str], None]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """``put("nixpkgs/lib/default.nix")``: an empty file of the flake's inputs, of which this machine has no others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NIX_PATH", raising=False)
    monkeypatch.delenv("TENTAFLAKE_NIXPKGS", raising=False)
    monkeypatch.setattr("harness.nixpkgs.STORE", Path("/nowhere"))

    def write(name: str) -> None:
        path = tmp_path / INPUTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    return write


def test_what_is_missing_is_named(put: Put) -> None:
    assert str(workshop.find_obstacle()).startswith("no source of nixpkgs: --nixpkgs was not given")
    put("nixpkgs/lib/default.nix")
    assert str(workshop.find_obstacle()).endswith("is nixpkgs' library alone: a whole host takes nixos/ and pkgs/ too")
    put("nixpkgs/nixos/lib/eval-config.nix")
    assert workshop.find_obstacle() == f"no source of agenix: put one beside the cache, as {INPUTS}/agenix"
    put("agenix/modules/age.nix")
    assert workshop.find_obstacle() is None


@pytest.mark.parametrize(
    ("chosen", "obstacle", "made"),
    [
        ("auto", None, NixosGuest),
        ("auto", "no binary cache answers", DebianNixosGuest),
        ("debian", None, DebianNixosGuest),
        ("nixpkgs", "no binary cache answers", NixosGuest),
    ],
)
def test_debians_packages_are_taken_where_no_cache_answers(
    monkeypatch: pytest.MonkeyPatch, chosen: str, obstacle: str | None, made: type
) -> None:
    monkeypatch.setattr(lab, "find_obstacle", lambda: obstacle)
    assert type(Settings(guest="nixos", nixos_packages=chosen).make_guest()) is made


def test_modules_are_loaded_in_order_and_then_the_systems_own_program_runs() -> None:
    packed = pack_initrd(b"the busybox", {"one": b"the first", "other": b"the second"}, "/nix/var/init")
    assert b"for module in one other; do" in packed
    assert b"program=/nix/var/init\n" in packed and b"switch_root /root $program\n" in packed
    for content in (b"the busybox", b"the first", b"the second"):
        assert packed.count(content) == 1
