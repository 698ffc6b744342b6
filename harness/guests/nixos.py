"""The NixOS guest: the flake's own modules, built by Nix, and switched to as on a deployed host.

It takes a Nix with a store that it can build in, and a binary cache; see ``find_obstacle``. A plan becomes a system
(``nixos.nix``) from specs that come to the same plan; what a machine lacks of it goes in through the root shell.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from harness.cache import Cache, key_of
from harness.errors import HarnessError
from harness.guests import oci, probe_image
from harness.guests.addresses import HOST, INTERNET, RESOLVERS
from harness.guests.canaries import canaries
from harness.guests.debian import COMMAND_LINE, DISK_SIZE, SHELL, DebianGuest, host_key, wait_booted
from harness.nixpkgs import STORE, describe_nixpkgs
from harness.policy import REPOSITORY, Plan, evaluate_many, host_of, reason_of, run_nix, specs_of
from harness.progress import step
from harness.vm.image import Image
from harness.vm.machine import Machine
from harness.vm.template import BOOT_TIMEOUT

EXPRESSION = Path(__file__).with_suffix(".nix")
MACHINE = Path(__file__).parent / "files" / "nixos.nix"
PROFILE = "/nix/var/nix/profiles/system"
SWITCH = f"""
nix-store --import > /dev/null && nix-env --profile {PROFILE} --set "$1" &&
"$1/bin/switch-to-configuration" switch"""
# As `nixos-rebuild boot`, and without the checks that refuse such a system.
INSTALL = f"""
nix-store --import > /dev/null && nix-env --profile {PROFILE} --set "$1" &&
NIXOS_NO_CHECK=1 "$1/bin/switch-to-configuration" boot && sync"""
ROLL_BACK = f"nix-env --profile {PROFILE} $1 && {PROFILE}/bin/switch-to-configuration switch"
# Every agent that starts by itself runs, but those that lack a secret; one that keeps failing is named.
WAIT = """
for unit in $(systemctl show --property=Wants --value multi-user.target); do
  case $unit in docker-hermes-*.service) ;; *) continue ;; esac
  name=${unit#docker-} name=${name%.service}
  until [ "$(docker inspect --format '{{.State.Running}}' "$name" 2> /dev/null)" = true ]; do
    [ "$(systemctl show --property=Result --value "$unit")" != exec-condition ] || break
    if [ "$(systemctl show --property=NRestarts --value "$unit")" -ge 3 ]; then
      echo "agent container $name does not come up:" >&2
      journalctl -u "$unit" -n 15 --no-pager -o cat >&2
      exit 1
    fi
    sleep 0.25
  done
done"""
SWITCH_TIMEOUT = 900.0
CANARIES = "/root/canaries.json"


class NixosGuest(DebianGuest):
    """NixOS. What a running machine is given (an image to load) is as for Debian."""

    name = "nixos"
    probe: Path
    """The archive of the probe image; known once the guest is built."""

    def obstacle(self) -> str | None:
        return find_obstacle()

    def key(self) -> str:
        sources = [EXPRESSION, MACHINE, REPOSITORY / "flake.lock", *module_files()]
        sources += [SHELL, Path(oci.__file__), Path(probe_image.__file__)]
        return key_of(guest=self.name, disk=DISK_SIZE, sources=[path.read_text() for path in sources])

    def build(self, cache: Cache) -> Image:
        if reason := self.obstacle():
            raise HarnessError(f"the nixos guest cannot be built here: {reason}", hint="--vm-guest debian can")
        directory = cache.make("images", self.key(), _make_image)
        return self.describe_image(directory)

    def describe_image(self, directory: Path) -> Image:
        """The image that an entry of the cache is."""
        manifest = json.loads((directory / "manifest.json").read_text())
        self.probe = directory / "probe.tar"
        return Image(
            key=f"{self.key()}-{manifest['build']}",
            directory=directory,
            kernel=directory / "vmlinuz",
            initrd=directory / "initrd",
            disk=directory / "disk.raw",
            command_line=f"{COMMAND_LINE} init={PROFILE}/init",
            manifest=manifest,
        )

    def set_up(self, machine: Machine, empty: Plan, timeout: float) -> None:
        wait_booted(machine, timeout)
        self.activate(machine, empty)
        machine.run("docker load -q", stdin=self.probe.read_bytes(), timeout=timeout).check()

    def activate(self, machine: Machine, plan: Plan, files: Mapping[str, bytes] | None = None) -> None:
        if files is None:
            files = keep_canaries(machine, plan) if plan.secrets else {}
        self.run_with_system(machine, plan, files, SWITCH)
        self.wait_agents(machine)

    def boot_with(self, machine: Machine, plan: Plan, files: Mapping[str, bytes]) -> None:
        self.run_with_system(machine, plan, files, INSTALL)
        machine.power_cycle(BOOT_TIMEOUT)
        wait_booted(machine, BOOT_TIMEOUT)
        self.wait_agents(machine)

    def run_with_system(
        self, machine: Machine, plan: Plan, files: Mapping[str, bytes], script: str, module: str = ""
    ) -> None:
        """Build the plan's system, with the text of one more NixOS ``module``, and run a shell script in the machine.

        The script gets the system as its first argument, and on standard input what the machine lacks of it.
        """
        with tempfile.TemporaryDirectory(prefix="secrets-") as directory:
            for name, content in files.items():
                path = Path(directory, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            system = self.build_system(plan, Path(directory) if files else None, module)
        there = set(machine.run("nix-store --query --requisites /run/current-system").check().text.split())
        closure = self.ask_store("--query", "--requisites", system).decode().split()
        archive = self.ask_store("--export", *(path for path in closure if path not in there))
        machine.run(["sh", "-c", script, "sh", system], stdin=archive, timeout=SWITCH_TIMEOUT).check()

    def build_system(self, plan: Plan, secrets_directory: Path | None, module: str = "") -> str:
        """The store path of a plan's system, with the age files of a directory and the text of one more module."""
        return _build("toplevel", plan, secrets_directory, module)

    def ask_store(self, *arguments: str) -> bytes:
        """What ``nix-store`` says of the store that systems are built in."""
        return _store(*arguments)

    def wait_agents(self, machine: Machine) -> None:
        machine.run(WAIT, timeout=SWITCH_TIMEOUT).check()

    def find_generation(self, machine: Machine) -> int:
        link = machine.run(["readlink", PROFILE]).check().text  # "system-12-link", see nix-env(1)
        return int(link.split("-")[-2])

    def roll_back(self, machine: Machine, number: int | None = None) -> None:
        where = "--rollback" if number is None else f"--switch-generation {number}"
        machine.run(["sh", "-c", ROLL_BACK, "sh", where], timeout=SWITCH_TIMEOUT).check()
        self.wait_agents(machine)


def keep_canaries(machine: Machine, plan: Plan) -> dict[str, bytes]:
    """The age files of a plan, of which the machine keeps those that it had before.

    Each encryption is another file, and an agent whose age file is another restarts.
    """
    kept = machine.run(f"[ ! -e {CANARIES} ] || cat {CANARIES}").check().stdout
    files = msgspec.json.decode(kept or b"{}", type=dict[str, bytes])
    files = {**canaries(plan, host_key(machine, plan)), **files}
    machine.put(msgspec.json.encode(files), CANARIES, 0o600)
    return {secret.file: files[secret.file] for secret in plan.secrets.values()}


def module_files() -> list[Path]:
    """What a system is made of besides nixpkgs and what is the guest's own: the modules, and their programs."""
    found = (REPOSITORY / "modules").rglob("*")
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


@cache
def find_obstacle() -> str | None:
    """Why no NixOS can be built here: no Nix, no store, no nixpkgs, or no binary cache to have the kernel from."""
    if shutil.which("nix") is None:
        return "Nix is not installed"
    if not STORE.is_dir():
        return f"this machine has no Nix store ({STORE})"
    with _arguments(empty_plan(), None) as arguments:
        command = ["nix", "build", "--dry-run", *arguments, "image"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        return reason_of(done)
    to_build = done.stderr.decode(errors="replace").partition("will be fetched")[0]
    if re.search(r"-linux-[0-9][0-9.]*\.drv$", to_build, re.MULTILINE):
        return "no binary cache answers: the kernel itself would have to be built"
    return None


def empty_plan() -> Plan:
    [plan] = evaluate_many([[]])
    assert isinstance(plan, Plan)
    return plan


def lan() -> dict[str, str]:
    """Where a host is on the LAN. The flake's package reads the same in files/lan.json."""
    stations = {"ipv4": HOST.ipv4, "ipv6": HOST.ipv6, "gateway4": INTERNET.ipv4, "gateway6": INTERNET.ipv6}
    return stations | {"resolvers": RESOLVERS}


def wanted(plan: Plan, module: str = "") -> dict[str, Any]:
    """What nixos.nix makes a system from, but for the age files."""
    return {"agents": specs_of(plan), "host": host_of(plan), "network": lan(), "module": module}


@contextmanager
def _arguments(plan: Plan, secrets_directory: Path | None, module: str = "") -> Iterator[list[str]]:
    """The arguments of ``nix build`` for a system of this plan, up to what of it is to be built."""
    given = wanted(plan, module) | {"secrets": secrets_directory and str(secrets_directory)}
    with tempfile.NamedTemporaryFile("w", prefix="host-", suffix=".json") as file:
        json.dump(given, file)
        file.flush()
        features = ["--extra-experimental-features", "nix-command flakes", "--impure"]
        named = ["--argstr", "flake", str(REPOSITORY), "--argstr", "given", file.name]
        yield [*features, "--file", str(EXPRESSION), *named]


def _build(what: str, plan: Plan, secrets_directory: Path | None, module: str = "") -> str:
    """Build what nixos.nix has under that name for a plan; returns its store path."""
    with _arguments(plan, secrets_directory, module) as arguments:
        output = run_nix(["nix", "build", "--no-link", "--print-out-paths", *arguments, what], subject=f"NixOS' {what}")
    return output.decode().strip()


def _store(*arguments: str) -> bytes:
    return run_nix(["nix-store", *arguments], subject="the system's closure")


def _make_image(directory: Path) -> None:
    """Fill ``directory`` with disk.raw, vmlinuz, initrd, busybox, probe.tar and manifest.json."""
    with step("building the NixOS guest: system"):
        built = Path(_build("image", empty_plan(), None))
    with step("building the NixOS guest: disk"):
        for name in ("vmlinuz", "initrd", "busybox", "disk.raw"):
            shutil.copyfile(built / name, directory / name)
        (directory / "busybox").chmod(0o755)
        for command in (
            ["truncate", f"--size={DISK_SIZE}", "disk.raw"],
            ["resize2fs", "disk.raw"],
            ["tune2fs", "-O", "quota", "-Q", "usrquota", "disk.raw"],
        ):
            done = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, check=False)
            if done.returncode:
                raise HarnessError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace').strip()}")
    system = (built / "toplevel").read_text().strip()
    said = {"suite": "unstable", "packages": {"system": system}, "nixos": describe_nixpkgs(None)}
    write_manifest(directory, said)


def write_manifest(directory: Path, said: Mapping[str, Any]) -> None:
    """Write probe.tar, of the busybox that is there, and manifest.json, with what is ``said`` in it."""
    applets = subprocess.run([directory / "busybox", "--list"], check=True, capture_output=True, text=True).stdout
    images = probe_image.build((directory / "busybox").read_bytes(), applets.split())
    (directory / "probe.tar").write_bytes(images.archive)
    manifest = {
        "guest": "nixos",
        "build": secrets.token_hex(8),
        "images": {"probe": images.probe, "decoy": images.decoy},
        **said,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
