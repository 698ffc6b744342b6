"""Which accelerator works here, found by trying.

``/dev/kvm`` can be there, open, answer every ioctl, and still never run a guest kernel. So a kernel
with a five-line init is booted under a time limit; only a line that it prints counts.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from harness.cache import Cache, explain_disk_errors, key_of
from harness.errors import HarnessError
from harness.progress import step
from harness.vm.image import Image
from harness.vm.initramfs import DIRECTORY, PROGRAM, Entry, pack_initramfs
from harness.vm.qemu import Hardware, host_cpu, qemu_version, start_qemu

CHOICES = ("auto", "kvm", "tcg")
KVM = Path("/dev/kvm")
PVM = Path("/sys/module/kvm_pvm")
"""The module of PVM, a KVM for a host that is itself a guest without nested virtualisation: its guests' kernels have to
be built for it."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
KVM_LIMIT = 10.0
ALIVE = b"tentaflake: the guest is alive"
INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox echo "tentaflake: the guest is" "alive" > /dev/ttyS0
/bin/busybox poweroff -f
"""


@dataclass(frozen=True)
class Verdict:
    """The accelerator to use and why, for the report."""

    accelerator: str
    reason: str


def find_accelerator(cache: Cache, image: Image, wanted: str = "auto") -> Verdict:
    """``wanted`` or, for ``auto``, KVM where a guest runs under it, else TCG.

    What a tiny guest says is cached until this machine is started again, for its kernel, processor and QEMU. Raises
    ``HarnessError`` when ``kvm`` is asked for and does not work.
    """
    if wanted == "tcg":
        return Verdict("tcg", "as asked")
    verdict = _look(image) or _cached_trial(cache, image, again=wanted == "kvm")
    if wanted == "kvm" and verdict.accelerator != "kvm":
        raise HarnessError(f"KVM does not work here: {verdict.reason}", hint="use --vm-accel=tcg or auto")
    return verdict


def _look(image: Image) -> Verdict | None:
    """What needs no trial, and may be mended at any time: it is never cached."""
    if not KVM.exists():
        return Verdict("tcg", f"no {KVM}")
    if not os.access(KVM, os.R_OK | os.W_OK):
        return Verdict("tcg", f"{KVM} may not be opened by this user")
    if PVM.exists() and not image.has_foreign_kernel:
        return Verdict("tcg", f"{KVM} is PVM's, which runs only kernels built for it (--vm-kernel takes one)")
    return None


def _cached_trial(cache: Cache, image: Image, *, again: bool) -> Verdict:
    """The verdict on file, or a new one; ``again``: a no on file is not believed."""
    # A start can bring other settings of the firmware, of the module, or of the hypervisor below.
    boot = BOOT_ID.read_text()
    key = key_of(boot=boot, cpu=host_cpu(), kernel=os.uname().release, qemu=qemu_version(), image=image.key)
    with cache.lock("accelerator"):
        file = cache.root / "verdicts" / key
        try:
            verdict: Verdict | None = Verdict(**json.loads(file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # none yet, or one cut short by a full disk
            verdict = None
        if verdict is None or (again and verdict.accelerator != "kvm"):
            with step("trying KVM with a tiny guest"):
                verdict = try_kvm(cache, image)
            with explain_disk_errors(cache.root):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"accelerator": verdict.accelerator, "reason": verdict.reason}))
    return verdict


def try_kvm(cache: Cache, image: Image) -> Verdict:
    """Boot the tiny guest under KVM; anything but its own line within the limit is a no."""
    started = time.monotonic()
    with cache.run_directory() as directory:
        (directory / "initrd").write_bytes(tiny_initrd((image.directory / "busybox").read_bytes()))
        (directory / "disk.raw").write_bytes(bytes(1 << 20))
        hardware = Hardware("kvm", cpus=1, memory=256)
        arguments = [
            *hardware.arguments(directory / "ram", share=False),
            *("-kernel", str(image.kernel), "-initrd", "initrd"),
            *("-append", "console=ttyS0 quiet panic=-1", "-no-reboot"),
        ]
        reason = f"a tiny guest did not come up under it within {KVM_LIMIT:.0f} s"
        try:
            with start_qemu(
                directory, arguments, disk="file=disk.raw,format=raw", netdev="user,restrict=on"
            ) as process:
                while time.monotonic() - started < KVM_LIMIT and not _alive(directory):
                    process.check()
                    time.sleep(0.05)
        except HarnessError as error:  # among them the end of a guest that has powered off as it should
            reason = f"QEMU failed with it: {' '.join(error.what.split())[:300]}"
        if _alive(directory):
            return Verdict("kvm", f"a guest ran under it in {time.monotonic() - started:.1f} s")
    return Verdict("tcg", f"{KVM} is there, but {reason}")


def _alive(directory: Path) -> bool:
    console = directory / "console.log"
    return console.exists() and ALIVE in console.read_bytes()


def tiny_initrd(busybox: bytes) -> bytes:
    """An initramfs with a busybox and an init that says it lives and powers off."""
    directories = [Entry("bin", DIRECTORY), Entry("dev", DIRECTORY)]
    return pack_initramfs([*directories, Entry("bin/busybox", PROGRAM, busybox), Entry("init", PROGRAM, INIT)])
