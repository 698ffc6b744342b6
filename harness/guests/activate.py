#!/usr/bin/env python3
"""Apply a plan to this Debian host, the way switch-to-configuration does on NixOS.

    activate.py switch PLAN.json|- [--files DIR] [--json]
                                       write a new generation and switch to it
    activate.py rollback [N] [--json]  switch to generation N (default: the one before the current)
    activate.py generations [--json]   list those that are kept, the current one marked, as the two above do when done
    activate.py purge [NAME] [--yes]   delete the state of a removed agent (without NAME: list those that have some;
                                       with --show: only say what would be deleted)
    activate.py recover                go back, if a switch was killed
    activate.py wait                   wait until every agent of the current plan that starts by itself runs
    activate.py secrets                decrypt the secrets of the current generation, as is done at boot
    activate.py boot                   decide which generation this boot has

Runs in the guest as root with its own Python and nothing else. A generation is a directory
``/var/lib/tentaflake/generations/N`` that holds everything derived from its plan; the link ``current``
names the one in force, and flipping it is the switch: units (by way of a systemd generator), firewall
and configuration are all read through it.

A switch that fails goes back to the former generation. So that one which is killed does too, it is noted in
the file ``switching`` from its first step to its last, and each step can be done again: ``recover`` goes back as soon
as the lock is free (``tentaflake-recover.service``, which every switch starts and which waits for that), and so does
a boot. A switch that comes first goes on from wherever the killed one has left the host.

At boot, ``tentaflake.generation=N`` on the kernel's command line is a rollback to N.

Secrets are decrypted into agenix's layout, and only there: /run/agenix is a link to a directory in the ramfs
/run/agenix.d. One that cannot be decrypted keeps its old value; an agent that then lacks one does not start.

Exit codes: 0 done; 1 failed, the former generation is in force; 2 wrong usage or a plan that cannot be read, and
nothing was tried; 3 done, but for secrets that could not be decrypted.
"""

import argparse
import fcntl
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

ROOT = Path("/var/lib/tentaflake")
CURRENT = ROOT / "current"
KEPT = 20
"""How many generations are kept: the last ones that were in force."""
BOOTED = Path("/run/tentaflake-booted")
"""There from when this boot's generation is decided: until then the generator does not trust ``current``."""
KERNEL_COMMAND_LINE = Path("/proc/cmdline")
STOPPED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_TIMEOUT = 60.0
"""Seconds for the processes of a removed user to end, which were killed."""
PLAN_VERSION = 1
START_TIMEOUT = 600.0
"""Seconds for all agents to start; one that fails again and again is not waited for."""
SECRETS = Path("/run/agenix")
SECRETS_STORE = Path("/run/agenix.d")
Files = dict[str, tuple[int, str]]


class Failed(Exception):
    """The switch did not succeed; the message is for the person who asked for it."""


# --- what a plan means on this host: pure functions, plan in, text out -------------------------------


def render(plan: dict[str, Any]) -> Files:
    """All files of a generation: relative path to (mode, text)."""
    files: Files = {
        "plan.json": (0o600, json.dumps(plan, indent=1, sort_keys=True)),
        "nftables.nft": (0o600, firewall(plan)),
        "sysusers.conf": (0o600, sysusers(plan)),
        "audit.json": (0o600, json.dumps(plan["audit"]["config"], indent=1, sort_keys=True)),
        "tmpfiles.conf": (0o600, tmpfiles(plan)),
        "daemon.json": (0o644, json.dumps(plan["docker"]["settings"], indent=1, sort_keys=True) + "\n"),
        f"units/{plan['slice']['name']}": (0o644, slice_unit(plan)),
        "note-table": (0o600, plan["nftables"]["note"]),
        "guard-table": (0o600, plan["nftables"]["guard"]),
        "watch-agents": (0o600, plan["watch"]),
        "units/nftables.service": (0o644, FIREWALL_UNIT),
        "units/tentaflake-secrets.service": (0o644, SECRETS_UNIT),
        "units/tentaflake-routing.service": (0o644, routing_unit(plan)),
        "units/tentaflake-guard.service": (0o644, GUARD_UNIT),
        "units/tentaflake-guard.timer": (0o644, guard_timer(plan)),
        "units/tentaflake-watch.service": (0o644, WATCH_UNIT),
        "units/tentaflake.target": (0o644, target_unit(plan)),
        **host_units(plan),
    }
    for name, agent in plan["agents"].items():
        files[f"agents/{name}/start"] = (0o700, start_script(agent))
        if agent["secrets"]:
            files[f"agents/{name}/condition"] = (0o700, condition_script(agent))
        files[f"agents/{name}/config.yaml"] = (0o400, agent["config"]["content"])
        files[f"units/{agent['service']['name']}.service"] = (0o644, agent_unit(agent))
    return files


def firewall(plan: dict[str, Any]) -> str:
    """An nft file that replaces the table in one transaction: there is no moment without rules (F6)."""
    family, table = plan["nftables"]["family"], plan["nftables"]["table"]
    head = f"table {family} {table}\ndelete table {family} {table}\n"
    return f"{head}table {family} {table} {{\n{plan['nftables']['content']}\n}}\n"


def sysusers(plan: dict[str, Any]) -> str:
    """sysusers.d(5) lines. The uid and the group's gid are given, never chosen here."""
    lines = [f"g {name} {group['gid']}" for name, group in plan["groups"].items()]
    for name, user in plan["users"].items():
        fields = (name, f"{user['uid']}:{user['group']}", f'"{user["description"]}"', user["home"], user["shell"])
        lines.append("u " + " ".join(fields))
    if plan["audit"]["units"]:
        lines += ["g hermes-audit -", 'u hermes-auditd -:hermes-audit "Audit daemon" /nonexistent /usr/sbin/nologin']
    return "\n".join(lines) + "\n"


def tmpfiles(plan: dict[str, Any]) -> str:
    """tmpfiles.d(5) lines for the plan's directories."""
    return "".join(f"d {d['path']} {d['mode']} {d['user']} {d['group']} -\n" for d in plan["directories"])


HOST_UNITS = (
    "nftables.service",
    "tentaflake-routing.service",
    "tentaflake-guard.timer",
    "tentaflake-secrets.service",
    "docker.service",
)


