"""The Debian guest: Debian stable's systemd, nftables and Docker, and an activation program.

Built with mmdebstrap from the Debian mirror that this machine's apt uses (or mmdebstrap's own default
where apt knows none), with no privilege but those mmdebstrap finds (root, or user namespaces).
"""

import io
import json
import lzma
import os
import re
import secrets
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.cache import Cache, key_of
from harness.errors import HarnessError
from harness.guests import oci, probe_image, speech
from harness.guests.addresses import HOST, INTERNET, RESOLVERS
from harness.guests.bootstrap import SMALL, STABLE, Suite, bootstrap, installed
from harness.guests.canaries import canaries
from harness.policy import Plan, substitute_image
from harness.progress import step
from harness.vm import initramfs
from harness.vm.image import Image
from harness.vm.initramfs import DIRECTORY, FILE, PROGRAM, Entry, pack_initramfs
from harness.vm.machine import Machine
from harness.vm.shell import CommandFailed

DISK_SIZE = "12G"
ACTIVATION = "/usr/lib/tentaflake/activate.py"
FILES = Path(__file__).parent / "files"
ACTIVATE = Path(__file__).parent / "activate.py"
# As a script itself it would be compiled at each start, which takes longer under emulation than all that it does first.
ACTIVATE_LAUNCHER = """\
#!/usr/bin/env python3
import sys

from tentaflake_activate import main

sys.exit(main(sys.argv[1:]))
"""
SHELL = Path(__file__).parent.parent / "vm" / "guest_shell.py"
AUDITD = Path(__file__).parent.parent.parent / "modules" / "auditd" / "hermes_auditd"
AUDIT_COMMAND = """\
#!/bin/sh
PYTHONPATH=/usr/lib/tentaflake/auditd exec python3 -m hermes_auditd.cli "$@"
"""

PACKAGES = """
    systemd systemd-sysv udev dbus kmod procps util-linux iproute2 iputils-ping ca-certificates
    linux-image-cloud-amd64 initramfs-tools zstd
    docker.io docker-cli crun iptables nftables jq quota openssh-server age busybox-static
    python3
    nmap python3-scapy wireguard-tools dnsmasq-base
""".split()
# Run at every daemon-reload, that is at every switch, and of no use here: half of a reload's time under TCG.
MASKED_GENERATORS = [
    f"systemd-{name}-generator"
    for name in "debug getty gpt-auto hibernate-resume rc-local run ssh system-update sysv tpm2".split()
]
# What udev would load for the emulated processor and board, and no test needs.
UNUSED_MODULES = """
    ahci i2c_i801 kvm_amd kvm_intel lpc_ich powernow_k8 psmouse serio_raw
    aesni_intel crc32_pclmul crct10dif_pclmul ghash_clmulni_intel sha1_ssse3 sha256_ssse3 sha512_ssse3
""".split()
# For machines with a TPM, with a battery, with an initrd of systemd's own. systemd reads all of its units again at each
# daemon-reload, that is at every switch: 166 in place of 212 without these and those that only they mention.
LEFT_OUT_UNITS = """
    initrd system-update systemd-battery systemd-bsod systemd-confext systemd-creds systemd-fsck systemd-hibernate
    systemd-pcr systemd-quotacheck systemd-storagetm systemd-sysext systemd-tpm2 tpm2
""".split()
DEPLOYMENT_UNITS = ("tentaflake-generation.service", "tentaflake-recover.service")
EARLY_MODULES = ("virtio_blk", "quota_tree", "quota_v2")
"""What the kernel needs for its disk, in this order: with user quotas on it, their format too."""
INIT = """\
#!/bin/busybox sh
set -e
busybox() {{ /bin/busybox "$@"; }}
busybox mount -t devtmpfs none /dev
for module in {modules}; do busybox insmod /$module.ko || :; done # another kernel may have them built in
busybox mount -t ext4 -o rw,usrquota /dev/vda /root
busybox mount --move /dev /root/dev
busybox mount -t proc none /proc
program={init}
for word in $(busybox cat /proc/cmdline); do
  case $word in init=*) program=${{word#init=}} ;; esac
done
busybox umount /proc
exec /bin/busybox switch_root /root $program
"""
PROBE_IMAGE = "usr/lib/tentaflake/probe.tar"
ARCHIVE = "/var/tmp/image.tar.gz"
PIECE = 4 << 20
LOAD_TIMEOUT = 1800.0
"""Seconds to unpack and hash an image; ten times what the Hermes image takes under TCG on two cores of its own."""
# All that is in memory is gone, as after a boot.
AS_AT_BOOT = """
systemctl stop docker-hermes-*.service && umount -l /run/agenix.d && rm -r /run/agenix /run/agenix.d || exit
systemctl start tentaflake.target && systemctl start --no-block {units}
"""
SWITCH_TIMEOUT = 900.0
"""Seconds for a switch; longer than the guest itself waits for its agents (``activate.START_TIMEOUT``)."""


