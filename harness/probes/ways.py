"""The ways in: how an attacker may try to reach another agent or the host.

A way is a function from attacker and target to a script, registered with the claim that it attacks and
where it can be tried from. Its positive control comes with it: an agent reaches itself by the same
script, and root reaches the host.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import dedent

from harness.probes.attempts import Attacker, Attempt, Origin, quote
from harness.probes.pairs import choose_targets
from harness.probes.stage import HOST, Target

Script = Callable[[Attacker, Target], str]
Token = Callable[[Target], str]
ROOT = Attacker("root")


@dataclass(frozen=True)
class Way:
    """One way to try. ``name`` reads after "can": "A can <name> of B".

    ``host_only``: the only target is the host, for what agents may not even do to themselves. ``aims_at``: whether a
    target has what is sought. Where the host has not, there is no control, and nobody tries.
    """

    name: str
    claim: str
    script: Script
    origins: tuple[Origin, ...]
    token: Token | None
    host_only: bool
    aims_at: Callable[[Target], object] = lambda target: True

    def attempts(self, attackers: Iterable[Attacker], stage: dict[str, Target]) -> Iterator[Attempt]:
        """Every attacker on the host and on others; by the same script agents reach themselves, and root the host."""
        controls = [(ROOT, stage[HOST])] if self.aims_at(stage[HOST]) else []
        for attacker, target in [*self._pairs(attackers, stage), *controls]:
            own = attacker is ROOT or (attacker.agent is not None and attacker.agent.name == target.name)
            yield Attempt(
                claim=self.claim,
                way=self.name,
                attacker=attacker,
                target=target.name,
                script=self.script(attacker, target),
                expected="reached" if own else "refused",
                token=self.token(target).encode() if self.token else None,
            )

    def _pairs(self, attackers: Iterable[Attacker], stage: dict[str, Target]) -> Iterator[tuple[Attacker, Target]]:
        tried_from = [attacker for attacker in attackers if self.is_for(attacker)]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(each.owner for each in tried_from))}
        possible = [stage[HOST]] if self.host_only else stage.values()
        targets = [each for each in possible if self.aims_at(each)]
        agents = [target.name for target in targets if target.name != HOST]
        for attacker in tried_from:
            own = attacker.owner
            chosen = {HOST, own, *choose_targets(self.name, numbers[own], own, agents)}
            yield from ((attacker, target) for target in targets if target.name in chosen)

    def is_for(self, attacker: Attacker) -> bool:
        return attacker.origin in self.origins or (attacker.is_inside and "container" in self.origins)


WAYS: dict[str, Way] = {}
BOTH: tuple[Origin, ...] = ("container", "uid")
UID: tuple[Origin, ...] = ("uid",)


def way(
    name: str,
    *,
    claim: str,
    origins: tuple[Origin, ...] = BOTH,
    token: Token | None = None,
    host_only: bool = False,
    aims_at: Callable[[Target], object] = Way.aims_at,
) -> Callable[[Script], Script]:
    """Register a way under its ``name``."""

    def register(script: Script) -> Script:
        assert name not in WAYS, f"two ways are named {name!r}"
        WAYS[name] = Way(name, claim, script, origins, token, host_only, aims_at)
        return script

    return register


def find_ways(claim: str) -> list[Way]:
    return [each for each in WAYS.values() if each.claim == claim]


def plan_attempts(ways: Iterable[Way], attackers: Sequence[Attacker], stage: dict[str, Target]) -> list[Attempt]:
    return [attempt for each in ways for attempt in each.attempts(attackers, stage)]


def known(target: Target) -> str:
    return target.known


def listed(target: Target) -> str:
    return target.listed


def home_variable(target: Target) -> str:
    """A line that only the target's environment holds."""
    return f"HERMES_HOME={target.directory}\n"


def own_directory(attacker: Attacker) -> str:
    """A place where the attacker may write."""
    return quote(attacker.agent.state_dir) if attacker.agent else "/root"


def visible_pids(attacker: Attacker, target: Target) -> str:
    """The target's processes where they can be named; from a container, all that it sees."""
    return "$(cd /proc; echo [0-9]*)" if attacker.is_inside else " ".join(map(str, target.pids))


# --- D2: the neighbour's files ----------------------------------------------------------------------


