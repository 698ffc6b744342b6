"""C1 to C5: what an agent's container is, and what it cannot become."""

from collections.abc import Callable, Mapping

import pytest

from harness.contract import ControlFailed
from harness.policy import Agent
from harness.probes.attempts import order
from harness.probes.containers import (
    DEFAULT_DEVICES,
    container_mounts,
    container_processes,
    foreign_mounts,
    main_pid,
    parse_status,
)
from harness.probes.ways import find_ways
from harness.vm.machine import Machine
from tests.contract.conftest import Restarted

claim = pytest.mark.claim


@claim("C1")
def test_every_process_of_a_container_is_unprivileged(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    host = shared_machine.host
    control = parse_status(host.check_output("cat /proc/1/status")).privileges(uid=1, gid=1)
    assert len(control) >= 6, f"the control has too few privileges to be one: {control}"
    for agent in agents.values():
        for process in container_processes(host, agent):
            assert process.privileges(agent.uid, agent.gid) == [], f"process {process.pid} of {agent.name}"


@claim("C1")
def test_a_process_that_docker_exec_starts_is_as_unprivileged(
    shared_machine: Machine, agents: Mapping[str, Agent]
) -> None:
    agent = next(iter(agents.values()))
    status = shared_machine.host.check_output("docker exec %s cat /proc/self/status", agent.container.name)
    assert parse_status(status).privileges(agent.uid, agent.gid) == []


@claim("C1")
@pytest.mark.parametrize("way", [way.name for way in find_ways("C1")])
def test_agent_cannot_use_a_privilege(way: str, outcomes: Callable[..., None]) -> None:
    outcomes(way)


# busybox' crontab refuses to work unless its set-uid bit has made it root.
SETUID = "/suid/busybox crontab -l 2>&1"


@claim("C1")
def test_a_set_uid_program_gives_no_privilege(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    """The image holds a set-uid busybox. The control runs it as the same user without ``no-new-privileges``."""
    host = shared_machine.host
    for agent in agents.values():
        enter = f"nsenter --target {main_pid(host, agent)} --mount --setuid {agent.uid} --setgid {agent.gid}"
        control = host.run(f"{enter} /bin/sh -c %s", SETUID).stdout
        if "must be suid" in control or "crontab" not in control:
            raise ControlFailed(f"the set-uid bit has no effect without no-new-privileges either: {control!r}")
        refused = order(host, agent, SETUID)
        assert "must be suid" in refused, f"{agent.name} is root by a set-uid program: {refused!r}"


@claim("C2")
def test_agent_cannot_write_outside_its_state(outcomes: Callable[..., None]) -> None:
    outcomes("write a file")


@claim("C2")
def test_agent_cannot_make_its_root_writable(outcomes: Callable[..., None]) -> None:
    outcomes("make the root file system writable")


@claim("C2")
def test_nothing_but_state_and_memory_is_mounted_writable(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    """Whoever owns what is there: of the probe image, all is root's, so that an agent could write nothing anyway."""
    for agent in agents.values():
        mounts = container_mounts(shared_machine.host, agent)
        writable = {mount.point for mount in mounts if "rw" in mount.options}
        assert agent.state_dir in writable  # the control
        of_memory = {mount.point for mount in mounts if mount.type in ("tmpfs", "devpts", "mqueue", "proc")}
        assert writable - of_memory == {agent.state_dir}, agent.name


@claim("C3")
def test_a_restart_makes_a_new_container_that_keeps_the_state(restarted: Restarted) -> None:
    host, agent = restarted.machine.host, restarted.agent
    assert restarted.before != restarted.after
    assert host.run("cat %s/kept", agent.state_dir).stdout == "kept\n"


@claim("C3")
def test_a_restart_loses_all_but_the_state(restarted: Restarted) -> None:
    """That both files were there before the restart is the fixture's control."""
    host, agent = restarted.machine.host, restarted.agent
    root = f"/proc/{main_pid(host, agent)}/root"
    assert host.check_output("ls -A %s/tmp %s/dev/shm", root, root).split() == [f"{root}/dev/shm:", f"{root}/tmp:"]


@claim("C4")
def test_nothing_of_the_host_is_mounted(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    for agent in agents.values():
        mounts = container_mounts(shared_machine.host, agent)
        assert any(mount.point == agent.state_dir for mount in mounts)  # the control: we can see mounts
        assert foreign_mounts(mounts, agent) == []


@claim("C4")
def test_only_default_devices_are_there(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    host = shared_machine.host
    assert "vda" in host.check_output("ls /dev").split()  # the control: the host has more
    for agent in agents.values():
        devices = host.check_output("ls /proc/%s/root/dev", str(main_pid(host, agent))).split()
        assert "null" in devices
        assert set(devices) - DEFAULT_DEVICES == set()


@claim("C4")
@pytest.mark.parametrize("way", [way.name for way in find_ways("C4")])
def test_agent_cannot_use_the_hosts_sockets(way: str, outcomes: Callable[..., None]) -> None:
    outcomes(way)


@claim("C5")
def test_every_container_runs_the_pinned_image(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    names = " ".join(agent.container.name for agent in agents.values())
    seen = shared_machine.host.check_output(f"docker inspect --format '{{{{.Name}}}} {{{{.Image}}}}' {names}")
    pinned = {f"/{agent.container.name}": agent.container.image.split("@")[1] for agent in agents.values()}
    assert dict(line.split() for line in seen.splitlines()) == pinned


@claim("C5")
def test_a_restart_does_not_take_a_retagged_image(restarted: Restarted) -> None:
    """The control: by the pinned image's name alone, Docker finds the other one now."""
    host, container = restarted.machine.host, restarted.agent.container
    name, pinned = container.image.split("@")
    assert host.check_output("docker image inspect --format {{.Id}} %s:latest", name) == restarted.decoy != pinned
    assert host.check_output("docker inspect --format {{.Image}} %s", container.name) == pinned
