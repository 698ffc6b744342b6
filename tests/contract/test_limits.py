"""D4: an agent that takes all it can get takes nothing that a neighbour or the host needs."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pytest

from harness.contract import ControlFailed
from harness.lab import Lab
from harness.plugin import track_machine
from harness.policy import Agent, Plan, reference_plan
from harness.probes import exhaustion
from harness.probes.attempts import Attacker, order, quote
from harness.probes.containers import main_pid
from harness.probes.exhaustion import Health, background, measure, order_when_full
from harness.probes.programs import Answers, cgroup, counters, start_inside, wait_until
from harness.probes.ways import find_ways
from harness.vm.machine import Machine

claim = pytest.mark.claim
recorded = pytest.mark.recorded

WORSE = 100
"""How many times longer the others may wait in an attack than before it, in the same guest: they share its processors
with all attackers. An attack that no limit stops makes it a thousand times, or for ever."""
RESERVE = 64 << 20
"""Bytes of memory that the host has left whatever the agents do."""
MOST_CONNECTIONS = 1024


AT_LEAST = 0.1
"""Seconds that each is held to have taken before the attack: what takes less is a moment's chance."""


def measure_calm(machine: Machine, neighbour: Agent) -> Health:
    """How long the others wait when nobody attacks: the control. The first time is a fork's, which is slow at first."""
    try:
        measure(machine, neighbour)
        return measure(machine, neighbour)
    except AssertionError as error:
        raise ControlFailed(f"without an attack: {error}") from error


def check_health(health: Health, calm: Health) -> None:
    """Each is held against itself before the attack."""
    for name in ("neighbour", "host", "network"):
        most = WORSE * max(getattr(calm, name), AT_LEAST)
        assert getattr(health, name) < most, f"{name} was served after {health}; before the attack: {calm}"
    assert health.available > RESERVE


@pytest.fixture
def neighbour(agents: Mapping[str, Agent]) -> Agent:
    """Who needs what the others take."""
    return list(agents.values())[-1]


@pytest.fixture
def attackers(agents: Mapping[str, Agent]) -> list[Agent]:
    """All others, at once."""
    if len(agents) < 2:
        raise ControlFailed("there is nobody to attack: the host has one agent only")
    return list(agents.values())[:-1]


def has_happened(machine: Machine, place: str, file: str, event: str) -> bool:
    return counters(machine, place, file)[event] > 0


def has_printed(answers: Answers, lines: int) -> bool:
    return len(answers()) >= lines


def count_tasks(machine: Machine) -> int:
    return int(machine.host.check_output("cut -d / -f 2 /proc/loadavg").split()[0])


