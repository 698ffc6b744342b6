"""T1 to T4: the speech server on the host, for the host, for agents that are granted it, and for nobody else."""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.guests import speech
from harness.guests.addresses import HOST, TAILNET_HOST
from harness.guests.peers import Peer
from harness.lab import Lab
from harness.pace import stretch, stretch_whole
from harness.plugin import judge_outcomes, track_machine
from harness.policy import Agent, Plan, evaluate_specs, host_of, specs_of
from harness.probes import prober, speaker
from harness.probes.attempts import Attacker, Attempt, Outcome, Seen, order, quote
from harness.probes.containers import main_pid
from harness.probes.lifetime import REMOVE_TABLES, STOP_GUARD
from harness.probes.network import gateways_of
from harness.vm.machine import Machine
from tests.services.tts.support import PHONEME, decode, expected_tones, tones

claim = pytest.mark.claim
SLOW = 600.0
"""Seconds; under TCG the client's imports alone take tens of them."""
TEXT = "Good morning, Bob."
FORMATS = ("mp3", "opus", "flac", "wav", "pcm")
BAD: list[dict[str, Any]] = [
    {"input": ""},
    {"input": "x" + " " * 4096},  # were it taken, it would be said in a moment
    {"voice": "nobody"},
    {"response_format": "aac"},
    {"speed": 9},
    {"model": "gpt-5"},
]
SPEAKER = "/usr/lib/tentaflake/speaker"
# With the official client, whose loading takes tens of seconds under TCG.
START_SPEAKER = f"""
mkdir -p {SPEAKER}/state
systemd-run --quiet --setenv=PYTHONPATH={SPEAKER}:{speech.PYTHONPATH} \\
  python3 -m harness.probes.speaker {SPEAKER}/state http://127.0.0.1:5001/v1
until [ -e {SPEAKER}/state/ready ]; do sleep 0.2; done"""


@dataclass(frozen=True)
class Grants:
    """Who may use the server and who may not; a host needs both to be tried."""

    granted: list[Agent]
    others: list[Agent]


@pytest.fixture
def grants(plan: Plan) -> Grants:
    if not plan.speech.agents:
        pytest.skip("no agent of this host is granted the speech server")
    agents = plan.agents.values()
    return Grants([agent for agent in agents if agent.tts], [agent for agent in agents if not agent.tts])


def url(address: str, path: str = "") -> str:
    return f"http://{f'[{address}]' if ':' in address else address}:5001{path}"


def start_speaker(machine: Machine) -> None:
    machine.run(f"mkdir -p {SPEAKER}/harness/probes").check()
    for path in (Path(prober.__file__), Path(speaker.__file__)):
        machine.put(path.read_bytes(), f"{SPEAKER}/harness/probes/{path.name}")
    machine.run(START_SPEAKER, timeout=SLOW).check()


@pytest.fixture(scope="session")
def speaking_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    """The official client waits there, to be asked by ``converse``."""
    if not plan.speech.agents:
        pytest.skip("no agent of this host is granted the speech server")
    with track_machine(request.config, lab.fork(lab.stage(plan, start_speaker, title="loading openai"))) as made:
        yield made


def converse(machine: Machine, address: str, wanted: list[dict[str, Any]], agent: Agent | None = None) -> Any:
    """What the client gets at an address, on the host or on an agent's end of its wire with the agent's uid."""
    pid, uid, gid = (main_pid(machine.host, agent), agent.uid, agent.gid) if agent else (None, None, None)
    order = {"base": url(address, "/v1"), "wanted": wanted, "pid": pid, "uid": uid, "gid": gid}
    place = f"{SPEAKER}/state"
    said = machine.run(f"cat > {place}/asked && cat {place}/said", stdin=json.dumps(order).encode(), timeout=SLOW)
    return json.loads(said.check().text)


def sound(answer: dict[str, Any]) -> bytes:
    assert answer["status"] == 200, answer
    return base64.b64decode(answer["data"])


# --- T1


