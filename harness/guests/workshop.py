"""A NixOS of Debian's packages, where no binary cache answers: Nix builds it in a tree of Debian, of what is in /usr.

The tree is a directory of the cache with a Nix store of its own in it. nixpkgs gives the module system, all modules
and the program that switches; ``files/nixos-debian`` has what is otherwise. Nothing has to be installed, and nobody
has to be root.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cache import Cache, key_of
from harness.errors import HarnessError
from harness.guests import speech
from harness.guests.bootstrap import SMALL, SUITES, bootstrap
from harness.nixpkgs import INPUTS, NoNixpkgs, find_input, find_nixpkgs, whole_obstacle
from harness.policy import REPOSITORY
from harness.progress import step

SUITE = SUITES["forky"]
"""The nearest to nixos-unstable."""
FILES = Path(__file__).parent / "files" / "nixos-debian"
EXPRESSION = "/mnt/repository/harness/guests/files/nixos-debian/host.nix"
SWITCH_PROGRAM = "pkgs/by-name/sw/switch-to-configuration-ng"
# What the system is made of; and what only Nix needs to build it.
SYSTEM_PACKAGES = """
    acl age attr bash busybox-static bzip2 ca-certificates containerd coreutils cpio crun curl dash dbus
    dbus-bin dbus-daemon dbus-user-session debianutils dhcpcd-base diffutils dmsetup dnsmasq-base docker-cli docker.io
    dosfstools e2fsprogs fdisk file findutils gawk grep gzip iproute2 iptables iputils-ping jq kmod lastlog2
    less libc-bin libcap2-bin libfile-slurp-perl libjson-perl libpam-lastlog2 libpam-modules libpam-runtime
    libpam-systemd linux-image-cloud-amd64 login login.defs mount ncurses-bin netbase nftables nix-bin
    nix-setup-systemd nmap openresolv openssh-client openssh-common openssh-server openssl passwd perl procps
    psmisc python3 python3-scapy quota runc sed systemd systemd-coredump systemd-oomd systemd-sysv
    systemd-timesyncd tar tzdata udev uidmap util-linux util-linux-extra wireguard-tools xz-utils zstd
""".split()
BUILD_PACKAGES = """
    cargo gcc libc6-dev libdbus-1-dev libxml2-utils make patchelf pkgconf-bin rustc systemd-dev xsltproc
    xutils-dev
