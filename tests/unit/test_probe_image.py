"""The probe images: the same bytes everywhere, and nothing in them but what was put there."""

import hashlib
import io
import json
import subprocess
import tarfile
from typing import Any

import pytest

from harness.guests import probe_image
from harness.guests.probe_image import DECOY, PROBE, Images

BUSYBOX = b"\x7fELF not really"


@pytest.fixture(scope="module")
def images() -> Images:
    return probe_image.build(BUSYBOX, ["sh", "nc", "busybox"])


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name to (mode, content) of the regular files."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {}
        for member in tar.getmembers():
            if file := tar.extractfile(member) if member.isreg() else None:
                found[member.name] = (member.mode, file.read())
        return found


def blob(images: Images, digest: str) -> bytes:
    return unpack(images.archive)["blobs/sha256/" + digest.removeprefix("sha256:")][1]


def entries_of(images: Images) -> list[dict[str, Any]]:
    """The index's entries: one per image."""
    entries: list[dict[str, Any]] = json.loads(unpack(images.archive)["index.json"][1])["manifests"]
    return entries


def manifest_of(images: Images, reference: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(blob(images, reference.split("@")[1]))
    return manifest


def layer_of(images: Images) -> bytes:
    [layer] = manifest_of(images, images.probe)["layers"]
    return blob(images, layer["digest"])


def test_the_same_busybox_gives_the_same_bytes(images: Images) -> None:
    assert probe_image.build(BUSYBOX, ["nc", "sh", "sh"]) == images


def test_another_busybox_gives_other_references(images: Images) -> None:
    other = probe_image.build(b"another", ["sh", "nc"])
    assert not {other.probe, other.decoy} & {images.probe, images.decoy}


def test_the_digests_are_those_of_the_manifests_that_the_index_names(images: Images) -> None:
    references = [images.probe, images.decoy]
    assert [entry["digest"] for entry in entries_of(images)] == [reference.split("@")[1] for reference in references]


def test_the_index_names_each_image_by_its_digest_and_by_no_tag(images: Images) -> None:
    names = [entry["annotations"] for entry in entries_of(images)]
    assert names == [{"io.containerd.image.name": reference} for reference in (images.probe, images.decoy)]


def test_each_reference_is_a_name_that_never_resolves_and_a_digest(images: Images) -> None:
    assert [reference.split("@")[0] for reference in (images.probe, images.decoy)] == [PROBE, DECOY]
    assert all(name.split("/")[0].endswith(".invalid") for name in (PROBE, DECOY))


def test_the_decoy_is_another_image_with_the_same_files(images: Images) -> None:
    probe, decoy = (manifest_of(images, reference) for reference in (images.probe, images.decoy))
    assert probe["config"]["digest"] != decoy["config"]["digest"]
    assert probe["layers"] == decoy["layers"]


def test_every_blob_is_named_by_its_hash(images: Images) -> None:
    blobs = {name: data for name, (_, data) in unpack(images.archive).items() if name.startswith("blobs/")}
    assert len(blobs) == 5, "one layer, and a configuration and a manifest for each image"
    assert all(name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}" for name, data in blobs.items())


def test_every_descriptor_gives_the_size_of_its_blob(images: Images) -> None:
    descriptors = entries_of(images)
    for reference in (images.probe, images.decoy):
        manifest = manifest_of(images, reference)
        descriptors += [manifest["config"], *manifest["layers"]]
    assert [entry["size"] for entry in descriptors] == [len(blob(images, entry["digest"])) for entry in descriptors]


def test_each_configuration_names_the_layer_that_it_is_unpacked_from(images: Images) -> None:
    for reference in (images.probe, images.decoy):
        manifest = manifest_of(images, reference)
        config = json.loads(blob(images, manifest["config"]["digest"]))
        assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]


def test_the_set_uid_trap_is_the_only_one(images: Images) -> None:
    files = unpack(layer_of(images))
    assert {name: mode for name, (mode, _) in files.items() if mode & 0o6000} == {"suid/busybox": 0o4755}


def test_busybox_arrives_as_it_was(images: Images) -> None:
    assert unpack(layer_of(images))["bin/busybox"] == (0o755, BUSYBOX)


def test_every_applet_is_a_link_to_busybox(images: Images) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer_of(images))) as tar:
        assert {member.name: member.linkname for member in tar.getmembers() if member.issym()} == {
            "bin/nc": "busybox",
            "bin/sh": "busybox",
        }


def test_nothing_in_the_layer_has_an_owner_or_a_time_of_the_building_machine(images: Images) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer_of(images))) as tar:
        assert {(member.uid, member.gid, member.uname, member.mtime) for member in tar.getmembers()} == {(0, 0, "", 0)}


def test_the_stand_in_for_an_agent_is_a_shell_script_that_parses(images: Images) -> None:
    _, script = unpack(layer_of(images))["bin/agent"]
    subprocess.run(["sh", "-n"], input=script, check=True)
