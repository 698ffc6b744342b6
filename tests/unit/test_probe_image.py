"""The probe image: the same bytes everywhere, and nothing in it but what was put there."""

import hashlib
import io
import json
import subprocess
import tarfile

import pytest

from harness.guests import probe_image

BUSYBOX = b"\x7fELF not really"


@pytest.fixture(scope="module")
def image() -> probe_image.Image:
    return probe_image.build(BUSYBOX, ["sh", "nc", "busybox"])


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name to (mode, content) of the regular files."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {}
        for member in tar.getmembers():
            if file := tar.extractfile(member) if member.isreg() else None:
                found[member.name] = (member.mode, file.read())
        return found


def layer_of(image: probe_image.Image) -> bytes:
    blobs = unpack(image.archive)
    manifest = json.loads(blobs["blobs/sha256/" + image.digest.removeprefix("sha256:")][1])
    [layer] = manifest["layers"]
    return blobs["blobs/sha256/" + layer["digest"].removeprefix("sha256:")][1]


def test_the_same_busybox_gives_the_same_bytes(image: probe_image.Image) -> None:
    assert probe_image.build(BUSYBOX, ["nc", "sh", "sh"]).archive == image.archive


def test_another_busybox_gives_another_digest(image: probe_image.Image) -> None:
    assert probe_image.build(b"another", ["sh", "nc"]).digest != image.digest


def test_the_digest_is_that_of_the_manifest_that_the_index_names(image: probe_image.Image) -> None:
    [entry] = json.loads(unpack(image.archive)["index.json"][1])["manifests"]
    assert entry["digest"] == image.digest


def test_the_reference_is_pinned_by_the_digest(image: probe_image.Image) -> None:
    assert image.reference == f"{probe_image.NAME}@{image.digest}"


def test_every_blob_is_named_by_its_hash(image: probe_image.Image) -> None:
    blobs = {name: data for name, (_, data) in unpack(image.archive).items() if name.startswith("blobs/")}
    assert len(blobs) == 3
    assert all(name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}" for name, data in blobs.items())


def test_every_descriptor_gives_the_size_of_its_blob(image: probe_image.Image) -> None:
    blobs = unpack(image.archive)
    manifest = json.loads(blobs["blobs/sha256/" + image.digest.removeprefix("sha256:")][1])
    for descriptor in (manifest["config"], *manifest["layers"]):
        assert descriptor["size"] == len(blobs["blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")][1])


def test_the_set_uid_trap_is_the_only_one(image: probe_image.Image) -> None:
    files = unpack(layer_of(image))
    assert {name: mode for name, (mode, _) in files.items() if mode & 0o6000} == {"suid/busybox": 0o4755}


def test_busybox_arrives_as_it_was(image: probe_image.Image) -> None:
    assert unpack(layer_of(image))["bin/busybox"] == (0o755, BUSYBOX)


def test_every_applet_is_a_link_to_busybox(image: probe_image.Image) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer_of(image))) as tar:
        assert {member.name: member.linkname for member in tar.getmembers() if member.issym()} == {
            "bin/nc": "busybox",
            "bin/sh": "busybox",
        }


def test_nothing_in_the_layer_has_an_owner_or_a_time_of_the_building_machine(image: probe_image.Image) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer_of(image))) as tar:
        assert {(member.uid, member.gid, member.uname, member.mtime) for member in tar.getmembers()} == {(0, 0, "", 0)}


def test_the_stand_in_for_an_agent_is_a_shell_script_that_parses(image: probe_image.Image) -> None:
    _, script = unpack(layer_of(image))["bin/agent"]
    subprocess.run(["sh", "-n"], input=script, check=True)
