"""The NixOS modules, evaluated with nixpkgs' ``lib`` where this machine has it: nothing is built or downloaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.policy import REPOSITORY, PolicyError, run_nix

EVALUATE = ["nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://"]
LOCK = REPOSITORY / "flake.lock"
STORE = Path("/nix/store")


class NoNixpkgs(HarnessError):
    """This machine has no source of nixpkgs, so no NixOS module can be evaluated; the message says where was looked."""


def find_nixpkgs(given: Path | None = None) -> Path:
    """A directory with nixpkgs' ``lib``: the one given, ``<nixpkgs>`` of NIX_PATH, or the flake's input in the store.

    nixpkgs itself, or the repository nix-community/nixpkgs.lib, which is ``lib`` alone. Raises ``NoNixpkgs``.
    """
    found = given or _from_path() or _from_store()
    if found is None:
        raise NoNixpkgs(
            "no source of nixpkgs: --nixpkgs was not given, NIX_PATH has none, the flake's input is not in /nix/store",
            hint="--nixpkgs DIRECTORY, a clone of nixpkgs or of nix-community/nixpkgs.lib",
        )
    if not (found / "lib" / "default.nix").is_file():
        raise NoNixpkgs(f"{found} is no source of nixpkgs: it has no lib/default.nix", hint="name a clone of nixpkgs")
    return found.resolve()


def _from_path() -> Path | None:
    return _found(["nix-instantiate", "--find-file", "nixpkgs"])


def _from_store() -> Path | None:
    return find_input("nixpkgs")


def find_input(name: str) -> Path | None:
    """The source of one of the flake's inputs, if the store has it; nothing is downloaded."""
    if not STORE.is_dir():
        return None
    source = f"builtins.fetchTree (builtins.fromJSON (builtins.readFile {LOCK})).nodes.{name}.locked"
    return _found(["nix", "eval", "--offline", "--impure", "--raw", "--expr", f"({source}).outPath"])


def _found(command: list[str]) -> Path | None:
    """The path that it prints; None where it fails, because there is none or it would have to be downloaded."""
    try:
        return Path(run_nix(command, subject="nixpkgs").decode().strip())
    except PolicyError:
        return None


def whole_obstacle(nixpkgs: Path) -> str | None:
    """Why a whole NixOS cannot be evaluated with this source of nixpkgs: it is the library alone, or Nix is too old."""
    if not (nixpkgs / "nixos" / "lib" / "eval-config.nix").is_file():
        return f"{nixpkgs} is nixpkgs' library alone: a whole host takes nixos/ and pkgs/ too"
    features = json.loads(run_nix([*EVALUATE, str(nixpkgs / "lib" / "minfeatures.nix")], subject="nixpkgs"))
    if missing := ", ".join(feature["description"] for feature in features["missing"]):
        return f"this Nix is too old for {nixpkgs}, which asks for: {missing}"
    return None


def options_page(nixpkgs: Path) -> str:
    """docs/options.md: every option of the modules, with its type, default, example and description."""
    command = [*EVALUATE, str(REPOSITORY / "harness" / "options.nix"), "--argstr", "nixpkgs", str(nixpkgs)]
    options = json.loads(run_nix([*command, "--arg", "repository", str(REPOSITORY)], subject="the modules' options"))
    return HEAD + "".join(_section(option) for option in options)


HEAD = """\
# Options

What the NixOS modules of this flake take; [nixos.md](nixos.md) says how they are used. Written by `ci/harness options`,
from `modules/`: edit those.
"""


def _section(option: dict[str, Any]) -> str:
    lines = [
        f"\n## {_plain(option['name'])}\n",
        _plain(option["description"].strip()) + "\n",
        f"*Type:* {option['type']}\n",
    ]
    for name in ("default", "example"):
        if option[name] is not None:
            lines.append(f"*{name.capitalize()}:*{_code(option[name])}\n")
    return "\n".join(lines)


def _code(text: str) -> str:
    return f"\n```nix\n{text}\n```" if "\n" in text else f" `{text}`"


def _plain(text: str) -> str:
    """Without the roles of nixpkgs' Markdown, which no other program knows."""
    return re.sub(r"\{\w+\}(?=`)", "", text).replace("<", "\\<")
