"""The Hermes image: the same bytes from the same packages, and nothing of the machine that built it."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.guests import hermes_image
from harness.guests.hermes_image import EPOCH, NAME, REQUIREMENTS, split_root, write_archive

Member = tuple[str, int, bytes | str | None]
"""Name, mode, and content; a text is a symbolic link, None a directory."""
STATUS = b"Package: bash\nVersion: 5\n"
ROOT: list[Member] = [
    ("./", 0o755, None),
    ("./bin", 0o777, "usr/bin"),
    ("./etc/", 0o755, None),
    ("./etc/apt/", 0o755, None),
    ("./etc/apt/sources.list", 0o644, b"deb http://mirror.example/ trixie main"),
    ("./etc/hostname", 0o644, b"builder"),
    ("./etc/passwd", 0o644, b"root"),
    ("./etc/passwd-", 0o600, b"old"),
    ("./etc/shadow", 0o640, b"secret"),
    ("./proc/", 0o555, None),
    ("./tmp/", 0o1777, None),
    ("./tmp/left", 0o600, b"x"),
    ("./usr/bin/bash", 0o755, b"elf"),
    ("./usr/bin/su", 0o4755, b"elf"),
    ("./usr/bin/wall", 0o2755, b"elf"),
    ("./usr/lib/python3.13/__pycache__/os.cpython-313.pyc", 0o644, b"ours"),
    ("./usr/local/", 0o700, None),
    ("./usr/local/bin/hermes", 0o700, b"#!"),
    ("./usr/local/lib/python3.13/dist-packages/a.py", 0o600, b"a"),
    ("./usr/local/lib/python3.13/dist-packages/__pycache__/a.pyc", 0o600, b"ours"),
    ("./usr/share/python3/__pycache__/debpython.pyc", 0o644, b"theirs"),
    ("./var/cache/ldconfig/aux-cache", 0o600, b"inodes"),
    ("./var/lib/dpkg/info/bash.list", 0o644, b"x"),
    ("./var/lib/dpkg/status", 0o644, STATUS),
    ("./var/log/dpkg.log", 0o644, b"today"),
]


def archive(path: Path, members: list[Member], *, owner: int = 0, time: int = 0) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, mode, content in members:
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid, info.mtime = mode, owner, owner, time
            info.uname, info.pax_headers = "builder" if owner else "", {"SCHILY.xattr.user.x": "y"} if owner else {}
            info.type = (
                tarfile.DIRTYPE if content is None else tarfile.SYMTYPE if isinstance(content, str) else info.type
            )
            info.linkname = content if isinstance(content, str) else ""
            info.size = len(content) if isinstance(content, bytes) else 0
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
        link = tarfile.TarInfo("./usr/bin/sh")
        link.type, link.linkname, link.mode = tarfile.LNKTYPE, "./usr/bin/bash", 0o755
        tar.addfile(link)
    return path


Build = Callable[..., tuple[Path, Path, Path, str]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds an image of ``ROOT``: its archive, its two layers, its reference."""

    def make(name: str = "1", **options: Any) -> tuple[Path, Path, Path, str]:
        directory = tmp_path / name
        directory.mkdir()
        layers = directory / "debian", directory / "hermes"
        assert split_root(archive(directory / "root.tar", ROOT, **options), *layers) == STATUS
        return directory / "image.tar", *layers, write_archive(directory / "image.tar", list(layers))

    return make


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def blobs(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: file.read() for member in tar if (file := tar.extractfile(member))}


def test_another_machine_and_another_day_give_the_same_bytes(build: Build) -> None:
    one, two = build("1"), build("2", owner=1000, time=1_700_000_000)
    assert one[3] == two[3]
    assert one[0].read_bytes() == two[0].read_bytes()


