"""The NixOS modules, evaluated with nixpkgs' ``lib``, or with all of nixpkgs, where this machine has it."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cache import Cache, default_root, key_of
from harness.errors import HarnessError
from harness.guests.bootstrap import SMALL, STABLE, bootstrap
from harness.policy import REPOSITORY, PolicyError, run_nix

EVALUATION = ["--eval", "--strict", "--json", "--store", "dummy://"]
EVALUATE = ["nix-instantiate", *EVALUATION]
LOCK = REPOSITORY / "flake.lock"
STORE = Path("/nix/store")
INPUTS = "tentaflake-inputs"
"""A directory beside the default cache, with sources of the flake's inputs by their names. Pruning never touches it."""


class NoNixpkgs(HarnessError):
    """This machine has no source of nixpkgs, so no NixOS module can be evaluated; the message says where was looked."""


def find_nixpkgs(given: Path | None = None) -> Path:
    """A directory with nixpkgs' ``lib``: the one given, ``<nixpkgs>`` of NIX_PATH, or the flake's input.

    nixpkgs itself, or the repository nix-community/nixpkgs.lib, which is ``lib`` alone. Raises ``NoNixpkgs``.
    """
    found = given or _from_path() or find_input("nixpkgs")
    if found is None:
        place = default_root().with_name(INPUTS) / "nixpkgs"
        raise NoNixpkgs(
            f"no source of nixpkgs: --nixpkgs was not given, NIX_PATH has none, {place} is not there, "
            "the flake's input is not in /nix/store",
            hint="--nixpkgs DIRECTORY, a clone of nixpkgs or of nix-community/nixpkgs.lib",
        )
    if not (found / "lib" / "default.nix").is_file():
        raise NoNixpkgs(f"{found} is no source of nixpkgs: it has no lib/default.nix", hint="name a clone of nixpkgs")
    return found.resolve()


def _from_path() -> Path | None:
    return _found(["nix-instantiate", "--find-file", "nixpkgs"])


def find_input(name: str) -> Path | None:
    """The source of one of the flake's inputs, from ``INPUTS`` or from the store; nothing is downloaded."""
    if (put_there := default_root().with_name(INPUTS) / name).is_dir():
        return put_there
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


def describe_nixpkgs(source: Path | None) -> str:
    """Which nixpkgs a system is made with, and whether it is the one that flake.lock has; None is that very one."""
    locked = json.loads(LOCK.read_text())["nodes"]["nixpkgs"]["locked"]["rev"]
    if source is None:
        return f"nixpkgs at the locked revision, {locked[:12]}"
    version = (source / ".version").read_text().strip() if (source / ".version").is_file() else "of unknown version"
    git = ["git", "-C", str(source), "rev-parse", "--show-toplevel", "HEAD"]
    done = subprocess.run(git, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    top, revision = done.stdout.split() if done.returncode == 0 else ("", "")
    if Path(top or "/") != source.resolve():  # in somebody else's repository, or in none
        return f"nixpkgs {version} of unknown revision, where {locked[:12]} is locked"
    which = "the locked revision" if revision == locked else f"where {locked[:12]} is locked"
    return f"nixpkgs {version} at {revision[:12]}, {which}"


def whole_obstacle(nixpkgs: Path) -> str | None:
    """Why a whole NixOS cannot be evaluated with this source of nixpkgs: it is the library alone."""
    if not (nixpkgs / "nixos" / "lib" / "eval-config.nix").is_file():
        return f"{nixpkgs} is nixpkgs' library alone: a whole host takes nixos/ and pkgs/ too"
    return None


@dataclass(frozen=True)
class Nix:
    """The programs of one Nix: this machine's, or those of a ``tree`` of Debian packages, which nobody installs."""

    tree: Path | None = None

    def command(self, program: str) -> list[str]:
        """The words of a command line that start one of its programs, by the tree's own loader (ld.so(8))."""
        if self.tree is None:
            return [program]
        [loader] = self.tree.glob("usr/lib64/ld-linux-*.so.*")
        [libraries] = self.tree.glob("usr/lib/*-linux-gnu")
        return [str(loader), "--argv0", program, "--library-path", str(libraries), str(self.tree / "usr/bin/nix")]


def find_nix(cache: Cache, nixpkgs: Path) -> Nix:
    """A Nix that can evaluate all of this nixpkgs: this machine's, or where that is too old, Debian's in the cache."""
    if not missing_features(Nix(), nixpkgs):
        return Nix()
    nix = Nix(cache.make("images", f"nix-{key_of(suite=STABLE.name, options=NIX_TREE)}", _unpack_nix))
    if missing := missing_features(nix, nixpkgs):
        raise NoNixpkgs(f"Nix of Debian {STABLE.name} is too old for {nixpkgs}, which asks for: {missing}")
    return nix


def missing_features(nix: Nix, nixpkgs: Path) -> str:
    """What this nixpkgs asks of Nix that this one has not (``lib/minfeatures.nix``); nothing, if it has all."""
    command = [*nix.command("nix-instantiate"), *EVALUATION, str(nixpkgs / "lib" / "minfeatures.nix")]
    features = json.loads(run_nix(command, subject="nixpkgs"))
    return ", ".join(feature["description"] for feature in features["missing"])


NIX_TREE = ["--variant=extract", "--format=directory", *SMALL, "--include=nix-bin"]
"""Packages that are unpacked, and not configured: that takes no root."""


def _unpack_nix(directory: Path) -> None:
    bootstrap("unpacking Debian's Nix", NIX_TREE, directory / "tree")
    for path in (directory / "tree").iterdir():
        path.rename(directory / path.name)


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
