#!/usr/bin/env python3
"""Tries what only root of a host may do, by system calls, and says what it could: ``did NAME``, a line each.

    escape.py

For containers and hosts that have Python and no tools. Each act is tried in a process of its own and undoes itself, so
that root, who can do all of them, is left as before: root is the control.
"""

import ctypes
import errno
import os
import socket
import stat
import struct
import tempfile
import traceback
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
MS_REMOUNT, MS_BIND = 32, 4096  # mount(2)
# Of namespaces(7): user first, for in it one would be root of all others.
NAMESPACES = (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000)
AT_FDCWD = -100
# System calls that libc has no function for, by their x86-64 numbers.
SYS_INIT_MODULE, SYS_ADD_KEY, SYS_PERF_EVENT_OPEN, SYS_BPF = 175, 248, 298, 321
USER_KEYRING = -4


def call(name: str, *arguments: object) -> int:
    """A function of libc; raises ``OSError`` where it fails."""
    return check(libc[name](*arguments))


def syscall(number: int, *arguments: object) -> int:
    return check(libc.syscall(number, *arguments))


def check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def open_for_writing(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


def mount() -> None:
    with tempfile.TemporaryDirectory() as place:
        call("mount", b"none", place.encode(), b"tmpfs", 0, None)
        call("umount2", place.encode(), 0)


def remount_root() -> None:
    call("mount", None, b"/", None, MS_REMOUNT | MS_BIND, None)


def mount_cgroups() -> None:
    """A hierarchy of the first version: the kernel runs its release agent as root of the host."""
    with tempfile.TemporaryDirectory() as place:
        call("mount", b"none", place.encode(), b"cgroup", 0, b"none,name=escape")
        try:
            open_for_writing(f"{place}/release_agent")
        finally:
            call("umount2", place.encode(), 0)


def make_namespace() -> None:
    refusals = []
    for kind in NAMESPACES:
        try:
            call("unshare", kind)
        except OSError as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]


def enter_namespace() -> None:
    call("setns", os.open("/proc/1/ns/uts", os.O_RDONLY), 0)


def become_root() -> None:
    os.setresuid(0, 0, 0)


def make_device() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.mknod(f"{place}/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def change_root() -> None:
    os.chroot("/")


def set_hostname() -> None:
    socket.sethostname(socket.gethostname())


def give_to_root() -> None:
    with tempfile.NamedTemporaryFile() as file:
        os.chown(file.name, 0, 1)


def read_kernel_memory() -> None:
    with open("/proc/kcore", "rb") as file:
        if not file.read(1):
            raise PermissionError(errno.EPERM, "there is nothing in it")


def load_module() -> None:
    """No module at all: who may load one is told that it makes no sense."""
    try:
        syscall(SYS_INIT_MODULE, b"", 0, b"")
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise


def open_by_handle() -> None:
    """A file without the directories above it: so a container's mount gives the whole file system."""
    place = os.environ.get("HERMES_HOME", "/etc").encode()
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 8 + 128)
    call("name_to_handle_at", AT_FDCWD, place, handle, ctypes.byref(ctypes.c_int()), 0)
    call("open_by_handle_at", os.open(place, os.O_RDONLY), handle, os.O_RDONLY)


def make_bpf_map() -> None:
    attributes = ctypes.create_string_buffer(struct.pack("5I", 2, 4, 8, 1, 0), 128)
    syscall(SYS_BPF, 0, attributes, 128)


def watch_processor() -> None:
    """What every process does on it."""
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 128, 0), 128)
    syscall(SYS_PERF_EVENT_OPEN, attributes, -1, 0, -1, 0)


def add_key() -> None:
    syscall(SYS_ADD_KEY, b"user", b"escape", b"x", 1, USER_KEYRING)


def send_raw() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


THE_END = "try everything"
ACTS: dict[str, Callable[[], None]] = {
    "mount a file system": mount,
    "make the root file system writable": remount_root,
    "mount cgroups with a release agent": mount_cgroups,
    "write to the cgroups": lambda: open_for_writing("/sys/fs/cgroup/cgroup.procs"),
    "make a namespace": make_namespace,
    "enter a namespace": enter_namespace,
    "become root": become_root,
    "make a device node": make_device,
    "change the root directory": change_root,
    "set the host name": set_hostname,
    "give a file to root": give_to_root,
    "set the core pattern": lambda: open_for_writing("/proc/sys/kernel/core_pattern"),
    "press the magic key": lambda: open_for_writing("/proc/sysrq-trigger"),
    "read the kernel's memory": read_kernel_memory,
    "load a kernel module": load_module,
    "open a file by its handle": open_by_handle,
    "make a BPF map": make_bpf_map,
    "watch a processor": watch_processor,
    "use a kernel keyring": add_key,
    "open a raw socket": send_raw,
}


def main() -> None:
    for name, act in ACTS.items():
        if child := os.fork():
            os.waitpid(child, 0)
            continue
        try:
            act()
            print("did", name, flush=True)
        except OSError as error:
            print(f"{name}: {error}", flush=True)
        except BaseException:  # noqa: BLE001 - a mistake of ours must be seen as one, and end this process too
            traceback.print_exc()
        os._exit(0)
    print("did", THE_END)


if __name__ == "__main__":
    main()
