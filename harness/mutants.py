"""Mutants: deliberate breaks of the host, each of which the tests of its claim have to notice.

A mutant acts in one place, or in two where a second defence would hide the first one's loss:
    InPolicy    other text in a copy of modules/policy, which the whole run then evaluates
    InPlan      another plan than the policy made
    InGuest     shell commands, as root in the running machine
    InSources   other text in a copy of this repository

``harness.mutation`` does the deed and runs the tests; docs/writing-a-claim.md says how to write one.
"""

import difflib
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from harness.contract import CLAIMS
from harness.errors import HarnessError
from harness.guests.canaries import canary
from harness.policy import Agent, Plan
from harness.probes.lifetime import REMOVE_TABLES, STOP_GUARD


@dataclass(frozen=True)
class InPolicy:
    """In ``file`` of modules/policy, ``new`` in the place of ``old``, which stands there once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class InPlan:
    change: Callable[[Plan], Plan]


@dataclass(frozen=True)
class InGuest:
    """Shell commands; see ``script`` for the words and functions that they can use."""

    commands: str


@dataclass(frozen=True)
class InSources:
    """In ``file`` of a copy of this repository, from which the tests are then run, ``new`` in the place of ``old``."""

    file: str
    old: str
    new: str


Act = InPolicy | InPlan | InGuest | InSources
Moment = Literal["running", "before", "stopped", "between"]


@dataclass(frozen=True)
class Mutant:
    """One deliberate break. ``text`` is one sentence; A and B are the first two agents of the host.

    ``tests`` are the names of the tests of the claim that have to notice, where all of them would take minutes:
    functions, or one of a function's cases, with its parameters in brackets. By default all that are not ``recorded``.

    ``moment``: ``running``, each machine is broken when a test gets it, whatever was done to it before, at no cost;
    ``before``, it is broken before all else, so that what tests do to a host once (restart an agent, …) is done to a
    broken one; ``stopped``, the same while A does not run, which is then started; ``between``, commands after the first
    of two things that tests do to a host once, and before the second (A was used, and is restarted then). A mutant of
    policy or plan is ``running`` if it differs in the firewall alone.

    ``waits``: its tests wait for a minute for what does not come any more, so that another can be tried meanwhile.
    """

    id: str
    claim: str
    text: str
    acts: Sequence[Act]
    tests: Sequence[str] = ()
    moment: Moment = "running"
    waits: bool = False

    @property
    def places(self) -> str:
        """Where it acts."""
        names = {InPolicy: "policy", InPlan: "plan", InGuest: "guest", InSources: "sources"}
        return " and ".join(dict.fromkeys(names[type(act)] for act in self.acts))


@dataclass
class _Registry:
    mutants: dict[str, Mutant] = field(default_factory=dict)

    def add(
        self,
        name: str,
        claim: str,
        text: str,
        *acts: Act,
        tests: Sequence[str] = (),
        moment: Moment = "running",
        waits: bool = False,
    ) -> None:
        assert name not in self.mutants, f"two mutants are named {name!r}"
        self.mutants[name] = Mutant(name, claim, text, acts, tests, moment, waits)


_registry = _Registry()
_mutant = _registry.add
MUTANTS = _registry.mutants


def patch(file: Path, act: InPolicy | InSources, mutant: Mutant) -> None:
    """Put the new text in the place of the old; raises ``HarnessError`` if that does not stand there once."""
    text = file.read_text()
    if text.count(act.old) != 1:
        raise HarnessError(
            f"mutant {mutant.id}: {act.old!r} stands {text.count(act.old)} times in {act.file}",
            hint="the text was changed: write in harness/mutants.py what is to be broken there now",
        )
    file.write_text(text.replace(act.old, act.new))


def find_mutant(name: str) -> Mutant:
    """The mutant of that id; an unknown one says which are near."""
    if name not in MUTANTS:
        near = difflib.get_close_matches(name, MUTANTS, n=3) or [each for each in MUTANTS if name in each]
        hint = f"did you mean {' or '.join(near)}?" if near else "`harness mutate --list` lists them"
        raise HarnessError(f"there is no mutant {name!r}", hint=hint)
    return MUTANTS[name]


def mutants_of(claims: Iterable[str]) -> list[Mutant]:
    """The mutants of these claims; if none is named, of all that are not to come."""
    wanted = set(claims) or {claim.id for claim in CLAIMS.values() if not claim.to_come}
    return [mutant for mutant in MUTANTS.values() if mutant.claim in wanted]


# --- words for commands in the guest


def script(commands: str, plan: Plan) -> str:
    """A shell script of ``commands``, which can use the words ``$a_name``, ``$a_uid``, ``$a_user``, ``$a_state``,
    ``$a_unit``, ``$a_bridge``, ``$a_container``, ``$a_secret`` (a file) of the first agent, the same with ``b`` of the
    second and with ``z`` of the last, and the functions below."""
    agents = list(plan.agents.values())
    lines = ["set -eu"]
    for letter, agent in zip("abz", (agents[0], agents[min(1, len(agents) - 1)], agents[-1]), strict=True):
        lines += [f"{letter}_{name}={shlex.quote(str(value))}" for name, value in _words(agent).items()]
    return "\n".join([*lines, FUNCTIONS, commands])


def _words(agent: Agent) -> dict[str, object]:
    return {
        "name": agent.name,
        "uid": agent.uid,
        "user": agent.user,
        "state": agent.state_dir,
        "unit": f"{agent.service.name}.service",
        "bridge": agent.network.bridge,
        "container": agent.container.name,
        "secret": agent.secrets[0].path if agent.secrets else "",
    }


FUNCTIONS = r"""
pid_of() { pgrep -o -u "$1"; }
cgroup_of() { echo "/sys/fs/cgroup$(cut -d : -f 3 "/proc/$(pid_of "$1")/cgroup")"; }
scope_of() { place=$(cgroup_of "$1"); echo "${place%/container}"; }  # systemd's, in which crun makes another
lift() {  # UID FILE: no limit in either of the two
  echo max > "$(cgroup_of "$1")/$2"; echo max > "$(scope_of "$1")/$2"
}
unit_says() {  # UNIT LINE...: more lines for a unit, without starting it again
  mkdir -p "/etc/systemd/system/$1.d"; unit=$1; shift
  printf '%s\n' "$@" > "/etc/systemd/system/$unit.d/mutant.conf"; systemctl daemon-reload
}
replace() {  # FILE OLD NEW: text that stands there once
  python3 -I -S -c 'import sys
path, old, new = sys.argv[1:]
text = open(path).read()
assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
open(path, "w").write(text.replace(old, new))' "$@"
}
inject_mount() {  # PID SOURCE TARGET: a path of the host into a running container (open_tree(2), move_mount(2))
  python3 -I -S -c 'import ctypes, os, sys
pid, source, target = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
tree = libc.syscall(428, -100, source.encode(), 1 | 0o2000000)
where = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
done = tree < 0 or libc.setns(where, 0x20000) or libc.syscall(429, tree, b"", -100, target.encode(), 4)
sys.exit(f"{source}: {os.strerror(ctypes.get_errno())}" if done else 0)' "$@"
}
give_capability() {  # FILE NUMBER...: capabilities that whoever runs a program has (capabilities(7))
  python3 -I -S -c 'import os, struct, sys
mask = sum(1 << int(number) for number in sys.argv[2:])
value = struct.pack("<5I", 0x02000001, mask & 0xffffffff, 0, mask >> 32, 0)
os.setxattr(os.path.realpath(sys.argv[1]), "security.capability", value)' "$@"
}
"""
CAP_DAC_READ_SEARCH, CAP_KILL, CAP_SYS_PTRACE = 2, 5, 19
ACTIVATE = "/usr/lib/tentaflake/tentaflake_activate.py"
START = '"/var/lib/tentaflake/current/agents/$a_name/start"'
"""The script that starts A's container."""


