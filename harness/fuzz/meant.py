"""What the files of an agent have to say, from the plan alone: a second opinion on how activation renders it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from harness.policy import Agent, Network, Plan

CURRENT = "/var/lib/tentaflake/current"
"""The generation in force."""
DECIDED = "tentaflake-generation.service"
"""Without it no agent starts: it decides which generation a boot has."""
Sections = dict[str, list[tuple[str, str]]]
Command = list[str]


def read_unit(text: str) -> Sections:
    """The settings of a unit file by section, in their order; raises ``AssertionError`` for a line that is none."""
    found: Sections = {}
    settings: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("["):
            settings = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals and not value.endswith("\\"), f"a line of a unit that is no setting: {line!r}"
            settings.append((key, value))
    return found


def unit_of(agent: Agent) -> Sections:
    """The unit of an agent."""
    here, service = f"{CURRENT}/agents/{agent.name}", agent.service
    return {
        "Unit": [
            ("Description", f"Hermes agent {agent.name}"),
            ("Requires", " ".join([*service.requires, DECIDED])),
            ("Wants", " ".join(service.wants)),
            ("PartOf", " ".join(service.part_of)),
            ("After", " ".join([*service.after, DECIDED])),
            ("StartLimitIntervalSec", str(service.start_limit_interval_sec)),
        ],
        "Service": [
            ("Type", "exec"),
            *([("ExecCondition", f"{here}/condition")] if agent.secrets else []),
            ("ExecStart", f"{here}/start"),
            ("ExecStop", f"/usr/bin/docker stop {agent.container.name}"),
            ("Restart", service.restart),
            ("RestartSec", str(service.restart_sec)),
            ("TimeoutStopSec", "30"),
        ],
    }


def wanted_by_target(plan: Plan) -> set[str]:
    """The units of agents that a boot starts."""
    return {f"{agent.service.name}.service" for agent in plan.agents.values() if agent.auto_start}


def services_of(plan: Plan) -> dict[str, Sections]:
    """The host's own services, but for what they run: that is the guest's."""
    return {
        unit: {
            section: [
                (key, text)
                for key, value in settings.items()
                for text in ([value] if isinstance(value, str) else value)
            ]
            for section, settings in sections.items()
        }
        for unit, sections in (plan.speech.units | plan.audit.units).items()
    }


def start_of(agent: Agent, *, has_network: bool) -> list[Command]:
    """The commands of an agent's start, in their order; ``has_network``: Docker has it as it should be."""
    network = agent.network
    create = network_create(network)
    label = shlex.join(create)
    as_agent = [f"--reuid={agent.uid}", f"--regid={agent.gid}", "--clear-groups"]
    make = [["docker", "network", "rm", network.name], ["docker", "network", "create", "--label"]]
    make[1] += [f"tentaflake={label}", *create]
    return [
        ["setpriv", *as_agent, "touch", f"{agent.state_dir}/config.yaml"],
        ["findmnt", "-n", "-o", "TARGET", "-T", agent.state_dir],
        ["setquota", "-u", str(agent.uid), "0", *quota(agent.limits.disk), MOUNT_POINT],
        ["docker", "rm", "--force", agent.container.name],
        ["docker", "network", "inspect", "--format", '{{ index .Labels "tentaflake" }}', network.name],
        *([] if has_network else make),
        ["docker", "run", *docker_run(agent)],
    ]


MOUNT_POINT = ""
"""What ``findmnt`` prints where programs only write down their arguments."""


def quota(disk: int | None) -> Sequence[str]:
    """Blocks of 1 KiB and inodes, one for each 16 KiB and at least 1024; 0 is no limit (setquota(8))."""
    return ["0", "0", "0"] if disk is None else [str(disk // 1024), "0", str(max(disk // 16384, 1024))]


def network_create(network: Network) -> Command:
    internal = ["--internal"] if network.internal else []
    families = [[f"--subnet={each.subnet}", f"--gateway={each.gateway}"] for each in (network.ipv4, network.ipv6)]
    bridge = f"--opt=com.docker.network.bridge.name={network.bridge}"
    return ["--driver=bridge", bridge, *internal, *families[0], "--ipv6", *families[1], network.name]


def docker_run(agent: Agent) -> Command:
    container = agent.container
    return [
        f"--name=hermes-{agent.name}",
        "--rm",
        f"--pull={container.pull}",
        f"--hostname={container.hostname}",
        f"--user={agent.uid}:{agent.gid}",
        f"--workdir={agent.state_dir}",
        *(f"--env={name}={text}" for name, text in sorted(container.environment.items())),
        *(f"--publish={port}" for port in container.ports),
        f"--network={agent.network.name}",
        *container.options,
        container.image,
        *container.command,
    ]