""".split()
NIX_CONFIGURATION = """\
build-users-group =
experimental-features = nix-command flakes
max-jobs = 2
sandbox = false
substituters =
"""
# $1 is the tree; what follows are pairs of a path here and one in the tree, up to "--", and then the command.
ENTER = """
tree=$1; shift
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
while [ "$1" != -- ]; do mount --bind "$1" "$tree$2"; shift 2; done
shift
exec chroot "$tree" "$@"
"""
# Not in the guest's /usr: what only builds, and what NixOS says itself, in /etc.
LEFT_OUT = """
    usr/include usr/lib/gcc usr/lib/llvm* usr/lib/rustlib usr/lib/x86_64-linux-gnu/libLLVM*
    usr/lib/x86_64-linux-gnu/librustc* usr/libexec/gcc usr/lib/systemd/system usr/lib/systemd/user
    usr/lib/sysctl.d usr/lib/sysusers.d usr/lib/tmpfiles.d usr/share/doc usr/share/locale usr/share/man
    usr/bin/*gnu-lto-dump* usr/bin/lto-dump*
""".split()
# $1 tree, $2 where the disk's content is made, $3 what is left out of /usr; standard input: the closure, by names.
STAGE = """
mkdir -p "$2/nix/store" "$2/nix/var/nix/profiles"
cd "$2" && mkdir dev etc mnt proc root run sys tmp var && chmod 1777 tmp && chmod 700 root
tar -C "$1" --exclude-from="$3" -cf - usr bin sbin lib lib64 | tar -xpf -
tar -C "$1/nix/store" -cf - --files-from=- | tar -C nix/store -xpf -
chroot "$1" find /usr -xdev -type l -lname '/etc/alternatives/*' -print0 | while IFS= read -r -d '' link; do
  [ ! -L ".$link" ] || ln -sfn "$(chroot "$1" readlink -f "$link")" ".$link"
done
cp usr/bin/env usr/libexec/env
find usr -xdev -perm /6000 -type f -exec chmod ug-s {} +
"""

EXTENDED = "quotatype=usrquota,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"


@dataclass(frozen=True)
class Workshop:
    """The tree, in an entry of the cache; ``nixpkgs`` and ``agenix`` are the flake's inputs."""

    directory: Path
    nixpkgs: Path
    agenix: Path

    @property
    def tree(self) -> Path:
        return self.directory / "tree"

    def run(
        self, command: Sequence[str], places: Mapping[str, Path] | None = None, stdin: bytes = b"", subject: str = ""
    ) -> bytes:
        """Run a command in the tree, as its root; ``places`` are directories (or files) to be seen there.

        Raises ``HarnessError`` with what it said last.
        """
        seen = {
            "/mnt/nixpkgs": self.nixpkgs,
            "/mnt/agenix": self.agenix,
            "/mnt/repository": REPOSITORY,
            "/mnt/crates": self.directory / "crates",
            **(places or {}),
        }
        pairs = [str(each) for place, path in seen.items() for each in (path, place)]
        for place, path in seen.items():
            target = self.tree / place.lstrip("/")
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.touch()
        inside = ["env", "-i", *self._environment(), *command]
        entering = [*enter_namespaces(), "bash", "-ec", ENTER, "bash", str(self.tree), *pairs, "--", *inside]
        return run_tool(entering, stdin, subject or command[0])

    @staticmethod
    def _environment() -> list[str]:
        kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        fixed = {"PATH": "/usr/bin:/usr/sbin", "HOME": "/root", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
        return [f"{name}={value}" for name, value in (kept | fixed).items()]

    def build(self, given: Mapping[str, Any], secrets: Path | None) -> str:
        """The store path of a host's system; ``given`` as nixos.nix takes it, ``secrets`` a directory of age files."""
        command = ["nix-build", "--no-out-link", EXPRESSION, "-A", "toplevel"]
        return self._run_on(given, secrets, command).decode().split()[-1]

    def find_modules(self, given: Mapping[str, Any]) -> dict[str, Path]:
        """The files of the kernel's modules that a host asks for in its initrd, each behind those that it needs."""
        command = ["nix-instantiate", "--eval", "--strict", "--json", EXPRESSION, "-A", "initrdModules"]
        names = json.loads(self._run_on(given, None, command))
        [version] = [path.name for path in (self.tree / "usr/lib/modules").iterdir()]
        command = ["modprobe", "--set-version", version, "--show-depends", "--all", *names]
        lines = [line.split() for line in self.run(command, subject="the initrd's modules").decode().splitlines()]
        paths = [
            Path(words[1]) for words in lines if words[0] == "insmod"
        ]  # what is built into the kernel is "builtin"
        return {path.name.partition(".")[0]: self.tree / path.relative_to("/") for path in paths}

    def _run_on(self, given: Mapping[str, Any], secrets: Path | None, command: Sequence[str]) -> bytes:
        with tempfile.TemporaryDirectory(prefix="host-") as name:
            place = Path(name)
            place.chmod(0o755)
            if secrets:
                shutil.copytree(secrets, place / "secrets")
            wanted = {**given, "secrets": "/mnt/given/secrets" if secrets else None}
            (place / "host.json").write_text(json.dumps(wanted))
            return self.run(command, {"/mnt/given": place}, subject="NixOS of Debian's packages")

    def store(self, *arguments: str) -> bytes:
        """What ``nix-store`` writes."""
        return self.run(["nix-store", *arguments], subject="the system's closure")

    def make_disk(self, system: str, target: Path, size: str) -> None:
        """The ext4 file system of a machine that boots ``system``, with user quotas."""
        closure = self.store("--query", "--requisites", system).decode().split()
        with tempfile.TemporaryDirectory(prefix="disk-", dir=target.parent) as name:
            left_out = Path(name, "left-out")
            left_out.write_text("".join(f"{pattern}\n" for pattern in LEFT_OUT))
            registration = self.store("--dump-db", *closure)
            top = Path(name, "top")
            top.mkdir()
            script = (
                f"{STAGE}\ncat {name}/registration > nix-path-registration\n"
                f"ln -s {system} nix/var/nix/profiles/system-1-link; ln -s system-1-link nix/var/nix/profiles/system\n"
                f'mke2fs -q -t ext4 -O quota -E {EXTENDED} -d . -L root -m 0 "$4" {size}; cd /; rm -rf "$2"'
            )
            Path(name, "registration").write_bytes(registration)
            arguments = [str(self.tree), str(top), str(left_out), str(target)]
            names = "".join(f"{path.removeprefix('/nix/store/')}\n" for path in closure)
            run_tool(
                [*enter_namespaces(), "bash", "-ec", script, "bash", *arguments], names.encode(), "the guest's disk"
            )


def enter_namespaces() -> list[str]:
    """The beginning of a command that may mount, and does so for nobody else; root in there is whoever calls."""
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *mapped, "--mount", "--pid", "--fork", "--kill-child"]


def run_tool(command: Sequence[str], stdin: bytes, subject: str) -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise HarnessError(f"{subject} could not be made (exit code {done.returncode}):\n{said[-3000:]}")
    return done.stdout


def find_obstacle() -> str | None:
    """Why no NixOS of Debian's packages can be had here: sources of the flake's inputs are missing."""
    try:
        nixpkgs = find_nixpkgs(_given())
    except NoNixpkgs as error:
        return str(error)
    if reason := whole_obstacle(nixpkgs):
        return reason
    if find_input("agenix") is None:
        return f"no source of agenix: put one beside the cache, as {INPUTS}/agenix"
    return None


def _given() -> Path | None:
    text = os.environ.get("TENTAFLAKE_NIXPKGS")
    return Path(text) if text else None


def open_workshop(cache: Cache) -> Workshop:
    """The workshop, made at the first time: a tree of Debian, and the crates of the program that switches."""
    if reason := find_obstacle():
        raise HarnessError(reason)
    nixpkgs, agenix = find_nixpkgs(_given()), find_input("agenix")
    assert agenix is not None
    lock = (nixpkgs / SWITCH_PROGRAM / "Cargo.lock").read_text()
    key = key_of(
        suite=SUITE.name,
        packages=[*SYSTEM_PACKAGES, *BUILD_PACKAGES],
        speech=[speech.root_key(), speech.disk_key()],
        lock=lock,
    )
    directory = cache.make("roots", f"nixos-{key}", lambda made: _make(Workshop(made, nixpkgs, agenix)))
    return Workshop(directory, nixpkgs, agenix)


def _make(workshop: Workshop) -> None:
    wheels, archive = workshop.directory / "wheels", workshop.directory / "tree.tar"
    speech.install_wheels(wheels, SUITE)
    options = [
        "--variant=minbase",
        "--format=tar",
        f"--include={','.join([*SYSTEM_PACKAGES, *BUILD_PACKAGES])}",
        *SMALL,
        "--dpkgopt=path-exclude=/etc/kernel/postinst.d/initramfs-tools",  # we make our own
        *(f"--customize-hook={hook}" for hook in speech.root_hooks(wheels)),
    ]
    bootstrap("building the NixOS guest: Debian's packages", options, archive, suite=SUITE)
    shutil.rmtree(wheels)
    with step("building the NixOS guest: crates"):
        tree = workshop.tree
        tree.mkdir()
        unpack = ["tar", "-C", str(tree), "--no-same-owner", "--exclude=./dev/*", "-xpf", str(archive)]
        run_tool(unpack, b"", "the tree of Debian's packages")
        archive.unlink()
        speech.lay_out(tree)
        for place in ("etc/nix", "nix/store", "nix/var", "root", "mnt"):
            (tree / place).mkdir(parents=True, exist_ok=True)
        (tree / "etc/nix/nix.conf").write_text(NIX_CONFIGURATION)
        (workshop.directory / "crates").mkdir()
        fetch_crates(workshop)


def fetch_crates(workshop: Workshop) -> None:
    """Have cargo fetch what a lock file names, with the checksums that it has, as this machine is set up for cargo."""
    # What the tree needs of this machine to reach a registry: its resolver, its certificates, cargo's settings.
    places = {name: Path(name) for name in ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs") if Path(name).exists()}
    settings = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo") / "config.toml"
    if settings.is_file():
        shutil.copyfile(settings, workshop.directory / "crates" / settings.name)
    manifest = f"/mnt/nixpkgs/{SWITCH_PROGRAM}/Cargo.toml"
    command = ["env", "CARGO_HOME=/mnt/crates", "cargo", "fetch", "--locked", "--manifest-path", manifest]
    workshop.run(command, places, subject="the crates of nixpkgs' switch-to-configuration")