def replaced(file: str, old: str, new: str) -> str:
    """A command that puts other text into a file of the guest."""
    return f"replace {file} {shlex.quote(old)} {shlex.quote(new)}"


# --- changes of a plan


def first_container(change: Callable[[list[str]], list[str]]) -> InPlan:
    """Other options for the first agent's container."""

    def changed(plan: Plan) -> Plan:
        agent = next(iter(plan.agents.values()))
        container = msgspec.structs.replace(agent.container, options=change(agent.container.options))
        return with_agent(plan, msgspec.structs.replace(agent, container=container))

    return InPlan(changed)


def with_agent(plan: Plan, agent: Agent) -> Plan:
    return msgspec.structs.replace(plan, agents={**plan.agents, agent.name: agent})


def option(old: str, *new: str) -> InPlan:
    """For the first agent's container, others in the place of the option that begins with ``old``."""

    def change(options: list[str]) -> list[str]:
        [found] = [each for each in options if each.startswith(old)]
        at = options.index(found)
        return [*options[:at], *new, *options[at + 1 :]]

    return first_container(change)


def more_options(*new: str) -> InPlan:
    return first_container(lambda options: [*options, *new])


def secret_as_variable(plan: Plan) -> Plan:
    """The value of the first agent's first secret, where anybody can read the plan."""
    agent = next(iter(plan.agents.values()))
    value = canary(agent.secrets[0].file).decode()
    environment = {**agent.container.environment, "MODEL_API_KEY": value}
    return with_agent(
        plan,
        msgspec.structs.replace(agent, container=msgspec.structs.replace(agent.container, environment=environment)),
    )


def firewall(old: str, new: str) -> InPolicy:
    return InPolicy("firewall.nix", old, new)


# --- users

_mutant(
    "same-uid",
    "U1",
    "B's user has the uid of A's.",
    InGuest('sed -i "s/^$b_user:x:$b_uid:/$b_user:x:$a_uid:/" /etc/passwd'),
)
_mutant(
    "same-group",
    "U1",
    "A's group is B's.",
    InGuest('sed -i "s/^$a_user:x:$a_uid:$a_uid:/$a_user:x:$a_uid:$b_uid:/" /etc/passwd'),
)
_mutant("docker-group", "U1", "A is in the group docker.", InGuest('gpasswd -a "$a_user" docker'))
_mutant(
    "login-shell", "U1", "A has a login shell.", InGuest('sed -i "/^$a_user:/s|/usr/sbin/nologin|/bin/sh|" /etc/passwd')
)
_mutant("password", "U1", "A has an empty password.", InGuest('passwd -d "$a_user"'))
TOUCHES = "test_agent_cannot_touch_the_processes_of_others[{}]"
_mutant(
    "set-uid-interpreter",
    "U2",
    "An interpreter on the host is set-uid root, so that A can trace whom it likes.",
    InGuest('chmod u+s "$(realpath /usr/bin/python3)"'),
    tests=[TOUCHES.format("trace with ptrace")],
)
_mutant(
    "shell-with-capabilities",
    "U2",
    "A shell on the host may look into any process.",
    InGuest(f'give_capability "$(command -v busybox)" {CAP_SYS_PTRACE} {CAP_DAC_READ_SEARCH}'),
    tests=[TOUCHES.format("read the environment")],
)
_mutant(
    "signals-for-all",
    "U2",
    "A shell on the host may send a signal to any process.",
    InGuest(f'give_capability "$(command -v busybox)" {CAP_KILL}'),
    tests=[TOUCHES.format("send a signal")],
)
_mutant(
    "renumbered",
    "U3",
    "A change of the agents gives A, who stays, another uid.",
    InGuest('sed -i "s/^$a_user:x:$a_uid:/$a_user:x:$((a_uid + 1)):/" /etc/passwd'),
)
_mutant(
    "files-of-those-who-stay",
    "U3",
    "A change of the agents writes A's files anew.",
    InGuest('cp -a "$a_state/starts" "$a_state/new" && mv "$a_state/new" "$a_state/starts"'),
)

# --- directories