def _network(interface: str, *addresses: str, gateways: Sequence[str] = ()) -> str:
    """A systemd.network(5) file for an interface with static addresses."""
    match = ["[Match]", f"Name={interface}", "[Link]", "RequiredForOnline=no"]
    network = ["[Network]", "LinkLocalAddressing=ipv6", "IPv6AcceptRA=no", *(f"Address={a}" for a in addresses)]
    return "\n".join([*match, *network, *(f"Gateway={gateway}" for gateway in gateways), ""])


# Path in the guest -> (mode, source file or text).
CONTENT: dict[str, tuple[int, Path | str]] = {
    "usr/lib/tentaflake/shell.py": (0o755, SHELL),
    "usr/lib/tentaflake/activate.py": (0o755, ACTIVATE_LAUNCHER),
    "usr/lib/tentaflake/tentaflake_activate.py": (0o644, ACTIVATE),
    **{f"usr/lib/tentaflake/auditd/{AUDITD.name}/{path.name}": (0o644, path) for path in sorted(AUDITD.glob("*.py"))},
    "usr/bin/hermes-audit": (0o755, AUDIT_COMMAND),
    "etc/systemd/system/tentaflake-shell.service": (0o644, FILES / "tentaflake-shell.service"),
    "etc/systemd/system/tentaflake-emulated.service": (0o644, FILES / "tentaflake-emulated.service"),
    "etc/systemd/system-generators/tentaflake": (0o755, FILES / "unit-generator"),
    **{f"etc/systemd/system/{name}": (0o644, FILES / name) for name in DEPLOYMENT_UNITS},
    "etc/hostname": (0o644, "agent-host\n"),
    "etc/hosts": (0o644, "127.0.0.1 localhost agent-host\n::1 localhost agent-host\n"),
    "etc/systemd/system/tentaflake-resolver.service": (0o644, FILES / "tentaflake-resolver.service"),
    "etc/resolv.conf": (0o644, "nameserver 127.0.0.1\n"),
    RESOLVERS.lstrip("/"): (0o644, ""),
    # A check would wait for udev; the kernel replays the journal by itself.
    "etc/fstab": (0o644, "/dev/vda / ext4 defaults 0 0\n"),
    "etc/modprobe.d/tentaflake.conf": (0o644, "".join(f"blacklist {name}\n" for name in UNUSED_MODULES)),
    # The harness's way in, and no way out.
    "etc/systemd/network/management.network": (0o644, _network("eth0", "10.0.2.15/24", "fec0::15/64")),
    "etc/systemd/network/lan.network": (
        0o644,
        _network("eth1", HOST.ipv4 + "/24", HOST.ipv6 + "/64", gateways=[INTERNET.ipv4, INTERNET.ipv6]),
    ),
    # Else the first tunnel would wait for it.
    "etc/modules-load.d/tentaflake.conf": (0o644, "wireguard\n"),
    "etc/ssh/sshd_config.d/tentaflake.conf": (
        0o644,
        "HostKey /etc/ssh/ssh_host_ed25519_key\nPasswordAuthentication no\nUseDNS no\n",
    ),
    "etc/systemd/system/ssh.service.d/host-key.conf": (
        0o644,
        """\
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'test -e /etc/ssh/ssh_host_ed25519_key || \\
  ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key'
ExecStartPre=/usr/sbin/sshd -t
""",
    ),
    "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf": (
        0o644,
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --keep-baud 115200 - $TERM\n",
    ),
    # A fork's clock jumps; nothing may hang on that.
    "etc/systemd/system.conf.d/tentaflake.conf": (0o644, "[Manager]\nDefaultTimeoutStartSec=300s\n"),
    "etc/sysctl.d/60-tentaflake.conf": (0o644, "kernel.panic_on_oops=1\n"),
    "etc/tentaflake-tts/config.json": (0o644, speech.CONFIG),
}
MASKED = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    systemd-networkd-wait-online.service systemd-firstboot.service
    getty@tty1.service ldconfig.service modprobe@configfs.service modprobe@drm.service modprobe@efi_pstore.service
    modprobe@fuse.service proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount sys-kernel-config.mount
    systemd-binfmt.service systemd-hwdb-update.service systemd-journal-catalog-update.service
    systemd-network-generator.service systemd-networkd-persistent-storage.service systemd-pstore.service
    systemd-sysusers.service systemd-udev-load-credentials.service systemd-update-done.service
