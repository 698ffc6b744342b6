"""What is true of a running host, setting by setting: what two hosts of one plan are compared by."""

import json
from collections.abc import Mapping

from testinfra.host import Host

from harness.policy import Plan
from harness.probes.attempts import quote
from harness.probes.containers import main_pid
from harness.probes.deployment import DOCKER
from harness.probes.rules import rules_listing

UNITS = ("nftables.service", "docker.service", "tentaflake-guard.timer", "tentaflake-routing.service", "hermes.slice")
# Not what follows from a machine's memory (LimitNPROC, TasksMax), nor After and Wants, of which much is systemd's own.
PROPERTIES = """
    ActiveState AmbientCapabilities BindReadOnlyPaths CPUQuotaPerSecUSec CPUWeight CapabilityBoundingSet DynamicUser
    Group IPAddressAllow IPAddressDeny InaccessiblePaths KillMode LimitNOFILE LoadState MemoryDenyWriteExecute
    MemorySwapMax NoNewPrivileges OOMScoreAdjust PartOf PrivateDevices PrivateMounts PrivateNetwork PrivateTmp
    PrivateUsers ProcSubset ProtectHome ProtectProc ProtectSystem ReadWritePaths Requires Restart RestartUSec
    RestrictAddressFamilies RestrictNamespaces Slice SocketBindDeny StartLimitIntervalUSec TemporaryFileSystem Type
    UMask User
""".split()
# sysctl(8): what these begin with; of interfaces, the agents' and what holds for all.
SYSCTLS = """
    fs.inotify fs.protected fs.suid_dumpable kernel.core_pattern kernel.dmesg_restrict kernel.keys kernel.kptr_restrict
    kernel.perf_event_paranoid kernel.randomize_va_space kernel.sysrq kernel.unprivileged kernel.yama net.bridge
    net.ipv4.conf.all net.ipv4.conf.default net.ipv4.conf.h- net.ipv4.icmp net.ipv4.ip_forward net.ipv4.ip_unprivileged
    net.ipv4.ping_group_range net.ipv4.tcp_syncookies net.ipv6.conf.all net.ipv6.conf.default net.ipv6.conf.h-
    net.ipv6.icmp net.netfilter.nf_conntrack vm.mmap vm.overcommit vm.panic_on_oom vm.swappiness vm.unprivileged
""".split()
# Lines of a name, a tab and a value; a name that comes twice has both values.
SCRIPT = """
export LC_ALL=C
say() {{ sed "s/^/$1 /"; }}
cells() {{ busybox awk -F "$1" "$2"; }}
users='^hermes-(auditd|{agents}):'
getent passwd | grep -E "$users" | cells : '{{ print $1 "\t" $3, $4, $6 }}' | say user
getent passwd | grep -E "$users" | cells : '{{ print $1 "\t" $7 }}' | say shell
getent group | grep -E "$users" | cells : '{{ print $1 "\t" $3, $4 }}' | say group
getent shadow | grep -E "$users" | cells : '{{ print $1 "\t" substr($2, 1, 1) }}' | say password
stat -L --printf='%n\t%a %U %G %F\n' {paths} 2> /dev/null | say path
( {rules} ) | sort | sed 's/$/\tin force/' | say rule
ip -4 rule | sed 's/$/\tin force/' | say 'rule of routing'
ip -6 rule | sed 's/$/\tin force/' | say 'rule of routing'
ss -Hlntu | busybox awk '{{ sub(/:[3-6][0-9][0-9][0-9][0-9]$/, ":drawn", $5); print $1 " " $5 "\tlistens" }}' |
  sort -u | say socket
python3 -I -S -c {docker} | sed 's/ /\t/2' | say docker
for unit in {units}; do
  systemctl show --property={properties} $unit | sed 's/=/\t/' | say "unit $unit"
done
for pid in {pids}; do
  agent=$(id -nu $(stat -c %u /proc/$pid))
  sed 's/ - / /; s/ master:[0-9]*//' /proc/$pid/mountinfo |
    cells ' ' '{{ print $5 "\t" $6 " " $7 }}' | say "mount of $agent"
done
sysctl -a 2> /dev/null | grep -E '^({sysctls})' | sed 's/ = /\t/' | say sysctl
"""


def read_facts(host: Host, plan: Plan) -> Mapping[str, str]:
    """Everything by its name: users, paths, rules, sockets, what Docker says, units, mounts and sysctls."""
    agents = plan.agents.values()
    paths = [path for agent in agents for path in (agent.state_dir, agent.config.path)]
    paths += [f"/run/agenix/{name}" for name in plan.secrets] + ["/run/agenix.d", "/etc/hermes"]
    units = [*UNITS, *(f"{agent.service.name}.service" for agent in agents), *plan.speech.units, *plan.audit.units]
    words = {
        "agents": "|".join(plan.agents),
        "paths": " ".join(map(quote, paths)),
        "rules": rules_listing(),
        "docker": quote(DOCKER),
        "units": " ".join(units),
        "properties": ",".join(PROPERTIES),
        "pids": " ".join(str(main_pid(host, agent)) for agent in agents),
        "sysctls": "|".join(name.replace(".", r"\.") for name in SYSCTLS),
    }
    found: dict[str, list[str]] = {}
    for line in host.check_output("sh -c %s", SCRIPT.format(**words)).splitlines():
        name, _, value = line.partition("\t")
        if name.startswith("rule {"):
            name = f"rule {sort_elements(name.removeprefix('rule '))}"
        # Of a unit's lists systemd keeps no order.
        value = " ".join(sorted(value.split())) if name.startswith("unit ") else value.strip()
        found.setdefault(name.strip(), []).append(value)
    return {name: " | ".join(sorted(values)) for name, values in found.items()}


def sort_elements(rule: str) -> str:
    """A line of the listing of rules, with the elements of a set in order: nft(8) has them in none."""
    read = json.loads(rule)
    if "elem" in read.get("set", {}):
        read["set"]["elem"].sort(key=lambda element: json.dumps(element, sort_keys=True))
    return json.dumps(read, sort_keys=True)


def compare_facts(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What the two do not have alike, by its name; an empty text is nothing at all."""
    names = one.keys() | other.keys()
    return {name: pair for name in sorted(names) if (pair := (one.get(name, ""), other.get(name, "")))[0] != pair[1]}