_mutant(
    "state-0755",
    "D1",
    "A's state directory is 0755.",
    InGuest('chmod 0755 "$a_state"'),
    tests=["test_state_directories_are_private_to_their_agents"],
)
_mutant(
    "state-of-root",
    "D1",
    "A's state directory is root's.",
    InGuest('chown 0 "$a_state"'),
    tests=["test_state_directories_are_private_to_their_agents"],
)
_mutant(
    "foreign-file",
    "D1",
    "Root leaves a file of its own in A's state directory.",
    InGuest('mkdir -p "$a_state/a" && : > "$a_state/a/of-root"'),
    tests=["test_all_in_a_state_directory_is_the_agents_after_use"],
)
REACHES = "test_agent_cannot_reach_the_files_of_others[{}]"
FINDS = "test_agent_cannot_leave_anything_that_a_neighbour_finds[{}]"
_mutant(
    "state-0777",
    "D2",
    "A's state directory is anybody's to use.",
    InGuest('chmod 0777 "$a_state"'),
    tests=[REACHES.format("create a state file")],
)
_mutant(
    "state-0711",
    "D2",
    "In A's state directory, anybody may look for what he knows.",
    InGuest('chmod 0711 "$a_state"'),
    tests=[REACHES.format("stat a state file")],
)
_mutant(
    "disk-readable",
    "D2",
    "Anybody may read the disk below the file system.",
    InGuest("chmod o+r /dev/vda"),
    tests=[REACHES.format("read the disk below the file system")],
)
_mutant(
    "reads-everything",
    "D2",
    "A shell on the host may read any file.",
    InGuest(f'give_capability "$(command -v busybox)" {CAP_DAC_READ_SEARCH}'),
    tests=[REACHES.format("read a state file")],
)
SHARED = """
mkdir -p /srv/shared && chmod 1777 /srv/shared
for uid in $a_uid $b_uid; do inject_mount "$(pid_of "$uid")" {source} {target}; done"""
_mutant(
    "shared-tmp",
    "D3",
    "A and B have one /tmp.",
    InGuest(SHARED.format(source="/srv/shared", target="/tmp")),
    tests=[FINDS.format("leave something in /tmp")],
)
_mutant(
    "shared-shm",
    "D3",
    "A and B have one /dev/shm, the host's.",
    InGuest(SHARED.format(source="/dev/shm", target="/dev/shm")),
    tests=[FINDS.format("leave something in /dev/shm")],
)
_mutant(
    "shared-ipc",
    "D3",
    "A's container has the host's IPC namespace.",
    option("--ipc=", "--ipc=host"),
    tests=["test_agents_share_no_namespace"],
    moment="before",
)
_mutant(
    "host-processes",
    "D3",
    "A's container has the host's PID namespace.",
    more_options("--pid=host"),
    tests=["test_agents_share_no_namespace"],
    moment="before",
)
LIMITS = "test_the_kernel_holds_every_agent_to_its_limits"
_mutant(
    "no-pids-limit",
    "D4",
    "A may have any number of processes.",
    InGuest('lift "$a_uid" pids.max'),
    tests=[LIMITS],
)
_mutant(
    "no-memory-limit",
    "D4",
    "A may have all memory.",
    InGuest('lift "$a_uid" memory.max'),
    tests=[LIMITS],
)
_mutant(
    "no-cpu-limit",
    "D4",
    "A may have all processors.",
    InGuest('lift "$a_uid" cpu.max'),
    tests=[LIMITS],
)
_mutant(
    "neighbour-starved",
    "D4",
    "A and B may have all processors, and before any other agent.",
    InGuest("""
echo 1 > "$(scope_of $z_uid)/cpu.weight"
for uid in "$a_uid" "$b_uid"; do
  lift "$uid" cpu.max; echo 300 > "$(scope_of $uid)/cpu.weight"
done"""),
    tests=["test_a_fork_bomb_on_all_processors_leaves_the_others_theirs"],
)
_mutant(
    "all-memory-for-agents",
    "D4",
    "All agents together may have all memory.",
    InGuest("echo max > /sys/fs/cgroup/hermes.slice/memory.max"),
    tests=[LIMITS],
)
_mutant(
    "spared-when-memory-runs-out",
    "D4",
    "The kernel would rather kill a service of the host than A.",
    InGuest('echo 0 > "/proc/$(pid_of $a_uid)/oom_score_adj"'),
    tests=["test_an_agent_goes_before_the_host_when_memory_runs_out"],
)
_mutant(
    "swap",
    "D4",
    "A may swap.",
    InGuest('lift "$a_uid" memory.swap.max; echo max > "$(scope_of $a_uid)/../memory.swap.max"'),
    tests=["test_no_agent_may_swap"],
)
_mutant(
    "no-quota",
    "D4",
    "A's disk quota is not in force.",
    InGuest('setquota -u "$a_uid" 0 0 0 0 /'),
    tests=["test_no_agent_has_more_of_the_disk_than_its_quota"],
)
_mutant(
    "any-number-of-files",
    "D4",
    "The last agent's quota knows no number of files.",
    InGuest('setquota -u "$z_uid" 0 65536 0 0 /'),
    tests=["test_no_agent_has_more_files_than_its_quota"],
)
_mutant(
    "any-number-of-connections",
    "D4",
    "An agent may have more connections, and open them faster, than any should.",
    firewall("mostConnections = 1024;", "mostConnections = 1500;"),
    firewall('"100/second burst 500 packets"', '"1000/second burst 2000 packets"'),
    tests=["test_no_agent_has_more_connections_than_it_may"],
)

# --- containers