FIREWALL_UNIT = f"""[Unit]
# In place of Debian's own, which flushes Docker's rules too when it stops; NixOS' has the same name.
Description=Firewall of the agents (table inet tentaflake)
DefaultDependencies=no
After=systemd-modules-load.service local-fs.target
Before=network-pre.target docker.service
Wants=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f {CURRENT}/nftables.nft
ExecStart=/bin/sh {CURRENT}/note-table
ExecReload=/usr/sbin/nft -f {CURRENT}/nftables.nft
ExecReload=/bin/sh {CURRENT}/note-table
"""


def slice_unit(plan: dict[str, Any]) -> str:
    return f"""[Unit]
Description=All Hermes agents of this host

[Slice]
MemoryMax={plan["slice"]["memoryMax"]}
# Docker's own limit of swap is lost when systemd sets a container's others again, as after a reload.
MemorySwapMax=0
"""


# At boot; a switch has decrypted them itself.
SECRETS_UNIT = f"""[Unit]
Description=Secrets of the agents
After=local-fs.target
Before=docker.service
ConditionPathExists=!{SECRETS}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/tentaflake/activate.py secrets
"""


def routing_unit(plan: dict[str, Any]) -> str:
    """ip-rule(8): agents' networks are no way to each other, with or without a firewall. The host's own way stays.

    systemd-networkd removes, whenever it starts, all rules that are not its own, but for the kernel's.
    """
    steps = []
    for flag, family in (("-4", "ipv4"), ("-6", "ipv6")):
        network = plan["routing"]["unreachable"][family]
        pair = f"from {network} to {network}"
        for priority, rule in ((4700, f"iif lo {pair} lookup main"), (4701, f"{pair} prohibit")):
            steps.append(f"ExecStart=/usr/sbin/ip {flag} rule add priority {priority} {rule} protocol kernel")
            steps.append(f"ExecStop=/usr/sbin/ip {flag} rule del priority {priority}")
    return "\n".join(
        [
            "[Unit]",
            "Description=No route from an agent's network to another's",
            "DefaultDependencies=no",
            "After=local-fs.target",
            "Before=network-pre.target docker.service",
            "Wants=network-pre.target",
            "",
            "[Service]",
            "Type=oneshot",
            "RemainAfterExit=yes",
            *sorted(steps),
            "",
        ]
    )


# Loads the table again when somebody has removed or changed it (docs/firewall.md). What it calls waits for Docker.
GUARD_UNIT = f"""[Unit]
Description=Is the firewall of the agents still there?
Wants=tentaflake-watch.service
After=nftables.service

[Service]
Type=oneshot
ExecStart=/bin/sh {CURRENT}/guard-table
"""


WATCH_UNIT = f"""[Unit]
Description=Does every agent run that Docker takes for running?

[Service]
Type=oneshot
ExecStart=/bin/sh {CURRENT}/watch-agents
"""


def guard_timer(plan: dict[str, Any]) -> str:
    return f"""[Unit]
Description=Ask whether the firewall of the agents is still there

[Timer]
OnActiveSec={plan["nftablesCheckSec"]}
OnUnitActiveSec={plan["nftablesCheckSec"]}
AccuracySec=1
"""


def target_unit(plan: dict[str, Any]) -> str:
    """The target that boot reaches: the firewall and every agent that starts by itself."""
    wanted = [a["service"]["name"] + ".service" for a in plan["agents"].values() if a["service"]["wantedBy"]]
    lines = "".join(f"Wants={unit}\n" for unit in [*HOST_UNITS, *services(plan), *wanted])
    return f"[Unit]\nDescription=All Hermes agents of this host\n{lines}"


# The daemon's one capability lets it read its settings here. The link leads to those of the generation in force.
PROGRAMS = {
    "hermes-auditd.service": [
        f"ExecStart=/usr/bin/python3 -m hermes_auditd.daemon --config={CURRENT}/audit.json",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Environment=PYTHONPATH=/usr/lib/tentaflake/auditd",
    ],
    "tentaflake-tts.service": [
        "ExecStart=/usr/bin/python3 -m tentaflake_tts.server --config /etc/tentaflake-tts/config.json",
        "Environment=PYTHONPATH=/usr/lib/tentaflake/speech-wheels:/usr/lib/tentaflake/speech",
    ],
}
"""Where this host has the programs of the units that a plan describes: lines of their section Service."""


def services(plan: dict[str, Any]) -> dict[str, dict[str, dict[str, str | list[str]]]]:
    """The units of the host's own services, which a plan describes by section, and on which no agent depends."""
    units: dict[str, dict[str, dict[str, str | list[str]]]] = plan["speech"]["units"] | plan["audit"]["units"]
    return units


def host_units(plan: dict[str, Any]) -> Files:
    """Those units' files."""
    files: Files = {}
    for name, sections in services(plan).items():
        lines = []
        for section, settings in sections.items():
            lines.append(f"[{section}]")
            for key, value in settings.items():
                lines += [f"{key}={text}" for text in ([value] if isinstance(value, str) else value)]
            if section == "Service":
                lines += PROGRAMS[name]
        files[f"units/{name}"] = (0o644, "\n".join(lines) + "\n")
    return files


DECIDED = "tentaflake-generation.service"
"""Runs ``boot``. Where that fails the host may be a mixture, and no agent starts."""


def agent_unit(agent: dict[str, Any]) -> str:
    """The unit of one agent. It holds names that the policy has checked, and no free text of the spec."""
    service, container = agent["service"], agent["container"]["name"]
    condition = f"ExecCondition={CURRENT}/agents/{agent['name']}/condition\n" if agent["secrets"] else ""
    return f"""[Unit]
Description=Hermes agent {agent["name"]}
Requires={" ".join(service["requires"])} {DECIDED}
Wants={" ".join(service["wants"])}
PartOf={" ".join(service["partOf"])}
After={" ".join(service["after"])} {DECIDED}
StartLimitIntervalSec={service["startLimitIntervalSec"]}

[Service]
Type=exec
{condition}ExecStart={CURRENT}/agents/{agent["name"]}/start
ExecStop=/usr/bin/docker stop {container}
Restart={service["restart"]}
RestartSec={service["restartSec"]}
TimeoutStopSec=30
"""


def network_arguments(agent: dict[str, Any]) -> list[str]:
    """``docker network create`` for the agent's own bridge."""
    network = agent["network"]
    return [
        "--driver=bridge",
        f"--opt=com.docker.network.bridge.name={network['bridge']}",
        *(["--internal"] if network["internal"] else []),
        f"--subnet={network['ipv4']['subnet']}",
        f"--gateway={network['ipv4']['gateway']}",
        "--ipv6",
        f"--subnet={network['ipv6']['subnet']}",
        f"--gateway={network['ipv6']['gateway']}",
        network["name"],
    ]