""".split()
"""Units that a boot would start, and no test needs."""
ENABLED = "systemd-networkd ssh serial-getty@ttyS0".split()
# The plan says how Docker is set up and starts it, behind the firewall.
DISABLED = "docker.service docker.socket containerd.service nftables.service".split()
COMMAND_LINE = (
    "root=/dev/vda rw rootflags=usrquota console=ttyS0,115200 quiet loglevel=4 panic=-1 net.ifnames=0 "
    "mitigations=off random.trust_cpu=on systemd.show_status=0"
)


class DebianGuest:
    """Debian with an activation program: the guest that runs wherever Debian packages can be had."""

    name = "debian"

    def __init__(self, suite: Suite = STABLE) -> None:
        self.suite = suite

    def key(self) -> str:
        content = {path: (mode, _content(source)) for path, (mode, source) in CONTENT.items()}
        generators = MASKED_GENERATORS
        return key_of(
            root=_root_key(self.suite),
            disk=DISK_SIZE,
            content=content,
            generators=generators,
            probe=[_content(Path(path)) for path in (oci.__file__, probe_image.__file__)],
            speech=speech.disk_key(),
            early=[EARLY_MODULES, INIT, _content(Path(initramfs.__file__))],
        )

    def build(self, cache: Cache) -> Image:
        directory = cache.make("images", self.key(), lambda directory: _make_image(cache, directory, self.suite))
        manifest = json.loads((directory / "manifest.json").read_text())
        return Image(
            key=f"{self.key()}-{manifest['build']}",
            directory=directory,
            kernel=directory / "vmlinuz",
            initrd=directory / "initrd",
            disk=directory / "disk.raw",
            command_line=COMMAND_LINE,
            manifest=manifest,
        )

    def obstacle(self) -> str | None:
        return None  # what is missing, the build says

    def set_up(self, machine: Machine, empty: Plan, timeout: float) -> None:
        wait_booted(machine, timeout)
        # What runs from there may not write there, or runs before there is a bytecode.
        machine.run("python3 -m compileall -q /usr/lib/tentaflake/auditd /usr/lib/tentaflake/*.py").check()
        self.activate(machine, empty)
        machine.run(f"docker load -q -i /{PROBE_IMAGE}", timeout=timeout).check()

    def load(self, machine: Machine, archive: Path) -> None:
        machine.run(f": > {ARCHIVE}").check()
        # In pieces: the root shell holds all of a command's input in memory.
        with subprocess.Popen(["gzip", "-1", "-c", str(archive)], stdout=subprocess.PIPE) as compressed:
            assert compressed.stdout
            while piece := compressed.stdout.read(PIECE):
                machine.run(f"cat >> {ARCHIVE}", stdin=piece).check()
        if compressed.returncode:
            raise HarnessError(f"gzip failed with exit code {compressed.returncode}: {archive}")
        machine.run(f"set -e; gzip -dc {ARCHIVE} | docker load -q; rm {ARCHIVE}", timeout=LOAD_TIMEOUT).check()

    def adapt(self, plan: Plan, image: str) -> Plan:
        """Every agent runs ``image``: a test machine has no registry to pull its own from."""
        return substitute_image(plan, image)

    def activate(self, machine: Machine, plan: Plan, files: Mapping[str, bytes] | None = None) -> None:
        if files is None:
            files = canaries(plan, host_key(machine, plan)) if plan.secrets else {}
        content = {"plan.json": plan.to_json().encode(), **files}
        machine.run(["sh", "-c", switch_script()], stdin=tar_of(content), timeout=SWITCH_TIMEOUT).check()

    def boot_with(self, machine: Machine, plan: Plan, files: Mapping[str, bytes]) -> None:
        # The plan is in force, but for its secrets.
        units = [f"{agent.service.name}.service" for agent in plan.agents.values() if agent.auto_start]
        machine.run(AS_AT_BOOT.format(units=" ".join(units)), timeout=300).check()
        self.wait_agents(machine)

    def wait_agents(self, machine: Machine) -> None:
        machine.run([ACTIVATION, "wait"], timeout=SWITCH_TIMEOUT).check()

    def find_generation(self, machine: Machine) -> int:
        return int(machine.run("basename $(readlink /var/lib/tentaflake/current)").check().text)

    def roll_back(self, machine: Machine, number: int | None = None) -> None:
        machine.run(
            [ACTIVATION, "rollback", *([] if number is None else [str(number)])], timeout=SWITCH_TIMEOUT
        ).check()


def switch_script(*options: str) -> str:
    """Switches to the plan in an archive (``tar_of``) on standard input, with its age files. None of that is left: the
    generation has what it needs."""
    return f"""
