"""X2 on NixOS: its own program switches, and goes back from what fails or is killed (modules/switch.nix)."""

import shlex

import pytest

from harness.guests.nixos import PROFILE, SWITCH, NixosGuest
from harness.lab import Lab
from harness.plugin import track_machine
from harness.policy import Plan
from harness.probes.deployment import differences, forbid_recovery, take_snapshot, who_runs
from harness.vm.machine import Machine
from harness.vm.shell import CommandFailed
from harness.vm.template import BOOT_TIMEOUT, boot_again
from tests.contract.test_deployment import check_unchanged

claim = pytest.mark.claim
recorded = pytest.mark.recorded
pytestmark = pytest.mark.guest("nixos")
NOTE = "/var/lib/tentaflake/switching"


@pytest.fixture(scope="session")
def nixos(lab: Lab) -> NixosGuest:
    assert isinstance(lab.guest, NixosGuest)
    return lab.guest


BREAKAGES = {
    "a table that nft refuses": """{ lib, ... }: { networking.nftables.tables.tentaflake.content =
      lib.mkForce "no rule"; }""",
    "settings that Docker refuses": "{ virtualisation.docker.daemon.settings.no-such-setting = true; }",
    "a unit that fails": """{ systemd.services.fails = { wantedBy = [ "multi-user.target" ];
      serviceConfig = { Type = "oneshot"; RemainAfterExit = true; ExecStart = "/bin/sh -c 'exit 1'"; }; }; }""",
    "an activation script that fails": '{ system.activationScripts.fails = "false"; }',
}


@claim("X2")
@recorded
def test_a_switch_that_fails_goes_back_by_itself(
    nixos: NixosGuest, small_machine: Machine, small_plans: tuple[Plan, Plan]
) -> None:
    """Whatever fails, each time from the host that the last way back has left; and the next switch works."""
    host, (one, other) = small_machine.host, small_plans
    stays = one.agents["stays"]
    before, process = take_snapshot(host), who_runs(host, [stays])
    for module in BREAKAGES.values():
        with pytest.raises(CommandFailed):
            nixos.run_with_system(small_machine, other, {}, SWITCH, module)
        check_unchanged(small_machine, before, stays, process)
        assert not host.file(NOTE).exists
    nixos.activate(small_machine, other)
    assert host.user("hermes-comes").exists
    assert differences(before, take_snapshot(host))  # the control: it is another host now


# Kills the switch, and all that it has started itself, at a moment that a shell command can tell.
KILL = f"""
nix-store --import > /dev/null && nix-env --profile {PROFILE} --set "$1" || exit
former=$(readlink -f /run/current-system)
setsid "$1/bin/switch-to-configuration" switch > /root/killed 2>&1 &
switch=$!
until {{moment}}; do [ -e /proc/$switch ] || {{{{ cat /root/killed; exit 1; }}}}; done
kill -9 -- -$switch"""
MOMENTS = {
    "it has begun": f"[ -e {NOTE} ]",
    "a user has come": "getent passwd hermes-comes",
    "the new system is the current one": '[ "$(readlink -f /run/current-system)" != "$former" ]',
    "the new table is in force": "nft list set inet tentaflake refused | grep -q {bridge}",
}


@claim("X2")
@recorded
def test_a_switch_that_is_killed_goes_back_by_itself(
    nixos: NixosGuest, small_machine: Machine, small_plans: tuple[Plan, Plan]
) -> None:
    host, (one, other) = small_machine.host, small_plans
    stays, bridge = one.agents["stays"], other.agents["comes"].network.bridge
    before, process = take_snapshot(host), who_runs(host, [stays])
    for moment in MOMENTS.values():
        nixos.run_with_system(small_machine, other, {}, KILL.format(moment=moment.format(bridge=bridge)))
        # It is at work already, or this waits for it.
        host.check_output("systemctl start tentaflake-recover.service", timeout=BOOT_TIMEOUT)
        check_unchanged(small_machine, before, stays, process)
        assert not host.file(NOTE).exists
    nixos.activate(small_machine, other)
    assert differences(before, take_snapshot(host))  # the control


def wait_booted(machine: Machine, guest: NixosGuest) -> None:
    machine.run("systemctl is-system-running --wait", timeout=BOOT_TIMEOUT)
    machine.run("systemctl start tentaflake-recover.service", timeout=BOOT_TIMEOUT).check()
    guest.wait_agents(machine)


@claim("X2")
@recorded
def test_a_boot_after_a_killed_switch_has_the_former_nixos(
    nixos: NixosGuest, small_machine: Machine, small_plans: tuple[Plan, Plan]
) -> None:
    host = small_machine.host
    before = take_snapshot(host)
    forbid_recovery(host)
    moment = MOMENTS["the new system is the current one"]
    nixos.run_with_system(small_machine, small_plans[1], {}, KILL.format(moment=moment))
    assert differences(before, take_snapshot(host))  # the control: something was done
    host.check_output("sync")
    small_machine.power_cycle(BOOT_TIMEOUT)
    wait_booted(small_machine, nixos)
    assert differences(before, take_snapshot(host)) == []


@claim("X2")
@recorded
def test_a_generation_of_nixos_can_be_chosen_at_boot(
    request: pytest.FixtureRequest, nixos: NixosGuest, lab: Lab, small_machine: Machine, small_plans: tuple[Plan, Plan]
) -> None:
    """As an entry of the boot menu has it: by the path of its first program."""
    host = small_machine.host
    before, generation = take_snapshot(host), nixos.find_generation(small_machine)
    nixos.activate(small_machine, small_plans[1])
    assert differences(before, take_snapshot(host))  # the control: another one is in force now
    host.check_output("sync")
    word = f"init={PROFILE}-{generation}-link/init"
    with track_machine(request.config, boot_again(small_machine, lab.image, lab.hardware, word)) as machine:
        wait_booted(machine, nixos)
        assert word in shlex.split(machine.host.check_output("cat /proc/cmdline"))  # the control
        assert differences(before, take_snapshot(machine.host)) == []