@way("list the state directory", claim="D2", token=listed)
def list_state(attacker: Attacker, target: Target) -> str:
    return f"ls -a {quote(target.directory)}"


@way("read a state file", claim="D2", token=known)
def read_state(attacker: Attacker, target: Target) -> str:
    return f"cat {quote(target.directory)}/known"


@way("stat a state file", claim="D2")
def stat_state(attacker: Attacker, target: Target) -> str:
    return f"stat {quote(target.directory)}/known && won"


@way("create a state file", claim="D2")
def create_in_state(attacker: Attacker, target: Target) -> str:
    return f": > {quote(target.directory)}/planted-by-{attacker.slug} && won"


@way("append to a state file", claim="D2")
def append_to_state(attacker: Attacker, target: Target) -> str:
    return f": >> {quote(target.directory)}/known && won"


@way("rename a state file", claim="D2")
def rename_in_state(attacker: Attacker, target: Target) -> str:
    file = f"{quote(target.directory)}/movable-{attacker.slug}"
    return f"mv {file} {file}.moved && won"


@way("delete a state file", claim="D2")
def delete_in_state(attacker: Attacker, target: Target) -> str:
    return f"rm {quote(target.directory)}/removable-{attacker.slug} && won"


@way("open up the state directory", claim="D2")
def chmod_state(attacker: Attacker, target: Target) -> str:
    # To the mode that it has: the owner's own try, the control, would otherwise close what is open to other attacks.
    return f'chmod "$(stat -c %a {quote(target.directory)})" {quote(target.directory)} && won'


@way("read through a planted symlink", claim="D2", token=known)
def read_by_symlink(attacker: Attacker, target: Target) -> str:
    link = f"{own_directory(attacker)}/symlink-{attacker.origin}-{target.name}"
    return f"ln -s {quote(target.directory)}/known {link}; cat {link}"


@way("read through a planted hard link", claim="D2", token=known)
def read_by_hard_link(attacker: Attacker, target: Target) -> str:
    link = f"{own_directory(attacker)}/hardlink-{attacker.origin}-{target.name}"
    return f"ln {quote(target.directory)}/known {link}; cat {link}"


@way("read through /proc/PID/root", claim="D2", token=known)
def read_by_proc_root(attacker: Attacker, target: Target) -> str:
    return f"for p in {visible_pids(attacker, target)}; do cat /proc/$p/root{quote(target.directory)}/known; done"


@way("read through /proc/PID/cwd", claim="D2", token=known)
def read_by_proc_cwd(attacker: Attacker, target: Target) -> str:
    return f"for p in {visible_pids(attacker, target)}; do cat /proc/$p/cwd/known; done"


@way("find an open file in /proc/PID/fd", claim="D2", token=lambda target: f"{target.directory}/held")
def find_descriptor(attacker: Attacker, target: Target) -> str:
    return f"for p in {visible_pids(attacker, target)}; do ls -l /proc/$p/fd; done"


@way("read as root of an own user namespace", claim="D2", origins=UID, token=known)
def read_in_user_namespace(attacker: Attacker, target: Target) -> str:
    return f"unshare --user --map-root-user cat {quote(target.directory)}/known"


@way("read the disk below the file system", claim="D2", host_only=True)
def read_raw_disk(attacker: Attacker, target: Target) -> str:
    return "head -c 1 /dev/vda && won"


# --- U2: the neighbour's processes -----------------------------------------------------------------------


@way("read the environment", claim="U2", token=home_variable)
def read_environment(attacker: Attacker, target: Target) -> str:
    return f"for p in {visible_pids(attacker, target)}; do cat /proc/$p/environ | tr '\\0' '\\n'; done"


@way("read the memory", claim="U2", token=home_variable)
def read_memory(attacker: Attacker, target: Target) -> str:
    """The stack, which holds the environment; by /proc/PID/mem, guarded as ptrace(2) is."""
    return dedent(f"""\
        for p in {visible_pids(attacker, target)}; do
          range=$(grep -F '[stack]' /proc/$p/maps) || continue
          range=${{range%% *}}; start=0x${{range%-*}}; end=0x${{range#*-}}
          dd if=/proc/$p/mem bs=4096 skip=$((start / 4096)) count=$(((end - start) / 4096)) 2> /dev/null |
            tr '\\0' '\\n' | grep -a ^HERMES_HOME=
        done""")