directory=$(mktemp -d) && tar -x -C "$directory" || exit
{shlex.join([ACTIVATION, "switch", *options])} --files "$directory" "$directory/plan.json"; code=$?
rm -r "$directory"; exit $code"""


def wait_booted(machine: Machine, timeout: float) -> None:
    """Wait until every unit of the boot is up; raises ``CommandFailed`` that names those that are not."""
    verdict = machine.run("systemctl is-system-running --wait", timeout=timeout)
    if verdict.text.strip() != "running":
        failed = machine.run("systemctl --failed --no-legend --plain; journalctl -b -p err -n 20 --no-pager")
        raise CommandFailed(f"the guest came up {verdict.text.strip() or 'not at all'}:\n{failed.text}")


def host_key(machine: Machine, plan: Plan) -> str:
    """The public half of the key that the plan's secrets are for; made now if this machine has none there."""
    path = shlex.quote(plan.host.secrets_identity)
    make = f"mkdir -p $(dirname {path}) && ssh-keygen -q -t ed25519 -N '' -f {path}"
    return machine.run(f"[ -e {path} ] || {{ {make}; }} >&2; ssh-keygen -y -f {path}").check().text.strip()


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """An archive of these files, for root alone."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o600
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _content(source: Path | str) -> str:
    return source.read_text() if isinstance(source, Path) else source


def _mmdebstrap_options() -> list[str]:
    """What decides the root file system, but for the mirror and its packages' present versions."""
    late = [
        f'chroot "$1" systemctl {verb} -q {" ".join(units)}'
        for verb, units in (("enable", ENABLED), ("disable", DISABLED), ("mask", MASKED))
    ]
    # Host keys and the machine id are made at first boot: a root that many machines share holds neither.
    late.append('rm -f "$1"/etc/ssh/ssh_host_* && : > "$1/etc/machine-id"')
    return [
        "--variant=minbase",
        "--format=tar",
        f"--include={','.join(PACKAGES)}",
        *SMALL,
        *(f"--dpkgopt=path-exclude=/usr/lib/systemd/system/*{name}*" for name in LEFT_OUT_UNITS),
        "--dpkgopt=path-exclude=/etc/kernel/postinst.d/initramfs-tools",  # we make our own
        *(f"--customize-hook={hook}" for hook in late),
    ]


def _root_key(suite: Suite) -> str:
    return key_of(suite=suite.name, options=_mmdebstrap_options(), speech=speech.root_key())


def _make_root(directory: Path, suite: Suite) -> None:
    """Fill ``directory`` with root.tar: the packages, configured."""
    wheels = directory / "wheels"
    speech.install_wheels(wheels, suite)
    hooks = [f"--customize-hook={hook}" for hook in speech.root_hooks(wheels)]
    options = [*_mmdebstrap_options(), *hooks]
    bootstrap("building the Debian guest: packages", options, directory / "root.tar", suite=suite)
    shutil.rmtree(wheels)


