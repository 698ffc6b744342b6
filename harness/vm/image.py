"""What a machine boots from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
