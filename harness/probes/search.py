"""A search for values that may not be there: on a machine's disk, in its memory, and in all that its users can see.

Each value is looked for as it is, in base64 (at all three alignments) and in hexadecimal. The disk is read from the
outside, block for block, deleted files and all; what is not on it (/proc, the journal's text, what Docker and systemd
tell) is read in the machine.
"""

import base64
import json
import mmap
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.policy import Plan
from harness.probes.attempts import quote
from harness.vm.machine import Machine

PAGE = 4096


def forms(value: bytes) -> list[bytes]:
    """The ways to write a value that a search knows: whole, or all of it that does not depend on what stands around."""
    found = [value, value.hex().encode(), value.hex().upper().encode()]
    for shift in range(3):
        length = (shift + len(value)) // 3 * 3
        text = base64.b64encode((bytes(shift) + value)[:length])[(shift * 8 + 5) // 6 :]
        found += [text, base64.urlsafe_b64encode(base64.b64decode(b"A" * (-len(text) % 4) + text))[-len(text) :]]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, order=True)
class Hit:
    """A value, by its name, was found in ``place``: a file, or a kind of place and what is there."""

    value: str
    place: str
    offset: int = 0


Values = Mapping[str, bytes]
"""What is looked for, by a name that a message may show."""


# ---- from the outside


def search_ranges(data: mmap.mmap | bytes, ranges: Iterable[tuple[int, int]], place: str, values: Values) -> list[Hit]:
    """Where in these ranges (start, end) any of the values begins."""
    needles = [(name, form) for name, value in values.items() for form in forms(value)]
    hits = []
    for start, end in ranges:
        for name, form in needles:
            at = data.find(form, start, end)
            while at >= 0:
                hits.append(Hit(name, place, at))
                at = data.find(form, at + 1, end)
    return sorted(set(hits))


def written_ranges(file: int) -> Iterator[tuple[int, int]]:
    """The parts of a sparse file that were written."""
    at, size = 0, os.fstat(file).st_size
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing more
            return
        end = os.lseek(file, at, os.SEEK_HOLE)
        yield at, end
        at = end


def search_file(path: Path, values: Values) -> list[Hit]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        return search_ranges(data, list(written_ranges(file.fileno())), str(path), values)


@contextmanager
def stopped(machine: Machine) -> Iterator[None]:
    """For the duration the machine stands still, and all that it has written is on its disk."""
    machine.run("sync").check()
    machine.pause()
    try:
        yield
    finally:
        machine.resume()


def disk_files(machine: Machine) -> list[Path]:
    """The files that the machine's disk is made of: its overlay, and what that stands on. None is compressed."""
    overlay = machine.process.directory / "overlay.qcow2"
    command = ["qemu-img", "info", "--force-share", "--backing-chain", "--output=json", str(overlay)]
    chain = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [Path(image["filename"]) for image in chain]


def search_disk(machine: Machine, values: Values) -> list[Hit]:
    """All that was ever written to the machine's disk, deleted or not."""
    with stopped(machine):
        return [hit for path in disk_files(machine) for hit in search_file(path, values)]


def search_memory(machine: Machine, values: Values) -> dict[int, list[str]]:
    """The pages of the machine's memory, by number, and the values that begin in each.

    QEMU maps the memory of a fork privately, so it is read from the process.
    """
    pid = machine.process.popen.pid
    found: dict[int, list[str]] = {}
    with stopped(machine), open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for begin, end, offset in _memory_mappings(pid):
            os.lseek(memory.fileno(), begin, os.SEEK_SET)
            for at in range(0, end - begin, 64 << 20):
                data = os.pread(memory.fileno(), min((64 << 20) + PAGE, end - begin - at), begin + at)
                for hit in search_ranges(data, [(0, len(data))], "memory", values):
                    found.setdefault(frame(offset + at + hit.offset, end - begin), []).append(hit.value)
    return found


def _memory_mappings(pid: int) -> list[tuple[int, int, int]]:
    """Where QEMU has the machine's memory: begin, end, offset in it."""
    mappings = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, _, offset, _, _, *path = line.split(maxsplit=5)
        if path and path[0].endswith("/ram"):
            begin, end = (int(text, 16) for text in addresses.split("-"))
            mappings.append((begin, end, int(offset, 16)))
    return mappings


def frame(offset: int, size: int) -> int:
    """The number of the page at this offset in the memory of a q35 machine, which leaves a hole below 4 GiB."""
    low = 2 << 30 if size >= 0xB0000000 else 0xB0000000
    return (offset if offset < low else offset - low + (4 << 30)) // PAGE


