"""The machines around a host, as far as they can be known without one."""

import ipaddress
from pathlib import Path
from unittest.mock import Mock

import pytest

from harness.errors import HarnessError
from harness.guests.addresses import DECOYS, HOST, PUBLIC
from harness.guests.peers import STATIONS, Network, content, host_script, role_script
from harness.lab import Lab, Settings
from harness.vm.machine import Machine


def test_no_two_stations_share_an_address() -> None:
    stations = [HOST, *STATIONS.values()]
    assert len({address for one in stations for address in (one.mac, *one.addresses)}) == 3 * len(stations)


@pytest.mark.parametrize("role", STATIONS)
def test_a_peer_sets_its_own_addresses(role: str) -> None:
    script = role_script(role)
    assert all(address in script for address in (STATIONS[role].mac, *STATIONS[role].addresses))


def test_each_peer_has_a_template_of_its_own() -> None:
    assert len({str(content(role)) for role in STATIONS}) == len(STATIONS)


def test_a_host_alone_has_nothing_to_do() -> None:
    assert host_script({"host"}) == "set -e"


def test_decoys_are_not_public() -> None:
    """But for two that embed a private address, which Python does not look into."""
    decoys = {address for addresses in DECOYS.values() for address in addresses}
    assert not decoys & {address for addresses in PUBLIC.values() for address in addresses}
    embedded = {"64:ff9b::a01:203", "2002:a01:203::1"}
    assert {address for address in decoys if ipaddress.ip_address(address).is_global} <= embedded
    assert all(ipaddress.ip_address(address).is_global for address in PUBLIC["public.test"])


def test_a_peer_that_was_not_asked_for_is_named() -> None:
    network = Network(Mock(spec=Machine))
    with pytest.raises(HarnessError, match="has no 'lan' machine"):
        _ = network.lan


def test_an_unknown_role_is_named_with_those_there_are(tmp_path: Path) -> None:
    lab = Lab(Settings(cache=tmp_path))
    with pytest.raises(HarnessError, match="'wan', which is none of: internet, lan, tailnet"):
        lab.peer("wan")