@way("send a signal", claim="U2")
def send_signal(attacker: Attacker, target: Target) -> str:
    """From a container, a signal that arrives at a process which turns out to be the target's."""
    if not attacker.is_inside:
        return f"kill -CONT {target.pids[0]} && won"
    pids = " ".join(map(str, target.pids))
    return dedent(f"""\
        for p in {pids}; do [ -e /proc/$p ] || {{ kill -CONT $p && won; }}; done
        for p in {visible_pids(attacker, target)}; do
          kill -CONT $p && tr '\\0' '\\n' < /proc/$p/environ | grep -q -x 'HERMES_HOME={target.directory}' && won
        done""")


@way("trace with ptrace", claim="U2", origins=UID, token=lambda target: f"traced {target.pids[0]}\n")
def trace(attacker: Attacker, target: Target) -> str:
    """All targets by one program, the same for each: an interpreter is slow to start.

    Root keeps to its own: a process that it traces can not be traced by its owner.
    """
    pids = target.pids[:1] if attacker is ROOT else target.all_pids
    program = dedent(f"""\
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        PTRACE_SEIZE = 0x4206
        for pid in {list(pids)}:
            refused = libc.ptrace(PTRACE_SEIZE, pid, 0, 0)
            print(f"{{pid}}: errno {{ctypes.get_errno()}}" if refused else f"traced {{pid}}")""")
    return f"python3 -I -S -c {quote(program)}"


# --- S1: the neighbour's secrets --------------------------------------------------------------------------


def secret_of(target: Target) -> str:
    return target.secrets.value


def secret_paths(attacker: Attacker, target: Target) -> str:
    """Where the target's secrets are, but for a path at which the attacker's container has a secret of its own."""
    own = set()
    if attacker.agent and attacker.agent.name != target.name:
        own = {secret.target for secret in attacker.agent.secrets}
    return " ".join(quote(path) for path in target.secrets.paths if path not in own)


@way("read a secret", claim="S1", aims_at=lambda target: target.secrets.paths)
def read_secret(attacker: Attacker, target: Target) -> str:
    """On the host the link, the directory that it leads to, and the host's own key; in a container the mount."""
    return f"for f in {secret_paths(attacker, target)}; do head -c 1 $f > /dev/null && won; done"


@way("read a secret through a planted symlink", claim="S1", aims_at=lambda target: target.secrets.paths)
def read_secret_by_symlink(attacker: Attacker, target: Target) -> str:
    link = f"{own_directory(attacker)}/secret-{attacker.origin}-{target.name}"
    paths = secret_paths(attacker, target)
    return f"for f in {paths}; do ln -sfn $f {link}; head -c 1 {link} > /dev/null && won; done"


@way("read a secret through /proc/PID/root", claim="S1", token=secret_of, aims_at=secret_of)
def read_secret_by_proc_root(attacker: Attacker, target: Target) -> str:
    paths = " ".join(map(quote, target.secrets.paths))
    pids = visible_pids(attacker, target)
    return f"for p in {pids}; do for f in {paths}; do cat /proc/$p/root$f; done; done"


@way(
    "read a secret in the environment",
    claim="S1",
    token=lambda t: t.secrets.variable,
    aims_at=lambda t: t.secrets.variable,
)
def read_secret_variable(attacker: Attacker, target: Target) -> str:
    return f"for p in {visible_pids(attacker, target)}; do cat /proc/$p/environ; done"


@way("read a secret as root of an own user namespace", claim="S1", origins=UID, aims_at=lambda t: t.secrets.paths)
def read_secret_in_user_namespace(attacker: Attacker, target: Target) -> str:
    paths = secret_paths(attacker, target)
    return f"for f in {paths}; do unshare --user --map-root-user head -c 1 $f > /dev/null && won; done"


@way("list the secrets", claim="S1", host_only=True)
def list_secrets(attacker: Attacker, target: Target) -> str:
    return "for d in /run/agenix/ /run/agenix.d/; do ls $d && won; done"


