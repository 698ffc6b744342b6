"""Hosts, their evaluation as NixOS, and what NixOS' oci-containers runs for a container."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from harness.nixpkgs import EVALUATE
from harness.policy import REPOSITORY, run_nix
from harness.strategies import hosts as any_hosts

Configuration = dict[str, Any]
Host = dict[str, Any]
Evaluate = Callable[..., Configuration]

quick = settings(
    max_examples=20,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # no shrinking: each try is an evaluation
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

hosts = any_hosts(min_agents=0, max_agents=4)


def evaluate_modules(nixpkgs: Path, given: Sequence[Host]) -> list[Configuration]:
    """What evaluate.nix says of each of the hosts; raises ``PolicyError`` where one does not evaluate."""
    with tempfile.NamedTemporaryFile("w", prefix="hosts-", suffix=".json") as file:
        json.dump(list(given), file)
        file.flush()
        command = [*EVALUATE, str(Path(__file__).with_name("evaluate.nix")), "--argstr", "hosts", file.name]
        arguments = ["--argstr", "nixpkgs", str(nixpkgs), "--arg", "repository", str(REPOSITORY)]
        output = run_nix([*command, *arguments], subject="the modules")
    configurations: list[Configuration] = json.loads(output)
    return configurations


def docker_run(name: str, container: dict[str, Any]) -> list[str]:
    """The arguments of ``docker run`` that oci-containers makes of a container, in the long form of each flag.

    After nixos/modules/virtualisation/oci-containers.nix; only of the options that are declared in options.nix.
    """
    return [
        f"--name={name}",
        f"--log-driver={container['log-driver']}",
        *(["--rm"] if container["autoRemoveOnStop"] else []),
        *_given("--hostname", container["hostname"]),
        *_given("--user", container["user"]),
        *_given("--workdir", container["workdir"]),
        *(f"--env={variable}={value}" for variable, value in sorted(container["environment"].items())),
        *(f"--publish={port}" for port in container["ports"]),
        *(f"--network={network}" for network in container["networks"]),
        f"--pull={container['pull']}",
        *container["extraOptions"],
        container["image"],
        *container["cmd"],
    ]


def _given(flag: str, value: str | None) -> list[str]:
    return [] if value is None else [f"{flag}={value}"]


def script(path: str) -> str:
    """The text of a script of packages.nix, from its path."""
    return path[1 : path.rindex("»")]
