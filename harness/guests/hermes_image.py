"""The Hermes image: the real agent (PyPI ``hermes-agent``) on a minimal Debian, as an OCI image archive.

Made without a container engine, and byte for byte the same from the same Debian packages and wheels: no time,
owner or host name of the machine that builds gets into it, and its layers are not compressed, because one
compressor's output is not another's. Two layers: Debian, and what pip installed in /usr/local. It is for any uid,
with a read-only root: there is no set-uid program, and every module is compiled (unchecked-hash .pyc).
"""

import io
import json
import os
import re
import shlex
import shutil
import tarfile
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import IO, Any

from harness.cache import Cache, file_digest, key_of
from harness.guests import bootstrap, oci
from harness.guests.bootstrap import SMALL, STABLE, install_requirements, installed
from harness.progress import step

# .invalid never resolves (RFC 2606): it cannot be pulled by mistake.
NAME = "tentaflake.invalid/hermes"
REQUIREMENTS = Path(__file__).parent / "files" / "hermes-requirements.txt"
# Beside what Debian calls essential (bash, coreutils and their like).
PACKAGES = "python3 ca-certificates procps".split()
EPOCH = 315532800
"""The time of every file: 1980, the earliest that a zip archive can hold."""
ENTRY_POINT = """\
#!/usr/bin/python3
import sys

from hermes_cli.main import main

sys.exit(main())
"""
CONFIG: dict[str, object] = {
    "Entrypoint": ["/usr/local/bin/hermes"],
    # Lives and waits for messages and scheduled work, with nothing configured as well.
    "Cmd": ["gateway", "run"],
    "Env": ["PATH=/usr/local/bin:/usr/bin:/usr/sbin", "LANG=C.UTF-8"],
    "Labels": {"name": NAME},
}

# What the build leaves behind, what differs from machine to machine, and what is of no use in an image.
LEFT_OUT = re.compile(
    r"(dev|proc|run|sys|tmp|etc/apt|var/cache|var/lib/apt|var/log)/.+"
    r"|etc/(hostname|machine-id|resolv\.conf|g?shadow|[^/]+-)"
    r"|var/lib/dpkg/(?!status$).+"
)
# Where bytecode is made anew. What Debian made goes by its source's time, which is no longer the same.
COMPILED = tuple(f"{place}/python{STABLE.python}" for place in ("usr/lib", "usr/local/lib"))


@dataclass(frozen=True)
class HermesImage:
    """An OCI image archive, the reference that pins its image, and what is in it."""

    archive: Path
    reference: str
    manifest: dict[str, Any]


def key() -> str:
    """Of the recipe; two builds of it differ where the mirror's packages have changed in between."""
    sources = [Path(path).read_text() for path in (__file__, oci.__file__, bootstrap.__file__)]
    return key_of(suite=STABLE.name, small=SMALL, requirements=REQUIREMENTS.read_text(), sources=sources)


def build(cache: Cache) -> HermesImage:
    """The image, from the cache if it is there."""
    directory = cache.make("images", f"hermes-{key()}", make)
    manifest = json.loads((directory / "manifest.json").read_text())
    return HermesImage(directory / "hermes.tar", manifest["reference"], manifest)


