"""The readers refuse what is wrong: without that, that they take everything would say nothing."""

from pathlib import Path

import pytest

from harness.fuzz import parsers

GOOD = "[Service]\nExecStart=/bin/true\n"


def skip_if(reason: str | None) -> None:
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize(
    "text",
    ["[Service\nExecStart=/bin/true\n", GOOD + "MemoryMax=lots\n", GOOD + "Bogus=1\n", "[Service]\nExecStart=x y\n"],
)
def test_systemd_refuses_a_broken_unit(tmp_path: Path, text: str) -> None:
    skip_if(parsers.systemd_obstacle())
    parsers.verify_units(tmp_path / "good", {"a.service": GOOD})
    with pytest.raises(parsers.Refused):
        parsers.verify_units(tmp_path / "bad", {"a.service": text})


def test_systemd_makes_accounts_and_refuses_broken_lines(tmp_path: Path) -> None:
    skip_if(parsers.accounts_obstacle())
    sysusers, tmpfiles = 'g a 1000\nu a 1000:a "A" /var/lib/a /usr/sbin/nologin\n', "d /var/lib/a 0700 a a -\n"
    users, made = parsers.make_accounts(tmp_path / "good", sysusers, tmpfiles)
    assert (users["a"].pw_uid, made) == (1000, {"/var/lib/a": "0700 a a"})
    with pytest.raises(parsers.Refused, match="sysusers"):
        parsers.make_accounts(tmp_path / "users", "u a lots\n", tmpfiles)
    with pytest.raises(parsers.Refused, match="tmpfiles"):
        parsers.make_accounts(tmp_path / "files", sysusers, "d /var/lib/a 0700 b b -\n")


def test_nft_refuses_a_broken_table() -> None:
    skip_if(parsers.nft_obstacle())
    assert parsers.nft_check("table inet t { chain c { accept; }; }").returncode == 0
    assert parsers.nft_check("table inet t { chain c { accept accept; }; }").returncode != 0


@pytest.mark.parametrize("bad", [["Upper"], ["--bogus", "a"], ["--memory=lots", "a"], ["--mount=type=bind,x", "a"]])
def test_docker_refuses_a_broken_command_line(bad: list[str]) -> None:
    skip_if(parsers.docker_obstacle())
    assert parsers.docker_run_complaint(["--memory=16777216", "a"]) is None
    assert parsers.docker_run_complaint(bad)


@pytest.mark.parametrize("text", ['{"a": "\x7f"}', '{"a": 1', '{"' + "k" * 1025 + '": 1}'])
def test_yaml_refuses_what_it_cannot_read(text: str) -> None:
    assert parsers.read_yaml('{"a": [1, null, "b"]}') == {"a": [1, None, "b"]}
    with pytest.raises(parsers.Refused):
        parsers.read_yaml(text)