PRIVILEGES = "test_every_process_of_a_container_is_unprivileged"
JOINS = """
procs=$(cgroup_of $a_uid)/cgroup.procs; before=$(wc -l < "$procs")
docker exec --detach --user {user} "$a_container" sleep 600
until [ "$(wc -l < "$procs")" -gt "$before" ]; do :; done"""
_mutant(
    "capabilities",
    "C1",
    "A's container keeps Docker's capabilities.",
    option("--cap-drop=ALL"),
    tests=[PRIVILEGES],
    moment="before",
)
_mutant(
    "new-privileges",
    "C1",
    "A's processes may gain privileges by a set-uid program.",
    option("--security-opt=no-new-privileges", "--security-opt=no-new-privileges=false"),
    tests=["test_a_set_uid_program_gives_no_privilege"],
    moment="before",
)
_mutant(
    "no-seccomp",
    "C1",
    "No filter for A's system calls.",
    more_options("--security-opt=seccomp=unconfined"),
    tests=[PRIVILEGES],
    moment="before",
)
_mutant(
    "root-in-container",
    "C1",
    "A process of A's container is root's.",
    InGuest(JOINS.format(user="0:0")),
    tests=[PRIVILEGES],
)
_mutant(
    "roots-group-in-container",
    "C1",
    "A process of A's container has root's group.",
    InGuest(JOINS.format(user="$a_uid:0")),
    tests=[PRIVILEGES],
)
_mutant(
    "writable-root",
    "C2",
    "The root file system of A's container is writable.",
    InGuest('nsenter --target "$(pid_of $a_uid)" --mount --pid -- /bin/mount -o remount,rw /'),
    tests=["test_nothing_but_state_and_memory_is_mounted_writable"],
)
_mutant(
    "writable-settings",
    "C2",
    "A may write to its configuration.",
    InGuest('inject_mount "$(pid_of $a_uid)" "/etc/hermes/$a_name/config.yaml" "$a_state/config.yaml"'),
    tests=["test_nothing_but_state_and_memory_is_mounted_writable"],
)
_mutant(
    "memory-in-the-root",
    "C2",
    "A may write to memory that is mounted in its root file system.",
    InGuest('nsenter --target "$(pid_of $a_uid)" --mount --pid -- /bin/mount -t tmpfs -o mode=1777 none /home'),
    tests=["test_agent_cannot_write_outside_its_state"],
)
RESTARTS = "test_a_restart_makes_a_new_container_that_keeps_the_state"
_mutant(
    "container-is-kept",
    "C3",
    "A's unit leaves its container running when it stops, and joins it when it starts.",
    InGuest(f"""
unit_says "$a_unit" '[Service]' ExecStop= KillSignal=SIGKILL
sed -i "s/^exec docker run.*/exec docker attach $a_container/; /^docker rm/d" {START}"""),
    tests=[RESTARTS],
    moment="between",
)
_mutant(
    "tmp-is-kept",
    "C3",
    "What is in A's /tmp is there again after a restart.",
    InGuest(f"""
cp -a "/proc/$(pid_of "$a_uid")/root/tmp" /srv/kept
sed -i "s|--tmpfs=/tmp[^ ]*|--mount=type=bind,source=/srv/kept,target=/tmp|" {START}"""),
    tests=["test_a_restart_loses_all_but_the_state"],
    moment="between",
)
_mutant(
    "state-is-lost",
    "C3",
    "What is in A's state directory is removed when its unit starts.",
    InGuest(f'sed -i "s|^exec docker|rm -f $a_state/kept; &|" {START}'),
    tests=[RESTARTS],
    moment="between",
)
MOUNTS = "test_nothing_of_the_host_is_mounted"
_mutant(
    "docker-socket-mounted",
    "C4",
    "Docker's socket is mounted in A's container.",
    InGuest("""
touch "/proc/$(pid_of $a_uid)/root/tmp/docker.sock"
inject_mount "$(pid_of $a_uid)" /run/docker.sock /tmp/docker.sock"""),
    tests=[MOUNTS],
)
_mutant(
    "docker-socket-open",
    "C4",
    "Anybody may use Docker's socket.",
    InGuest("chmod 0666 /run/docker.sock"),
    tests=["test_agent_cannot_use_the_hosts_sockets"],
)
_mutant(
    "containerd-socket-open",
    "C4",
    "Anybody may use containerd's socket.",
    InGuest("chmod o+x /run/containerd && chmod 0666 /run/containerd/containerd.sock"),
    tests=["test_agent_cannot_use_the_hosts_sockets"],
)
_mutant(
    "hosts-proc",
    "C4",
    "The host's /proc is mounted in A's container.",
    InGuest('mkdir "/proc/$(pid_of $a_uid)/root/tmp/proc" && inject_mount "$(pid_of $a_uid)" /proc /tmp/proc'),
    tests=[MOUNTS],
)
_mutant(
    "host-directory",
    "C4",
    "A directory of the host's is mounted in A's container.",
    InGuest('mkdir "/proc/$(pid_of $a_uid)/root/tmp/log" && inject_mount "$(pid_of $a_uid)" /var/log /tmp/log'),
    tests=[MOUNTS],
)
_mutant(
    "host-device",
    "C4",
    "The host's disk is a device in A's container.",
    InGuest('nsenter --target "$(pid_of $a_uid)" --mount -- /bin/mknod /dev/vda b 254 0'),
    tests=["test_only_default_devices_are_there"],
)
_mutant(
    "mutable-image",
    "C5",
    "A's container is run by the image's name, without its digest.",
    InGuest(f"sed -i 's/@sha256:[0-9a-f]*/:latest/' {START}"),
    tests=["test_a_restart_does_not_take_a_retagged_image"],
    moment="between",
)
_mutant(
    "other-image",
    "C5",
    "The first agent runs another image than the pinned one.",
    InGuest(
        "decoy=$(docker image ls --digests --format '{{.Repository}}@{{.Digest}}' | grep decoy)\n"
        f'sed -i "s|[^ ]*@sha256:[0-9a-f]*|$decoy|" {START}'
    ),
    tests=["test_every_container_runs_the_pinned_image"],
    moment="stopped",
)
_mutant(
    "no-restart",
    "C6",
    "A's unit is not started again when it has crashed.",
    InGuest("unit_says \"$a_unit\" '[Service]' Restart=no"),
    tests=["test_a_killed_agent_restarts_and_its_neighbours_do_not_notice"],
)
_mutant(
    "nobody-watches",
    "C6",
    "Nobody looks whether an agent runs that Docker takes for running.",
    InGuest("unit_says tentaflake-watch.service '[Service]' ExecStart= ExecStart=/bin/true"),
    tests=["test_an_agent_of_whose_crash_docker_does_not_hear_restarts"],
    waits=True,
)
_mutant(
    "neighbour-stops-too",
    "C6",
    "When A starts again, as after a crash, B is stopped.",
    InGuest(f'sed -i "s|^docker rm|systemctl stop --no-block $b_unit; &|" {START}'),
    tests=["test_a_killed_agent_restarts_and_its_neighbours_do_not_notice"],
)

# --- secrets

READS = "test_agent_cannot_read_the_secrets_of_others[{}]"
_mutant(
    "key-for-all",
    "S1",
    "Anybody may read the key that all secrets are encrypted for.",
    InGuest("chmod 0644 /etc/ssh/ssh_host_ed25519_key"),
    tests=[READS.format("read a secret")],
)
_mutant(
    "encrypted-for-all",
    "S1",
    "Anybody may read the encrypted secrets, and the plans.",
    InGuest("chmod 0755 /var/lib/tentaflake"),
    tests=[READS.format("read the encrypted secrets")],
)
_mutant(
    "secret-0444",
    "S1",
    "A's secret is 0444.",
    InGuest('chmod 0444 "$a_secret"'),
    tests=[READS.format("read a secret")],
)
_mutant(
    "secret-of-another",
    "S1",
    "A's secret is owned by B.",
    InGuest('chown "$b_uid" "$a_secret"'),
    tests=["test_a_secret_is_for_its_agent_to_read_and_nobody_else"],
)
_mutant(
    "secrets-on-disk",
    "S1",
    "Secrets are decrypted to a disk.",
    InGuest("cp -a /run/agenix/. /var/lib/agenix && ln -sfn /var/lib/agenix /run/agenix"),
    tests=["test_secrets_are_in_memory_only"],
)
_mutant(
    "secrets-listed",
    "S1",
    "Anybody may list the secrets.",
    InGuest("chmod 0755 /run/agenix.d /run/agenix/."),
    tests=[READS.format("list the secrets")],
)
_mutant(
    "swapped-secrets",
    "S1",
    "B gets the value of another secret.",
    InGuest('cat "$z_secret" > "$b_secret"'),
    tests=["test_every_agent_has_its_own_secrets"],
)
SEARCHED = "test_no_secret_is_in_what_the_host_keeps_and_tells"
_mutant(
    "secret-in-the-plan",
    "S2",
    "A secret's value is in the plan, as a variable of A's container.",
    InPlan(secret_as_variable),
    tests=["test_no_secret_is_in_the_plan"],
    moment="before",
)
_mutant(
    "secret-in-a-unit",
    "S2",
    "A's secret is in the environment of B's unit.",
    InGuest('unit_says "$b_unit" "[Service]" "Environment=LEAK=$(cat $a_secret)"'),
    tests=[f"{SEARCHED}[unit]"],
)
_mutant(
    "secret-in-a-process",
    "S2",
    "A's secret is in the environment of a process of B's.",
    InGuest(
        'LEAK=$(cat "$a_secret") setpriv --reuid=$b_uid --regid=$b_uid --clear-groups sleep 600 > /dev/null 2>&1 &'
    ),
    tests=["test_no_user_sees_the_secret_of_another_in_proc"],
)
_mutant(
    "secret-on-disk",
    "S2",
    "A's secret was written to the disk, and deleted.",
    InGuest('cp "$a_secret" /var/tmp/leak; sync /var/tmp/leak; rm -f /var/tmp/leak'),
    tests=["test_no_secret_is_on_the_disk"],
)
_mutant(
    "starts-without-its-secret",
    "S3",
    "An agent whose secret cannot be decrypted is started all the same.",
    # Docker would refuse to mount what is not there.
    InGuest(f"""
sed -i 's/; exit 1; }}$/; }}/' "/var/lib/tentaflake/current/agents/$a_name/condition"
sed -i 's/ [^ ]*a-secret-that-came[^ ]*//' {START}
systemctl start --no-block "$a_unit"
until [ -n "$(pid_of "$a_uid")" ]; do sleep 0.5; done
until docker container ls | grep -q "$a_container"; do :; done"""),
    tests=["test_an_agent_without_its_secret_does_not_start"],
)
_mutant(
    "others-wait",
    "S3",
    "Where an agent's secret cannot be decrypted, another does not run either.",
    InGuest('systemctl stop "$b_unit"'),
    tests=["test_the_other_agents_start"],
)

