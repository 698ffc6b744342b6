"""Attacks on what everybody needs: processes, memory, processors, descriptors, connections and disk. And what is left
of it for the others, measured meanwhile: D4.

An agent attacks by what it is told to do in its container, where its tools suffice; else by a program in its place.
"""

import time
from dataclasses import dataclass

from testinfra.host import Host

from harness.policy import Agent
from harness.probes.attempts import order, quote
from harness.probes.containers import main_pid
from harness.vm.machine import Machine
from harness.vm.shell import CommandTimeout


@dataclass(frozen=True)
class Health:
    """How long (seconds) others have waited, and the memory (bytes) that the host could still give.

    ``neighbour``: to start a process in the neighbour's container and write a file of its state; ``host``: the same on
    the host, and on its disk; ``network``: to be answered by the neighbour on its own wire.
    """

    neighbour: float
    host: float
    network: float
    available: int


def measure(machine: Machine, neighbour: Agent) -> Health:
    """Raises ``AssertionError`` when the neighbour or the host can do it no longer, or has not in minutes."""
    try:
        return _measure(machine, neighbour)
    except CommandTimeout as error:
        raise AssertionError(f"{neighbour.name}, the host or the network is served no longer: {error}") from error


def _measure(machine: Machine, neighbour: Agent) -> Health:
    started = time.monotonic()
    said = order(machine.host, neighbour, "echo alive > health && sync health && cat health")
    if said != "alive":
        raise AssertionError(f"{neighbour.name} can no longer start a process or write a file: {said!r}")
    ordered = time.monotonic()
    wrote = "head -c 1M /dev/zero > /root/health && sync /root/health && grep MemAvailable /proc/meminfo"
    available = machine.host.check_output(wrote).split()[1]
    written = time.monotonic()
    # Nothing listens there; who says so is the neighbour. (No ping: for the time of arrival the kernel changes its own
    # code while it runs, on which an emulated one has panicked under a flood.)
    connect = f"LC_ALL=C bash -c ': > /dev/tcp/{neighbour.network.ipv4.address}/9' 2>&1 | grep -o 'Connection refused'"
    machine.host.check_output(connect)
    return Health(ordered - started, written - ordered, time.monotonic() - written, int(available) << 10)


def background(script: str) -> str:
    """An order that leaves ``script`` running."""
    return f"setsid sh -c {quote(script)} < /dev/null > /dev/null 2>&1 &"


def order_when_full(host: Host, agent: Agent, script: str) -> str:
    """``order`` for an agent that has no space in its state directory, where the output of an order goes."""
    order(host, agent, f"exec > /tmp/said 2>&1\n{script}")
    return host.check_output("cat /proc/%s/root/tmp/said", str(main_pid(host, agent)))


# --- the attacks ------------------------------------------------------------------------------------------

# Processes without an end, and enough of them busy to take every processor; an isolated one has to be asked for. (Were
# all busy, there would be few.)
BOMB = """
mkfifo /tmp/never && exec 8<> /tmp/never
for processors in 1 2 f f; do taskset $processors sh -c 'while :; do :; done' & done
while :; do read -r word <&8 & done"""
# Temporary files until there is no space, in each of the two places.
FILL = "for place in /tmp /dev/shm; do dd if=/dev/zero of=$place/full bs=1M 2>&1 | grep -o 'No space left.*'; done"
# All memory that there is. The kernel clears the pages, which is quicker than to write them.
HOG = """\
    import mmap
    held = []
    while True:
        held.append(mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE))
    """
# Says how many of each there were, and by what error there were no more.
HANDLES = """\
    import ctypes, errno, itertools, json, os, signal
    libc = ctypes.CDLL(None, use_errno=True)

    def until_refused(what, results):
        found, reason = [], ""
        for result in results:
            if result < 0:
                reason = errno.errorcode[ctypes.get_errno()]
                break
            found.append(result)
        print(json.dumps([what, len(found), reason]), flush=True)
        return found

    def below(directory):
        for at, _, files in os.walk(directory):
            yield from (os.fsencode(f"{at}/{name}") for name in files)

    instance, *_ = until_refused("instances", (libc.inotify_init() for _ in range(MOST)))
    watched = itertools.islice((path for path in below("/usr") if os.access(path, os.R_OK)), MOST)
    until_refused("watches", (libc.inotify_add_watch(instance, path, 2) for path in watched))
    until_refused("descriptors", (libc.open(b"/dev/null", 0) for _ in range(MOST)))
    signal.pause()
    """
# Connections that are begun, to the targets in turn, and then datagrams without an end, with a pause (seconds) or none.
FLOOD = """\
    import itertools, json, socket, time
    addresses = [(TARGETS[number % len(TARGETS)], 1024 + number) for number in range(COUNT)]
    held = []
    for address in addresses:
        held.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        held[-1].connect_ex(address)
    print(json.dumps(len(held)), flush=True)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    for address in itertools.cycle(addresses):
        try:
            datagrams.sendto(b"x", address)
        except OSError:
            pass  # refused by the kernel, or its queue is full: on with the next
        if PAUSE:
            time.sleep(PAUSE)
    """