OWNERS = f"""
import json, os, struct, sys
wanted, owners = set(json.load(sys.stdin)), {{}}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        uid = os.stat(f"/proc/{{pid}}").st_uid
        areas = [line.split()[0].split("-") for line in open(f"/proc/{{pid}}/maps") if "vsyscall" not in line]
        with open(f"/proc/{{pid}}/pagemap", "rb", buffering=0) as pagemap:
            for begin, end in ((int(a, 16) // {PAGE}, int(b, 16) // {PAGE}) for a, b in areas):
                pagemap.seek(begin * 8)
                data = pagemap.read((end - begin) * 8)
                for (entry,) in struct.iter_unpack("<Q", data[: len(data) // 8 * 8]):
                    if entry >> 63 and entry & (1 << 55) - 1 in wanted:
                        owners.setdefault(entry & (1 << 55) - 1, set()).add(uid)
    except (FileNotFoundError, ProcessLookupError):
        continue
print(json.dumps({{number: sorted(uids) for number, uids in owners.items()}}))
"""


def page_owners(machine: Machine, pages: Iterable[int]) -> dict[int, list[int]]:
    """The uids of the processes that have each of these pages mapped, if any has (proc_pid_pagemap(5))."""
    done = machine.run(["python3", "-I", "-S", "-c", OWNERS], stdin=json.dumps(sorted(pages)).encode(), timeout=300)
    return {int(number): uids for number, uids in json.loads(done.check().stdout).items()}


# ---- in the machine

# What a script can use: `seek PLACE` reads standard input, `seek_files PLACE` the files that are named there, one a
# line. What is sought is in a file system of root's own and on no command line; a user who seeks is handed it open.
# Files come in one command line of at most 1.9 MB, so that all of it is read by the one who has the needles.
PROLOGUE = """
set -u; umask 077; export LC_ALL=C
store=$(mktemp -d) && mount -t tmpfs -o mode=700 none "$store" || exit 1
trap 'umount "$store"; rmdir "$store"' EXIT
cat > "$store/needles"
tell() { sed "s|^|$1\\t|"; }
seek() { grep -aoFf "$store/needles" | tell "$1"; }
seek_files() { cat > "$store/list"; $many grep -saoHFf - < "$store/needles" | tell "$1"; }
many="xargs -a $store/list -r -x -s 1900000"
"""
PROC_FILES = "cmdline comm environ stat status maps mountinfo cgroup limits io sched wchan auxv syscall stack".split()
PLACES = {
    "file": """
{ find / -xdev -type f -cnewer /etc/machine-id; find /run /dev/shm /tmp -xdev -type f; } 2> /dev/null | sort -u |
  tr '\\n' '\\0' | xargs -0 -r grep -aoHFf "$store/needles" | tell file""",
    # Containers' output too: it is Docker's log driver.
    "journal": """
journalctl --output=export --all --no-pager | seek journal
journalctl --output=short --all --no-pager | seek journal""",
    "unit": """
systemctl show '*' --all --no-pager | seek unit
systemctl cat '*' --no-pager 2> /dev/null | seek unit""",
    "docker": """
for listing in "container ls -a" "image ls -a" "network ls" "volume ls"; do
  kind=${listing%% *} ids=$(docker $listing -q) && [ -z "$ids" ] || docker $kind inspect $ids | seek "docker $kind"
done""",
    "process": """
ls /proc/[0-9]*/cmdline /proc/[0-9]*/comm 2> /dev/null | seek_files process""",
}


def search_places(machine: Machine, kind: str, values: Values) -> list[Hit]:
    """In places of a kind, as root: files new since the machine's first boot (with /run and its like), the journal,
    units, Docker's answers, or the command lines of processes."""
    return _seek(machine, PLACES[kind], values)


def search_proc(machine: Machine, user: int, values: Values) -> list[Hit]:
    """All that this uid can read in /proc about any process."""
    names = " ".join(PROC_FILES)
    script = f"""
    for p in /proc/[0-9]*; do for name in {names}; do echo $p/$name; done; done > "$store/list"
    ls /proc/[0-9]*/task/*/comm 2> /dev/null >> "$store/list"
    $many setpriv --reuid={user} --regid={user} --clear-groups grep -saoHFf - < "$store/needles" | tell "proc as {user}"
    """
    return _seek(machine, script, values)


def _seek(machine: Machine, script: str, values: Values) -> list[Hit]:
    names = {form: name for name, value in values.items() for form in forms(value)}
    needles = b"\n".join(names) + b"\n"
    done = machine.run(f"sh -c {quote(PROLOGUE + script)}", stdin=needles, timeout=300).check()
    hits = set()
    for line in done.stdout.splitlines():
        place, _, found = line.partition(b"\t")
        path, _, form = found.rpartition(b":")
        text = place.decode() + (f" {path.decode(errors='replace')}" if path else "")
        hits.add(Hit(names[form], text))
    return sorted(hits)


def search_plan(plan: Plan, values: Values) -> list[Hit]:
    """In the plan, as it is sent to a host."""
    data = plan.to_json().encode()
    return search_ranges(data, [(0, len(data))], "plan", values)


def shown(hits: Sequence[Hit]) -> str:
    """Hits for a message: the first of them."""
    return "\n  ".join(f"{hit.value} in {hit.place} at {hit.offset}" for hit in hits[:20])
