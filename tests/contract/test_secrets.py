"""S1 to S3: a secret is its agent's alone, is nowhere else, and is missed by its agent alone."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pytest

from harness.contract import ControlFailed
from harness.guests.canaries import HEAD, canary
from harness.lab import Lab
from harness.plugin import track_machine
from harness.policy import Agent, Plan
from harness.probes.attempts import order
from harness.probes.search import (
    Hit,
    page_owners,
    search_disk,
    search_memory,
    search_places,
    search_plan,
    search_proc,
    shown,
)
from harness.probes.ways import find_ways
from harness.vm.machine import Machine
from harness.vm.shell import CommandFailed
from tests.contract.conftest import NEW, Lacking, files_with, for_somebody_else

claim = pytest.mark.claim
NOBODY = 65534


# --- S1


@claim("S1")
def test_a_secret_is_for_its_agent_to_read_and_nobody_else(shared_machine: Machine, plan: Plan) -> None:
    for secret in plan.secrets.values():
        file = shared_machine.host.file(secret.path)
        assert (file.mode, file.user, file.group) == (0o400, secret.owner, secret.group)


@claim("S1")
def test_secrets_are_in_memory_only(shared_machine: Machine) -> None:
    """The control is a directory on the disk, of which the same question says so."""
    host = shared_machine.host
    kind = "findmnt --noheadings --output FSTYPE --target %s"
    assert host.check_output(kind, "/var/lib") not in ("ramfs", "tmpfs")
    assert host.check_output(kind, "/run/agenix/") in ("ramfs", "tmpfs")
    assert host.check_output("swapon --show") == "" or host.check_output(kind, "/run/agenix/") == "ramfs"


@claim("S1")
def test_nobody_but_root_can_list_or_change_the_directory_of_secrets(shared_machine: Machine) -> None:
    for path in ("/run/agenix.d", "/run/agenix/."):
        directory = shared_machine.host.file(path)
        assert (directory.mode, directory.user) == (0o751, "root")


@claim("S1")
def test_every_agent_has_its_own_secrets(shared_machine: Machine, agents: Mapping[str, Agent]) -> None:
    """In its container, with the values that were encrypted: as files, or as variables of what runs there."""
    host = shared_machine.host
    for agent in agents.values():
        for secret in agent.secrets:
            show = f"cat {secret.target}" if secret.as_ == "file" else f'printf %s "${secret.variable}"'
            assert order(host, agent, show).strip().encode() == canary(secret.file), f"{secret.id} of {agent.name}"


@claim("S1")
@pytest.mark.parametrize("way", [way.name for way in find_ways("S1")])
def test_agent_cannot_read_the_secrets_of_others(way: str, outcomes: Callable[..., None]) -> None:
    outcomes(way)


# --- S2

PLANTED = b"Kontrollvogel-" + b"qrstuvwxyzqrstuvwxyz" * 2
# Leaves the value in one of each kind of place; it comes on standard input. Nothing of it may look planted to a search.
PLANT = """
set -eu; umask 077; value=$(cat)
printf %s "$value" > /root/planted-raw
printf x%s "$value" | base64 > /root/planted-base64
printf %s "$value" | od -An -v -tx1 | tr -d ' \\n' > /root/planted-hex
printf %s "$value" > /run/planted
printf 'said %s %0600d\\n' "$value" 0 | systemd-cat -t planted; journalctl --sync
unit='[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/sh -c :\\nEnvironment=V=%s\\n'
mkdir -p /etc/systemd/system.control && printf "$unit" "$value" > /etc/systemd/system.control/planted.service
systemctl daemon-reload; systemctl start planted.service
mkdir /root/planted && printf %s "$value" > /root/planted/file
tar -C /root/planted -c . | docker import --change "LABEL v=$value" - planted:latest > /dev/null
docker volume create --label "v=$value" planted > /dev/null
docker network create --internal --label "v=$value" planted > /dev/null
docker create --name planted --network none --env "V=$value" planted:latest true > /dev/null
sh -c 'while :; do sleep 1000; done' planted "$value" > /dev/null 2>&1 &
V=$value setpriv --reuid={nobody} --regid={nobody} --clear-groups sleep infinity > /dev/null 2>&1 &
until pgrep -u {nobody} -x sleep > /dev/null; do :; done
""".replace("{nobody}", str(NOBODY))
# In each machine anew: a snapshot gives the blocks of deleted files back.
DELETE = "umask 077; cat > /var/lib/deleted; sync /var/lib/deleted; rm /var/lib/deleted"
PLACES = ["file /root/planted-raw", "file /root/planted-base64", "file /root/planted-hex", "file /run/planted"]
PLACES += ["file /var/lib/containerd", "journal", "unit", "process /proc/"]
PLACES += [f"docker {kind}" for kind in ("container", "image", "network", "volume")]


ANY = {"canary": HEAD, "planted": PLANTED}


@dataclass(frozen=True)
class Searched:
    """What searches find, of all canaries and of what was planted as a control; each is made when it is asked for."""

    machine: Machine
    plan: Plan
    _places: dict[str, Sequence[Hit]] = field(default_factory=dict)

    @cached_property
    def disk(self) -> Sequence[Hit]:
        return search_disk(self.machine, ANY)

    def places(self, kind: str) -> Sequence[Hit]:
        if kind not in self._places:
            self._places[kind] = search_places(self.machine, kind, ANY)
        return self._places[kind]

    @cached_property
    def proc(self) -> Mapping[str, Sequence[Hit]]:
        """What each agent, and nobody, sees of processes."""
        found = {
            agent.name: search_proc(self.machine, agent.uid, {**foreign_values(self.plan, agent), "planted": PLANTED})
            for agent in self.plan.agents.values()
        }
        return found | {"nobody": search_proc(self.machine, NOBODY, ANY)}

    @cached_property
    def mapped(self) -> Sequence[tuple[str, int]]:
        """The values in memory, each with the uid of a process that has it mapped."""
        secrets = [secret for agent in self.plan.agents.values() for secret in agent.secrets]
        values = {"planted": PLANTED} | {secret.id: canary(secret.file) for secret in secrets}
        pages = search_memory(self.machine, values)
        owners = page_owners(self.machine, pages)
        # A page that was free may have been given to somebody meanwhile; then it was cleared.
        still = search_memory(self.machine, values)
        return [(name, uid) for page in pages if page in still for name in pages[page] for uid in owners.get(page, ())]


def plant(machine: Machine) -> None:
    machine.run(f"sh -c {shlex.quote(PLANT)}", stdin=PLANTED, timeout=300).check()


@pytest.fixture(scope="session")
def searched_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    stage = lab.stage(plan, plant, title="planting what a search has to find")
    with track_machine(request.config, lab.fork(stage)) as made:
        yield made


@pytest.fixture(scope="session")
def searched(searched_machine: Machine, plan: Plan) -> Searched:
    searched_machine.run(f"sh -c {shlex.quote(DELETE)}", stdin=PLANTED).check()
    return Searched(searched_machine, plan)


def foreign_values(plan: Plan, agent: Agent) -> dict[str, bytes]:
    """The values of the secrets that an agent has no part in."""
    own = {secret.file for secret in agent.secrets}
    return {name: canary(secret.file) for name, secret in plan.secrets.items() if secret.file not in own}


def judge(hits: Sequence[Hit], *controls: str) -> None:
    """No canary was found, and what was planted was, at each of these places."""
    assert [hit for hit in hits if hit.value != "planted"] == [], shown(hits)
    for place in controls:
        # A containerd that is Docker's own has its files there.
        if not any(hit.place.replace("/lib/docker/containerd", "/lib/containerd").startswith(place) for hit in hits):
            raise ControlFailed(f"the search did not find what was planted: {place}; it found\n  {shown(hits)}")


@claim("S2")
@pytest.mark.recorded
def test_no_process_has_the_secret_of_another_in_its_memory(searched: Searched, plan: Plan) -> None:
    """In all of the machine's memory, page by page: mapped by its agent's processes, by root's, or by none.

    It comes first: other searches leave what they sought in memory that is free.
    """
    allowed = {"planted": {0, NOBODY}}
    for agent in plan.agents.values():
        for secret in agent.secrets:
            users = [other for other in plan.agents.values() if any(s.file == secret.file for s in other.secrets)]
            allowed[secret.id] = {0} | {user.uid for user in users}
    if ("planted", NOBODY) not in searched.mapped:
        found = sorted(set(searched.mapped))
        raise ControlFailed(f"what was planted in the memory of nobody's process was not found: {found}")
    assert [(name, uid) for name, uid in searched.mapped if uid not in allowed[name]] == []


@claim("S2")
@pytest.mark.recorded
def test_no_secret_is_on_the_disk(searched: Searched, searched_machine: Machine) -> None:
    """Deleted files too: of what was planted, that is what this machine itself has written."""
    judge(searched.disk, str(searched_machine.process.directory))


@claim("S2")
@pytest.mark.recorded
@pytest.mark.parametrize("place", PLACES)
def test_no_secret_is_in_what_the_host_keeps_and_tells(searched: Searched, place: str) -> None:
    judge(searched.places(place.partition(" ")[0]), place)


@claim("S2")
@pytest.mark.recorded
def test_no_user_sees_the_secret_of_another_in_proc(searched: Searched) -> None:
    for hits in searched.proc.values():
        judge(hits, "proc as")


@claim("S2")
def test_no_secret_is_in_the_plan(plan: Plan) -> None:
    identity = plan.host.secrets_identity
    found = search_plan(plan, {"canary": HEAD, "planted": identity.encode()})
    judge(found, "plan")


# --- S3


def running(machine: Machine) -> set[str]:
    return set(machine.run("docker container ls --format '{{.Names}}'").check().text.split())


@claim("S3")
def test_a_switch_names_the_secret_that_cannot_be_decrypted(lacking: Lacking, lab: Lab) -> None:
    """And on the Debian guest says by its exit code that all else of it is done; NixOS refuses it."""
    what = f"secret {NEW} of agent {lacking.agent.name} (secrets/{NEW}.age) cannot be decrypted"
    assert what in lacking.said
    assert ("exit code 3" in lacking.said) == (lab.guest.name == "debian")
    assert "encrypt it for this host's key" in lacking.said


@claim("S3")
def test_an_agent_without_its_secret_does_not_start(lacking: Lacking) -> None:
    """Nor when the machine boots; the control is that it would, were it not for the secret."""
    agent = lacking.agent
    assert agent.container.name not in running(lacking.machine)
    assert f"agent {agent.name} does not start without its secret {NEW}" in lacking.journal
    assert lacking.machine.host.check_output("systemctl show -P NRestarts %s", agent.service.name) == "0"


@claim("S3")
def test_the_other_agents_start(lacking: Lacking, agents: Mapping[str, Agent]) -> None:
    wanted = {agent.container.name for agent in agents.values() if agent.auto_start} - {lacking.agent.container.name}
    assert running(lacking.machine) == wanted


@claim("S3")
def test_at_boot_the_secret_is_named_too(lacking: Lacking, lab: Lab) -> None:
    """By the unit that decrypts; on NixOS, whose activation does it and logs nothing, by the agent's own."""
    if lab.guest.name == "nixos":
        assert f"its secret {NEW}" in lacking.journal
        return
    assert f"secret {NEW} of agent {lacking.agent.name}" in lacking.journal
    assert lacking.machine.host.check_output("systemctl show -P Result tentaflake-secrets.service") == "exit-code"


@claim("S3")
@pytest.mark.recorded
def test_an_agent_starts_when_its_secret_can_be_decrypted_again(
    repaired_machine: Machine, agents: Mapping[str, Agent]
) -> None:
    assert running(repaired_machine) == {agent.container.name for agent in agents.values() if agent.auto_start}


@claim("S3")
@pytest.mark.recorded
def test_a_secret_that_can_no_longer_be_decrypted_keeps_its_value_and_its_agent(
    machine: Machine, lab: Lab, plan: Plan
) -> None:
    if not plan.secrets:
        pytest.skip("no agent of this host has a secret")
    before = machine.run("docker inspect --format '{{.Id}}' $(docker ps -q)").check().text
    broken = {secret.file: for_somebody_else(b"whatever") for secret in plan.secrets.values()}
    said = "keeps its old value" if lab.guest.name == "debian" else "cannot be decrypted"
    with pytest.raises(CommandFailed, match=said):
        lab.guest.activate(machine, plan, files_with(machine, plan, broken))
    assert machine.run("docker inspect --format '{{.Id}}' $(docker ps -q)").check().text == before
    for secret in plan.secrets.values():
        assert machine.host.file(secret.path).content == canary(secret.file)