# --- firewall

GETS_THROUGH = "test_only_what_is_granted_gets_through[{}]"
_mutant(
    "lan-let-in",
    "F1",
    "The host's input ends with accept.",
    firewall(
        '(rule "F1: every other port is closed" "counter drop")', '(rule "F1: every other port is closed" "accept")'
    ),
    tests=[GETS_THROUGH.format("F1-connect to the host")],
)
_mutant(
    "one-datagram-port-more",
    "F1",
    "The host opens a UDP port that its settings do not name.",
    firewall("ports = host.allowedUDPPorts;", "ports = host.allowedUDPPorts ++ [ 9000 ];"),
    tests=[GETS_THROUGH.format("F1-send datagrams to the host")],
)
_mutant(
    "no-table",
    "F1",
    "The table is deleted, and nobody loads it again.",
    InGuest(STOP_GUARD + "\n" + REMOVE_TABLES.replace("grep -v 'inet empty'", "grep 'inet tentaflake'")),
    tests=[GETS_THROUGH.format("F1-connect to the host")],
)
HOST_ITSELF = '(rule "F1: the host itself" "iifname \\"lo\\" accept")'
_mutant(
    "ipv6-forgotten",
    "F1",
    "IPv6 from the LAN is not filtered.",
    firewall(HOST_ITSELF, f'{HOST_ITSELF}\n      "meta nfproto ipv6 iifname != \\"h-*\\" accept"'),
    tests=[GETS_THROUGH.format("F1-connect to the host")],
)
_mutant(
    "one-port-more",
    "F1",
    "The host opens a port that its settings do not name.",
    firewall("ports = host.allowedTCPPorts;", "ports = host.allowedTCPPorts ++ [ 9000 ];"),
    tests=[GETS_THROUGH.format("F1-connect to the host")],
)
NO_AGENT = '"iifname \\"h-*\\" oifname \\"h-*\\"")'
NO_ROUTING = "for family in -4 -6; do ip $family rule del priority 4701; done\n"
NO_DOCKER = "for tool in iptables ip6tables; do $tool -t raw -F; $tool -I DOCKER-USER -j ACCEPT; done\n"
_mutant(
    "agents-forwarded",
    "F2",
    "Agents' packets are forwarded to agents: by the table, by the routing rules, and by Docker's.",
    firewall(NO_AGENT, '"iifname \\"none\\" oifname \\"none\\"")\n      "iifname \\"h-*\\" oifname \\"h-*\\" accept"'),
    InGuest(NO_ROUTING + NO_DOCKER),
    tests=[GETS_THROUGH.format("F2-connect to the container")],
)
_mutant(
    "one-wire",
    "F2",
    "B is on A's bridge.",
    InGuest("""
link=$(nsenter --target "$(pid_of $b_uid)" --net ip -o link show eth0 | sed 's/.*@if\\([0-9]*\\):.*/\\1/')
ip link set "$(ip -o link | sed -n "s/^$link: \\([^@]*\\)@.*/\\1/p")" master $a_bridge"""),
    tests=[GETS_THROUGH.format("F2-find the neighbour on the wire")],
)
_mutant(
    "host-open-to-agents",
    "F3",
    "An agent reaches all that the host offers.",
    firewall('(refuse "F3: nothing else of the host" "")', '(rule "F3: nothing else of the host" "accept")'),
    tests=[GETS_THROUGH.format("F3-connect to the host")],
)
_mutant(
    "speech-for-all",
    "F3",
    "Every agent may speak, whatever its spec says.",
    firewall("(filter (agent: agent.tts) agents)", "agents"),
    tests=[GETS_THROUGH.format("F3-reach the speech server")],
)
_mutant(
    "users-on-the-host",
    "F3",
    "An agent's user on the host has the host's network.",
    firewall('"meta skuid @agent_uids counter drop"', '"meta skuid @agent_uids counter accept"'),
    tests=[GETS_THROUGH.format("F3-connect to the host")],
)
_mutant(
    "names-for-all",
    "F3",
    "An agent without a way out looks up names: it has a name server, and a network from which Docker asks it.",
    InPolicy("container.nix", 'if agent.egress == "none" then', 'if agent.egress == "nothing" then'),
    InPolicy("plan.nix", 'internal = spec.egress == "none" && spec.publish == [ ];', "internal = false;"),
    tests=[GETS_THROUGH.format("F3-look up a name")],
    moment="before",
)
_mutant(
    "asks-agents-for-an-address",
    "F3",
    "The host is a DHCP client on agents' bridges, and believes routers there.",
    InGuest("""
mkdir -p /run/systemd/network && cd /run/systemd/network
printf '[Match]\\nName=h-*\\n[Network]\\nDHCP=ipv4\\nIPv6AcceptRA=yes\\nKeepConfiguration=yes\\n' > 00-asks.network
networkctl reload"""),
    tests=["test_an_agent_gives_the_host_no_address_route_or_name_server"],
)
for name, network in (
    ("private-10", "10.0.0.0/8"),
    ("private-172", "172.16.0.0/12"),
    ("private-192", "192.168.0.0/16"),
    ("metadata", "169.254.0.0/16"),
    ("carrier-grade", "100.64.0.0/10"),
    ("6to4", "2002::/16"),
):
    _mutant(
        f"{name}-range",
        "F4",
        f"{network} is taken for public.",
        firewall(f'"{network}"', "# forgotten:"),
        tests=[GETS_THROUGH.format(f"F4-reach {name}.test")],
    )