@way("read the encrypted secrets", claim="S1", host_only=True, aims_at=lambda target: target.secrets.encrypted)
def read_encrypted(attacker: Attacker, target: Target) -> str:
    """Not on NixOS, where every user can read them, as all that is in the store."""
    return f"ls {target.secrets.encrypted} && won"


# --- D3, D4: by the Nix daemon, which builds for others, and whose store all can read ---------------------------


def nix_daemon(target: Target) -> str:
    return target.nix_daemon


@way("add to the Nix store", claim="D3", origins=UID, host_only=True, aims_at=nix_daemon)
def add_to_store(attacker: Attacker, target: Target) -> str:
    file = f"/tmp/for-the-store.{attacker.slug}"
    return f"echo {attacker.slug} > {file}; NIX_REMOTE=daemon nix-store --add {file} && won"


@way("have the Nix daemon build", claim="D4", origins=UID, host_only=True, aims_at=nix_daemon)
def have_built(attacker: Attacker, target: Target) -> str:
    """Outside of every limit that the agent has."""
    command = 'args = [ "-c" "echo > $out" ]'
    derivation = f'derivation {{ name = "{attacker.slug}"; system = "x86_64-linux"; builder = "/bin/sh"; {command}; }}'
    build = f"nix-build --no-out-link --expr {quote(derivation)} --option sandbox false"
    return f"NIX_REMOTE=daemon HOME=/tmp {build} && won"


# --- C1, C2, C4: out of the container ------------------------------------------------------------------------

CONTAINER: tuple[Origin, ...] = ("container",)


@way("mount a file system", claim="C1", origins=CONTAINER, host_only=True)
def mount(attacker: Attacker, target: Target) -> str:
    return "d=/tmp/mount-$$; mkdir $d && mount -t tmpfs none $d && umount $d && won"


@way("make a device node", claim="C1", origins=CONTAINER, host_only=True)
def make_device(attacker: Attacker, target: Target) -> str:
    return "mknod /tmp/node-$$ c 1 3 && won"


@way("change the root directory", claim="C1", origins=CONTAINER, host_only=True)
def change_root(attacker: Attacker, target: Target) -> str:
    return "chroot / true && won"


@way("set the host name", claim="C1", origins=CONTAINER, host_only=True)
def set_hostname(attacker: Attacker, target: Target) -> str:
    return 'hostname "$(hostname)" && won'


@way("make a user namespace", claim="C1", origins=CONTAINER, host_only=True)
def make_user_namespace(attacker: Attacker, target: Target) -> str:
    return "unshare -U true && won"


@way("give a file to root", claim="C1", origins=CONTAINER, host_only=True)
def give_to_root(attacker: Attacker, target: Target) -> str:
    return "f=/tmp/given-$$; : > $f && chown 0:1 $f && won"


@way("use the Docker socket", claim="C4", host_only=True)
def use_docker_socket(attacker: Attacker, target: Target) -> str:
    return "for s in /run/docker.sock /var/run/docker.sock; do [ -w $s ] && won; done"


@way("use the containerd socket", claim="C4", host_only=True)
def use_containerd_socket(attacker: Attacker, target: Target) -> str:
    return "for d in /run /run/docker; do [ -w $d/containerd/containerd.sock ] && won; done"


@way("make the root file system writable", claim="C2", origins=CONTAINER, host_only=True)
def remount(attacker: Attacker, target: Target) -> str:
    return "mount -o remount,rw / && won"


SYSTEM_DIRECTORIES = (
    "/",
    "/bin",
    "/etc",
    "/home",
    "/root",
    "/run",
    "/usr",
    "/var",
    "/var/lib",
    "/dev",
    "/proc/sys/kernel",
    "/sys",
)


def writes(attackers: Iterable[Attacker]) -> list[Attempt]:
    """C2: each agent writes to each directory of its container; /tmp and its state are the controls."""
    return [
        Attempt(
            claim="C2",
            way="write a file",
            attacker=attacker,
            target=directory,
            script=f": > {quote(directory)}/written-by-an-agent && won",
            expected="reached" if directory in ("/tmp", attacker.agent.state_dir) else "refused",
        )
        for attacker in attackers
        if attacker.is_inside and attacker.agent
        for directory in (*SYSTEM_DIRECTORIES, "/tmp", attacker.agent.state_dir)
    ]
