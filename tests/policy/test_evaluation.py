"""Getting from a file or a flake to a plan, and what is said when that fails."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.policy import Plan, PolicyError, evaluate, evaluate_flake, evaluate_many, reference_plan

ROOT = Path(__file__).resolve().parents[2]


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(
        ["git", *identity, *arguments], cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )


@pytest.fixture(scope="module")
def flake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's flake, in a repository of its own with nothing else in it."""
    copy = tmp_path_factory.mktemp("flake")
    for name in ("flake.nix", "flake.lock", "agents.nix", "host.nix"):
        shutil.copy(ROOT / name, copy)
    for part in ("policy", "auditd", "tts"):
        shutil.copytree(ROOT / "modules" / part, copy / "modules" / part)
    git(copy, "init")
    git(copy, "add", ".")
    git(copy, "commit", "-m", "flake")
    return copy


def test_the_flakes_plan_is_the_files_plan_byte_for_byte(flake: Path) -> None:
    assert evaluate_flake(f"{flake}#agent-host").to_json() == reference_plan().to_json()


def test_a_flake_with_one_host_needs_no_name(flake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flake)
    assert evaluate_flake(".") == evaluate_flake("#agent-host")


def test_a_plan_is_evaluated_offline(flake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIX_CONFIG", "tarball-ttl = 0\nconnect-timeout = 1\nhttp-connections = 1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert evaluate_flake(f"{flake}#agent-host").host.name == "agent-host"


def test_a_missing_host_lists_those_that_exist(flake: Path) -> None:
    with pytest.raises(PolicyError, match="agent-host"):
        evaluate_flake(f"{flake}#other")


@pytest.mark.parametrize("host", ["$x", 'a"; abort "', "-x", "a b"])
def test_a_host_name_cannot_be_an_expression(flake: Path, host: str) -> None:
    with pytest.raises(PolicyError, match="not the name of a host"):
        evaluate_flake(f"{flake}#{host}")


def test_a_flakes_bad_specs_are_all_named(flake: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(flake, bad)
    (bad / "agents.nix").write_text('_: [ { name = "a"; uid = 1; } { name = "b"; memory = 1; } ]')
    with pytest.raises(PolicyError) as caught:
        evaluate_flake(f"{bad}#agent-host")
    assert "agent a: uid = 1" in str(caught.value)
    assert "agent b: memory = 1" in str(caught.value)


def test_a_flake_without_plans_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "flake.nix").write_text("{ outputs = _: { }; }")
    with pytest.raises(PolicyError, match=r"cannot be evaluated: .*plans"):
        evaluate_flake(f"path:{tmp_path}#agent-host")


BROKEN_JSON = {
    '[{"name": "a",}]': "line 1",
    "": "not valid JSON",
    "[NaN]": "NaN is not JSON",
    '[{"name": "a", "name": "b"}]': "'name' stands twice",
    "[" * 100_000: "nested too deeply",
    '[{"name": "a", "command": ["\\u0000"]}]': r"agents\[0\].command\[0\]: a NUL character",
    '[{"name": "\\ud800"}]': "JSON cannot express",
}


@pytest.mark.parametrize(("text", "message"), BROKEN_JSON.items(), ids=BROKEN_JSON.values())
def test_broken_json_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    agents = tmp_path / "agents.json"
    agents.write_text(text)
    with pytest.raises(PolicyError, match=message):
        evaluate(agents)


def test_broken_nix_is_shown_with_its_place(tmp_path: Path) -> None:
    agents = tmp_path / "agents.nix"
    agents.write_text("[\n  (undefined_name 1)\n]")
    with pytest.raises(PolicyError, match=r"undefined variable 'undefined_name'(.|\n)*agents\.nix:2"):
        evaluate(agents)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"none\.nix: no such file"):
        evaluate(tmp_path / "none.nix")


WHOLE = {
    "a.nix": '{ agents = [ { name = "a"; } ]; host.name = "own"; }',
    "b.nix": '{ mkHermesAgent }: { agents = [ (mkHermesAgent { name = "a"; }) ]; host.name = "own"; }',
    "c.nix": 'arguments: { agents = { mkHermesAgent }: [ { name = "a"; } ]; host = { name = "own"; }; }',
    "d.json": '{"agents": [{"name": "a"}], "host": {"name": "own"}}',
}