@claim("T1")
@pytest.mark.recorded
def test_the_host_is_spoken_to_in_every_format(speaking_machine: Machine, grants: Grants) -> None:
    wanted: list[dict[str, Any]] = [{"input": TEXT, "response_format": codec} for codec in FORMATS]
    wanted.append({"input": TEXT, "response_format": "pcm", "speed": 2.0})
    found = converse(speaking_machine, "127.0.0.1", wanted)
    assert "tts-1" in found["models"]
    length = len(expected_tones(TEXT)) * PHONEME
    for codec, answer in zip(FORMATS, found["answers"][: len(FORMATS)], strict=True):
        assert abs(len(decode(sound(answer), codec)) - length) <= 2400, codec
    heard = tones(decode(sound(found["answers"][FORMATS.index("pcm")]), "pcm"))
    assert all(abs(h - e) < 25 for h, e in zip(heard, expected_tones(TEXT), strict=True))
    assert abs(2 * len(decode(sound(found["answers"][-1]), "pcm")) - length) <= 480


@claim("T1")
@pytest.mark.recorded
def test_an_agent_that_is_granted_it_is_spoken_to(speaking_machine: Machine, grants: Grants) -> None:
    for agent in grants.granted:
        for gateway in gateways_of(agent):
            found = converse(speaking_machine, gateway, [{"response_format": "wav"}], agent)
            assert sound(found["answers"][0])[:4] == b"RIFF"


# --- T2


@claim("T2")
@pytest.mark.recorded
def test_bad_input_gets_an_error_and_good_input_still_speech(speaking_machine: Machine, grants: Grants) -> None:
    found = converse(speaking_machine, "127.0.0.1", [*BAD, {}])["answers"]
    assert [answer["status"] for answer in found] == [400, 400, 400, 400, 400, 404, 200]
    for answer in found[:-1]:
        assert set(answer["error"]["error"]) == {"message", "type", "param", "code"}


# --- T3


def from_container(machine: Machine, agent: Agent, addresses: Sequence[str]) -> list[bool]:
    """Which addresses answer a process in the agent's container."""
    asked = f"wget -q -T {stretch_whole(5)} -O - {{}} 2> /dev/null | grep -q live && echo yes || echo no"
    files = [f"/tmp/spoke-{number}" for number in range(len(addresses))]
    lines = [f"({asked.format(quote(url(a, '/health')))}) > {f} &" for a, f in zip(addresses, files, strict=True)]
    return [
        word == "yes"
        for word in order(machine.host, agent, "\n".join([*lines, "wait", f"cat {' '.join(files)}"])).split()
    ]


@claim("T3")
@pytest.mark.recorded
def test_containers_reach_it_as_granted(
    request: pytest.FixtureRequest, shared_machine: Machine, grants: Grants
) -> None:
    """At every gateway; who reaches it is the control of who does not."""
    gateways = {address: agent for agent in [*grants.granted, *grants.others] for address in gateways_of(agent)}
    outcomes = []
    for agent in [*grants.granted, *grants.others]:
        answers = from_container(shared_machine, agent, list(gateways))
        for owner, answered in zip(gateways.values(), answers, strict=True):
            expected: Seen = "reached" if agent.tts and owner is agent else "refused"
            attempt = Attempt("T3", "be spoken to", Attacker("container", agent), "speech", "", expected)
            outcomes.append(Outcome(attempt, "reached" if answered else "refused", b""))
    judge_outcomes(request, "be spoken to", outcomes)


@claim("T3")
@pytest.mark.recorded
def test_a_grant_is_given_and_taken_away(machine: Machine, lab: Lab, plan: Plan, grants: Grants) -> None:
    """While the host runs: the first agent that has one and the first that has none change places, and back again."""
    if not grants.others:
        pytest.skip("every agent of this host is granted the speech server")
    pair = grants.granted[0], grants.others[0]
    names = {agent.name for agent in pair}
    specs = [spec | {"tts": not spec["tts"]} if spec["name"] in names else spec for spec in specs_of(plan)]
    changed = lab.adapt(evaluate_specs(specs, host=host_of(plan)))

    def heard() -> list[bool]:
        return [any(from_container(machine, agent, gateways_of(agent))) for agent in pair]

    assert heard() == [True, False]
    lab.guest.activate(machine, changed)
    assert heard() == [False, True]
    lab.guest.roll_back(machine)
    assert heard() == [True, False]


