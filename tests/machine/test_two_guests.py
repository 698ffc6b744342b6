"""One plan on a running Debian and on a running NixOS: what they do not have alike is listed, each with its reason."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from harness.guests.bootstrap import STABLE
from harness.lab import Lab
from harness.plugin import lab_of
from harness.policy import Plan, reference_plan
from harness.probes.facts import compare_facts, read_facts

pytestmark = pytest.mark.nixos
AGENTS = {
    "coding": ["/run/secrets/search-token", "/run/environment/MODEL_API_KEY"],
    "research": ["/run/secrets/search-token", "/run/secrets/research-model-key"],
    "writer": ["/run/secrets/writer-model-key"],
}
"""The agents of the reference host, with what is mounted of their secrets."""
LINKS = ("all", "default", "h-coding", "h-research", "h-writer")

DOCKER = "Docker of another version (26.1 and 28.5)"
KERNEL = "another kernel (6.12 and 7.2)"
SYSTEMD = "NixOS sets it for every host"


def expect() -> dict[str, str]:
    """Why each of them differs, by its name."""
    found = {
        "path /run/agenix.d": "agenix gives the directory to its group keys; it may be searched, and not listed",
        "user hermes-auditd": "a system user: each host draws its uid, and has another home for those who have none",
        "unit nftables.service Requires": "NixOS keeps what is to be deleted next in a directory of the unit's own",
        "socket tcp 127.0.0.1:drawn": "containerd as a service of its own serves streams there, Docker's own does not",
        "sysctl fs.inotify.max_user_instances": SYSTEMD,
        "sysctl fs.inotify.max_user_watches": SYSTEMD,
        "sysctl kernel.kptr_restrict": SYSTEMD,
        "sysctl net.ipv4.ping_group_range": "systemd's default, which Debian has in linux-sysctl-defaults",
        "sysctl vm.mmap_rnd_bits": KERNEL,
        "sysctl vm.mmap_rnd_compat_bits": KERNEL,
        "sysctl net.ipv4.icmp_errors_extension_mask": KERNEL,
        "sysctl net.ipv4.icmp_msgs_burst": KERNEL,
        "sysctl net.ipv4.icmp_msgs_per_sec": KERNEL,
        "sysctl net.ipv6.icmp.errors_extension_mask": KERNEL,
        "sysctl net.ipv6.icmp.ratelimit": KERNEL,
        "sysctl net.ipv6.conf.default.use_tempaddr": SYSTEMD,
        "sysctl net.netfilter.nf_conntrack_dccp_loose": KERNEL,
    }
    states = "closereq closing open partopen request respond timewait".split()
    found |= {f"sysctl net.netfilter.nf_conntrack_dccp_timeout_{state}": KERNEL for state in states}
    for link in LINKS:
        found |= {f"sysctl net.ipv6.conf.{link}.{name}": KERNEL for name in ("force_forwarding", "temp_valid_lft")}
    for user in ("auditd", *AGENTS):
        found[f"shell hermes-{user}"] = "nologin is elsewhere"
    for agent, secrets in AGENTS.items():
        unit, container = f"unit docker-hermes-{agent}.service", f"docker container/hermes-{agent}"
        found |= {
            f"{unit} Requires": "the Debian guest has its generation put in force at boot by a unit",
            f"{unit} Type": "oci-containers' units are simple: systemd does not wait until docker has been executed",
            f"{container} Image": "the probe image has the guest's busybox",
            f"{container} MaskedPaths": DOCKER,
            f"docker network hermes-{agent}": "the label has the same words, which Nix quotes in another way",
            f"sysctl net.ipv6.conf.h-{agent}.use_tempaddr": SYSTEMD,
        }
        masked = ("/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")
        found |= {f"mount of hermes-{agent} {path}": DOCKER for path in masked}
        found |= {f"mount of hermes-{agent} {path}": "agenix mounts its ramfs nosuid and nodev" for path in secrets}
    return found


@pytest.fixture(scope="module")
def pair(pytestconfig: pytest.Config) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """What is true of the reference host on the Debian guest, and on NixOS."""
    settings = lab_of(pytestconfig).settings
    own = replace(settings, suite=STABLE.name, kernel=None, initrd=None)
    labs = [Lab(replace(own, guest=guest)) for guest in ("debian", "nixos")]
    for lab in labs:
        if reason := lab.guest.obstacle():
            pytest.skip(f"there is no {lab.guest.name} guest here: {reason}")
    one, other = (facts_of(lab, lab.adapt(reference_plan())) for lab in labs)
    return one, other


def facts_of(lab: Lab, plan: Plan) -> Mapping[str, str]:
    with lab.machine(plan) as machine:
        return read_facts(machine.host, plan)


def test_a_plan_comes_to_the_same_host_on_both_but_for_what_is_listed(
    pair: tuple[Mapping[str, str], Mapping[str, str]],
) -> None:
    debian, nixos = pair
    assert min(len(debian), len(nixos)) > 1000  # the control: there is something to compare
    assert compare_facts(debian, debian) == {}
    found, listed = compare_facts(debian, nixos), expect()
    assert {name: each for name, each in found.items() if name not in listed} == {}
    assert sorted(listed.keys() - found.keys()) == [], "these do not differ any more"
