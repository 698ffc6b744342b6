"""What the kernel says of an agent's container: its processes, its mounts, its namespaces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testinfra.host import Host

from harness.errors import HarnessError
from harness.policy import Agent

CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")

# Mount points that Docker makes in every container; where a host file backs one it is Docker's own.
DOCKER_FILES = ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts")
VIRTUAL = {
    "overlay": "/",
    "proc": "/proc",
    "devpts": "/dev/pts",
    "mqueue": "/dev/mqueue",
    "sysfs": "/sys",
    "cgroup2": "/sys/fs/cgroup",
}
"""Where Docker mounts what is on no disk. Elsewhere it may be the host's own."""
# Where Docker and the plan mount memory. A part of another tmpfs (the host's /run, say) is not mounted as its root.
MEMORY = ("/dev", "/dev/shm", "/tmp")
REMOVED = "//deleted"
"""What the kernel appends to the root of a mount whose file was removed: a switch makes all secrets anew."""
HIDING = ("/proc/", "/sys/")
"""Below these, Docker mounts an empty tmpfs or /dev/null over what no container should see."""
DEFAULT_DEVICES = frozenset("core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".split())


@dataclass(frozen=True)
class Process:
    """A line of evidence from /proc/PID/status (proc_pid_status(5)); ``fields`` as the kernel names them."""

    pid: int
    fields: Mapping[str, str]

    def privileges(self, uid: int, gid: int) -> list[str]:
        """What this process has that an agent's may not; empty is good."""
        found = []
        for name, wanted in (("Uid", uid), ("Gid", gid)):
            if set(self.fields[name].split()) != {str(wanted)}:
                found.append(f"{name} is {self.fields[name]!r}, not {wanted} four times")
        if not set(self.fields["Groups"].split()) <= {str(gid)}:
            found.append(f"Groups is {self.fields['Groups']!r}")
        found += [f"{name} is {self.fields[name]}" for name in CAPABILITIES if int(self.fields[name], 16)]
        if self.fields["NoNewPrivs"] != "1":
            found.append("NoNewPrivs is not set")
        if self.fields["Seccomp"] != "2":
            found.append("seccomp does not filter")
        return found


def parse_status(text: str) -> Process:
    """A process from the text of its /proc/PID/status."""
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    return Process(int(fields["Pid"]), {name: value.strip() for name, value in fields.items()})


def container_processes(host: Host, agent: Agent) -> list[Process]:
    """All processes in the container's cgroup, whatever their uid. Raises when there are none."""
    done = host.run(
        "root=$(pgrep -o -u %s) || exit 3; "
        "cgroup=/sys/fs/cgroup$(cut -d: -f3 /proc/$root/cgroup); case $cgroup in *docker*) ;; *) exit 3; esac; "
        "for p in $(cat $cgroup/cgroup.procs); do cat /proc/$p/status; echo =; done",
        str(agent.uid),
    )
    processes = [parse_status(text) for text in done.stdout.split("=\n") if "Pid:" in text]
    if done.rc != 0 or not processes:
        raise HarnessError(f"no process of {agent.name} runs in a container: {done.stderr.strip()}")
    return processes


@dataclass(frozen=True)
class Mount:
    """A line of /proc/PID/mountinfo (proc_pid_mountinfo(5))."""

    root: str
    point: str
    options: frozenset[str]
    type: str
    source: str


def parse_mountinfo(text: str) -> list[Mount]:
    """Mounts from the text of a mountinfo file; octal escapes are resolved."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, point, options, *_ = before.split(" ")
        kind, source, *_ = after.split(" ")
        mounts.append(Mount(_unescape(root), _unescape(point), frozenset(options.split(",")), kind, _unescape(source)))
    return mounts


def _unescape(text: str) -> str:
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text


def foreign_mounts(mounts: Sequence[Mount], agent: Agent) -> list[Mount]:
    """Mounts that an agent's container should not have."""
    own = {(agent.state_dir, agent.state_dir, "rw"), (agent.config.path, f"{agent.state_dir}/config.yaml", "ro")}
    # On the host, secrets are at /run/agenix, which links to the current one of the directories in a ramfs.
    own |= {(f"/{secret.id}", secret.target, "ro") for secret in agent.secrets}
    if any(secret.as_ == "env" for secret in agent.secrets):
        own |= {
            ("/etc/tentaflake/container-init", path, "ro") for path in ("/sbin/docker-init", "/usr/sbin/docker-init")
        }

    def allowed(mount: Mount) -> bool:
        hides = mount.point.startswith(HIDING)
        if mount.type == "devtmpfs":  # crun hides files behind the host's null device
            return mount.root == "/null" and hides and "ro" in mount.options
        if mount.type == "tmpfs":
            return (mount.root == "/" and (hides or mount.point in MEMORY)) or (mount.root == "/null" and hides)
        if mount.type in VIRTUAL:
            # A part of its own /proc lies over itself, so that it is read-only.
            covers = mount.type == "proc" and mount.point == f"/proc{mount.root}" and "ro" in mount.options
            return mount.point == VIRTUAL[mount.type] or covers
        if mount.point in DOCKER_FILES:
            return mount.root.startswith("/var/lib/docker/containers/") and "ro" in mount.options
        return any(
            mount.root.removesuffix(REMOVED).endswith(root) and mount.point == point and access in mount.options
            for root, point, access in own
        )

    return [mount for mount in mounts if not allowed(mount)]


def container_mounts(host: Host, agent: Agent) -> list[Mount]:
    """The mounts that the agent's first process sees."""
    pid = main_pid(host, agent)
    return parse_mountinfo(host.check_output("cat /proc/%s/mountinfo", str(pid)))


def main_pid(host: Host, agent: Agent) -> int:
    """The container's first process, as the host numbers it."""
    return int(host.check_output("pgrep -o -u %s", str(agent.uid)))


def container_id(host: Host, agent: Agent) -> str:
    """Docker's id of the running container, as its cgroup's name has it."""
    group = host.check_output("cat /proc/%s/cgroup", str(main_pid(host, agent)))
    return group.rpartition("docker-")[2].partition(".scope")[0]  # in which crun makes another one


def namespaces(host: Host, pids: Sequence[int]) -> list[dict[str, str]]:
    """The namespaces of each process: kind to identity, e.g. ``{"net": "net:[4026532000]"}``."""
    links = " ".join(f"/proc/{pid}/ns/{kind}" for pid in pids for kind in NAMESPACES)
    lines = host.check_output(f"readlink {links}").split()
    width = len(NAMESPACES)
    return [dict(zip(NAMESPACES, lines[start : start + width], strict=True)) for start in range(0, len(lines), width)]
