"""A host from power-on to its agents, with a table that comes late or broken; and what agents send meanwhile: F6."""

import re
from collections.abc import Callable

import msgspec
from testinfra.host import Host

from harness.policy import Agent, Plan
from harness.probes.attempts import quote
from harness.probes.containers import main_pid
from harness.probes.crashes import who_runs
from harness.probes.programs import wait_until
from harness.vm.machine import Machine

BOOT_TIMEOUT = 600.0
"""Seconds; a boot takes 40 under TCG."""
# The unit that loads the table waits for a word, and fails.
HOLD = """\
[Service]
ExecStartPre=/bin/sh -c 'mkfifo /run/hold && read -r word < /run/hold; exit 1'
"""
HOLD_PATH = "/etc/systemd/system.control/nftables.service.d/hold.conf"
"""Where systemd looks for an administrator's changes, and which, unlike /etc/systemd/system, NixOS lets be changed."""
# Before rules are removed by hand. Its timer alone is not enough: a guard that has just started loads them again.
STOP_GUARD = "systemctl stop tentaflake-guard.timer tentaflake-guard.service"
# `nft flush ruleset`, but for chains without a rule: with a hook's last chain the kernel changes its own code under the
# packets that come by, on which an emulated one has panicked.
REMOVE_TABLES = """nft 'table inet empty {
  chain a { type filter hook prerouting priority 0; }; chain b { type filter hook input priority 0; }
  chain c { type filter hook forward priority 0; }; chain d { type filter hook output priority 0; }
  chain e { type filter hook postrouting priority 0; }
}' && nft list tables | grep -v 'inet empty' | sed 's/^/delete /' | nft -f -"""
MEND = f"""
set -e
rm {HOLD_PATH}
systemctl daemon-reload
systemctl start nftables.service
# NixOS has no target of the agents' own. Of what a target wants that is up already, systemd 262 starts nothing.
systemctl start multi-user.target $(systemctl list-units --plain --no-legend tentaflake.target | cut -d ' ' -f 1)"""


class Boot(msgspec.Struct, frozen=True):
    """Who ran at each point of a boot (``crashes.who_runs``; an empty text is nobody).

    ``held``: all has started that does not wait for the table. ``failed``: it could not be loaded. ``mended``: it
    could, and the agents were asked for once more. ``started`` are the agents' units that had started though it had
    failed: whoever starts has no process at first.
    """

    held: dict[str, str]
    failed: dict[str, str]
    started: list[str]
    mended: dict[str, str]


def boot_in_steps(machine: Machine, plan: Plan, ready: Callable[[], None]) -> Boot:
    """Power the machine off and on; the table is held back at first, and then its unit fails."""
    host, agents = machine.host, plan.agents
    machine.run("mkdir -p " + HOLD_PATH.rpartition("/")[0]).check()
    machine.put(HOLD.encode(), HOLD_PATH)
    machine.run("sync").check()
    machine.power_cycle(BOOT_TIMEOUT)
    wait_until("a boot up to the table", lambda: started_now(host) == {"nftables.service"}, timeout=BOOT_TIMEOUT)
    held = who_runs(host, agents)
    machine.run("echo on > /run/hold").check()
    wait_until("a boot without the table", lambda: not list_jobs(host), timeout=BOOT_TIMEOUT)
    failed = who_runs(host, agents)
    units = " ".join(f"{agent.service.name}.service" for agent in agents.values())
    listed = host.check_output(f"systemctl list-units --plain --no-legend --state=active,activating {units}")
    machine.run(MEND, timeout=BOOT_TIMEOUT).check()
    ready()
    return Boot(held, failed, [line.split()[0] for line in listed.splitlines()], who_runs(host, agents))


def find_table(host: Host) -> str:
    """The file that the host's firewall is loaded from, by what nftables.service runs at its start."""
    commands = host.check_output("systemctl show --property=ExecStart --value nftables.service")
    [table] = set(re.findall(r"/\S*nftables(?:\.nft|-rules)(?= )", commands))
    return str(table)


def list_jobs(host: Host) -> dict[str, str]:
    """The units that systemd has something to do with, and whether it is ``running`` or only ``waiting``."""
    jobs = [line.split() for line in host.check_output("systemctl list-jobs --no-legend --plain").splitlines()]
    return {job[1]: job[3] for job in jobs if job[0].isdecimal()}


def started_now(host: Host) -> set[str]:
    return {unit for unit, state in list_jobs(host).items() if state == "running"}


# Datagrams without an end; says now and then how many of each family.
SENDER = """\
    import itertools, json, socket
    sockets = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
    for number in itertools.count(1):
        for sender, address in zip(sockets, TARGET):
            try:
                sender.sendto(b"x", (address, 4000))
            except OSError:
                pass  # refused, which is as well
        if number % 100 == 0:
            print(json.dumps(number), flush=True)
    """
# Says how many have come so far, of each family, when one has come.
RECEIVER = """\
    import json, select, socket
    came = [0, 0]
    sockets = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
    for receiver, address in zip(sockets, TARGET):
        receiver.bind((address, 4000))
    print(json.dumps(came), flush=True)
    while True:
        for receiver in select.select(sockets, [], [])[0]:
            receiver.recv(1)
            came[sockets.index(receiver)] += 1
        if sum(came) < 10 or sum(came) % 100 == 0:
            print(json.dumps(came), flush=True)
    """
# Speaks over one connection for as long as it is answered within its patience (seconds).
SPEAKER = """\
    import json, socket, time
    connection = socket.create_connection(TARGET, 10)
    while True:
        connection.settimeout(PATIENCE)
        try:
            connection.sendall(b"x")
            answered = connection.recv(1000) != b""
        except OSError:
            answered = False
        print(json.dumps(answered), flush=True)
        if not answered:
            break
        time.sleep(0.05)
    """


def give_routes(host: Host, agent: Agent) -> None:
    """A network without a way out has no route to one. Its agent could not set it, but we try harder than it can."""
    routes = [f"ip route replace default via {family.gateway}" for family in (agent.network.ipv4, agent.network.ipv6)]
    host.check_output(f"nsenter --target {main_pid(host, agent)} --net sh -ec {quote('; '.join(routes))}")
