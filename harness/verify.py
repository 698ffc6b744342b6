"""``harness verify``: the tests of the claims against one plan, evaluated once; what comes of it is a verdict."""

import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from harness.cache import CacheUnusable, key_of
from harness.durations import COMMITTED, Durations, read_recorded, record_durations
from harness.lab import Lab
from harness.plugin import REPOSITORY, hijack_stage
from harness.policy import Plan
from harness.records import read_sources
from harness.report import Verdict, describe_machine
from harness.report.collect import Collector
from harness.report.live import describe_seconds, show_board
from harness.shards import Shard

TESTS = REPOSITORY / "tests" / "contract"


@dataclass(frozen=True)
class Attack:
    """What is attacked, and how. ``agents`` or ``flake`` is where the plan is from, for the tests about its source."""

    lab: Lab
    plan: Plan
    agents: Path | None = None
    flake: str | None = None
    claims: Sequence[str] = ()
    hijack: bool = False
    fresh: bool = False
    workers: int = 2
    shard: Shard | None = None
    durations: Path = COMMITTED
    tests: Path = TESTS

    @property
    def is_whole(self) -> bool:
        """Whether it is what the next run will most likely be, so that its time says something."""
        return not self.claims and not self.hijack and self.shard is None

    def describe(self) -> str:
        """What begins now, and how long it took the last time, in one line."""
        count = len(self.plan.agents)
        known = read_recorded(self.lab.cache, self.lab.settings.label).runs
        took = " and ".join(
            f"{name} {describe_seconds(known[name])}" for name in ("prepare", "attack") if name in known
        )
        return (
            f"{self.plan.host.name}: {count} agent{'' if count == 1 else 's'}, plan {self.plan.digest[:12]}"
            + (f", shard {self.shard}" if self.shard else "")
            + (f"; a whole run took the last time: {took}" if took else "; how long it takes is not known yet")
        )

    def prepare(self) -> None:
        """Make what all tests need: the image, the templates."""
        self.lab.activated(self.lab.adapt(self.plan))
        if self.hijack:
            hijack_stage(self.lab, self.plan)

    def run(self) -> tuple[Verdict, pytest.ExitCode]:
        """The verdict, and whether the tests ran to their end."""
        began, started = time.time(), time.monotonic()
        self.prepare()
        prepared = time.monotonic()
        collector, code = self.attack()
        now = time.monotonic()
        timings = {"prepare": prepared - started, "attack": now - prepared, "total": now - started}
        if self.is_whole and code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            with suppress(CacheUnusable):
                guest = self.lab.settings.label
                record_durations(self.lab.cache, guest, Durations(runs={name: timings[name] for name in timings}))
        return self.judge(collector, timings, began), code

    def attack(self) -> tuple[Collector, pytest.ExitCode]:
        """Run the tests; their workers read the plan from a file."""
        with self.lab.cache.run_directory() as directory, show_board("attacking", self.workers) as board:
            plan, listing = directory / "plan.json", directory / "listing.json"
            plan.write_text(self.plan.to_json())
            collector = Collector(board, listing, self.shard)
            code = pytest.main(self.arguments(plan, listing), plugins=[collector])
        return collector, pytest.ExitCode(code)

    def arguments(self, plan: Path, listing: Path) -> list[str]:
        """Pytest's command line."""
        settings = self.lab.settings
        options = {
            "guest": settings.guest,
            "suite": settings.suite,
            "nixos-packages": settings.nixos_packages,
            "accel": settings.accel,
            "cache": settings.cache,
            "kernel": settings.kernel,
            "initrd": settings.initrd,
            "agents": self.agents and self.agents.absolute(),
            "flake": self.flake,
            "plan": plan,
            "listing": listing,
            "shard": self.shard or "",
            "durations": self.durations.absolute(),
        }
        return [
            *(str(self.tests), f"--rootdir={REPOSITORY}"),
            *("-c", str(REPOSITORY / "pyproject.toml"), "-p", "harness.plugin", "-p", "no:terminal"),
            *("-p", "no:cacheprovider"),
            *(["--vm-with=hermes"] if self.hijack else []),
            *("-n", str(self.workers), "-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),
            *([] if self.fresh else ["--vm-records"]),
            *(f"--vm-claim={each}" for each in self.claims),
            *(f"--vm-{name}={value}" for name, value in options.items() if value is not None),
        ]

    def judge(self, collector: Collector, timings: dict[str, float], began: float) -> Verdict:
        """The verdict on the plan that was attacked."""
        lab = self.lab
        verdict = Verdict(
            claims=collector.claims(),
            matrix=collector.cells,
            timings=timings,
            guest=lab.settings.label,
            accelerator={"accelerator": lab.accelerator.accelerator, "reason": lab.accelerator.reason},
            plan=self.plan.digest,
            host=self.plan.host.name,
            agents=list(self.plan.agents),
            started=began,
            machine=describe_machine(),
            failures=collector.failed(),
            tests=collector.runs(),
            source=describe_source(),
            image=describe_image(lab),
            shard=collector.part(),
        )
        if not self.claims:
            return verdict
        return msgspec.structs.replace(verdict, claims=[each for each in verdict.claims if each.id in self.claims])


def describe_source() -> dict[str, str]:
    """Which harness this is: the commit, whether its files were changed since, and a digest of them."""
    commit, changes = read_git("rev-parse", "HEAD"), read_git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit or "unknown",
        "dirty": "unknown" if changes is None else "yes" if changes else "no",
        "digest": key_of(sources=read_sources()),
    }


def read_git(*arguments: str) -> str | None:
    """What git says of this repository, or None if it is no clone, or there is no git."""
    try:
        done = subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def describe_image(lab: Lab) -> dict[str, str]:
    """What the machines boot, in words that two builds of the same packages have in common."""
    manifest = lab.image.manifest
    return {
        "suite": str(manifest.get("suite", "")),
        "recipe": lab.guest.key(),
        "packages": key_of(packages=manifest.get("packages", {})),
        **({"nixos": manifest["nixos"]} if "nixos" in manifest else {}),
        "hardware": f"{lab.settings.cpus} cpus, {lab.settings.memory} MiB",
        **({"kernel": lab.image.key} if lab.image.has_foreign_kernel else {}),
    }
