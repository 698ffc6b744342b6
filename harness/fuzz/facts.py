"""What a host is, as its kernel, Docker, nftables and systemd say: runs there as root with its own Python, in one go.

In: ``{"family", "table", "content", "directories"}``, the firewall that is meant, and where to look besides the usual
places. Out: one JSON object; see ``main``.
"""

import grp
import hashlib
import http.client
import json
import os
import pwd
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any


class Docker(http.client.HTTPConnection):
    """Docker's own socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/docker.sock")


def ask_docker(path: str) -> Any:
    connection = Docker("docker")
    try:
        connection.request("GET", path)
        return json.load(connection.getresponse())
    finally:
        connection.close()


def output(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def users() -> dict[str, Any]:
    """Every user of an agent, and whoever else is root: its numbers, home, shell, further groups, and what it has for a
    password.
    """
    shadow = dict(line.split(":")[:2] for line in Path("/etc/shadow").read_text().splitlines())
    found = {}
    for user in pwd.getpwall():
        is_agent = user.pw_name.startswith("hermes-") and user.pw_name != "hermes-auditd"
        if is_agent or (user.pw_uid == 0 and user.pw_name != "root"):
            groups = [group.gr_name for group in grp.getgrall() if user.pw_name in group.gr_mem]
            found[user.pw_name] = [
                user.pw_uid,
                user.pw_gid,
                user.pw_dir,
                user.pw_shell,
                groups,
                shadow[user.pw_name][:1] in ("!", "*"),
            ]
    return found


def directories(named: list[str]) -> dict[str, Any]:
    """Mode, uid and gid of every agent's directories, and how many files in its state are another's."""
    found = {}
    for path in {*Path("/var/lib").glob("hermes-*"), *Path("/etc/hermes").glob("*"), *map(Path, named)}:
        if not path.exists():
            continue
        status = path.stat()
        owners = [owner_of(Path(top, name)) for top, dirs, files in os.walk(path) for name in [*dirs, *files]]
        strange = sum(owner not in (status.st_uid, None) for owner in owners)
        found[str(path)] = [f"{stat.S_IMODE(status.st_mode):04o}", status.st_uid, status.st_gid, strange]
    return found


def owner_of(path: Path) -> int | None:
    """None for what has just gone."""
    try:
        return path.lstat().st_uid
    except FileNotFoundError:
        return None


def containers() -> dict[str, Any]:
    found = {}
    for each in ask_docker("/containers/json?all=1"):
        whole = ask_docker(f"/containers/{each['Id']}/json")
        settings, limits = whole["Config"], whole["HostConfig"]
        found[whole["Name"].lstrip("/")] = {
            "identity": [whole["Id"], whole["State"]["StartedAt"], whole["State"]["Pid"]],
            "running": whole["State"]["Running"],
            "image": settings["Image"],
            "user": settings["User"],
            "environment": sorted(settings["Env"]),
            "mounts": sorted([mount["Source"], mount["Destination"], mount["RW"]] for mount in whole["Mounts"]),
            "networks": sorted(whole["NetworkSettings"]["Networks"]),
            "readonly": limits["ReadonlyRootfs"],
            "memory": [limits["Memory"], limits["MemorySwap"]],
            "pids": limits["PidsLimit"],
            "cpus": limits["NanoCpus"],
            "ports": sorted(
                f"{bound['HostPort']}:{port}"
                for port, places in (limits["PortBindings"] or {}).items()
                for bound in places
            ),
            "processes": processes(whole["State"]["Pid"]) if whole["State"]["Running"] else [],
        }
    return found


def processes(pid: int) -> list[str]:
    """What the kernel says of every process in a container's cgroup; those that have just ended are left out."""
    group = Path(f"/proc/{pid}/cgroup").read_text().strip().partition("::")[2]
    found = []
    for each in Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split():
        try:
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if fields["State"][0] != "Z":
            wanted = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "CapPrm", "NoNewPrivs", "Seccomp")
            found.append(" ".join(f"{name}={','.join(fields[name].split())}" for name in wanted))
    return sorted(found)


def uids_of_processes() -> list[int]:
    """The users that have a process on this host."""
    return sorted({path.stat().st_uid for path in Path("/proc").glob("[0-9]*") if path.exists()})


def firewall(wanted: dict[str, str]) -> dict[str, Any]:
    """The table that is in force, and what the kernel makes of the one that is meant, in a namespace of its own."""
    load = f"table {wanted['family']} {wanted['table']} {{\n{wanted['content']}\n}}\n"
    show = wanted["listing"]
    meant = output("unshare", "--net", "sh", "-c", f"nft -f - || exit\n{show}", text=load)
    return {"loaded": output("sh", "-c", show).splitlines(), "meant": meant.splitlines()}


def units() -> dict[str, str]:
    """The state of every unit that is the host's or an agent's."""
    patterns = ["docker-hermes-*", "tentaflake*", "hermes*", "nftables.service", "docker.service"]
    listing = output("systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", *patterns)
    rows = [line.split(maxsplit=4) for line in listing.splitlines()]
    return {row[0]: f"{row[2]}/{row[3]}" for row in rows if row[1] == "loaded"}


def networks() -> dict[str, Any]:
    """Docker's networks but those that it always has, "host" and "none"."""
    found = {}
    for network in ask_docker("/networks"):
        if network["Driver"] not in ("host", "null"):
            subnets = sorted(each["Subnet"] for each in network["IPAM"]["Config"] or [])
            bridge = (network["Options"] or {}).get("com.docker.network.bridge.name", "")
            found[network["Name"]] = [bridge, network["Internal"], subnets]
    return found


def secrets() -> dict[str, Any]:
    """Mode, uid, gid, file system and SHA-256 of every file where secrets are."""
    found = {}
    for path in sorted(Path("/run/agenix/").glob("*")):
        status = path.stat()
        kind = output("stat", "--file-system", "--format=%T", str(path)).strip()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.name] = [f"{stat.S_IMODE(status.st_mode):04o}", status.st_uid, status.st_gid, kind, digest]
    return found


def main() -> None:
    wanted = json.load(sys.stdin)
    print(
        json.dumps(
            {
                "users": users(),
                "directories": directories(wanted["directories"]),
                "containers": containers(),
                "uids": uids_of_processes(),
                "firewall": firewall(wanted),
                "units": units(),
                "networks": networks(),
                "secrets": secrets(),
                "rules": [
                    rule["priority"] for flag in ("-4", "-6") for rule in json.loads(output("ip", "-j", flag, "rule"))
                ],
            }
        )
    )


if __name__ == "__main__":
    main()
