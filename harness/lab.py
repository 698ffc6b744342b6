"""One place where guest, hardware, cache and plan come together: give it a plan, get machines."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.cache import Cache, default_root
from harness.errors import HarnessError
from harness.guests import Guest, canaries, hermes_image, peers
from harness.guests.bootstrap import STABLE, SUITES
from harness.guests.debian import DebianGuest
from harness.guests.hermes_image import HermesImage
from harness.guests.nixos import NixosGuest, find_obstacle
from harness.guests.nixos_debian import DebianNixosGuest
from harness.guests.peers import Network
from harness.policy import Plan, evaluate_many
from harness.vm.accelerator import CHOICES, Verdict, find_accelerator
from harness.vm.image import Image
from harness.vm.machine import Machine
from harness.vm.network import start_wire
from harness.vm.qemu import Hardware
from harness.vm.template import BOOT_TIMEOUT, Template, cold_template, derived_template, fork_together

PROBES = Path(__file__).parent / "probes"
GUESTS = ("debian", "nixos")
PACKAGES = ("auto", "nixpkgs", "debian")
ContainerImage = Literal["probe", "hermes"]


@dataclass(frozen=True)
class Settings:
    """What a user can choose about the machines; each has an option ``--vm-…`` and a variable ``TENTAFLAKE_…``.

    ``memory`` is in MiB. ``kernel`` and ``initrd`` are booted in place of the guest's own. ``suite`` is a Debian's.
    """

    guest: str = "debian"
    suite: str = STABLE.name
    nixos_packages: str = "auto"
    accel: str = "auto"
    cpus: int = 2
    memory: int = 2048
    cache: Path = field(default_factory=default_root)
    kernel: Path | None = None
    initrd: Path | None = None

    def __post_init__(self) -> None:
        check_choice("guest", self.guest, GUESTS)
        check_choice("nixos-packages", self.nixos_packages, PACKAGES)
        check_choice("suite", self.suite, tuple(SUITES))
        if self.suite != STABLE.name and self.guest != "debian":
            raise HarnessError(f"suite is {self.suite}, and the {self.guest} guest has none: it is the debian guest's")
        check_choice("accel", self.accel, CHOICES)
        if not 1 <= self.cpus <= 64:
            raise HarnessError(f"cpus is {self.cpus}: a machine has 1 to 64")
        if not 768 <= self.memory <= 1 << 20:
            raise HarnessError(f"memory is {self.memory} MiB: Docker and three agents need at least 768")
        if self.initrd and not self.kernel:
            raise HarnessError(f"initrd is {self.initrd}, and no kernel is named", hint="name one with --vm-kernel")
        for name, file in (("kernel", self.kernel), ("initrd", self.initrd)):
            if file and not file.is_file():
                raise HarnessError(f"{name} is {file}: there is no such file", hint="name a file, as QEMU boots it")

    def make_guest(self) -> Guest:
        if self.guest == "debian":
            return DebianGuest(SUITES[self.suite])
        if self.nixos_packages == "nixpkgs" or (self.nixos_packages == "auto" and find_obstacle() is None):
            return NixosGuest()
        return DebianNixosGuest()

    @property
    def label(self) -> str:
        """Names the guest where another takes another time."""
        return self.guest if self.suite == STABLE.name else f"{self.guest} {self.suite}"


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise HarnessError(f"{name} is {value!r}, which is none of: {', '.join(choices)}")


class Lab:
    """Makes machines. What it needs is built on first use and kept in the cache."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cache = Cache(settings.cache.expanduser().absolute())
        self.guest: Guest = settings.make_guest()
        self.cache.sweep_runs()

    @cached_property
    def image(self) -> Image:
        image = self.guest.build(self.cache)
        if self.settings.kernel is None:
            return image
        initrd = self.settings.initrd and self.settings.initrd.absolute()
        return image.with_kernel(self.settings.kernel.absolute(), initrd)

    @property
    def has_image(self) -> bool:
        """Whether the image has been made."""
        return self.cache.find("images", self.guest.key()) is not None

    @cached_property
    def accelerator(self) -> Verdict:
        return find_accelerator(self.cache, self.image, self.settings.accel)

    @cached_property
    def hardware(self) -> Hardware:
        return Hardware(self.accelerator.accelerator, self.settings.cpus, self.settings.memory)

    @cached_property
    def base(self) -> Template:
        """The guest with Docker up and no agents."""
        empty = evaluate_many([[]])[0]
        assert isinstance(empty, Plan)

        def prepare(machine: Machine) -> None:
            self.guest.set_up(machine, empty, BOOT_TIMEOUT)

        title = f"booting the {self.guest.name} guest under {self.hardware.accelerator.upper()}"
        return cold_template(self.cache, self.image, self.hardware, prepare, title=title, plan=empty.digest)

    @cached_property
    def hermes(self) -> HermesImage:
        return hermes_image.build(self.cache)

    def find_hermes(self) -> HermesImage | None:
        """The Hermes image, if it has been built."""
        return self.hermes if self.cache.find("images", f"hermes-{hermes_image.key()}") else None

    @cached_property
    def hermes_base(self) -> Template:
        """``base`` and the Hermes image: a template of its own, so that the others are none the larger for it."""
        return derived_template(
            self.cache,
            self.base,
            lambda machine: self.guest.load(machine, self.hermes.archive),
            title="loading the Hermes image",
            image=self.hermes.reference,
        )

    def adapt(self, plan: Plan, image: ContainerImage = "probe") -> Plan:
        """``plan`` as the guest can run it, every agent in the probe image or in that of the real Hermes."""
        reference = self.hermes.reference if image == "hermes" else self.image.manifest["images"]["probe"]
        return self.guest.adapt(plan, reference)

    def evaluate(self, evaluate: Callable[[], Plan]) -> Plan:
        """The plan under test as the guest can run it, where ``evaluate`` gives it as the policy does."""
        return self.adapt(evaluate())

    def activated(self, plan: Plan) -> Template:
        """The guest with ``plan`` (adapted) in force and its agents running."""
        title = f"activating a plan of {len(plan.agents)} agents"
        images = {agent.container.image.partition("@")[0] for agent in plan.agents.values()}
        return derived_template(
            self.cache,
            self.hermes_base if hermes_image.NAME in images else self.base,
            lambda machine: self.guest.activate(machine, plan),
            title=title,
            plan=plan.digest,
            canaries=inspect.getsource(canaries),
        )

    def stage(self, plan: Plan, prepare: Callable[[Machine], None], *, title: str, **content: str) -> Template:
        """The guest with ``plan`` (adapted) in force and something done to it, once, by ``prepare``.

        ``content`` is what ``prepare`` depends on besides its own module and the probes, whose sources are in the key.
        """
        return self.derive(self.activated(plan), prepare, title=title, **content)

    def next_stage(
        self, former: Template, prepare: Callable[[Machine], None], *, title: str, **content: str
    ) -> Template:
        """The guest in the state of a stage and something more done to it, once; see ``stage``."""
        return self.derive(former, prepare, title=title, **content)

    def derive(self, former: Template, prepare: Callable[[Machine], None], *, title: str, **content: str) -> Template:
        """What both kinds of stages are made by."""
        sources = [Path(inspect.getfile(prepare)), *sorted(PROBES.glob("*.py"))]
        return derived_template(
            self.cache,
            former,
            prepare,
            title=title,
            stage=prepare.__qualname__,
            sources=[source.read_text() for source in sources],
            **content,
        )

    def peer(self, role: str) -> Template:
        """The guest as a machine beside the host under test; see ``harness.guests.peers``."""
        check_choice("role", role, tuple(peers.STATIONS))
        return derived_template(
            self.cache,
            self.base,
            lambda machine: peers.prepare(machine, role),
            title=f"making the {role} machine",
            **peers.content(role),
        )

    @contextmanager
    def machine(self, plan: Plan) -> Iterator[Machine]:
        """A fresh machine with ``plan`` (adapted) in force."""
        with self.fork(self.activated(plan)) as machine:
            yield machine

    @contextmanager
    def fork(self, template: Template) -> Iterator[Machine]:
        """A fresh machine in the state of ``template``."""
        template = self.to_fork(template)
        with template.fork(self.cache) as machine:
            self.make_ready(machine, template)
            yield machine

    def to_fork(self, template: Template) -> Template:
        """What is forked where ``template`` is meant: itself, but for a mutant (``harness.mutation``)."""
        return template

    def make_ready(self, machine: Machine, template: Template) -> None:
        """What is done to each fresh fork of ``template``: nothing, but for a mutant (``harness.mutation``)."""

    @contextmanager
    def network(
        self, plan: Plan, roles: Sequence[str] = tuple(peers.STATIONS), *, stage: Template | None = None
    ) -> Iterator[Network]:
        """A fresh machine with ``plan`` (adapted) in force, on one wire with a peer for each role, if there is any.

        ``stage``: the machine is in the state of this template instead.
        """
        host = stage or self.activated(plan)
        if not roles:
            with self.fork(host) as machine:
                yield Network(machine)
            return
        host = self.to_fork(host)
        templates = {"host": host} | {role: self.peer(role) for role in roles}
        with start_wire(len(templates)) as wire:
            forks = list(zip(templates.values(), wire.ends, strict=True))
            with fork_together(self.cache, forks) as machines:
                try:
                    directories = {name: template.directory for name, template in templates.items()}
                    network = peers.connect(machines, directories)
                    self.make_ready(network.host, host)
                finally:
                    wire.check()  # without it nothing else can work
                yield network


def settings(**chosen: Any) -> Settings:
    """Settings as ``chosen``; the rest from ``TENTAFLAKE_GUEST``, ``_SUITE``, ``_NIXOS_PACKAGES``, ``_ACCEL``,
    ``_CPUS``, ``_MEMORY``, ``_CACHE``, ``_KERNEL`` and ``_INITRD``."""
    default = Settings()
    get = os.environ.get
    found = {
        "guest": get("TENTAFLAKE_GUEST", default.guest),
        "suite": get("TENTAFLAKE_SUITE", default.suite),
        "nixos_packages": get("TENTAFLAKE_NIXOS_PACKAGES", default.nixos_packages),
        "accel": get("TENTAFLAKE_ACCEL", default.accel),
        "cpus": _number("TENTAFLAKE_CPUS", default.cpus),
        "memory": _number("TENTAFLAKE_MEMORY", default.memory),
        "cache": Path(get("TENTAFLAKE_CACHE", default.cache)),
        **{name: Path(file) for name in ("kernel", "initrd") if (file := get(f"TENTAFLAKE_{name.upper()}"))},
    }
    return Settings(**{**found, **chosen})


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise HarnessError(f"{name} is {text!r}: not a whole number") from None