@pytest.mark.parametrize(("name", "text"), WHOLE.items(), ids=WHOLE.keys())
def test_a_file_may_hold_a_whole_host(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    [plan] = evaluate_many([[{"name": "a"}]], [{"name": "own"}])
    assert isinstance(plan, Plan)
    # Its own settings are in force, and none of those that are given.
    assert evaluate(tmp_path / name, host={"name": "other", "allowedTCPPorts": [80]}).to_json() == plan.to_json()


def test_a_file_without_settings_has_those_that_are_given(tmp_path: Path) -> None:
    for name, text in (("a.nix", '{ agents = [ { name = "a"; } ]; }'), ("a.json", '{"agents": [{"name": "a"}]}')):
        (tmp_path / name).write_text(text)
        assert evaluate(tmp_path / name, host={"name": "other"}).host.name == "other"


@pytest.mark.parametrize("text", ["{ agents = [ ]; hots = { }; }", '{"agents": [], "hots": {}}'])
def test_a_whole_host_has_nothing_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / ("a.json" if '"' in text else "a.nix")
    path.write_text(text)
    with pytest.raises(PolicyError, match="hots: a file with agents in it may have host besides"):
        evaluate(path)


def test_one_broken_host_of_many_spoils_no_other() -> None:
    good, nul, bad = evaluate_many([[{"name": "a"}], [{"name": "\0"}], [{"name": "A"}]])
    assert isinstance(good, Plan)
    assert isinstance(nul, PolicyError)
    assert isinstance(bad, PolicyError)
    assert [error.field for error in bad.errors] == ["name"]


def test_without_nix_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PolicyError, match="apt-get install nix-bin"):
        evaluate(ROOT / "agents.nix")


def test_evaluation_writes_no_home_and_leaves_nothing_behind(
    tmp_path: Path, flake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, temp = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temp.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(temp))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)
    evaluate(ROOT / "agents.nix")
    evaluate_many([[{"name": "a"}]])
    evaluate_flake(f"{flake}#agent-host")
    assert list(home.iterdir()) == []
    assert list(temp.iterdir()) == []


def test_the_flakes_other_outputs_wire_the_same_policy(flake: Path) -> None:
    """With a stand-in for nixpkgs, since none can be had offline: what is called with what, not what it builds."""
    stub = """
      let
        pkgs = builtins.listToAttrs (map (name: { inherit name; value = name; }) [
          "age" "dpkg" "e2fsprogs" "fakeroot" "git" "iproute2" "mmdebstrap"
          "nftables" "nix" "nixfmt-tree" "openssh" "python3" "qemu"
        ]) // { writeShellApplication = app: app; };
        systems = [ "x86_64-linux" "aarch64-linux" ];
        nixpkgs = {
          lib.genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
          lib.getExe = app: app.text;
          legacyPackages = nixpkgs.lib.genAttrs systems (_: pkgs);
        };
        outputs = (import FLAKE).outputs { inherit nixpkgs; self = "SELF"; agenix = { }; hermes-agent = { }; };
      in
      {
        names = builtins.attrNames outputs;
        programs = builtins.mapAttrs (_: builtins.mapAttrs (_: app: app.program)) outputs.apps;
        formatters = builtins.attrValues outputs.formatter;
        same = outputs.lib.policy.plan {
          agents = import (FLAKE_DIR + "/agents.nix");
          host = import (FLAKE_DIR + "/host.nix");
        } == outputs.plans.agent-host;
      }
    """.replace("FLAKE_DIR", f'"{flake}"').replace("FLAKE", f"{flake}/flake.nix")
    done = subprocess.run(
        ["nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://", "--expr", stub],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        text=True,
    )
    result = json.loads(done.stdout)
    for programs in result["programs"].values():
        assert "export PYTHONPATH=SELF" in programs["verify"]
        assert 'exec python3 -P -m harness verify "$@"' in programs["verify"]
        assert 'exec python3 -P -m pytest -p no:cacheprovider --rootdir=SELF SELF/tests "$@"' in programs["test"]
    assert set(result["programs"]) == {"x86_64-linux", "aarch64-linux"}
    assert '"same":true' in done.stdout