def _make_image(cache: Cache, directory: Path, suite: Suite) -> None:
    """Fill ``directory`` with disk.raw, vmlinuz, initrd, busybox and manifest.json."""
    if shutil.which("mke2fs") is None:
        raise HarnessError("mke2fs is not installed", hint="run ci/setup, or install e2fsprogs")
    root = cache.make("roots", _root_key(suite), lambda directory: _make_root(directory, suite)) / "root.tar"
    with step("building the Debian guest: disk"):
        with tarfile.open(root) as tar:
            fixed = (r"boot/vmlinuz-.+", r"usr/bin/busybox", r"var/lib/dpkg/status")
            wanted = (*fixed, *map(_module_pattern, EARLY_MODULES))
            kernel, busybox, status, *modules = _extract(tar, wanted)
        (directory / "vmlinuz").write_bytes(kernel)
        loaded = {name: lzma.decompress(module) for name, module in zip(EARLY_MODULES, modules, strict=True)}
        (directory / "initrd").write_bytes(pack_initrd(busybox, loaded))
        (directory / "busybox").write_bytes(busybox)
        (directory / "busybox").chmod(0o755)
        images = probe_image.build(busybox, _applets(directory / "busybox"))
        _make_disk(root, directory, images.archive)
    manifest = {
        "guest": "debian",
        # Two builds of one recipe differ (package versions, file system UUIDs); templates are of this one.
        "build": secrets.token_hex(8),
        "suite": suite.name,
        "packages": installed(status.decode()),
        "images": {"probe": images.probe, "decoy": images.decoy},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))


def _module_pattern(name: str) -> str:
    return rf"usr/lib/modules/.+/{name}\.ko\.xz"


def pack_initrd(busybox: bytes, modules: Mapping[str, bytes], program: str = "/sbin/init") -> bytes:
    """What loads the kernel's ``modules`` in their order, mounts the disk and starts ``program``.

    Debian's own starts a udev for it, and takes a sixth of a boot.
    """
    files = [Entry(f"{name}.ko", FILE, module) for name, module in modules.items()]
    directories = [Entry(name, DIRECTORY) for name in ("bin", "dev", "proc", "root")]
    init = Entry("init", PROGRAM, INIT.format(modules=" ".join(modules), init=program).encode())
    return pack_initramfs([*directories, Entry("bin/busybox", PROGRAM, busybox), init, *files])


def _applets(busybox: Path) -> list[str]:
    return subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()


def _make_disk(root: Path, directory: Path, images: bytes) -> None:
    """The root archive with ``CONTENT`` on top, as the ext4 file system disk.raw.

    Not as root, fakeroot(1) keeps the owners from unpacking to mke2fs.
    """
    top = directory / "content"
    for path, (mode, source) in CONTENT.items():
        file = top / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_content(source))
        file.chmod(mode)
    (top / PROBE_IMAGE).write_bytes(images)
    speech.lay_out(top)
    for unit in sorted((top / "etc/systemd/system").glob("*.service")):
        for target in re.findall(r"^WantedBy=(\S+)$", unit.read_text(), re.MULTILINE):
            wants = unit.with_name(f"{target}.wants")
            wants.mkdir(exist_ok=True)
            (wants / unit.name).symlink_to(f"../{unit.name}")
    for generator in MASKED_GENERATORS:
        (top / "etc/systemd/system-generators" / generator).symlink_to("/dev/null")
    script = (
        'set -e; mkdir root; tar -xf "$1" -C root --numeric-owner; cp -a --no-preserve=ownership content/. root; '
        "mke2fs -q -t ext4 -O quota -E quotatype=usrquota -d root -L root -m 0 "
        '-E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 disk.raw "$2"; rm -rf root content'
    )
    command = ["sh", "-c", script, "sh", str(root), DISK_SIZE]
    if os.geteuid() != 0:
        command = ["fakeroot", *command]
    done = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(f"the guest's disk could not be made:\n{done.stderr.strip()[-2000:]}")


def _extract(tar: tarfile.TarFile, patterns: tuple[str, ...]) -> list[bytes]:
    """The content of the one regular file that matches each pattern."""
    found: dict[str, bytes] = {}
    for member in tar:
        name = member.name.removeprefix("./")
        for pattern in patterns:
            if member.isreg() and re.fullmatch(pattern, name):
                file = tar.extractfile(member)
                assert file is not None
                found[pattern] = file.read()
    missing = [pattern for pattern in patterns if pattern not in found]
    if missing:
        raise HarnessError(f"the guest's root has no file like {missing[0]}")
    return [found[pattern] for pattern in patterns]
