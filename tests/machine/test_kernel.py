"""Another kernel than the guest's own, which an accelerator may ask for."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.lab import Lab, Settings
from harness.vm.template import power_on


def test_a_machine_boots_the_kernel_that_is_named(lab: Lab, tmp_path: Path) -> None:
    """Debian's own, as somebody's file. Its templates are others than those of the guest's kernel."""
    kernel = Path(shutil.copy(lab.image.kernel, tmp_path / "vmlinuz"))
    other = Lab(replace(lab.settings, kernel=kernel))
    assert other.image.key != lab.image.key and other.image.disk == lab.image.disk
    with other.cache.run_directory() as directory, power_on(other.image, lab.hardware, directory) as machine:
        assert str(kernel) in machine.process.command
        assert "root=/dev/vda" in machine.host.check_output("cat /proc/cmdline")


@pytest.mark.parametrize("name", ["kernel", "initrd"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "vmlinuz").touch()
    files = {"kernel": tmp_path / "vmlinuz", name: tmp_path / "nothing"}
    with pytest.raises(HarnessError, match=f"{name} is .*/nothing: there is no such file"):
        Settings(**files)  # type: ignore[arg-type]


def test_an_initramfs_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no kernel is named"):
        Settings(initrd=tmp_path)
