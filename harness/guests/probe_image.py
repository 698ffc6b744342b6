"""The probe image: a container image that holds a static busybox and nothing of the distribution.

Made without a container engine, byte for byte the same from the same busybox, so that its digest is
known before any engine has seen it. Format: OCI image layout (image-spec v1.1), one layer.
"""

import io
import tarfile
from dataclasses import dataclass

from harness.guests import oci

# .invalid never resolves (RFC 2606): these cannot be pulled by mistake.
PROBE, DECOY = "tentaflake.invalid/probe", "tentaflake.invalid/decoy"

AGENT = """#!/bin/sh
# Stands in for an agent: lives in its state directory, notes each start and each signal, and does what
# it is told. An order is a script NAME.sh in .probe/; NAME is written to the fifo `orders`, its output
# goes to NAME.out, and NAME comes back through the fifo `done`. (No engine is in the way: a `docker exec`
# costs a second under emulation, an order 20 ms, and it runs as what a hijacked agent is: the agent.)
cd "$HERMES_HOME" && umask 077 || exit 1
echo started >> starts
trap 'echo USR1 >> signals' USR1
trap 'exit 0' TERM INT
mkdir -p .probe
[ -p .probe/orders ] || mkfifo .probe/orders
[ -p .probe/done ] || mkfifo .probe/done
exec 8<> .probe/orders 9> held
while :; do
  read -r order <&8 || continue
  ( sh ".probe/$order.sh" > ".probe/$order.out" 2>&1 8<&-; echo "$order" > .probe/done ) &
done
"""


@dataclass(frozen=True)
class Images:
    """An archive of images and the references that pin them (``name@sha256:<manifest digest>``).

    ``decoy`` is as ``probe`` but another image: what an attacker would like an agent to run instead.
    """

    archive: bytes
    probe: str
    decoy: str


def _tar(files: dict[str, tuple[int, bytes | str | None]]) -> bytes:
    """A deterministic tar: name to (mode, content); a ``str`` is a symlink, ``None`` a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, (mode, content) in files.items():
            info = tarfile.TarInfo(name)
            info.mode = mode
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif isinstance(content, str):
                info.type = tarfile.SYMTYPE
                info.linkname = content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def build(busybox: bytes, applets: list[str]) -> Images:
    """The images around a static ``busybox`` binary, with a link for each of its ``applets``."""
    files: dict[str, tuple[int, bytes | str | None]] = {
        directory: (0o1777 if directory == "tmp" else 0o755, None)
        for directory in (
            "bin",
            "dev",
            "etc",
            "home",
            "proc",
            "root",
            "run",
            "suid",
            "sys",
            "tmp",
            "usr",
            "var",
            "var/lib",
        )
    }
    files["bin/busybox"] = (0o755, busybox)
    for applet in sorted(set(applets) - {"busybox"}):
        files[f"bin/{applet}"] = (0o777, "busybox")
    files["bin/agent"] = (0o755, AGENT.encode())
    # A trap: set-uid root, as a careless image has them. No agent may become root by it (claim C1).
    files["suid/busybox"] = (0o4755, busybox)
    files["etc/passwd"] = (0o644, b"root:x:0:0:root:/root:/bin/sh\n")
    files["etc/group"] = (0o644, b"root:x:0:\n")
    layer = _tar(files)
    layout: dict[str, tuple[int, bytes | str | None]] = {
        "oci-layout": (0o644, oci.encode(oci.LAYOUT)),
        oci.blob_path(oci.digest_of(layer)): (0o644, layer),
    }
    manifests = {}
    for name in (PROBE, DECOY):
        started = {"Env": ["PATH=/bin"], "Cmd": ["/bin/agent"], "Labels": {"name": name}}
        config = oci.image_config([oci.digest_of(layer)], started)
        manifests[name] = manifest = oci.image_manifest(config, [oci.describe(oci.LAYER, layer)])
        for data in (config, manifest):
            layout[oci.blob_path(oci.digest_of(data))] = (0o644, data)
    layout["index.json"] = (0o644, oci.index(manifests))
    return Images(_tar(layout), *(oci.reference(name, manifest) for name, manifest in manifests.items()))
