"""The NixOS guest of Debian's packages: the same host, modules and switches, where no binary cache answers.

docs/nixos.md has the table of what is true to NixOS in it.
"""

import lzma
from pathlib import Path

from harness.cache import Cache, key_of
from harness.errors import HarnessError
from harness.guests import oci, probe_image, workshop
from harness.guests.debian import DISK_SIZE, INIT, SHELL, pack_initrd
from harness.guests.nixos import (
    EXPRESSION,
    MACHINE,
    PROFILE,
    NixosGuest,
    empty_plan,
    module_files,
    wanted,
    write_manifest,
)
from harness.guests.workshop import FILES, Workshop, find_obstacle, open_workshop
from harness.nixpkgs import describe_nixpkgs
from harness.policy import REPOSITORY, Plan
from harness.progress import step
from harness.vm import initramfs
from harness.vm.image import Image


class DebianNixosGuest(NixosGuest):
    """NixOS whose packages are Debian's."""

    workshop: Workshop
    """Where its systems are built; known once the guest is."""

    def obstacle(self) -> str | None:
        return find_obstacle()

    def key(self) -> str:
        sources = [EXPRESSION, MACHINE, *sorted(FILES.glob("*.nix")), *module_files()]
        sources += [REPOSITORY / "flake.nix", SHELL, Path(oci.__file__), Path(probe_image.__file__)]
        sources += [Path(workshop.__file__), Path(__file__), Path(initramfs.__file__)]
        return key_of(
            guest="nixos of Debian", disk=DISK_SIZE, init=INIT, sources=[path.read_text() for path in sources]
        )

    def build(self, cache: Cache) -> Image:
        if reason := self.obstacle():
            raise HarnessError(f"the nixos guest cannot be built here: {reason}", hint="--vm-guest debian can")
        self.workshop = open_workshop(cache)
        return self.describe_image(cache.make("images", self.key(), self._make_image))

    def build_system(self, plan: Plan, secrets_directory: Path | None, module: str = "") -> str:
        return self.workshop.build(wanted(plan, module), secrets_directory)

    def ask_store(self, *arguments: str) -> bytes:
        return self.workshop.store(*arguments)

    def _make_image(self, directory: Path) -> None:
        """Fill ``directory`` with disk.raw, vmlinuz, initrd, busybox, probe.tar and manifest.json."""
        tree = self.workshop.tree
        with step("building the NixOS guest: system"):
            system = self.build_system(empty_plan(), None)
        with step("building the NixOS guest: disk"):
            self.workshop.make_disk(system, directory / "disk.raw", DISK_SIZE)
            [kernel] = (tree / "boot").glob("vmlinuz-*")
            (directory / "vmlinuz").write_bytes(kernel.read_bytes())
            busybox = (tree / "usr/bin/busybox").read_bytes()
            (directory / "busybox").write_bytes(busybox)
            (directory / "busybox").chmod(0o755)
            found = self.workshop.find_modules(wanted(empty_plan()))
            modules = {name: lzma.decompress(path.read_bytes()) for name, path in found.items()}
            (directory / "initrd").write_bytes(pack_initrd(busybox, modules, f"{PROFILE}/init"))
        made_of = f"{describe_nixpkgs(self.workshop.nixpkgs)}, with packages of Debian {workshop.SUITE.name}"
        said = {"suite": f"of Debian {workshop.SUITE.name}", "packages": {"system": system}, "nixos": made_of}
        write_manifest(directory, said)
