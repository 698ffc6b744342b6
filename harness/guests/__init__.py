"""Guests: ways to turn a plan into a bootable machine. One module each; this is what they share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from harness.cache import Cache
from harness.policy import Plan
from harness.vm.image import Image
from harness.vm.machine import Machine


class Guest(Protocol):
    """A kind of guest. A third one is a new module with a class of this shape."""

    name: str

    def obstacle(self) -> str | None:
        """Why this guest cannot be had on this machine at all, or None; tests that need a machine are skipped then."""

    def build(self, cache: Cache) -> Image:
        """The bootable image, from the cache or made now."""

    def key(self) -> str:
        """The content key of ``build``'s result, the activation program included."""

    def set_up(self, machine: Machine, empty: Plan, timeout: float) -> None:
        """Wait for a machine that was just powered on, put the plan without agents in force, load images."""

    def load(self, machine: Machine, archive: Path) -> None:
        """Give the machine a container image, from an OCI image archive; raises ``CommandFailed``."""

    def adapt(self, plan: Plan, image: str) -> Plan:
        """The plan as this guest can run it: with the container image ``image``, which it has, not one it must pull."""

    def activate(self, machine: Machine, plan: Plan, files: Mapping[str, bytes] | None = None) -> None:
        """Switch the machine to ``plan`` and wait for its agents; raises ``CommandFailed``.

        ``files`` are the age files that the plan's secrets name; by default canaries for this machine's key.
        """

    def boot_with(self, machine: Machine, plan: Plan, files: Mapping[str, bytes]) -> None:
        """Have the machine as after a boot with ``plan``, though a switch to it has failed for its secrets."""

    def wait_agents(self, machine: Machine) -> None:
        """Wait until every agent of the current plan that starts by itself runs; raises ``CommandFailed``."""

    def find_generation(self, machine: Machine) -> int:
        """The number of the plan that is in force, as ``roll_back`` takes it."""

    def roll_back(self, machine: Machine, number: int | None = None) -> None:
        """Switch the machine to the plan that it had before, or to that of a generation; the first is number 1."""
