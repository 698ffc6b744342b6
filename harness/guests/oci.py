"""The words of the OCI image layout (image-spec v1.1): canonical JSON, digests, descriptors."""

import hashlib
import json
from collections.abc import Mapping

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYOUT = {"imageLayoutVersion": "1.0.0"}


def encode(value: object) -> bytes:
    """The same value as the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def blob_path(digest: str) -> str:
    """Where a blob is in the layout."""
    return "blobs/sha256/" + digest.removeprefix("sha256:")


def descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def describe(media_type: str, data: bytes) -> dict[str, object]:
    return descriptor(media_type, digest_of(data), len(data))


def image_config(digests: list[str], config: Mapping[str, object]) -> bytes:
    """An image's configuration: its layers, uncompressed, and how a container of it is started."""
    rootfs = {"type": "layers", "diff_ids": digests}
    return encode({"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs})


def image_manifest(config: bytes, layers: list[dict[str, object]]) -> bytes:
    return encode({"schemaVersion": 2, "mediaType": MANIFEST, "config": describe(CONFIG, config), "layers": layers})


def index(names: Mapping[str, bytes]) -> bytes:
    """The index of an archive: name to manifest.

    Each image is named by its digest, as a pulled one would be: no tag that could be moved to another image.
    """
    entries = [
        describe(MANIFEST, manifest) | {"annotations": {"io.containerd.image.name": reference(name, manifest)}}
        for name, manifest in names.items()
    ]
    return encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})


def reference(name: str, manifest: bytes) -> str:
    """What pins an image: ``name@sha256:<digest of its manifest>``."""
    return f"{name}@{digest_of(manifest)}"
