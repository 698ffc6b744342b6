"""Debian root file systems by mmdebstrap, from the mirrors that this machine's apt is set up with; wheels for them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.progress import step


@dataclass(frozen=True)
class Suite:
    """A release of Debian: its Python, and N where its glibc is 2.N (every wheel for that or an older one will do).

    ``apt`` are settings that its mirrors need.
    """

    name: str
    python: str
    glibc: int
    apt: tuple[str, ...] = ()


STABLE = Suite("trixie", "3.13", 41)
SUITES = {
    suite.name: suite
    for suite in (
        STABLE,
        # The next one, which changes daily: a mirror may be some days behind.
        Suite("forky", "3.14", 43, ('Acquire::Check-Valid-Until "false"',)),
    )
}
SMALL = [
    '--aptopt=APT::Install-Recommends "false";',
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man", "info")),
]
"""Options that leave out what only a person at a terminal would miss."""


def debian_sources(suite: Suite) -> str:
    """apt sources for a suite, from the mirrors that this machine's apt is set up with.

    Empty where apt knows no Debian mirror (Ubuntu, say): mmdebstrap then uses its own default.
    """
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    mirrors: dict[str, str] = {}
    for line in listing.splitlines():
        origin, label, uri = line.split("|", 2)
        if origin == "Debian" and label in ("Debian", "Debian-Security"):
            mirrors.setdefault(label, uri)
    if "Debian" not in mirrors:
        return ""
    lines = [f"deb {mirrors['Debian']} {name} main" for name in (suite.name, f"{suite.name}-updates")]
    if "Debian-Security" in mirrors:
        lines.append(f"deb {mirrors['Debian-Security']} {suite.name}-security main")
    return "\n".join(lines) + "\n"


def apt_options() -> list[str]:
    """This machine's own apt settings for fetching (proxy, certificates, retries)."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=False).stdout
    wanted = re.compile(r"Acquire::(https?::|Retries|Check-Valid-Until|Check-Date|ForceIPv)", re.IGNORECASE)
    return [line for line in dump.splitlines() if wanted.match(line) and not line.endswith('"";')]


def bootstrap(
    title: str,
    options: Sequence[str],
    target: Path,
    environment: Mapping[str, str] | None = None,
    suite: Suite = STABLE,
) -> None:
    """Have mmdebstrap make ``target``; raises ``HarnessError`` with what it said last."""
    if shutil.which("mmdebstrap") is None:
        raise HarnessError("mmdebstrap is not installed", hint="run ci/setup, or install mmdebstrap")
    sources = debian_sources(suite)
    command = ["mmdebstrap", *options, *(f"--aptopt={option}" for option in (*apt_options(), *suite.apt))]
    command += [suite.name, str(target), *(["-"] if sources else [])]
    said: list[str] = []
    with (
        step(title) as progress,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | (environment or {}),
        ) as process,
    ):
        assert process.stdin and process.stdout
        process.stdin.write(sources)
        process.stdin.close()
        for line in process.stdout:
            said.append(line.rstrip())
            progress.update(said[-1])
    if process.returncode:
        raise HarnessError(
            f"mmdebstrap failed with exit code {process.returncode}:\n" + "\n".join(said[-15:]),
            hint="no network, or no mirror for the suite? `apt-get update` must work on this machine",
        )


def installed(status: str) -> dict[str, str]:
    """Name to version, from dpkg's status file."""
    pairs = re.findall(r"^Package: (\S+)$.*?^Version: (\S+)$", status, re.MULTILINE | re.DOTALL)
    return dict(pairs)


def install_requirements(directory: Path, requirements: Path, suite: Suite = STABLE) -> None:
    """Unpack the wheels that a file pins, with hashes, for a suite's Python.

    Nothing of them is run. pip is called as this machine has it set up (index, proxy, certificates).
    """
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(suite.glibc, 4, -1)] + ["manylinux2014_x86_64"]
    command = [
        *(sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--quiet"),
        *("--target", str(directory), "--no-deps", "--no-compile", "--require-hashes", "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", suite.python),
        *(f"--platform={platform}" for platform in platforms),
        *("--requirement", str(requirements)),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(
            f"pip could not install {requirements.name}:\n{done.stderr.strip()[-2000:]}",
            hint="see that this Python has pip and reaches a package index (`python3 -m pip config list`)",
        )