def run_arguments(agent: dict[str, Any]) -> list[str]:
    """``docker run``, flag by flag as NixOS' oci-containers module gives them."""
    container = agent["container"]
    return [
        f"--name={container['name']}",
        "--rm",
        f"--pull={container['pull']}",
        f"--hostname={container['hostname']}",
        f"--user={container['user']}",
        f"--workdir={container['workdir']}",
        *(f"--env={name}={value}" for name, value in sorted(container["environment"].items())),
        *(f"--publish={port}" for port in container["ports"]),
        *(f"--network={network}" for network in container["networks"]),
        *container["options"],
        container["image"],
        *container["command"],
    ]


def condition_script(agent: dict[str, Any]) -> str:
    """Keeps an agent that lacks a secret from starting (S3), once and not every two seconds: see systemd.service(5)."""
    lines = ["#!/bin/sh"]
    for secret in agent["secrets"]:
        why = f"agent {agent['name']} does not start without its secret {secret['name']}: {SECRETS_HELP}"
        lines.append(f"[ -e {shlex.quote(secret['path'])} ] || {{ echo {shlex.quote(why)} >&2; exit 1; }}")
    return "\n".join(lines) + "\n"


SECRETS_HELP = "/usr/lib/tentaflake/activate.py secrets says why there is none"


