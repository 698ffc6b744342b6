"""What a machine boots from."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.cache import file_digest, key_of


@dataclass(frozen=True)
class Image:
    """What QEMU boots. ``key`` names this build of it: two builds of one recipe differ.

    ``manifest`` holds what went in: package versions, the references of container images.
    """

    key: str
    directory: Path
    kernel: Path
    initrd: Path
    disk: Path
    command_line: str
    manifest: dict[str, Any]

    @property
    def has_foreign_kernel(self) -> bool:
        """Whether it boots another kernel than it was built with."""
        return self.kernel.parent != self.directory

    def with_kernel(self, kernel: Path, initrd: Path | None) -> "Image":
        """The same disk with another kernel, and with another initramfs if one is named; another key."""
        initrd = initrd or self.initrd
        digests = [file_digest(kernel), file_digest(initrd)]
        return replace(self, key=key_of(image=self.key, kernel=digests), kernel=kernel, initrd=initrd)