_mutant(
    "one-port-more-than-listed",
    "F4",
    "An agent reaches a port that its list does not name.",
    firewall("]) entry.ports;", "]) (entry.ports ++ [ 8080 ]);"),
    tests=[GETS_THROUGH.format("F4-reach listed.test")],
)
_mutant(
    "ipv6-all-public",
    "F4",
    "Any IPv6 address is taken for public.",
    firewall("ip6 ${address} 2000::/3 ip6 ${address} != @special_ipv6", "ip6 ${address} != @special_ipv6"),
    tests=[GETS_THROUGH.format("F4-reach unique-local.test")],
)
_mutant(
    "internet-for-all",
    "F4",
    "Every agent is on the internet.",
    firewall('(filter (agent: agent.egress == "internet") agents)', "agents"),
    tests=[GETS_THROUGH.format("F4-reach public.test")],
)
_mutant(
    "forged-ipv4",
    "F4",
    "An agent may forge its IPv4 source.",
    firewall(
        '"iifname \\"h-*\\" iifname . ip saddr != @address_ipv4"',
        '"iifname \\"none\\" iifname . ip saddr != @address_ipv4"',
    ),
    tests=[GETS_THROUGH.format("F4-forge a source")],
)
_mutant(
    "forged-ipv6",
    "F4",
    "An agent may forge its IPv6 source.",
    firewall('"iifname \\"h-*\\" ip6 saddr', '"iifname \\"none\\" ip6 saddr'),
    tests=[GETS_THROUGH.format("F4-forge a source")],
)
_mutant(
    "published-to-all",
    "F5",
    "A published port is reached from the LAN.",
    firewall('"iifname ${tailnetInterface} ct direction original', '"ct direction original'),
    firewall('"oifname ${tailnetInterface} ${isReply} iifname', '"${isReply} iifname'),
    tests=[GETS_THROUGH.format("F5-reach a published port")],
)
_mutant(
    "containers-open",
    "F5",
    "Every port of a container is reached from outside, past Docker's own rules too.",
    firewall('"ct direction original counter drop"', '"ct direction original accept"'),
    firewall('(refuse "F5: no other answers" "ct direction reply")', '"ct direction reply accept"'),
    InGuest(NO_DOCKER),
    tests=[GETS_THROUGH.format("F5-connect to the container")],
)
_mutant(
    "guard-stopped",
    "F6",
    "Nobody looks whether the table is still there.",
    InGuest("systemctl stop tentaflake-guard.timer"),
    tests=["test_the_guard_is_called_every_half_minute"],
)
_mutant(
    "guard-blind",
    "F6",
    "Who looks whether the table is there does not load it.",
    InGuest("unit_says tentaflake-guard.service '[Service]' ExecStart= ExecStart=/bin/true"),
    tests=["test_a_flushed_table_lets_nothing_out_or_in_until_the_guard_loads_it"],
    waits=True,
)
_mutant(
    "routes-between-agents",
    "F6",
    "Without the table, there is a route from agent to agent.",
    InGuest(NO_ROUTING),
    tests=["test_without_any_rule_agents_do_not_reach_each_other_until_the_guard_loads_the_table"],
)
_mutant(
    "starts-without-the-table",
    "F6",
    "At boot, agents do not wait for the table.",
    InGuest("""
sed -i 's/ nftables.service//' /var/lib/tentaflake/current/units/docker-hermes-*.service
systemctl daemon-reload"""),
    tests=["test_every_agent_requires_the_table_and_starts_after_it"],
)
_mutant(
    "routes-alone",
    "F6",
    "The table forwards from agent to agent, and only the routing rules do not.",
    firewall(NO_AGENT, '"iifname \\"none\\" oifname \\"none\\"")\n      "iifname \\"h-*\\" oifname \\"h-*\\" accept"'),
    tests=["test_nothing_gets_through_while_the_table_is_loaded_again"],
)
_mutant(
    "torn-reload",
    "F6",
    "When the table is loaded again, it is deleted first.",
    InGuest("""unit_says nftables.service '[Service]' ExecReload= \\
  'ExecReload=/usr/sbin/nft delete table inet tentaflake' \\
  'ExecReload=/usr/sbin/nft -f /var/lib/tentaflake/current/nftables.nft'"""),
    tests=["test_nothing_gets_through_while_the_table_is_loaded_again"],
)
_mutant(
    "flushed-is-open-to-the-lan",
    "F6",
    "A table whose rules are gone lets everything in.",
    firewall(
        '"type filter hook input priority filter - 10; policy drop;"',
        '"type filter hook input priority filter - 10; policy accept;"',
    ),
    tests=["test_a_flushed_table_lets_nothing_out_or_in_until_the_guard_loads_it"],
)
_mutant(
    "flushed-is-open",
    "F6",
    "A table whose rules are gone forwards everything.",
    firewall(
        '"type filter hook forward priority filter - 10; policy drop;"',
        '"type filter hook forward priority filter - 10; policy accept;"',
    ),
    tests=["test_a_flushed_table_lets_nothing_out_or_in_until_the_guard_loads_it"],
)
_mutant(
    "established-is-enough",
    "F6",
    "An open connection outlives its grant.",
    firewall('(chain "forward" [', '(chain "forward" [\n      "ct state established accept"'),
    tests=["test_an_open_connection_ends_with_the_grant_that_it_had"],
)
_mutant(
    "tailnet-trusted",
    "N1",
    "All that comes from the tailnet is let in.",
    firewall(HOST_ITSELF, f'{HOST_ITSELF}\n      "iifname \\"tailscale0\\" accept"'),
    tests=[GETS_THROUGH.format("N1-connect to the host")],
)
_mutant(
    "tailnet-left-over",
    "N1",
    "A host that has left the tailnet keeps a rule for it.",
    InGuest("""
nft 'table inet left { chain over { type filter hook input priority 10; iifname "tailscale0" accept; }; }'"""),
    tests=["test_without_a_tailnet_no_rule_and_no_listener_is_left_for_it"],
)

_mutant(
    "tailnet-listener",
    "N1",
    "On a host that has left the tailnet, something listens for it still.",
    InGuest("""
systemd-run --quiet python3 -c 'import signal, socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 41641))
signal.pause()'
until ss -Hlnu sport = 41641 | grep -q .; do :; done"""),
    tests=["test_without_a_tailnet_no_rule_and_no_listener_is_left_for_it"],
)

# --- speech