def quota(agent: dict[str, Any]) -> str:
    """A line that sets the user's disk quota: blocks of 1 KiB, an inode per 16 KiB as mke2fs has it (setquota(8))."""
    limit = agent["limits"]["disk"]
    command = 'setquota -u {uid} 0 {blocks} 0 {inodes} "$(findmnt -n -o TARGET -T {state})"'
    words = {"uid": agent["uid"], "state": shlex.quote(agent["stateDir"])}
    if limit is None:  # there may be one from before, or no quotas here at all
        return command.format(**words, blocks=0, inodes=0) + " 2> /dev/null || :"
    reason = (
        f"disk quota of agent {agent['name']}: the file system of its state needs user quotas (mount option usrquota)"
    )
    return (
        command.format(**words, blocks=limit // 1024, inodes=max(limit // 16384, 1024))
        + f" || {{ echo {shlex.quote(reason)} >&2; exit 1; }}"
    )


def start_script(agent: dict[str, Any]) -> str:
    """What the unit runs. Every word that a spec can choose is quoted for the shell."""
    network, wanted = agent["network"]["name"], shlex.join(network_arguments(agent))
    as_agent = f"setpriv --reuid={agent['uid']} --regid={agent['gid']} --clear-groups"
    mount_point = shlex.quote(f"{agent['stateDir']}/config.yaml")
    return f"""#!/bin/sh
set -eu
# The configuration is mounted over this file. The agent owns the directory, so the agent makes it.
[ -e {mount_point} ] || {as_agent} touch {mount_point}
{quota(agent)}
docker rm --force {agent["container"]["name"]} > /dev/null 2>&1 || :
wanted={shlex.quote(wanted)}
found=$(docker network inspect --format '{{{{ index .Labels "tentaflake" }}}}' {network} 2> /dev/null) || :
if [ "$found" != "$wanted" ]; then
  docker network rm {network} > /dev/null 2>&1 || :
  docker network create --label "tentaflake=$wanted" {wanted} > /dev/null
fi
exec docker run {shlex.join(run_arguments(agent))}
"""


# --- generations ---------------------------------------------------------------------------------------


def current_generation() -> int | None:
    try:
        return int(CURRENT.readlink().name)
    except FileNotFoundError:
        return None


def written_generations() -> list[int]:
    return sorted(int(path.name) for path in (ROOT / "generations").glob("[0-9]*"))


def generations() -> list[int]:
    """The current one, and those that were it: whose switch has succeeded."""
    return [number for number in written_generations() if number == current_generation() or was_in_force(number)]


def was_in_force(number: int) -> bool:
    return (generation(number) / "switched").exists()


def generation(number: int) -> Path:
    return ROOT / "generations" / str(number)


def read_plan(number: int | None) -> dict[str, Any]:
    if number is None:
        return {"agents": {}, "users": {}, "speech": {"units": {}}, "audit": {"units": {}, "config": {}}}
    plan: dict[str, Any] = json.loads((generation(number) / "plan.json").read_text())
    return plan


def write_generation(plan: dict[str, Any], files: Path) -> int:
    """Write the next generation, whole or not at all; returns its number. ``files`` is where the age files are.

    Raises ``Failed``: then nothing of it is left.
    """
    number = max(written_generations(), default=0) + 1
    partial = ROOT / "generations" / f".{number}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        fill_generation(partial, plan, files)
        os.sync()
        partial.rename(generation(number))
    except (Failed, OSError, ValueError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise Failed(f"generation {number} cannot be written to {ROOT}: {error}\nnothing was changed") from error
    return number


def fill_generation(partial: Path, plan: dict[str, Any], files: Path) -> None:
    """Write all that a generation is into a directory that is none yet."""
    for name, (mode, text) in render(plan).items():
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    for name, secret in plan["secrets"].items():
        if is_age_file(files / secret["file"]):  # else it is one more that cannot be decrypted
            path = partial / "secrets" / f"{name}.age"
            path.parent.mkdir(mode=0o700, exist_ok=True)
            shutil.copyfile(files / secret["file"], path)


def flip(number: int | None) -> None:
    """Make ``current`` name this generation, atomically."""
    new = ROOT / ".current.new"
    new.unlink(missing_ok=True)
    if number is None:
        CURRENT.unlink(missing_ok=True)
    else:
        new.symlink_to(f"generations/{number}")
        new.rename(CURRENT)
    os.sync()


def write_state(name: str, text: str) -> None:
    """Write one of our own files, whole or not at all, and for good."""
    new = ROOT / f".{name}.new"
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(ROOT / name)
    sync_directory()


def sync_directory() -> None:
    directory = os.open(ROOT, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def unfinished() -> list[int | None]:
    """The generations of a switch that has not come to its end: first the one to go back to, then those switched to.

    All but the first may be in force in part. Nothing is unfinished: an empty list.
    """
    return [int(word) or None for word in _text(ROOT / "switching").split()]


def note_switching(numbers: Sequence[int | None]) -> None:
    write_state("switching", " ".join(str(number or 0) for number in numbers) + "\n")


def finish() -> None:
    """The switch is done: what is in force is whole. Generations that were never in force go, and the oldest."""
    number = current_generation()
    (ROOT / "switching").unlink(missing_ok=True)
    sync_directory()
    if number is not None:
        (generation(number) / "switched").touch()
    kept = {number, *generations()[-KEPT:]}
    for other in written_generations():
        if other not in kept:
            shutil.rmtree(generation(other), ignore_errors=True)


def list_generations() -> list[dict[str, Any]]:
    """Those that are kept: number, whether it is in force, since when (None: its switch is under way), its agents."""
    found = []
    for number in generations():
        stamp = generation(number) / "switched"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(stamp.stat().st_mtime)) if stamp.exists() else None
        is_current, agents = number == current_generation(), list(read_plan(number)["agents"])
        found.append({"number": number, "current": is_current, "switched": when, "agents": agents})
    return found


def describe_generations() -> Iterator[str]:
    """The same for a person, with a heading."""
    if found := list_generations():
        yield f"{'NUMBER':6}  {'':7}  {'SWITCHED TO':16}  AGENTS"
    else:
        yield "no generation yet: nothing was switched to"
    for each in found:
        mark, agents = "current" if each["current"] else "", " ".join(each["agents"]) or "no agents"
        yield f"{each['number']:6}  {mark:7}  {each['switched'] or 'under way':16}  {agents}"


# --- agents that were removed ----------------------------------------------------------------------------


def known_agents() -> list[dict[str, Any]]:
    """Every agent that this host has had: its name, user, uid, state directory and where its configuration was."""
    known: list[dict[str, Any]] = json.loads(_text(ROOT / "known.json") or "[]")
    return known


def remember_agents(plan: dict[str, Any]) -> None:
    """Before anything is made for them, so that whatever there is of an agent can be found again."""
    known = known_agents()
    for agent in plan["agents"].values():
        one = {name: agent[name] for name in ("name", "user", "uid", "gid", "stateDir")}
        one["configDir"] = str(Path(agent["config"]["path"]).parent)
        if one not in known:
            known.append(one)
    if known != known_agents():
        write_state("known.json", json.dumps(known, indent=1) + "\n")


def kept_agents(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The agents that this plan does not have, and whose state is there and still theirs."""
    present = {(agent["uid"], agent["stateDir"]) for agent in plan["agents"].values()}
    gone = [agent for agent in known_agents() if (agent["uid"], agent["stateDir"]) not in present]
    return [agent for agent in gone if owner_uid(agent["stateDir"]) == agent["uid"]]


def owner_uid(path: str) -> int | None:
    try:
        return Path(path).lstat().st_uid
    except FileNotFoundError:
        return None


def check_kept_state(plan: dict[str, Any]) -> None:
    """Nobody inherits what a removed agent has left, by its uid or by its directory; raises ``Failed``."""
    for kept in kept_agents(plan):
        for agent in plan["agents"].values():
            if how := inherits(agent, kept):
                raise Failed(
                    f"agent {agent['name']} has the {how} that of an agent that is no more, and whose state is kept: "
                    f"{kept['name']}, uid {kept['uid']}, {kept['stateDir']}. Choose another {how.partition(' ')[0]}, "
                    f"or delete that state: {purge_command(kept['name'])}. Or give it away: chown -R"
                )


def inherits(agent: dict[str, Any], kept: dict[str, Any]) -> str | None:
    """By what an agent would have what another left, if so: the field, its value, and what that is to the other's.

    Who owns a directory can rename and delete what is directly in it, whoever owns that.
    """
    mine, theirs = Path(agent["stateDir"]), Path(kept["stateDir"])
    if agent["uid"] == kept["uid"]:
        return f"uid {agent['uid']}, which is"
    if mine == theirs:
        return f"stateDir {mine}, which is"
    if theirs.is_relative_to(mine):
        return f"stateDir {mine}, which encloses"
    if mine.is_relative_to(theirs):
        return f"stateDir {mine}, which lies inside"
    return None


def purge_command(name: str) -> str:
    return f"`harness purge {name}`, or on this host `activate.py purge {name}`"


def tidy(number: int | None) -> None:
    """Take away what agents that are not in this generation have left, but for their state."""
    plan = read_plan(number)
    for agent in known_agents():
        if agent["name"] not in plan["agents"]:
            shutil.rmtree(agent["configDir"], ignore_errors=True)
    users = {agent["user"]: agent["uid"] for agent in known_agents()}
    wrong = {user for user in users if uid_of(user) not in (None, plan["users"].get(user, {}).get("uid"))}
    for user in sorted(wrong):
        remove_user(user)
    if number is not None and wrong & plan["users"].keys():
        make_users(number)
    remove_networks({agent["network"]["name"] for agent in plan["agents"].values()})


def uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def remove_user(user: str) -> None:
    """End what still runs as this user, and the user: by its uid nobody can log in, and nothing starts by itself."""
    deadline = time.monotonic() + END_TIMEOUT
    while subprocess.run(["pkill", "--signal", "KILL", "--uid", str(uid_of(user))], check=False).returncode == 0:
        if time.monotonic() > deadline:
            raise Failed(f"the processes of {user}, which is to be removed, do not end")
        time.sleep(0.05)
    run("userdel", user)  # and its group (USERGROUPS_ENAB in login.defs(5))


def purge(name: str | None, *, yes: bool, show: bool) -> int:
    """Delete the state of a removed agent, or ``show`` what that would be; returns the exit code."""
    plan = read_plan(current_generation())
    kept = kept_agents(plan)
    if name is None:
        print(*map(describe_kept, kept), sep="\n", end="\n" if kept else "")
        print(f"delete one for good: {purge_command('NAME')}" if kept else "no removed agent has any state here")
        return 0
    wanted = [agent for agent in kept if agent["name"] == name]
    if unfinished():
        return refuse("a switch was killed: run activate.py recover first")
    if name in plan["agents"] and not wanted:
        return refuse(f"agent {name} is in the current plan: switch to one without it first")
    if not wanted:
        return refuse(
            f"no removed agent {name!r} has any state here; {likely(name, [agent['name'] for agent in kept])}"
        )
    directories = {agent["stateDir"] for agent in wanted}
    if shared := {agent["stateDir"] for agent in plan["agents"].values()} & directories:
        return refuse(f"{shared.pop()} is an agent's of the current plan")
    if show:
        print(*map(describe_kept, wanted), sep="\n")
        return 0
    if not yes:
        if not sys.stdin.isatty():
            return refuse("nobody to ask: --yes deletes without a question")
        if input(f"delete {' '.join(directories)} for good? Write the agent's name: ") != name:
            return refuse("nothing was deleted")
    for directory in directories:
        shutil.rmtree(directory)
    write_state("known.json", json.dumps([agent for agent in known_agents() if agent not in wanted], indent=1) + "\n")
    print(f"deleted {' '.join(directories)}; a rollback to a generation with {name} starts it without state")
    return 0


def describe_kept(agent: dict[str, Any]) -> str:
    return f"{agent['name']}  {agent['stateDir']}  uid {agent['uid']}"


def likely(name: str, names: list[str]) -> str:
    """What somebody may have meant who wrote ``name`` in place of one of these."""
    import difflib  # takes its time, and is seldom needed

    found = [each for each in names if name and each.startswith(name)] or difflib.get_close_matches(name, names, 1)
    return f"did you mean {found[0]}?" if found else f"there is that of {' '.join(names) or 'nobody'}"


def refuse(why: str) -> int:
    complain([why])
    return 2


# --- secrets -----------------------------------------------------------------------------------------------


def is_age_file(path: Path) -> bool:
    """Whether it begins as age files do. A value in the clear is never copied, nor quoted in a message, as age does."""
    try:
        with path.open("rb") as file:
            return file.readline(80) in (b"age-encryption.org/v1\n", b"-----BEGIN AGE ENCRYPTED FILE-----\n")
    except OSError:
        return False


def decrypt(number: int, plan: dict[str, Any], name: str) -> bytes:
    """The value of a secret; raises ``Failed`` with the reason."""
    path, identity = generation(number) / "secrets" / f"{name}.age", plan["host"]["secretsIdentity"]
    if not path.exists():
        raise Failed("there was no such age file when this generation was made")
    try:
        done = subprocess.run(
            ["age", "--decrypt", "--identity", identity, "--", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise Failed("the program age is not installed") from None
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.decode(errors="replace").partition("\n")[0].removeprefix("age: error: ")
    if "no identity matched" in said:
        said += f"; encrypt it for this host's key, {identity}.pub"
    raise Failed(said or f"age ended with {done.returncode}")


def owner_of(plan: dict[str, Any], name: str) -> tuple[int, int]:
    """The uid and gid that a secret is for."""
    secret = plan["secrets"][name]
    return plan["users"][secret["owner"]]["uid"], plan["groups"][secret["group"]]["gid"]


def present_value(name: str, uid: int) -> bytes | None:
    """The value that is there now, if it is this user's: a name that has gone over to another takes no value along."""
    try:
        path = SECRETS / name
        return path.read_bytes() if path.stat().st_uid == uid else None
    except FileNotFoundError:
        return None


def read_secrets(number: int, plan: dict[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """The values that a generation's secrets are to have, and a sentence on each that could not be decrypted."""
    values, problems = {}, []
    for agent in plan["agents"].values():
        for secret in agent["secrets"]:
            name = secret["id"]
            try:
                value = decrypt(number, plan, name)
                if secret["as"] == "env" and b"\0" in value:
                    raise Failed("it holds a NUL, which no environment variable can")
                values[name] = value
            except Failed as error:
                old = present_value(name, owner_of(plan, name)[0])
                outcome = "does not start" if old is None else "keeps its old value"
                if old is not None:
                    values[name] = old
                what = f"secret {secret['name']} of agent {agent['name']} ({secret['file']})"
                problems.append(f"{what} cannot be decrypted: {error}: the agent {outcome}")
    return values, problems


def install_secrets(plan: dict[str, Any], values: dict[str, bytes]) -> None:
    """Put the values in force, all at once, and remove the former ones. Never on a disk: a ramfs is never swapped."""
    SECRETS_STORE.mkdir(mode=0o751, exist_ok=True)
    if not SECRETS_STORE.is_mount():
        run("mount", "-t", "ramfs", "-o", "nodev,nosuid,noexec,mode=0751", "none", str(SECRETS_STORE))
    lock = os.open(SECRETS_STORE, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install_secrets(plan, values)
    finally:
        os.close(lock)


def _install_secrets(plan: dict[str, Any], values: dict[str, bytes]) -> None:
    here = SECRETS_STORE / str(1 + max((int(path.name) for path in SECRETS_STORE.glob("[0-9]*")), default=0))
    here.mkdir()
    here.chmod(0o751)
    for name, value in values.items():
        with open(os.open(here / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
            os.fchown(file.fileno(), *owner_of(plan, name))
            os.fchmod(file.fileno(), int(plan["secrets"][name]["mode"], 8))
            file.write(value)
    new = SECRETS.with_name(f".{SECRETS.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(here)
    new.rename(SECRETS)
    for path in SECRETS_STORE.iterdir():
        if path != here:
            shutil.rmtree(path)


def restore_secrets() -> int:
    """Decrypt the current generation's secrets and put them in force; returns the exit code."""
    number = current_generation()
    if number is None:
        return 0
    plan = read_plan(number)
    values, problems = read_secrets(number, plan)
    install_secrets(plan, values)
    complain(problems)
    return 3 if problems else 0


def complain(problems: Iterable[str]) -> None:
    for problem in problems:
        say(f"activate: {problem}", sys.stderr)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print at once. That nobody listens any more, as when the connection is gone, is no reason to stop half way."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def lacks_secret(agent: dict[str, Any]) -> bool:
    return any(not (SECRETS / secret["id"]).exists() for secret in agent["secrets"])


def has_other_secrets(agent: dict[str, Any], values: dict[str, bytes]) -> bool:
    """Whether its values are other ones than before: a container keeps those that it was started with."""
    return any(present_value(secret["id"], agent["uid"]) != values.get(secret["id"]) for secret in agent["secrets"])


# --- the switch --------------------------------------------------------------------------------------------


_lock: list[int] = []
"""The lock's descriptor, which every command inherits: who is killed holds it until the last of them has ended."""


def run(*command: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, pass_fds=_lock
    )
    if done.returncode:
        raise Failed(f"{shlex.join(command)} failed ({done.returncode}): {(done.stderr or done.stdout).strip()}")


def prepare(number: int) -> None:
    """What may be done before the switch, because the former generation does not mind."""
    run("nft", "--check", "--file", str(generation(number) / "nftables.nft"))
    if (generation(number) / "daemon.json").read_text() != _text(DOCKER_SETTINGS):
        run("dockerd", "--validate", "--config-file", str(generation(number) / "daemon.json"))
    if place_files(number):
        run("systemctl", "restart", "docker.service")


DOCKER_SETTINGS = Path("/etc/docker/daemon.json")


def check_runtimes(settings: dict[str, Any]) -> None:
    """What runs containers is installed; raises ``Failed``. Docker would miss it when it starts the first one."""
    for name, runtime in settings.get("runtimes", {}).items():
        if shutil.which(runtime["path"]) is None:
            raise Failed(f"the container runtime {name} is not installed: there is no program {runtime['path']}")


def place_files(number: int) -> bool:
    """Users, directories, and the files that are not read through ``current``; returns whether Docker's are others."""
    make_users(number)
    init = read_plan(number)["containerInit"]
    install_file(Path(init["path"]), init["content"], int(init["mode"], 8))
    settings = (generation(number) / "daemon.json").read_text()
    if settings == _text(DOCKER_SETTINGS):
        return False
    install_file(DOCKER_SETTINGS, settings, 0o644)
    return True


def make_users(number: int) -> None:
    run("systemd-sysusers", str(generation(number) / "sysusers.conf"))
    run("systemd-tmpfiles", "--create", str(generation(number) / "tmpfiles.conf"))


def install_file(path: Path, text: str, mode: int) -> None:
    """Write root's file in one step: whoever has the former one open or mounted keeps that."""
    new = path.with_name(f".{path.name}.new")
    path.parent.mkdir(exist_ok=True)
    new.unlink(missing_ok=True)
    new.write_text(text)
    new.chmod(mode)
    new.rename(path)


def configure(number: int, agent: dict[str, Any]) -> None:
    """Put the agent's configuration in its place, in one step; the agent reads it when it starts."""
    config = agent["config"]
    path = Path(config["path"])
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(_text(generation(number) / "agents" / agent["name"] / "config.yaml"))
    shutil.chown(new, config["user"], config["group"])
    new.chmod(int(config["mode"], 8))
    new.rename(path)


def stop_units(agents: list[dict[str, Any]]) -> None:
    """Stop the agents' units, all at once; one that was never loaded (exit code 5) is stopped enough."""
    units = [agent["service"]["name"] + ".service" for agent in agents]
    if units:
        done = subprocess.run(
            ["systemctl", "stop", *units], capture_output=True, text=True, check=False, pass_fds=_lock
        )
        if done.returncode not in (0, 5):
            raise Failed(f"{' '.join(units)} do not stop: {done.stderr.strip()}")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()  # as it is: text mode would read a carriage return as a newline
    except FileNotFoundError:
        return ""


def fingerprint(number: int, agent: dict[str, Any]) -> list[str]:
    """What an agent's container is made from; if it differs, the agent must be restarted."""
    here, name = generation(number), agent["name"]
    names = (f"agents/{name}/start", f"agents/{name}/config.yaml", f"units/{agent['service']['name']}.service")
    return [_text(here / path) for path in names]


def stop_services(plan: dict[str, Any], formers: Sequence[dict[str, Any]]) -> list[str]:
    """Stop the host's services that are to go, or to be others; returns what went wrong."""
    after = host_units(plan)
    before = {(file, content) for former in formers for file, content in host_units(former).items()}
    return try_systemctl("stop", {Path(file).name for file, content in before if content != after.get(file)})


def start_services(plan: dict[str, Any], formers: Sequence[dict[str, Any]]) -> list[str]:
    """Start the host's services, or have them read new settings; returns what went wrong.

    No agent depends on them: what goes wrong is only said.
    """
    problems = try_systemctl("start", services(plan))
    after = plan["audit"]
    audits = [former["audit"] for former in formers]
    if any(each["units"] == after["units"] and each["config"] != after["config"] for each in audits):
        problems += try_systemctl("reload", after["units"])
    return problems


def try_systemctl(verb: str, units: Iterable[str]) -> list[str]:
    """``systemctl VERB UNIT`` for each, sockets first; returns what went wrong."""
    problems = []
    for unit in sorted(units, reverse=True):
        try:
            run("systemctl", verb, unit)
        except Failed as error:
            problems.append(f"a service of the host: {error}")
    return problems


def switch_to(number: int, mixed: Sequence[int | None]) -> bool:
    """Put a written generation in force on a host that is a mixture of others, which is most often one only.

    Agents that are the same in all of them are not touched. Returns whether all secrets could be decrypted.
    """
    plan, formers = read_plan(number), [read_plan(each) for each in mixed]
    new = plan["agents"]
    values, problems = read_secrets(number, plan)

    def is_same(name: str) -> bool:
        wanted = fingerprint(number, new[name])
        return all(
            each is not None and name in former["agents"] and fingerprint(each, former["agents"][name]) == wanted
            for each, former in zip(mixed, formers, strict=True)
        ) and not has_other_secrets(new[name], values)

    same = {name for name in new if is_same(name)}
    old = {name: agent for former in formers for name, agent in former["agents"].items()}
    say(f"to generation {number}: {changes(old, new, same)}", sys.stderr)
    stop_units([agent for name, agent in old.items() if name not in same])
    service_problems = stop_services(plan, formers)
    tidy(number)
    for name in new.keys() - same:
        configure(number, new[name])
    flip(number)
    install_secrets(plan, values)
    run("systemctl", "daemon-reload")
    run("systemctl", "reload-or-restart", "nftables.service")
    run("systemctl", "start", "tentaflake.target")
    wanted = [agent["service"]["name"] + ".service" for agent in new.values() if agent["autoStart"]]
    if wanted:
        run("systemctl", "start", "--no-block", *wanted)
    complain([*service_problems, *start_services(plan, formers)])
    wait_running(number)
    complain(problems)
    return not problems


def changes(old: Iterable[str], new: Iterable[str], same: Iterable[str]) -> str:
    """In a line: which agents a switch adds, removes, changes and keeps."""
    before, after, kept = set(old), set(new), set(same)
    parts = {
        "adds": after - before,
        "removes": before - after,
        "changes": (after & before) - kept,
        "keeps": kept,
    }
    return "; ".join(f"{verb} {' '.join(sorted(names))}" for verb, names in parts.items() if names) or "no agents"


def switch_off(mixed: Sequence[int | None]) -> None:
    """Put no generation in force, as before the first: that one's switch has not succeeded."""
    plans = [read_plan(number) for number in mixed]
    stop_units([agent for plan in plans for agent in plan["agents"].values()])
    stop_services(read_plan(None), plans)
    try_systemctl("stop", ["tentaflake.target", "tentaflake-guard.timer", "tentaflake-routing.service"])
    tidy(None)
    flip(None)
    for family, table in {(plan["nftables"]["family"], plan["nftables"]["table"]) for plan in plans if plan["agents"]}:
        run("nft", f"table {family} {table}; delete table {family} {table}")
    try_systemctl("stop", ["nftables.service"])
    run("systemctl", "daemon-reload")


def remove_networks(wanted: set[str]) -> None:
    """Remove the networks that the agents' start scripts have made, but these."""
    for name in labelled_networks() - wanted:
        try:
            ask_docker("DELETE", f"/networks/{quote(name)}")
        except Failed as error:  # no agent is on it
            complain([str(error)])


def labelled_networks() -> set[str]:
    """None where Docker does not run, as before the first switch: it starts with what it had."""
    try:
        return {network["Name"] for network in ask_docker("GET", f"/networks?filters={quote(LABELLED)}")}
    except (FileNotFoundError, ConnectionRefusedError):
        return set()


LABELLED = '{"label":["tentaflake"]}'
DOCKER_SOCKET = "/run/docker.sock"


def ask_docker(method: str, path: str) -> Any:
    """Docker's answer on its own socket, which costs no process; raises ``Failed`` with its own words.

    By HTTP/1.0, where an answer ends with the connection. http.client would load a mail parser and TLS for it: more
    than all else here.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(DOCKER_SOCKET)
        connection.sendall(f"{method} {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
        with connection.makefile("rb") as said:
            head, _, body = said.read().partition(b"\r\n\r\n")
    try:
        status = int(head.split()[1])
        answer = json.loads(body) if body and status < 400 else None
    except (IndexError, ValueError) as error:
        raise Failed(f"Docker gives no whole answer to {method} {path}: {head[:200]!r}") from error
    if status >= 400:
        raise Failed(f"Docker refuses {method} {path}: {body.decode(errors='replace').strip()}")
    return answer


def running_containers() -> set[str]:
    return {container["Names"][0].lstrip("/") for container in ask_docker("GET", "/containers/json")}


def wait_running(number: int | None) -> None:
    """Wait until every agent that can and should runs; one that keeps failing is named with its last words."""
    agents = read_plan(number)["agents"].values()
    names = [agent["container"]["name"] for agent in agents if agent["autoStart"] and not lacks_secret(agent)]
    deadline = time.monotonic() + START_TIMEOUT
    looks = 0
    while missing := sorted(set(names) - running_containers() if names else set()):
        looks += 1  # Docker answers on its socket; to ask systemd takes a process for each agent
        failing = [name for name in missing if looks % 8 == 0 and _restarts(name) >= 3]
        if failing or time.monotonic() > deadline:
            name = (failing or missing)[0]
            journal = subprocess.run(
                ["journalctl", "-u", f"docker-{name}.service", "-n", "15", "--no-pager", "-o", "cat"],
                capture_output=True,
                text=True,
                check=False,
            ).stdout
            raise Failed(f"agent container {name} does not come up:\n{journal}")
        time.sleep(0.25)


def _restarts(name: str) -> int:
    done = subprocess.run(
        ["systemctl", "show", "--property=NRestarts", "--value", f"docker-{name}.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout.strip() or 0)


def switch(number: int) -> bool:
    """Switch, or go back to where we were. What only prepares can fail without anything to undo but itself.

    Returns whether all secrets could be decrypted.
    """
    mixed = unfinished() or [current_generation()]
    former = name_of(mixed[0])
    with stoppable():
        try:
            complete = try_switch(number, mixed)
        except (Failed, OSError, KeyError) as error:
            ignore_signals()
            try:
                go_back()
            except (Failed, OSError) as second:
                raise Failed(f"{error}\nand going back to generation {former} failed too: {second}") from error
            raise Failed(f"{error}\ngeneration {former} is in force") from error
        ignore_signals()
        finish()
    return complete


def try_switch(number: int, mixed: Sequence[int | None]) -> bool:
    if mixed[0] is not None and not was_in_force(mixed[0]):
        (generation(mixed[0]) / "switched").touch()  # we were killed before we could
    note_switching(mixed)
    BOOTED.touch()
    remember_agents(read_plan(number))
    try:  # it waits for the lock: so it goes on when this is done, or killed
        run("systemctl", "start", "--no-block", "tentaflake-recover.service")
    except Failed as error:
        complain([f"nobody goes back if this is killed: {error}"])
    prepare(number)
    note_switching(list(dict.fromkeys([*mixed, number])))
    return switch_to(number, mixed)


def name_of(number: int | None) -> str:
    return "(none)" if number is None else str(number)


def go_back() -> None:
    """Put the generation in force that was before a switch that failed or was killed."""
    if not (mixed := unfinished()):
        return
    former, *others = mixed
    if former is not None:
        prepare(former)
    if not others:
        tidy(former)
    elif former is None:
        switch_off(others)
    else:
        switch_to(former, others)
    finish()


def recover() -> bool:
    """Go back if a switch was killed; returns whether it was."""
    mixed = unfinished()
    if mixed:
        go_back()
        say(f"activate: a switch was killed; generation {name_of(mixed[0])} is in force", sys.stderr)
    return bool(mixed)


@contextmanager
def stoppable() -> Iterator[None]:
    """Meanwhile what asks a program to end is a failure like any other."""

    def stop(number: int, _: object) -> None:
        raise Failed(f"stopped by {signal.Signals(number).name}")

    former = {number: signal.signal(number, stop) for number in STOPPED_BY}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    for number in STOPPED_BY:
        signal.signal(number, signal.SIG_IGN)


# --- boot ----------------------------------------------------------------------------------------------------


def generation_to_boot() -> int | None:
    """The one that the kernel's command line names, the one before a switch that was killed, or the current one.

    The generator decides in the same way which units there are.
    """
    found = re.findall(r"(?:^|\s)tentaflake\.generation=(\S*)", _text(KERNEL_COMMAND_LINE))
    if found:
        if re.fullmatch(r"[1-9][0-9]*", found[-1]) and was_in_force(int(found[-1])):
            return int(found[-1])
        complain([f"the kernel's command line asks for generation {found[-1]}, which is not kept"])
    mixed = unfinished()
    return mixed[0] if mixed else current_generation()


def boot() -> None:
    """Put this boot's generation in force, before any unit of it starts. What needs Docker, ``recover`` does later."""
    number = generation_to_boot()
    if unfinished() or number != current_generation():
        note_switching([number])
        if number is not None:
            place_files(number)
            for agent in read_plan(number)["agents"].values():
                configure(number, agent)
        flip(number)
    BOOTED.touch()


def load_plan(source: str) -> dict[str, Any] | str:
    """The plan in a file or on standard input (-), or what is wrong with it."""
    try:
        plan = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text())
    except (OSError, ValueError) as error:
        return f"the plan cannot be read: {error}"
    if not isinstance(plan, dict) or plan.get("version") != PLAN_VERSION:
        return f"not a plan of version {PLAN_VERSION}"
    if flaw := flaw_of(plan):
        return f"not a whole plan of version {PLAN_VERSION}: {flaw}"
    return plan


def flaw_of(plan: dict[str, Any]) -> str | None:
    """What is wrong with a plan, or None: everything that a switch takes from it is looked for before it begins."""
    try:
        check_kinds(str, *(text for _, text in render(plan).values()))
        init = plan["containerInit"]
        check_kinds(str, plan["host"]["secretsIdentity"], init["path"], init["content"])
        int(init["mode"], 8)
        check_kinds(str, *(each["path"] for each in plan["docker"]["settings"].get("runtimes", {}).values()))
        check_kinds(int, *(user["uid"] for user in plan["users"].values()))
        for name, secret in plan["secrets"].items():
            check_kinds(str, secret["file"])
            check_kinds(int, *owner_of(plan, name))
            int(secret["mode"], 8)
        for agent in plan["agents"].values():
            check_agent(plan, agent)
    except KeyError as error:
        return f"there is no {error}"
    except (TypeError, AttributeError, ValueError) as error:
        return f"a part of it is of another kind: {error}"
    return None


def check_agent(plan: dict[str, Any], agent: dict[str, Any]) -> None:
    """Raises what reading a part of an agent raises that is not there, or of another kind."""
    config = agent["config"]
    check_kinds(str, agent["name"], agent["user"], agent["stateDir"], config["path"], config["user"], config["group"])
    check_kinds(str, *(agent[part]["name"] for part in ("network", "container", "service")))
    check_kinds(int, agent["uid"], agent["gid"], agent["autoStart"], int(config["mode"], 8))
    for secret in agent["secrets"]:
        check_kinds(str, secret["name"], secret["file"], secret["as"], plan["secrets"][secret["id"]]["file"])


def check_kinds(kind: type, *values: Any) -> None:
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{value!r} is not {kind.__name__}")


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="activate.py", description="Apply a plan to this host.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    forward = commands.add_parser("switch", help="switch to a plan")
    forward.add_argument("plan", help="a JSON file, or - for stdin")
    forward.add_argument("--files", type=Path, default=Path(), help="where the age files are (default: here)")
    back = commands.add_parser("rollback", help="switch to a former generation")
    back.add_argument("number", type=int, nargs="?", help="default: the one before the current")
    listing = commands.add_parser("generations", help="list the generations that are kept")
    for each in (forward, back, listing):
        each.add_argument("--json", action="store_true", help="list the generations as JSON")
    delete = commands.add_parser("purge", help="delete the state of an agent that was removed")
    delete.add_argument("name", nargs="?", help="default: list those that have some")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    delete.add_argument("--show", action="store_true", help="only say what would be deleted")
    commands.add_parser("recover", help="go back, if a switch was killed")
    commands.add_parser("wait", help="wait until the agents of the current plan run")
    commands.add_parser("secrets", help="decrypt the secrets of the current generation")
    commands.add_parser("boot", help="decide which generation this boot has")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = read_arguments(arguments)
    try:
        if options.command == "secrets":  # without the lock: who waits for agents has it, and agents wait for this
            return restore_secrets()
        if options.command == "generations":
            show_generations(as_json=options.json)
            return 0
        return obey_alone(options)
    except json.JSONDecodeError as error:
        return refuse(f"a stored plan is not JSON: {error}")
    except PermissionError as error:
        return refuse(f"{error}: this is for root")
    except (Failed, OSError) as error:
        complain([str(error)])
        return 1


def obey_alone(options: argparse.Namespace) -> int:
    """Do what is asked for when no other does anything; returns the exit code."""
    (ROOT / "generations").mkdir(parents=True, exist_ok=True)
    ROOT.chmod(0o700)
    with (ROOT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two switches at once: one after the other
        _lock[:] = [lock.fileno()]
        try:
            return obey(options)
        finally:
            _lock.clear()


def obey(options: argparse.Namespace) -> int:
    """Do what is asked for, with the lock held; returns the exit code."""
    complete = True
    if options.command == "purge":
        return purge(options.name, yes=options.yes, show=options.show)
    if options.command == "switch":
        plan = load_plan(options.plan)
        if isinstance(plan, str):
            return refuse(plan)
        check_kept_state(plan)
        check_runtimes(plan["docker"]["settings"])
        with stoppable():
            number = write_generation(plan, options.files)
        complete = switch(number)
    elif options.command == "rollback":
        wanted: int | None = options.number if options.number is not None else earlier_generation()
        if wanted is None or wanted not in generations():
            kept = " ".join(map(str, generations())) or "none"
            return refuse(f"there is no generation {'before this one' if wanted is None else wanted}; kept are: {kept}")
        check_kept_state(read_plan(wanted))
        check_runtimes(read_plan(wanted)["docker"]["settings"])
        complete = switch(wanted)
    elif options.command == "recover":
        recover()
        return 0
    elif options.command == "boot":
        boot()
        return 0
    elif options.command == "wait":
        wait_running(current_generation())
        return 0
    show_generations(as_json=options.json)
    return 0 if complete else 3


def show_generations(*, as_json: bool) -> None:
    say(json.dumps(list_generations(), indent=1) if as_json else "\n".join(describe_generations()))


def earlier_generation() -> int | None:
    """The one that is kept before what is in force, or was before a switch that was killed."""
    now = (unfinished() or [current_generation()])[0]
    return max((number for number in generations() if number < (now or 0)), default=None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