CONNECT = """
import socket, sys
for address in sys.argv[3:]:
    try:
        socket.create_connection((address, int(sys.argv[1])), float(sys.argv[2])).close()
        print("yes")
    except OSError:
        print("no")
"""


def take_the_rules_away(machine: Machine) -> None:
    """And listen on port 9000: who reaches that has a way to the host."""
    machine.run(f"{STOP_GUARD} && {REMOVE_TABLES}").check()
    machine.run("systemd-run --quiet python3 -m http.server --bind :: 9000").check()
    machine.run("until ss -Hlnt sport = 9000 | grep -q .; do :; done", timeout=SLOW).check()


def connects(machine: Peer | Machine, port: int, addresses: list[str]) -> list[bool]:
    found = machine.run(["python3", "-c", CONNECT, str(port), str(stretch(3.0)), *addresses], timeout=SLOW).check().text
    return [word == "yes" for word in found.split()]


@claim("T3")
@pytest.mark.recorded
def test_no_other_machine_reaches_it(machine: Machine, lan: Peer, tailnet: Peer, grants: Grants) -> None:
    gateways = [gateway for agent in grants.granted for gateway in gateways_of(agent)]
    assert all(connects(machine, 5001, ["127.0.0.1", "::1"]))
    ways = ((lan, HOST.addresses), (tailnet, TAILNET_HOST))
    for peer, own in ways:
        assert not any(connects(peer, 5001, [*own, *gateways]))
    take_the_rules_away(machine)
    reached = {peer.role: connects(peer, 9000, list(own)) for peer, own in ways}
    assert reached == {"lan": [True, True], "tailnet": [True, True]}  # the control: the way there is open


@claim("T3")
@pytest.mark.recorded
def test_without_a_firewall_nobody_else_reaches_it_either(machine: Machine, lan: Peer, grants: Grants) -> None:
    """It does not listen on other addresses, and its socket takes no packet from elsewhere."""
    addresses = [*HOST.addresses, *(gateway for agent in grants.granted for gateway in gateways_of(agent))]
    take_the_rules_away(machine)
    assert all(connects(lan, 9000, addresses))  # the control: the way there is open
    assert not any(connects(lan, 5001, addresses))
    assert all(connects(machine, 5001, ["127.0.0.1", "::1"]))


# --- T4

PID = "pid=$(systemctl show --property=MainPID --value tentaflake-tts.service); "


@claim("T4")
def test_it_runs_as_nobody_with_nothing(shared_machine: Machine, plan: Plan, grants: Grants) -> None:
    status = shared_machine.run(f"{PID} cat /proc/$pid/status").check().text
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    uids = {int(uid) for uid in fields["Uid"].split()}
    assert len(uids) == 1 and uids.isdisjoint({0, *(agent.uid for agent in plan.agents.values())})
    assert all(int(fields[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    namespaces = "for kind in net mnt ipc user; do readlink /proc/$pid/ns/$kind; done"
    own = shared_machine.run(f"{PID} {namespaces}").check().text.split()
    hosts = shared_machine.run(f"pid=1; {namespaces}").check().text.split()
    assert set(own).isdisjoint(hosts)


@claim("T4")
def test_it_sees_no_state_and_no_secret(shared_machine: Machine, plan: Plan, grants: Grants) -> None:
    """Not even root would, in its mount namespace; the control is root on the host."""
    places = [agent.state_dir for agent in plan.agents.values()] + [f"/run/agenix/{name}" for name in plan.secrets]
    places += ["/run/docker.sock", "/etc/ssh/ssh_host_ed25519_key"]
    question = "; ".join(f"test -e {quote(place)} && echo yes || echo no" for place in places)
    assert shared_machine.run(question).text.split() == ["yes"] * len(places)
    inside = shared_machine.run(f"{PID} nsenter --target $pid --mount sh -c {quote(question)}").check().text.split()
    readable = [place for place, word in zip(places, inside, strict=True) if word == "yes"]
    assert set(readable) <= {"/run/docker.sock"}
    # What is made inaccessible is there, as something that nobody can open.
    mode = shared_machine.run(f"{PID} nsenter --target $pid --mount stat -c %a /run/docker.sock").check().text
    assert mode.strip() == "0"
