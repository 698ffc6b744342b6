"""Hosts, their evaluation as NixOS, and what NixOS' oci-containers runs for a container."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from harness.nixpkgs import EVALUATE
from harness.policy import REPOSITORY, run_nix

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

# A NUL is the one character that no string of Nix, no argument and no variable can hold.
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["'", '"', "a b", "$HOME", "$(id)", "%n", "\n", "\\", "--privileged", ""]
)
names = st.from_regex(r"[a-z]([a-z0-9-]{0,22}[a-z0-9])?", fullmatch=True)
variables = st.from_regex(r"V[A-Z0-9_]{0,6}", fullmatch=True)
secrets = st.lists(st.sampled_from(["file", "env"]), max_size=2)
destinations = st.sampled_from(
    [
        {"network": "192.0.2.0/24"},
        {"network": "198.51.100.7/32", "ports": [443, 80]},
        {"network": "2001:db8::/32", "ports": [53], "protocol": "udp"},
    ]
)
specs = st.fixed_dictionaries(
    {"name": names},
    optional={
        "autoStart": st.booleans(),
        "command": st.lists(text, max_size=3),
        "cpus": st.sampled_from([1, 2, 0.5, 0.125]),
        "disk": st.sampled_from([None, "1m", "3g", 1 << 31]),
        "egress": st.sampled_from(["none", "internet"]) | st.lists(destinations, max_size=3, unique_by=str),
        "environment": st.dictionaries(variables, text, max_size=3),
        "image": st.just("localhost:5000/a/b@sha256:" + "0" * 64),
        "memory": st.integers(1 << 24, 1 << 40) | st.sampled_from(["512m", "2GiB"]),
        "pids": st.integers(8, 4096),
        "secrets": secrets,
        "settings": st.dictionaries(
            text, text | st.integers(-9, 9) | st.none() | st.lists(text, max_size=2), max_size=3
        ),
        "stateDir": st.just("elsewhere"),
        "tts": st.booleans(),
        "uid": st.integers(70000, 500000),
    },
)


def _told_apart(index: int, spec: dict[str, Any]) -> dict[str, Any]:
    """The spec with what has to be one agent's own: published ports, secrets, a state directory."""
    told = dict(spec)
    if "secrets" in told:
        told["secrets"] = [
            {"name": f"s{index}_{i}", "file": f"secrets/{index}-{i}.age", "as": way}
            for i, way in enumerate(told["secrets"])
        ]
    if "stateDir" in told:
        told["stateDir"] = f"/var/lib/agents/{told['name']}"
    if told.get("autoStart", True):
        told["publish"] = [8000 + index, {"port": 9000 + index, "target": 53, "protocol": "udp"}]
    return told


hosts = st.fixed_dictionaries(
    {
        "agents": st.lists(
            specs, max_size=4, unique_by=(lambda spec: spec["name"], lambda spec: spec.get("uid", spec["name"]))
        ).map(lambda agents: [_told_apart(index, spec) for index, spec in enumerate(agents)]),
        "host": st.fixed_dictionaries(
            {},
            optional={
                "name": st.just("elsewhere"),
                "allowedTCPPorts": st.lists(st.sampled_from([22, 80, 443]), max_size=3),
                "allowedUDPPorts": st.lists(st.just(41641), max_size=1),
                "secretsIdentity": st.just("/persistent/key"),
                "tailnetInterface": st.sampled_from([None, "tailscale0", "wg0"]),
            },
        ),
    }
)


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