SPEECH, SPEECH_UNIT = "/usr/lib/tentaflake/speech/tentaflake_tts", "tentaflake-tts.service"
AUDIT, AUDIT_UNIT = "/usr/lib/tentaflake/auditd/hermes_auditd", "hermes-auditd.service"


def program(unit: str, file: str, old: str, new: str) -> InGuest:
    """Other text in a program of a service, which is started again."""
    return InGuest(f"{replaced(file, old, new)}\nsystemctl restart {unit}")


def settings(unit: str, *lines: str) -> InGuest:
    """Other settings for a service in Python, which is started again: until it runs what it is, ready or not."""
    return InGuest(f"""unit_says {unit} '[Service]' {shlex.join(lines)}
systemctl stop {unit}; systemctl start --no-block {unit}
until readlink "/proc/$(systemctl show --property=MainPID --value {unit})/exe" | grep -q python; do sleep 0.1; done""")


_mutant(
    "speed-ignored",
    "T1",
    "The speech server ignores `speed`.",
    program(SPEECH_UNIT, f"{SPEECH}/voices.py", "length_scale / speed)", "length_scale)"),
    tests=["test_the_host_is_spoken_to_in_every_format"],
)
_mutant(
    "endless-input",
    "T2",
    "The speech server takes longer texts than it says.",
    program(SPEECH_UNIT, f"{SPEECH}/api.py", "MOST_CHARACTERS = 4096", "MOST_CHARACTERS = 5000"),
    tests=["test_bad_input_gets_an_error_and_good_input_still_speech"],
)
_mutant(
    "error-without-a-code",
    "T2",
    "The speech server's errors are not as OpenAI's.",
    program(SPEECH_UNIT, f"{SPEECH}/errors.py", '"param": param, "code": code}}', '"param": param}}'),
    tests=["test_bad_input_gets_an_error_and_good_input_still_speech"],
)
ANY_ADDRESS = "systemctl set-property --runtime tentaflake-tts.socket IPAddressAllow=any"
_mutant(
    "speech-for-agents",
    "T3",
    "The speech server hears every agent, by the firewall and by its socket.",
    firewall('(refuse "F3: nothing else of the host" "")', '(rule "F3: nothing else of the host" "accept")'),
    InGuest(ANY_ADDRESS),
    tests=["test_containers_reach_it_as_granted"],
)
_mutant(
    "speech-takes-any-packet",
    "T3",
    "The speech server's socket takes packets from anywhere.",
    InGuest(ANY_ADDRESS),
    tests=["test_without_a_firewall_nobody_else_reaches_it_either"],
)
_mutant(
    "speech-everywhere",
    "T3",
    "The speech server listens on every address.",
    # The service itself is started by who connects.
    InGuest("""
unit_says tentaflake-tts.socket '[Socket]' IPAddressAllow=any \\
  ListenStream= ListenStream=0.0.0.0:5001 ListenStream='[::]:5001'
systemctl stop tentaflake-tts.service
systemctl restart tentaflake-tts.socket"""),
    tests=["test_without_a_firewall_nobody_else_reaches_it_either"],
)
_mutant(
    "speech-with-a-capability",
    "T4",
    "The speech server may have a capability.",
    settings(SPEECH_UNIT, "CapabilityBoundingSet=CAP_NET_RAW"),
    tests=["test_it_runs_as_nobody_with_nothing"],
)
_mutant(
    "speech-is-root",
    "T4",
    "The speech server is root's.",
    settings(SPEECH_UNIT, "DynamicUser=no", "User=root"),
    tests=["test_it_runs_as_nobody_with_nothing"],
)
_mutant(
    "speech-with-a-network",
    "T4",
    "The speech server is on the host's network.",
    settings(SPEECH_UNIT, "PrivateNetwork=no"),
    tests=["test_it_runs_as_nobody_with_nothing"],
)
_mutant(
    "speech-sees-secrets",
    "T4",
    "The speech server sees the agents' secrets.",
    settings(SPEECH_UNIT, "InaccessiblePaths="),
    tests=["test_it_sees_no_state_and_no_secret"],
)
_mutant(
    "speech-sees-state",
    "T4",
    "The speech server sees the agents' state directories.",
    settings(SPEECH_UNIT, "TemporaryFileSystem="),
    tests=["test_it_sees_no_state_and_no_secret"],
)

# --- audit

_mutant(
    "audit-stopped",
    "A1",
    "The audit daemon is stopped.",
    InGuest(f"systemctl stop {AUDIT_UNIT}"),
    tests=["test_hostile_names_are_recorded_byte_for_byte_and_harm_no_terminal"],
    waits=True,
)
_mutant(
    "audit-late",
    "A1",
    "What agents do is recorded after seconds.",
    program(
        AUDIT_UNIT, f"{AUDIT}/writer.py", "rows = self.record.commit()", "time.sleep(1.5); rows = self.record.commit()"
    ),
    tests=["test_every_act_is_recorded_within_a_second_in_new_directories_too"],
    waits=True,
)
_mutant(
    "new-directories-unseen",
    "A1",
    "What is made in a directory before it is watched is not recorded.",
    program(AUDIT_UNIT, f"{AUDIT}/watcher.py", "self.scanner.look_into(adopted.directory)", "pass"),
    tests=["test_every_act_is_recorded_within_a_second_in_new_directories_too"],
    waits=True,
)
OVERFLOW = "test_a_burst_that_overflows_the_kernels_queue_is_found_again_and_marked"
_mutant(
    "overflow-unmarked",
    "A2",
    "What an overflow has lost is found again, and not marked.",
    program(AUDIT_UNIT, f"{AUDIT}/watcher.py", 'scanner.want("overflow"', 'scanner.want("scan"'),
    tests=[OVERFLOW],
)
_mutant(
    "no-rescan",
    "A2",
    "What an overflow has lost is not looked for.",
    program(AUDIT_UNIT, f"{AUDIT}/watcher.py", 'self.scanner.want("overflow", self._last_read)', "pass"),
    tests=[OVERFLOW],
    waits=True,
)
_mutant(
    "no-look-at-the-start",
    "A3",
    "What was done while the daemon was dead is not looked for.",
    program(
        AUDIT_UNIT,
        f"{AUDIT}/scanner.py",
        "look.found += 1",
        'if look.origin == "start":\n            return\n        look.found += 1',
    ),
    tests=["test_nothing_is_lost_when_the_daemon_is_killed_again_and_again"],
)
_mutant(
    "not-synchronous",
    "A3",
    "The record is seen before it is on the disk.",
    program(AUDIT_UNIT, f"{AUDIT}/record.py", "PRAGMA synchronous = FULL", "PRAGMA synchronous = OFF"),
    tests=["test_the_record_survives_power_cuts"],
    moment="before",
)
RECORD = "test_agent_cannot_reach_the_record_nor_the_daemon[{}]"
_mutant(
    "record-readable",
    "A4",
    "Anybody may read the record.",
    InGuest("chmod 0755 /var/lib/hermes-auditd && chmod 0644 /var/lib/hermes-auditd/audit.db*"),
    tests=[RECORD.format("read the record")],
)
_mutant(
    "record-changeable",
    "A4",
    "Anybody may add, rename and delete files of the record.",
    InGuest("chmod o+wx /var/lib/hermes-auditd"),
    tests=[RECORD.format("add a file to the record")],
)
_mutant(
    "audit-with-capabilities",
    "A4",
    "The audit daemon may change files that are not its own.",
    settings(AUDIT_UNIT, "CapabilityBoundingSet=CAP_DAC_OVERRIDE", "AmbientCapabilities=CAP_DAC_OVERRIDE"),
    tests=["test_the_daemon_is_confined"],
)
_mutant(
    "record-stalled",
    "A4",
    "Whoever makes no pause keeps the audit daemon from all other agents.",
    program(
        AUDIT_UNIT,
        f"{AUDIT}/daemon.py",
        "watcher.read(time.monotonic_ns() + READ_TIME)",
        "while watcher.read(): time.sleep(0.05)",
    ),
    tests=["test_a_storm_neither_stalls_nor_blinds_the_record[renames across directories]"],
)
_mutant(
    "one-budget-for-all",
    "A5",
    "An agent that is over its limit has the others' oldest rows removed too.",
    program(
        AUDIT_UNIT,
        f"{AUDIT}/record.py",
        'execute("DELETE FROM event WHERE agent = ? AND id <= ?", (agent, last))',
        'execute("DELETE FROM event WHERE id <= ?", (last,))',
    ),
    tests=["test_the_settings_bound_what_is_kept_of_an_agent_and_nothing_of_the_others"],
)
_mutant(
    "full-disk-unreported",
    "A5",
    "systemd is not told that the disk is full.",
    program(
        AUDIT_UNIT, f"{AUDIT}/writer.py", 'service.notify(f"STATUS=the record cannot be written: {error}")', "pass"
    ),
    tests=["test_a_full_disk_stops_no_agent_and_is_reported"],
)