@claim("D4")
def test_the_kernel_holds_every_agent_to_its_limits(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    """Its cgroup's own, and that of all agents; the control is a service of the host that has none."""
    files = ("pids.max", "memory.max", "cpu.max")

    def limits(directory: str) -> list[str]:
        return shared_machine.host.check_output(f"cd {quote(directory)} && cat {' '.join(files)}").splitlines()

    assert limits("/sys/fs/cgroup/system.slice/systemd-journald.service")[1:] == ["max", "max 100000"]
    for agent in agents.values():
        pids, memory, cpu = limits(cgroup(shared_machine, agent))
        assert (pids, memory) == (str(agent.limits.pids), str(agent.limits.memory)), agent.name
        quota, period = cpu.split()
        assert quota != "max" and int(quota) / int(period) == pytest.approx(agent.limits.cpus), agent.name
    memory_of_all, whole = shared_machine.host.check_output(
        "cat /sys/fs/cgroup/hermes.slice/memory.max; awk '/^MemTotal/ { print $2 * 1024 }' /proc/meminfo"
    ).split()
    assert memory_of_all != "max" and int(memory_of_all) <= 0.76 * int(whole)


@claim("D4")
def test_an_agent_goes_before_the_host_when_memory_runs_out(
    shared_machine: Machine, agents: Mapping[str, Agent]
) -> None:
    """The kernel takes its processes first; the control is one of the host's."""

    def score(pid: str) -> int:
        return int(shared_machine.host.check_output(f"cat /proc/{pid}/oom_score_adj"))

    assert score("1") == 0
    assert [name for name, agent in agents.items() if score(str(main_pid(shared_machine.host, agent))) < 500] == []


@claim("D4")
def test_no_agent_may_swap(machine: Machine, lab: Lab, agents: Mapping[str, Agent]) -> None:
    """Nor once systemd has set its limits again, as it does for all when it was reloaded and one of them restarts."""

    def allowed(directory: str) -> list[str]:
        """Of a cgroup and those that it is in."""
        place = directory.removeprefix("/sys/fs/cgroup/").split("/")
        files = [f"/sys/fs/cgroup/{'/'.join(place[:depth])}/memory.swap.max" for depth in range(1, len(place) + 1)]
        return machine.host.check_output("cat " + " ".join(map(quote, files))).splitlines()

    assert set(allowed("/sys/fs/cgroup/system.slice/systemd-journald.service")) == {"max"}
    first = next(iter(agents.values()))
    for again in (False, True):
        if again:
            machine.host.check_output("systemctl daemon-reload && systemctl restart %s", first.service.name)
            lab.guest.wait_agents(machine)
        for agent in agents.values():
            assert "0" in allowed(cgroup(machine, agent)), agent.name


@claim("D4")
@pytest.mark.parametrize("way", [way.name for way in find_ways("D4")])
def test_agent_cannot_have_others_work_for_it(way: str, outcomes: Callable[..., None]) -> None:
    outcomes(way)


@claim("D4")
@recorded
def test_a_fork_bomb_on_all_processors_leaves_the_others_theirs(
    machine: Machine, attackers: list[Agent], neighbour: Agent
) -> None:
    calm = measure_calm(machine, neighbour)
    places = {agent.name: cgroup(machine, agent) for agent in attackers}
    tasks = count_tasks(machine)
    for agent in attackers:
        order(machine.host, agent, background(exhaustion.BOMB))
    for place in places.values():
        wait_until("processes", partial(has_happened, machine, place, "pids.events", "max"))
    before = {name: counters(machine, place, "cpu.stat")["usage_usec"] for name, place in places.items()}
    started = time.monotonic()
    check_health(measure(machine, neighbour), calm)
    assert count_tasks(machine) < tasks + sum(agent.limits.pids for agent in attackers) + 50
    for agent in attackers:
        used = (counters(machine, places[agent.name], "cpu.stat")["usage_usec"] - before[agent.name]) / 1e6
        rate = used / (time.monotonic() - started)
        assert 0.05 < rate < agent.limits.cpus * 1.15, f"{agent.name} had {rate:.2f} processors"


@claim("D4")
@recorded
def test_full_memory_and_temporary_files_leave_the_others_theirs(
    machine: Machine, attackers: list[Agent], neighbour: Agent
) -> None:
    calm = measure_calm(machine, neighbour)
    for agent in attackers:
        assert order(machine.host, agent, exhaustion.FILL).count("No space left") == 2, agent.name
    check_health(measure(machine, neighbour), calm)
    for agent in attackers:
        start_inside(machine, agent, exhaustion.HOG)
    seen = []
    for agent in attackers:
        place = cgroup(machine, agent)
        killed = partial(has_happened, machine, place, "memory.events", "oom_kill")
        wait_until("memory", killed, lambda: seen.append(measure(machine, neighbour)))
    assert order(machine.host, neighbour, "head -c 16m /dev/zero | tail -c 16m | wc -c") == str(16 << 20)
    for health in [*seen, measure(machine, neighbour)]:
        check_health(health, calm)


@claim("D4")
@recorded
def test_no_descriptor_and_no_watch_is_taken_from_the_others(
    machine: Machine, attackers: list[Agent], neighbour: Agent
) -> None:
    calm = measure_calm(machine, neighbour)
    # The kernel's default follows from its memory, and takes long to reach. That the limit is each user's own does not.
    machine.run("echo 2000 > /proc/sys/fs/inotify/max_user_watches").check()
    held = {agent.name: start_inside(machine, agent, exhaustion.HANDLES, MOST=1_000_000) for agent in attackers}
    for name, answers in held.items():
        wait_until(f"handles of {name}", partial(has_printed, answers, 3))
        refused = {what: reason for what, _, reason in answers()}
        assert refused == {"instances": "EMFILE", "watches": "ENOSPC", "descriptors": "EMFILE"}, name
    check_health(measure(machine, neighbour), calm)
    own = start_inside(machine, neighbour, exhaustion.HANDLES, MOST=100)
    wait_until("handles of the neighbour", partial(has_printed, own, 3))
    assert own() == [["instances", 100, ""], ["watches", 100, ""], ["descriptors", 100, ""]]


def refused_packets(machine: Machine) -> dict[str, int]:
    """By bridge, since the table was loaded."""
    listing = json.loads(machine.host.check_output("nft -j list set inet tentaflake refused"))
    [found] = [entry["set"] for entry in listing["nftables"] if "set" in entry]
    elements = [element["elem"] for element in found["elem"]]
    return {element["val"]: element["counter"]["packets"] for element in elements}


def count_flows(machine: Machine) -> int:
    return int(machine.host.check_output("cat /proc/sys/net/netfilter/nf_conntrack_count"))


@claim("D4")
@recorded
def test_no_agent_has_more_connections_than_it_may(machine: Machine, agents: Mapping[str, Agent]) -> None:
    """The controls: it has nearly as many as that, and was refused the rest."""
    agent = next((agent for agent in agents.values() if agent.egress == "internet"), None)
    if agent is None:
        pytest.skip("no agent of this host is on the internet, so none is granted a connection")
    flows = count_flows(machine)
    words = {"TARGETS": ["9.9.9.8", "9.9.9.9"], "COUNT": 3 * MOST_CONNECTIONS, "PAUSE": 0.005}
    answers = start_inside(machine, agent, exhaustion.FLOOD, **words)
    wait_until("the connections are begun", partial(has_printed, answers, 1))
    wait_until("connections", lambda: count_flows(machine) - flows >= 0.9 * MOST_CONNECTIONS)
    assert count_flows(machine) - flows < MOST_CONNECTIONS + 100
    assert refused_packets(machine)[agent.network.bridge] > MOST_CONNECTIONS


@claim("D4")
@recorded
def test_a_flood_leaves_the_others_their_network(machine: Machine, attackers: list[Agent], neighbour: Agent) -> None:
    """The controls: who is granted anything has all the connections that it may, and each was refused the rest."""
    calm = measure_calm(machine, neighbour)
    flows = count_flows(machine)
    printed = {}
    for agent in attackers:
        forbidden = [neighbour.network.ipv4.address, agent.network.ipv4.gateway]
        granted = ["9.9.9.8", "9.9.9.9"] if agent.egress == "internet" else []
        words = {"TARGETS": [*granted, *forbidden], "COUNT": 10_000, "PAUSE": 0}
        printed[agent.name] = start_inside(machine, agent, exhaustion.FLOOD, **words)
    seen = []
    for name, answers in printed.items():
        wait_until(
            f"flood of {name}",
            partial(has_printed, answers, 1),
            lambda: seen.append(measure(machine, neighbour)),
        )
    for health in [*seen, measure(machine, neighbour)]:
        check_health(health, calm)
    most = MOST_CONNECTIONS * sum(agent.egress == "internet" for agent in attackers)
    wait_until("connections", lambda: count_flows(machine) - flows >= 0.9 * most)
    assert count_flows(machine) - flows < most + 200
    refused = refused_packets(machine)
    assert all(refused[agent.network.bridge] > 4_000 for agent in attackers), refused


@pytest.fixture
def quota_machine(request: pytest.FixtureRequest, lab: Lab, quota_plan: Plan) -> Iterator[Machine]:
    with track_machine(request.config, lab.machine(quota_plan)) as made:
        yield made


@pytest.fixture(scope="session")
def quota_plan(lab: Lab, plan: Plan) -> Plan:
    """The plan under test if an agent of it has a quota, else the reference host's."""
    limited = any(agent.limits.disk for agent in plan.agents.values())
    return plan if limited else lab.adapt(reference_plan())


# Blocks up to and past the quota: by far the most at once, the rest by writing; then what a new file would take.
# A kernel that writes a large folio at once refuses the whole of it, and leaves what small writes still take.
OVERFILL = """
cd {state} && fallocate -l {most} full
write() {{ dd if=/dev/zero of=over-$1 bs=$1 count=$2 2>&1 | grep -o 'Disk quota exceeded'; }}
write 1M 16; write 4k 4096
(true > empty; echo x > empty) 2> /dev/null; [ -s empty ] || echo not even a byte"""
# All that the file system offers to have a file without paying for it. What succeeds is said; nothing may.
ESCAPES = """
cd {state}
sparse() {{ truncate -s 1G sparse && dd if=/dev/zero of=sparse bs=1M count=8 conv=notrunc; }}
given() {{ chown {other} full && dd if=/dev/zero of=more bs=1M count=8; }}
regrouped() {{ chgrp {other} full && dd if=/dev/zero of=more bs=1M count=8; }}
linked() {{ ln full twice && dd if=/dev/zero of=twice bs=1M count=8 conv=notrunc oflag=append; }}
unlinked() {{ exec 7> gone && rm gone && dd if=/dev/zero bs=1M count=8 >&7; }}
project() {{ chattr -p 4711 . && dd if=/dev/zero of=more bs=1M count=8; }}
elsewhere() {{ dd if=/dev/zero of=/var/tmp/more bs=1M count=8 || dd if=/dev/zero of=/root/more bs=1M count=8; }}
for way in sparse given regrouped linked unlinked project elsewhere; do
  ( $way ) > /dev/null 2>&1 && echo $way
done
echo tried"""


def used_blocks(machine: Machine, agent: Agent) -> int:
    """Bytes that the user's files take on the file system, as the kernel counts them for the quota."""
    listing = machine.host.check_output("repquota --no-names --raw-grace --verbose --user / 2> /dev/null")
    [line] = [line.split() for line in listing.splitlines() if line.startswith(f"#{agent.uid} ")]
    return int(line[2]) << 10


@claim("D4")
@recorded
def test_no_agent_has_more_of_the_disk_than_its_quota(quota_machine: Machine, quota_plan: Plan) -> None:
    machine, agents = quota_machine, list(quota_plan.agents.values())
    for agent in agents:
        if not agent.limits.disk:
            continue
        other = next(each for each in agents if each is not agent).uid
        words = {"state": quote(agent.state_dir), "most": agent.limits.disk - (4 << 20), "other": other}
        said = order_when_full(machine.host, agent, OVERFILL.format(**words))
        assert said.splitlines() == [*["Disk quota exceeded"] * 2, "not even a byte"], f"{agent.name}: {said}"
        assert order_when_full(machine.host, agent, ESCAPES.format(**words)) == "tried", agent.name
        outside = f"dd if=/dev/zero of=/var/tmp/{agent.name} bs=1M count=8 2>&1 | grep -o 'Disk quota exceeded'"
        machine.put(outside.encode(), "/run/outside.sh")
        assert machine.run(Attacker("uid", agent).command("/run/outside.sh")).text == "Disk quota exceeded\n"
        assert agent.limits.disk - (1 << 20) < used_blocks(machine, agent) <= agent.limits.disk
    for agent in agents:
        if not agent.limits.disk:
            wrote = order(
                machine.host, agent, f"cd {quote(agent.state_dir)} && head -c 8m /dev/zero > more && wc -c < more"
            )
            assert wrote == str(8 << 20), agent.name
    machine.run("head -c 8M /dev/zero > /root/more && sync /root/more").check()


@claim("D4")
@recorded
def test_no_agent_has_more_files_than_its_quota(quota_machine: Machine, quota_plan: Plan) -> None:
    """The control is that it may have some, and a neighbour more."""
    limited = [agent for agent in quota_plan.agents.values() if agent.limits.disk]
    agent = min(limited, key=lambda agent: agent.limits.disk or 0)
    most = max((agent.limits.disk or 0) >> 14, 1024)
    many = f"mkdir {quote(agent.state_dir)}/many; cd {quote(agent.state_dir)}/many; i=0; "
    many += f"while [ $i -lt {most} ] && true > $i; do i=$((i + 1)); done 2> /dev/null; ls | wc -l"
    had = int(order_when_full(quota_machine.host, agent, many))
    assert most * 0.9 < had < most
    other = next(each for each in quota_plan.agents.values() if each is not agent)
    assert order(quota_machine.host, other, ": > one-more && echo made") == "made"
