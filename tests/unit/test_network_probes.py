"""The attacks over the network without a machine: the prober on a loopback, and what is made of its answers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.guests import peer_service
from harness.guests.peers import STATIONS
from harness.policy import Agent, evaluate_many, reference_plan
from harness.probes import prober
from harness.probes.attempts import Attacker, Attempt, Seen
from harness.probes.network import Trial, judge, key_of, may_reach, roles_for

SCRIPT = """
set -e
ip link set lo up
echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range
echo the-token > "$1"
"$2" -I "$3" "$1" 80 & service=$!
trap 'kill $service' EXIT
until ss -H -lnt | grep -q ':80 '; do kill -0 $service; done
"$2" -I -S "$4"
"""
PROBES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "tcp", "address": "127.0.0.1", "port": 80}, "the-token hello"),
    ({"kind": "tcp", "address": "::1", "port": 80}, "the-token hello"),
    ({"kind": "udp", "address": "127.0.0.9", "port": 80}, "the-token hello"),
    ({"kind": "udp", "address": "::1", "port": 80}, "the-token hello"),
    ({"kind": "ping", "address": "127.0.0.1", "port": 0}, "pong"),
    ({"kind": "ping", "address": "::1", "port": 0}, "pong"),
    ({"kind": "fragments", "address": "127.0.0.1", "port": 80}, "the-token xxx"),
    ({"kind": "options", "address": "::1", "port": 80}, "the-token hello"),
    ({"kind": "everybody", "address": "127.255.255.255", "port": 80}, "the-token hello"),
    ({"kind": "tcp", "address": "127.0.0.1", "port": 81}, ""),
    ({"kind": "udp", "address": "127.0.0.1", "port": 81}, ""),
    ({"kind": "udp", "address": "192.0.2.1", "port": 80}, ""),
]


def test_who_has_closed_a_connection_is_not_waited_for() -> None:
    own, other = socket.socketpair()
    with own, other:
        own.setblocking(False)
        tried = prober.Try(own, b"")
        assert not tried.receive() and not tried.done
        other.close()
        assert not tried.receive() and tried.done


@pytest.mark.parametrize(
    ("claim", "way", "roles"),
    [
        ("F1", "connect to the host", ["lan"]),
        ("F2", "connect to the container", []),
        ("F3", "look up a name", ["internet"]),
        ("F3", "ping the host", ["tailnet"]),  # by its addresses there too
        ("F4", "reach private-10.test", ["internet"]),
        ("F4", "reach the LAN", ["lan"]),
        ("F5", "reach a published port", ["lan", "tailnet"]),
    ],
)
def test_only_machines_that_an_attack_takes_are_made(claim: str, way: str, roles: list[str]) -> None:
    plan = reference_plan()
    assert roles_for(plan, {(claim, way)}) == roles
    assert roles_for(plan, {(claim, way), ("F5", None)}) == [
        role for role in STATIONS if role in {*roles, "lan", "tailnet"}
    ]
    assert roles_for(plan, None) == list(STATIONS)


def test_the_prober_tells_what_answers_from_what_does_not(tmp_path: Path) -> None:
    own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*own, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no network namespace can be made here")
    nobody = {"pid": None, "uid": None, "gid": None}
    arguments = [str(tmp_path / "token"), sys.executable, peer_service.__file__, prober.__file__]
    done = subprocess.run(
        [*own, "sh", "-c", SCRIPT, "sh", *arguments],
        input=json.dumps([{**nobody, "probes": [probe for probe, _ in PROBES]}, {**nobody, "pid": 0, "probes": []}]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, lost = json.loads(done.stdout)
    assert lost.startswith("FileNotFoundError: "), lost  # who has no namespace says so, and holds up nobody
    for (probe, wanted), said in zip(PROBES, answers, strict=True):
        assert said.startswith(wanted), (probe, said)
        assert bool(said) == bool(wanted), (probe, said)


A, B = ({"kind": "tcp", "address": address, "port": 80} for address in ("192.0.2.1", "192.0.2.2"))
FORGED = {"kind": "forged", "address": "192.0.2.1", "port": 80, "source": "203.0.113.1"}


@pytest.mark.parametrize(
    ("expected", "said", "seen"),
    [
        ("refused", ("", ""), "refused"),
        ("refused", ("", "token hello"), "reached"),
        ("refused", ("other hello", ""), "refused"),
        ("reached", ("token", "token"), "reached"),
        ("reached", ("token", ""), "refused"),
    ],
)
def test_one_answer_is_an_attack_that_succeeded_and_a_control_needs_all(
    expected: Seen, said: tuple[str, str], seen: Seen
) -> None:
    attacker = Attacker("root")
    trial = Trial(Attempt("F2", "connect", attacker, "b", "", expected), (A, B), "token")
    answers = {(attacker.slug, key_of(probe)): answer for probe, answer in zip((A, B), said, strict=True)}
    assert judge(trial, answers, set()).seen == seen


@pytest.mark.parametrize(("arrivals", "seen"), [(set(), "refused"), ({("203.0.113.1", "192.0.2.1")}, "reached")])
def test_a_forged_packet_is_judged_by_where_it_came(arrivals: set[tuple[str, str]], seen: Seen) -> None:
    trial = Trial(Attempt("F2", "forge", Attacker("root"), "b", "", "refused"), (FORGED,), "came")
    assert judge(trial, {}, arrivals).seen == seen


def agent(egress: Any) -> Agent:
    [plan] = evaluate_many([[{"name": "a", "egress": egress}]])
    assert not isinstance(plan, Exception)
    return plan.agents["a"]


def probe(address: str, kind: str = "tcp", port: int = 443) -> dict[str, Any]:
    return {"kind": kind, "address": address, "port": port}


def test_what_a_list_grants_is_read_entry_by_entry() -> None:
    listed = agent([{"network": "192.0.2.0/24", "ports": [443]}, {"network": "2001:db8::/32", "protocol": "udp"}])
    granted = [probe("192.0.2.9"), probe("2001:db8::1", "udp", 9)]
    refused = [probe("192.0.2.9", port=80), probe("192.0.2.9", "udp"), probe("192.0.3.1"), probe("2001:db8::1")]
    refused += [probe("192.0.2.9", "ping", 0), probe("2001:db8::1", "ping", 0)]
    assert [may_reach(listed, "any.test", each) for each in granted] == [True] * len(granted)
    assert [may_reach(listed, "any.test", each) for each in refused] == [False] * len(refused)


def test_what_is_not_a_list_grants_by_its_name() -> None:
    assert may_reach(agent("internet"), "public.test", probe("9.9.9.9"))
    assert not may_reach(agent("internet"), "metadata.test", probe("169.254.169.254"))
    assert not may_reach(agent("none"), "public.test", probe("9.9.9.9"))