def make(directory: Path) -> None:
    """Fill ``directory`` with hermes.tar and manifest.json."""
    local, root = directory / "local", directory / "root.tar"
    with step("building the Hermes image: Python packages"):
        python = install_wheels(local)
    hooks = [
        f"sync-in {shlex.quote(str(local))} /usr/local",
        # One process and no random hashes: bytecode depends on both.
        'PYTHONHASHSEED=0 chroot "$1" python3 -m compileall -q -f --invalidation-mode unchecked-hash '
        + " ".join(f"/{path}" for path in COMPILED),
    ]
    bootstrap.bootstrap(
        "building the Hermes image: Debian and bytecode",
        [
            *("--variant=essential", "--format=tar", f"--include={','.join(PACKAGES)}", *SMALL),
            *(f"--customize-hook={hook}" for hook in hooks),
        ],
        root,
        {"SOURCE_DATE_EPOCH": str(EPOCH)},
    )
    with step("building the Hermes image: layers"):
        layers = [directory / "debian.layer", directory / "hermes.layer"]
        status = split_root(root, *layers)
        reference = write_archive(directory / "hermes.tar", layers)
    manifest = {
        "reference": reference,
        "suite": STABLE.name,
        "packages": installed(status.decode()),
        "python": python,
        "bytes": {path.name.removesuffix(".layer"): path.stat().st_size for path in layers},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    for path in (root, *layers):
        path.unlink()
    shutil.rmtree(local)


def install_wheels(local: Path) -> dict[str, str]:
    """Fill ``local``, which becomes /usr/local; returns name to version."""
    packages = local / "lib" / f"python{STABLE.python}" / "dist-packages"
    install_requirements(packages, REQUIREMENTS)
    # Programs that name this machine's Python, and pip's own notes, which name those programs.
    shutil.rmtree(packages / "bin")
    for name in ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json"):
        for note in packages.glob(f"*.dist-info/{name}"):
            note.unlink()
    (local / "bin").mkdir()
    (local / "bin" / "hermes").write_text(ENTRY_POINT)
    (local / "bin" / "hermes").chmod(0o755)
    return {found.name: found.version for found in sorted(distributions(path=[str(packages)]), key=lambda d: d.name)}


def split_root(root: Path, debian: Path, hermes: Path) -> bytes:
    """Write the two layers of a root file system, a tar archive; returns dpkg's status file."""
    status = b""
    with tarfile.open(root) as tar, _layer(debian) as system, _layer(hermes) as local:
        for member in tar:
            name = member.name.removeprefix("./").rstrip("/")
            if name in (".", "") or _is_left_out(name):
                continue
            file = tar.extractfile(member) if member.isreg() else None
            is_local = name == "usr/local" or name.startswith("usr/local/")
            (local if is_local else system).addfile(_anonymous(member, name), file)
            if name == "var/lib/dpkg/status" and (again := tar.extractfile(member)):
                status = again.read()
    return status


def _layer(path: Path) -> tarfile.TarFile:
    return tarfile.open(path, "w", format=tarfile.PAX_FORMAT)


def _is_left_out(name: str) -> bool:
    stale = "__pycache__" in name and not name.startswith(COMPILED)
    return stale or LEFT_OUT.fullmatch(name) is not None


def _anonymous(member: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    """The member as the image has it: root's, of no time, for anyone to read."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime, info.mode = member.type, member.size, EPOCH, _mode(member)
    info.linkname = member.linkname.removeprefix("./") if member.islnk() else member.linkname
    return info


def _mode(member: tarfile.TarInfo) -> int:
    """Never set-uid or set-gid, and nothing of this machine's umask."""
    if member.issym():
        return 0o777
    if member.isdir() and member.mode & 0o1000:
        return 0o1777
    return 0o755 if member.isdir() or member.mode & 0o100 else 0o644


def write_archive(archive: Path, layers: list[Path]) -> str:
    """Write the image of ``layers`` as an OCI image archive; returns its reference."""
    digests = [f"sha256:{file_digest(path)}" for path in layers]
    config = oci.image_config(digests, CONFIG)
    described = [
        oci.descriptor(oci.LAYER, digest, path.stat().st_size) for digest, path in zip(digests, layers, strict=True)
    ]
    manifest = oci.image_manifest(config, described)
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "oci-layout", oci.encode(oci.LAYOUT))
        _add(tar, "index.json", oci.index({NAME: manifest}))
        for data in (config, manifest):
            _add(tar, oci.blob_path(oci.digest_of(data)), data)
        for digest, path in zip(digests, layers, strict=True):
            with path.open("rb") as file:
                _add(tar, oci.blob_path(digest), file)
    return oci.reference(NAME, manifest)


def _add(tar: tarfile.TarFile, name: str, content: bytes | IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    info.size = file.seek(0, os.SEEK_END)
    file.seek(0)
    tar.addfile(info, file)
