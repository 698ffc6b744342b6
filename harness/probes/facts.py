"""What is true of a running host, setting by setting: what two hosts of one plan are compared by."""

from collections.abc import Mapping

from testinfra.host import Host

from harness.policy import Plan
from harness.probes.attempts import quote
from harness.probes.containers import main_pid
from harness.probes.deployment import DOCKER
from harness.probes.rules import rules_listing

UNITS = ("nftables.service", "docker.service", "tentaflake-guard.timer", "tentaflake-routing.service", "hermes.slice")
PROPERTIES = """
    Type Restart RestartUSec StartLimitIntervalUSec Requires PartOf User Group DynamicUser UMask NoNewPrivileges
    CapabilityBoundingSet AmbientCapabilities ProtectSystem ProtectHome PrivateDevices PrivateNetwork PrivateUsers
    PrivateTmp PrivateMounts ProtectProc ProcSubset RestrictAddressFamilies RestrictNamespaces MemoryDenyWriteExecute
    LimitNOFILE LimitNPROC MemoryMax MemorySwapMax TasksMax CPUQuotaPerSecUSec CPUWeight OOMScoreAdjust ReadWritePaths
    InaccessiblePaths BindReadOnlyPaths TemporaryFileSystem IPAddressAllow IPAddressDeny SocketBindDeny Slice KillMode
    TimersMonotonic LoadState ActiveState
""".split()
SYSCTLS = "fs kernel net.core net.ipv4 net.ipv6 net.netfilter user vm"
# Lines of a name, a tab and a value; a name that comes twice has both values.
SCRIPT = """
export LC_ALL=C
say() {{ sed "s/^/$1 /"; }}
getent passwd | grep ^hermes- | awk -F: '{{ print $1 "\\t" $3, $4, $6 }}' | say user
getent passwd | grep ^hermes- | awk -F: '{{ print $1 "\\t" $7 }}' | say shell
getent group | grep ^hermes- | awk -F: '{{ print $1 "\\t" $3, $4 }}' | say group
getent shadow | grep ^hermes- | awk -F: '{{ print $1 "\\t" substr($2, 1, 1) }}' | say password
stat -L --printf='%n\\t%a %U %G %F\\n' {paths} 2> /dev/null | say path
( {rules} ) | sort | sed 's/$/\\tin force/' | say rule
ip -4 rule | sed 's/$/\\tin force/' | say 'rule of routing'
ip -6 rule | sed 's/$/\\tin force/' | say 'rule of routing'
ss -Hlntu | awk '{{ print $1 " " $5 "\\tlistens" }}' | sort -u | say socket
python3 -I -S -c {docker} | sed 's/ /\\t/2' | say docker
for unit in {units}; do
  systemctl show --property={properties} $unit | sed 's/=/\\t/' | say "unit $unit"
done
for pid in {pids}; do
  awk -v pid=$pid '{{ sub(/.* - /, "", $0) }} 1' /proc/$pid/mountinfo > /dev/null
  agent=$(id -nu $(stat -c %u /proc/$pid))
  sed 's/ - / /' /proc/$pid/mountinfo | awk '{{ print $5 "\\t" $6 " " ($7 ~ /:/ ? $8 : $7) }}' | say "mount of $agent"
done
for name in {sysctls}; do sysctl -e "$name" 2> /dev/null; done | sed 's/ = /\\t/' | say sysctl
"""


def read_facts(host: Host, plan: Plan) -> Mapping[str, str]:
    """Everything by its name: users, paths, rules, sockets, what Docker says, units, mounts and sysctls."""
    paths = [agent.state_dir for agent in plan.agents.values()]
    paths += [agent.config.path for agent in plan.agents.values()]
    paths += [f"/run/agenix/{name}" for name in plan.secrets] + ["/run/agenix.d", "/etc/hermes"]
    units = [*UNITS, *(f"{agent.service.name}.service" for agent in plan.agents.values())]
    units += [*plan.speech.units, *plan.audit.units]
    words = {
        "paths": " ".join(map(quote, paths)),
        "rules": rules_listing(),
        "docker": quote(DOCKER),
        "units": " ".join(units),
        "properties": ",".join(PROPERTIES),
        "pids": " ".join(str(main_pid(host, agent)) for agent in plan.agents.values()),
        "sysctls": SYSCTLS,
    }
    found: dict[str, list[str]] = {}
    for line in host.check_output("sh -c %s", SCRIPT.format(**words)).splitlines():
        name, _, value = line.partition("\t")
        found.setdefault(name.strip(), []).append(value.strip())
    return {name: " | ".join(sorted(values)) for name, values in found.items()}


def compare_facts(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What the two do not have alike, by its name; an empty text is nothing at all."""
    names = one.keys() | other.keys()
    return {name: pair for name in sorted(names) if (pair := (one.get(name, ""), other.get(name, "")))[0] != pair[1]}