def test_other_content_gives_another_reference(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build("1")[3]
    monkeypatch.setattr(f"{__name__}.ROOT", [*ROOT, ("./usr/bin/new", 0o755, b"new")])
    assert build("2")[3] != before


def test_nothing_of_the_building_machine_is_in_a_layer(build: Build) -> None:
    _, debian, hermes, _ = build(owner=1000, time=1_700_000_000)
    found = {**members(debian), **members(hermes)}.values()
    assert {(member.uid, member.gid, member.uname, member.mtime) for member in found} == {(0, 0, "", EPOCH)}
    assert not any("SCHILY.xattr.user.x" in member.pax_headers for member in found)


def test_what_belongs_to_the_build_is_left_out(build: Build) -> None:
    _, debian, _, _ = build()
    left = {"bin", "etc", "etc/apt", "etc/passwd", "proc", "tmp", "usr/bin/bash", "usr/bin/sh", "usr/bin/su"}
    left |= {"usr/bin/wall", "usr/lib/python3.13/__pycache__/os.cpython-313.pyc", "var/lib/dpkg/status"}
    assert set(members(debian)) == left


def test_what_pip_installed_is_a_layer_of_its_own_with_its_bytecode(build: Build) -> None:
    _, _, hermes, _ = build()
    packages = "usr/local/lib/python3.13/dist-packages"
    found = {name: member.mode for name, member in members(hermes).items()}
    assert found == {
        "usr/local": 0o755,
        "usr/local/bin/hermes": 0o755,
        f"{packages}/a.py": 0o644,
        f"{packages}/__pycache__/a.pyc": 0o644,
    }


def test_no_program_is_set_uid_or_set_gid_and_only_tmp_is_anyones(build: Build) -> None:
    _, debian, _, _ = build()
    found = members(debian)
    assert not [name for name, member in found.items() if member.mode & 0o6000]
    writable = [name for name, member in found.items() if member.mode & 0o022 and not member.issym()]
    assert writable == ["tmp"] and found["tmp"].mode == 0o1777


def test_links_lead_where_they_led(build: Build) -> None:
    found = members(build()[1])
    assert (found["bin"].linkname, found["usr/bin/sh"].linkname) == ("usr/bin", "usr/bin/bash")
    assert found["usr/bin/sh"].islnk()


def test_the_reference_is_the_digest_of_the_manifest_that_the_index_names(build: Build) -> None:
    image, _, _, reference = build()
    found = blobs(image)
    [entry] = json.loads(found["index.json"])["manifests"]
    assert reference == f"{NAME}@{entry['digest']}" == entry["annotations"]["io.containerd.image.name"]
    assert "blobs/sha256/" + entry["digest"].removeprefix("sha256:") in found


def test_every_blob_is_named_by_its_hash_and_described_by_its_size(build: Build) -> None:
    image, debian, hermes, reference = build()
    found = {name: data for name, data in blobs(image).items() if name.startswith("blobs/")}
    assert len(found) == 4 and all(name.endswith(hashlib.sha256(data).hexdigest()) for name, data in found.items())
    manifest = json.loads(found["blobs/sha256/" + reference.split(":")[1]])
    assert [layer["size"] for layer in manifest["layers"]] == [path.stat().st_size for path in (debian, hermes)]
    config = json.loads(found["blobs/sha256/" + manifest["config"]["digest"].removeprefix("sha256:")])
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]


def test_the_image_starts_hermes_and_says_no_user(build: Build) -> None:
    image, *_ = build()
    [config] = [json.loads(data) for data in blobs(image).values() if b'"rootfs"' in data[:2000] and data[:1] == b"{"]
    assert config["config"]["Entrypoint"] == ["/usr/local/bin/hermes"]
    assert "User" not in config["config"], "the plan says which"


def test_the_name_never_resolves() -> None:
    assert NAME.split("/")[0].endswith(".invalid")


def test_every_requirement_is_pinned_with_hashes_and_names_no_index() -> None:
    text = REQUIREMENTS.read_text()
    pinned = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    assert any(each.startswith("hermes-agent==0.19.0 ") for each in pinned)
    assert [each for each in pinned if not re.match(r"[a-z0-9-]+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", each)] == []
    assert "://" not in text


def test_the_key_changes_with_the_requirements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = hermes_image.key()
    changed = tmp_path / "requirements.txt"
    changed.write_text(REQUIREMENTS.read_text() + "\n")
    monkeypatch.setattr(hermes_image, "REQUIREMENTS", changed)
    assert hermes_image.key() != before