# --- deployment

SWITCHED = "[_text(here / path) for path in names]"
LOAD_TABLE = 'run("systemctl", "reload-or-restart", "nftables.service")'
_mutant(
    "switch-restarts-one-more",
    "X1",
    "A switch restarts A, which it does not change.",
    InGuest(f"""replace {ACTIVATE} 'return {SWITCHED}' "return [str(number) * (name == '$a_name'), *{SWITCHED}]" """),
    tests=["test_agents_that_stay_when_another_is_renamed_keep_container_and_processes"],
    moment="before",
)
_mutant(
    "rollback-forgets-a-user",
    "X2",
    "A rollback leaves the users of agents that it removes.",
    InGuest(replaced(ACTIVATE, "for user in sorted(wrong):", "for user in ():")),
    tests=["test_a_rollback_takes_back_what_a_switch_did_to_agents_that_do_not_run"],
)
_mutant(
    "rollback-forgets-the-rules",
    "X2",
    "A rollback leaves the firewall's table as it is.",
    # A switch that forgets it too would hide it.
    InGuest(replaced(ACTIVATE, LOAD_TABLE, f'"rollback" in sys.argv or {LOAD_TABLE}')),
    tests=["test_a_rollback_takes_back_what_a_switch_did_to_agents_that_do_not_run"],
)
_mutant(
    "failed-switch-stays",
    "X2",
    "A switch that has failed is not undone, then or later.",
    InGuest(replaced(ACTIVATE, "def go_back() -> None:", "def go_back() -> None: return\ndef not_called() -> None:")),
    tests=["test_a_switch_that_fails_leaves_the_former_host_in_charge[a table that nft refuses]"],
)
_mutant(
    "removed-user-stays",
    "X3",
    "The user of a removed agent is still there.",
    InGuest("""grep -q ^hermes-leaves: /etc/passwd ||
echo 'hermes-leaves:x:1999999999:1999999999::/var/lib/hermes-leaves:/bin/sh' >> /etc/passwd"""),
    tests=["test_a_removed_agent_has_no_user_and_cannot_log_in"],
)
_mutant(
    "removed-rules-stay",
    "X3",
    "The table still knows a removed agent.",
    InGuest("""nft 'add element inet tentaflake on_internet { "h-leaves" }'"""),
    tests=["test_a_removed_agent_has_no_process_unit_network_or_rule"],
)
_mutant(
    "kept-state-changed",
    "X3",
    "What a removed agent has left was changed.",
    InGuest("[ ! -e /var/lib/hermes-leaves ] || echo other > /var/lib/hermes-leaves/known"),
    tests=["test_the_state_of_a_removed_agent_is_kept_as_it_was"],
)
_mutant(
    "kept-state-open",
    "X3",
    "Anybody may look at what a removed agent has left.",
    InGuest("[ ! -e /var/lib/hermes-leaves ] || chmod 0755 /var/lib/hermes-leaves"),
    tests=["test_nobody_reaches_the_state_of_a_removed_agent"],
)
INHERITS = "test_no_agent_inherits_the_state_of_a_removed_one[{}]"
_mutant(
    "heir-by-uid",
    "X3",
    "A new agent may have the uid of a removed one, and so what that has left.",
    InGuest(replaced(ACTIVATE, 'if agent["uid"] == kept["uid"]:', "if False:")),
    tests=[INHERITS.format("uid")],
)
_mutant(
    "heir-by-directory",
    "X3",
    "A new agent may have the state directory of a removed one.",
    InGuest(replaced(ACTIVATE, "if mine == theirs:", "if mine == theirs: return None\n    if False:")),
    tests=[INHERITS.format("state directory")],
)
_mutant(
    "purge-keeps",
    "X3",
    "What was purged is still there.",
    InGuest(replaced(ACTIVATE, "shutil.rmtree(directory)\n    write_state", "pass\n    write_state")),
    tests=["test_purging_deletes_a_removed_agents_state_and_nobody_elses"],
)
_mutant(
    "plan-of-this-home",
    "X4",
    "The plan depends on who evaluates it.",
    InSources("modules/policy/plan.nix", '"Hermes agent ${agent.name}"', '"Hermes agent in ${builtins.getEnv "HOME"}"'),
    tests=["test_the_same_sources_give_the_same_plan_wherever_they_are"],
)
_mutant(
    "unlocked-input",
    "X4",
    "An input of the flake is not locked by its hash.",
    InSources("flake.lock", '"narHash": "sha256-9VnK6Oqai65puVJ4WYtCTvlJeXxMzAp/69HhQuTdl/I=",', ""),
    tests=["test_every_input_is_locked_by_revision_and_hash"],
)
