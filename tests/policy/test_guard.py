"""The guard of the firewall, with the kernel's own nftables: what it notices, and what it leaves alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.policy import reference_plan

TABLE = "inet tentaflake"
RELOADS = "reload-or-restart nftables.service\n"
FULL = "nft add element inet tentaflake reported '{ \"h-other\" }'"

Guard = Callable[[str], str]
"""Runs commands after the table was loaded and noted, and then the guard; what it has systemctl do."""


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    missing = [tool for tool in ("nft", "jq", "unshare") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    nftables = reference_plan().nftables
    table = f"table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{nftables.content}\n}}\n"
    (tmp_path / "table").write_text(table)
    for name in ("note", "guard"):
        text = getattr(nftables, name)
        assert text.count("/run/tentaflake-table") == 1
        (tmp_path / name).write_text(text.replace("/run/tentaflake-table", f"{tmp_path}/noted"))
    (tmp_path / "systemctl").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "systemctl").chmod(0o755)

    def run(commands: str) -> str:
        lines = [
            "set -e",
            f"PATH={tmp_path}:$PATH",
            f"cd {tmp_path}",
            "nft -f table",
            "sh note",
            commands,
            "exec sh guard",
        ]
        namespace = ["unshare", "--map-root-user", "--net", "sh", "-c", "\n".join(lines)]
        done = subprocess.run(namespace, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (tmp_path / "said").write_text(done.stderr)
        return done.stdout

    return run


@pytest.mark.parametrize(
    "change",
    [
        "nft flush table inet tentaflake",
        "nft delete table inet tentaflake",
        "nft delete table inet tentaflake; nft add table inet tentaflake-other",
        "nft flush ruleset",
        "nft add rule inet tentaflake forward accept",
        "nft insert rule inet tentaflake input tcp dport 23 accept",
        "nft add element inet tentaflake open_tcp '{ 23 }'",
        "nft delete element inet tentaflake open_tcp '{ 22 }'",
        "nft flush set inet tentaflake agent_uids",
        "nft add set inet tentaflake more '{ type ifname; }'",
        "nft add chain inet tentaflake forward '{ policy accept; }'",
        "rm noted",
    ],
)
def test_a_table_that_was_changed_by_hand_is_loaded_again(guard: Guard, change: str) -> None:
    assert guard(change) == RELOADS


@pytest.mark.parametrize(
    "change",
    [
        "true",
        FULL,  # a set that packets fill
        "nft -f table",  # with other handles
        "nft add table inet another",
        "ip link set lo up; echo x | busybox nc -w 1 127.0.0.1 23 || :",  # counters
    ],
)
def test_what_changes_by_itself_is_left_alone(guard: Guard, change: str) -> None:
    assert guard(change) == ""


OTHER_NFT = """\
cat > nft <<'END'
#!/bin/sh
PATH=${{PATH#*:}}
{text}
END
chmod +x nft"""


def test_what_a_newer_nftables_counts_is_left_alone(guard: Guard, tmp_path: Path) -> None:
    """From 1.1.7 on a set that packets fill has a member ``count``."""
    counted = """nft "$@" | sed 's/"size": 65535/"size": 65535, "count": 7/g'"""
    assert guard(OTHER_NFT.format(text=counted)) == ""
    listing = subprocess.run(
        [
            "unshare",
            "--map-root-user",
            "--net",
            "sh",
            "-c",
            "PATH=.:$PATH; nft -f table; nft --json list table inet tentaflake",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"count": 7' in listing.stdout  # the control


@pytest.mark.parametrize("failing", ["tables", "--json", "*"])
def test_a_listing_that_fails_is_asked_for_again(guard: Guard, tmp_path: Path, failing: str) -> None:
    """Even if the table is gone: nobody can say so then."""
    fails = OTHER_NFT.format(text=f'case " $* " in *" "{failing}" "*) exit 1 ;; esac; nft "$@"')
    assert guard(f"nft flush table inet tentaflake\n{fails}") == ""
    assert "asking again" in (tmp_path / "said").read_text()


def test_what_was_noted_is_for_root_alone(guard: Guard, tmp_path: Path) -> None:
    guard("true")
    assert (tmp_path / "noted").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "noted").read_text().splitlines()) > 50
