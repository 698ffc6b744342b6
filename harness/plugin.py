"""The pytest plugin: options, fixtures, and evidence when a test fails.

    plan            the plan under test (``--vm-agents FILE``, ``--vm-flake REF``, ``--vm-plan FILE``; else agents.nix)
    agents          its agents, by name
    machine         a fresh machine with that plan in force, for this test alone
    host            a testinfra ``Host`` on it
    internet        the world around that machine: DNS, HTTP and echo on public addresses and on decoys
    lan             a neighbour on its LAN
    tailnet         a peer on its tailnet
    shared_machine  one machine for all tests that only look
    outcomes        what came of the attacks, by name of the way (all ways in one batch)
    network_outcomes  the same of the attacks over the network, by claim and way
    hijack_outcomes  the same of what real Hermes agents try when they are hijacked
    lab             makes machines of any plan

A test of a claim is marked ``@pytest.mark.claim("D2")``, and one that takes long ``@pytest.mark.recorded`` (see
``harness.records``). Markers of tests that are left out by default are in ``harness.left_out``.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import testinfra.host

from harness import evidence
from harness.cache import Cache, default_root
from harness.contract import ClaimBroken, ControlFailed, Inapplicable, find_claim
from harness.deploy import read_plan, way_into
from harness.durations import COMMITTED, Durations, read_durations, read_recorded
from harness.errors import HarnessError
from harness.guests.bootstrap import STABLE, SUITES
from harness.guests.peers import STATIONS, Network, Peer
from harness.lab import GUESTS, PACKAGES, Lab, Settings, check_choice
from harness.mutants import find_mutant
from harness.mutation import MutatedLab
from harness.pace import describe_pace, measure_pace
from harness.policy import Agent, Plan, evaluate_flake, reference_plan
from harness.probes.attempts import Aim, Outcome, attackers, is_among, run_attempts
from harness.probes.audit import plan_audit_attempts
from harness.probes.hijacked import hijacked_plan, idle, run_hijack, stage_builder
from harness.probes.network import roles_for, run_network, scene_builder, scene_content
from harness.probes.sharing import run_sharing
from harness.probes.stage import set_stage
from harness.probes.ways import WAYS, plan_attempts, writes
from harness.records import Records
from harness.recycling import Recycler
from harness.report.collect import Collector
from harness.selection import Selection
from harness.shards import Shard, parse_shard
from harness.timing import FixtureClock, Recorder
from harness.vm.accelerator import CHOICES
from harness.vm.machine import Machine
from harness.vm.template import Template

pytest_plugins = ["harness.left_out"]
REPOSITORY = Path(__file__).resolve().parent.parent
KEEP = ("never", "on-failure", "always")
OPTIONS: dict[str, tuple[str, Any, str]] = {
    # name: (metavar, default, help)
    "guest": ("|".join(GUESTS), "debian", "how a plan becomes a machine"),
    "suite": ("|".join(SUITES), STABLE.name, "which Debian the debian guest is"),
    "nixos-packages": (
        "|".join(PACKAGES),
        "auto",
        "whose packages the nixos guest has; auto: Debian's without a binary cache",
    ),
    "accel": ("|".join(CHOICES), "auto", "QEMU's accelerator; auto tries KVM with a tiny guest"),
    "cpus": ("N", 2, "virtual CPUs of a machine"),
    "memory": ("MIB", 2048, "memory of a machine in MiB"),
    "kernel": ("FILE", None, "boot this kernel in place of the guest's own, which PVM cannot run, say"),
    "initrd": ("FILE", None, "and this initramfs"),
    "cache": ("DIR", default_root(), "where images, templates and running machines are kept"),
    "artifacts": ("DIR", ".artifacts", "where the evidence of failed tests goes"),
    "keep": ("|".join(KEEP), "never", "leave the machines' directories (disk, logs) behind"),
    "agents": ("FILE", None, "the agents under test, .nix or .json (default: agents.nix)"),
    "flake": ("REF", None, "the host under test, as FLAKE#HOST, in place of --vm-agents"),
    "plan": (
        "FILE",
        None,
        "the plan under test, as `harness plan --json` writes it; --vm-agents or --vm-flake then only name its source",
    ),
    "shard": ("K/N", None, "only the K-th of N parts; auto: as GitLab, Buildkite, Kubernetes or Slurm say; /N"),
    "durations": ("FILE", COMMITTED, "by which shards are balanced; the same for all of them"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vm", "virtual machines (each --vm-NAME also as TENTAFLAKE_NAME)")
    for name, (metavar, default, text) in OPTIONS.items():
        value = os.environ.get(f"TENTAFLAKE_{name.upper().replace('-', '_')}", default)
        group.addoption(f"--vm-{name}", metavar=metavar, default=value, help=f"{text} (now: {value})")
    group.addoption(
        "--vm-records",
        action="store_true",
        help="leave out tests marked `recorded` that passed on the same host before",
    )
    group.addoption(
        "--nixpkgs",
        metavar="DIR",
        default=os.environ.get("TENTAFLAKE_NIXPKGS"),
        help="a clone of nixpkgs or of nix-community/nixpkgs.lib, to evaluate the NixOS modules with",
    )
    group.addoption("--vm-claim", metavar="ID", action="append", help="only the tests of this claim (may be repeated)")
    group.addoption(
        "--vm-mutant", metavar="ID", help="break every machine in this way first (`harness mutate --list` has them)"
    )
    group.addoption("--vm-outcomes", metavar="FILE", help="write what came of each claim's tests, as JSON")
    group.addoption("--vm-listing", metavar="FILE", help="write which tests are to run, with their claims, as JSON")
    group.addoption("--vm-shell", action="store_true", help="a root shell in the failed test's machine, before it goes")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-xdist's own choice, whichever was loaded first
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """With workers, tests that share an expensive machine go to the same one, unless ``--dist`` says otherwise."""
    if config.getoption("numprocesses", None) and config.getoption("dist", "no") == "no":
        config.option.dist = "loadgroup"
    return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker what ``pytest_cmdline_main`` chose: it reads the command line anew, where nothing was said."""
    node.workerinput["loadgroup"] = node.config.option.dist == "loadgroup"
    node.workerinput["started"] = node.config.stash[STARTED]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "claim(id): this test attacks a claim of the contract")
    config.addinivalue_line("markers", "recorded: takes long; see --vm-records")
    config.stash[SETTINGS] = _check_options(config)
    measure_pace()  # before there are workers, who inherit it
    if config.getoption("vm_outcomes"):
        config.pluginmanager.register(Collector(), "outcomes")
    config.stash[STARTED] = time.time()
    if hasattr(config, "workerinput"):
        config.option.loadgroup = config.workerinput["loadgroup"]
        config.stash[STARTED] = config.workerinput["started"]
    _watch_durations(config)


def _watch_durations(config: pytest.Config) -> None:
    """Order by what tests took before, and record what they take; those of a broken host, or of another tree, do not
    count."""
    cache, guest = Cache(config.stash[SETTINGS].cache.expanduser().absolute()), config.stash[SETTINGS].label
    workers = config.getoption("numprocesses", None) or 0
    recorded = read_recorded(cache, guest)
    if hasattr(config, "workerinput"):
        workers = config.workerinput["workercount"]
        recorded = msgspec.json.decode(config.workerinput["recorded"], type=Durations)
    elif config.rootpath == REPOSITORY and not config.getoption("vm_mutant"):
        config.pluginmanager.register(Recorder(cache, guest))
    listing = config.getoption("vm_listing")
    selection = Selection(
        config.stash[SHARD], config.stash[SHARED], recorded, int(workers), Path(listing) if listing else None
    )
    config.pluginmanager.register(selection)
    config.pluginmanager.register(FixtureClock())


SETTINGS = pytest.StashKey[Settings]()
LAB = pytest.StashKey[Lab]()
PLAN = pytest.StashKey[Plan]()
GIVEN = pytest.StashKey[Plan]()
"""What ``--vm-plan`` names."""
STARTED = pytest.StashKey[float]()
"""When the run began (seconds since 1970): all workers, also one that replaces another, take the records of before."""
SHARD = pytest.StashKey[Shard | None]()
SHARED = pytest.StashKey[Durations]()
RECORDS = pytest.StashKey[Records]()
RUNNING = pytest.StashKey[list[Machine]]()
CELLS = pytest.StashKey[list[dict[str, str]]]()


def _check_options(config: pytest.Config) -> Settings:
    """The settings that the options come to; raises ``pytest.UsageError`` for the first that is wrong."""
    try:
        check_choice("--vm-keep", config.getoption("vm_keep"), KEEP)
        for claim in config.getoption("vm_claim") or []:
            find_claim(claim)
        if mutant := config.getoption("vm_mutant"):
            find_mutant(mutant)
            if config.getoption("vm_flake"):
                raise HarnessError("--vm-mutant and --vm-flake exclude each other: a mutant has another policy")
        settings = Settings(
            guest=config.getoption("vm_guest"),
            suite=config.getoption("vm_suite"),
            nixos_packages=config.getoption("vm_nixos_packages"),
            accel=config.getoption("vm_accel"),
            cpus=_number(config, "cpus"),
            memory=_number(config, "memory"),
            cache=Path(config.getoption("vm_cache")),
            **{name: Path(file) for name in ("kernel", "initrd") if (file := config.getoption(f"vm_{name}"))},
        )
        _read_files(config, settings.label)
        return settings
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None


def _read_files(config: pytest.Config, guest: str) -> None:
    """Read what the options name, once and at the start; raises ``HarnessError``."""
    if file := config.getoption("vm_plan"):
        if config.getoption("vm_mutant"):
            raise HarnessError("--vm-plan and --vm-mutant exclude each other: a mutant's plan is made from its source")
        config.stash[GIVEN] = read_plan(Path(file))
    config.stash[SHARD] = parse_shard(config.getoption("vm_shard"))
    config.stash[SHARED] = read_durations(Path(config.getoption("vm_durations")), guest)


def _number(config: pytest.Config, name: str) -> int:
    value = config.getoption(f"vm_{name}")
    try:
        return int(value)
    except ValueError:
        raise HarnessError(f"--vm-{name} is {value!r}: not a whole number") from None


def pytest_report_header(config: pytest.Config) -> str:
    settings = config.stash[SETTINGS]
    reason = settings.make_guest().obstacle()
    obstacle = f"\nvm: no test has a machine: there is no {settings.label} guest here: {reason}" if reason else ""
    subject = config.getoption("vm_flake") or config.getoption("vm_agents") or "agents.nix"
    if given := config.stash.get(GIVEN, None):
        subject = f"{subject} as in {config.getoption('vm_plan')} ({given.digest[:12]})"
    shard = f", shard {config.stash[SHARD]}" if config.stash[SHARD] else ""
    return (
        f"vm: guest {settings.label}, accel {settings.accel}, {settings.cpus} cpus, {settings.memory} MiB, "
        f"agents {subject}, cache {settings.cache}{shard}{obstacle}\n"
        f"pace: deadlines are {describe_pace()}"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lab = config.stash.get(LAB, None)
    if lab is not None and "accelerator" in lab.__dict__:
        verdict = lab.accelerator
        terminalreporter.write_line(f"vm: ran under {verdict.accelerator.upper()}: {verdict.reason}")


@pytest.hookimpl(trylast=True)  # when no machine is left
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if (lab := config.stash.get(LAB, None)) and isinstance(lab, MutatedLab):
        lab.close()
    if collector := config.pluginmanager.get_plugin("outcomes"):
        Path(config.getoption("vm_outcomes")).write_bytes(msgspec.json.encode(collector.tests))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note each test's claims, refuse a marker that names none, and keep together what shares a machine."""
    wanted = config.getoption("vm_claim")
    deselected = []
    for item in items:
        claims = [find_claim(marker.args[0]).id for marker in item.iter_markers("claim")]
        item.user_properties += [("claim", claim) for claim in claims]
        for fixture in GROUPS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(fixture))
        if wanted and not set(wanted) & set(claims):
            deselected.append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in set(deselected)]
    if config.getoption("vm_records") and not config.getoption("vm_mutant"):
        with suppress(HarnessError):  # what is wrong with plan or guest, the tests say
            if lab_of(config).has_image:
                items[:] = [OnRecord.of(item) or item for item in items]


class OnRecord(pytest.Item):
    """Stands for a test that is on record as passed: it has passed, and needs no machine.

    The fixtures are those that the test would have: shards are made by them, whatever is on record.
    """

    fixturenames: Sequence[str] = ()

    @classmethod
    def of(cls, item: pytest.Item) -> pytest.Item | None:
        if not item.get_closest_marker("recorded"):
            return None
        record = records_of(item.config).find(item.nodeid)
        if record is None or record.passed >= item.config.stash[STARTED]:
            return None
        assert item.parent
        made: OnRecord = cls.from_parent(item.parent, name=item.name, nodeid=item.nodeid)
        made.user_properties = [*item.user_properties, ("recorded", record.passed)]
        made.own_markers = item.own_markers
        made.fixturenames = list(getattr(item, "fixturenames", ()))
        return made

    def runtest(self) -> None:
        pass

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{self.name} (on record)"


def lab_of(config: pytest.Config) -> Lab:
    if LAB not in config.stash:
        settings, mutant = config.stash[SETTINGS], config.getoption("vm_mutant")
        config.stash[LAB] = MutatedLab(settings, find_mutant(mutant)) if mutant else Lab(settings)
    return config.stash[LAB]


def plan_of(config: pytest.Config) -> Plan:
    """The plan under test, as its guest runs it. One that was given is never evaluated again."""
    if PLAN not in config.stash:
        agents, flake = config.getoption("vm_agents"), config.getoption("vm_flake")

        def evaluate() -> Plan:
            if given := config.stash.get(GIVEN, None):
                return given
            return evaluate_flake(flake) if flake else reference_plan(agents and Path(agents))

        config.stash[PLAN] = lab_of(config).evaluate(evaluate)
    return config.stash[PLAN]


def records_of(config: pytest.Config) -> Records:
    if RECORDS not in config.stash:
        config.stash[RECORDS] = Records(lab_of(config), plan_of(config))
    return config.stash[RECORDS]


GROUPS = {
    "all_outcomes",
    "attacked_network",
    "hijacked_network",
    "restarted",
    "crashes",
    "fleet_stage",
    "killed_hosts",
    "boot",
    "refused",
    "searched",
    "lacking",
    "speaking_machine",
}
"""Fixtures that are expensive and shared: all tests that use one go to one worker."""


# --- fixtures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Lab:
    lab = lab_of(pytestconfig)
    if reason := lab.guest.obstacle():
        pytest.skip(f"there is no {lab.guest.name} guest here: {reason}")
    if isinstance(lab, MutatedLab):
        plan_of(pytestconfig)  # a mutant is one of this plan, whatever other machines a test asks for
    return lab


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config, lab: Lab) -> Plan:
    return plan_of(pytestconfig)


@pytest.fixture(scope="session")
def agents(plan: Plan) -> Mapping[str, Agent]:
    return plan.agents


@pytest.fixture
def network(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Network]:
    """This test's machine and, on one wire with it, the peers that the test asks for."""
    roles = [role for role in STATIONS if role in request.fixturenames]
    with track_network(request.config, lab.network(plan, roles)) as made:
        yield made


@pytest.fixture
def machine(network: Network) -> Machine:
    return network.host


@pytest.fixture
def internet(network: Network) -> Peer:
    return network.internet


@pytest.fixture
def lan(network: Network) -> Peer:
    return network.lan


@pytest.fixture
def tailnet(network: Network) -> Peer:
    return network.tailnet


@pytest.fixture(scope="session")
def shared_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    with track_machine(request.config, lab.machine(plan)) as made:
        yield made


@pytest.fixture
def host(machine: Machine) -> testinfra.host.Host:
    return machine.host


def aims_of(session: pytest.Session) -> set[Aim] | None:
    """On a broken host, only what the selected tests look at is attacked, so that a mutant takes seconds."""
    if not session.config.getoption("vm_mutant"):
        return None
    found: set[Aim] = set()
    for item in session.items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        found |= {(marker.args[0], parameters.get("way")) for marker in item.iter_markers("claim")}
    return found


@pytest.fixture(scope="session")
def attacked_machine(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Machine]:
    """The machine on which the attacks of ``outcomes`` are tried."""
    with track_machine(request.config, lab.machine(plan)) as made:
        yield made


@pytest.fixture(scope="session")
def all_outcomes(request: pytest.FixtureRequest, attacked_machine: Machine, plan: Plan) -> list[Outcome]:
    """Every attack that a selected test asks for, in one batch."""
    claims = {marker.args[0] for item in request.session.items for marker in item.iter_markers("claim")}
    aims = aims_of(request.session)
    host, everybody = attacked_machine.host, attackers(plan)
    stage = set_stage(host, plan, everybody)
    attempts = plan_attempts([way for way in WAYS.values() if way.claim in claims], everybody, stage)
    if "C2" in claims:
        attempts += writes(everybody)
    if "A4" in claims:
        attempts += plan_audit_attempts(host, everybody)
    found = run_attempts(host, [each for each in attempts if is_among(aims, each)])
    return [*found, *(run_sharing(host, plan, aims) if "D3" in claims else [])]


@pytest.fixture
def outcomes(request: pytest.FixtureRequest, all_outcomes: list[Outcome]) -> Callable[[str], None]:
    """``outcomes("way")``: fail unless this attack was refused, everywhere, and its positive controls were not."""

    def judge(way: str) -> None:
        judge_outcomes(request, way, [outcome for outcome in all_outcomes if outcome.attempt.way == way])

    return judge


@pytest.fixture(scope="session")
def attacked_network(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Network]:
    """The machines on which the attacks of ``network_outcomes`` are tried."""
    stage = lab.stage(plan, scene_builder(plan), title="preparing attacks over the network", **scene_content())
    roles = roles_for(plan, aims_of(request.session))
    with track_network(request.config, lab.network(plan, roles, stage=stage)) as made:
        yield made


@pytest.fixture(scope="session")
def all_network_outcomes(request: pytest.FixtureRequest, attacked_network: Network, plan: Plan) -> list[Outcome]:
    """Every attack over the network, in one batch."""
    return run_network(attacked_network, plan, aims_of(request.session))


@pytest.fixture
def network_outcomes(request: pytest.FixtureRequest, all_network_outcomes: list[Outcome]) -> Callable[[str, str], None]:
    """``network_outcomes("F2", "broadcast")``: as ``outcomes``, for a claim and a way of ``harness.probes.network``."""

    def judge(claim: str, way: str) -> None:
        chosen = [each for each in all_network_outcomes if (each.attempt.claim, each.attempt.way) == (claim, way)]
        judge_outcomes(request, way, chosen)

    return judge


@pytest.fixture(scope="session")
def hijacked_network(request: pytest.FixtureRequest, lab: Lab, plan: Plan) -> Iterator[Network]:
    """The machines on which agents are hijacked: those of the plan, in the Hermes image, with a scripted model."""
    with track_network(request.config, lab.network(plan, stage=hijack_stage(lab, plan))) as made:
        yield made


def hijack_stage(lab: Lab, plan: Plan) -> Template:
    """The host of ``plan`` with its agents ready to be hijacked; see ``harness.probes.hijacked``."""
    adapted = idle(lab.adapt(hijacked_plan(plan), "hermes"))
    return lab.stage(adapted, stage_builder(adapted), title="preparing to hijack the agents", **scene_content())


@pytest.fixture(scope="session")
def all_hijack_outcomes(hijacked_network: Network, plan: Plan) -> list[Outcome]:
    """All that the hijacked agents try, each in one conversation, all agents at once."""
    return run_hijack(hijacked_network, hijacked_plan(plan))


@pytest.fixture
def hijack_outcomes(request: pytest.FixtureRequest, all_hijack_outcomes: list[Outcome]) -> Callable[[str, str], None]:
    """``hijack_outcomes("D2", "read a state file")``: as ``outcomes``, by the real Hermes, told to by its model."""

    def judge(claim: str, way: str) -> None:
        chosen = [each for each in all_hijack_outcomes if (each.attempt.claim, each.attempt.way) == (claim, way)]
        judge_outcomes(request, way, chosen)

    return judge


def judge_outcomes(request: pytest.FixtureRequest, way: str, outcomes: list[Outcome]) -> None:
    """Report the outcomes, and fail or skip the test as ``check_outcomes`` says."""
    request.node.stash.setdefault(CELLS, []).extend(outcome.cell() for outcome in outcomes)
    try:
        check_outcomes(way, outcomes)
    except Inapplicable as error:
        request.node.user_properties.append(("inapplicable", True))
        pytest.skip(str(error))


def check_outcomes(way: str, outcomes: list[Outcome]) -> None:
    """Raise ``ClaimBroken`` if an attack succeeded, ``ControlFailed`` if it proves nothing, ``Inapplicable`` if there
    is none to try."""
    broken = [outcome for outcome in outcomes if not outcome.attempt.is_control and outcome.seen == "reached"]
    if broken:
        claim = find_claim(broken[0].attempt.claim)
        listing = "\n  ".join(map(str, broken))
        raise ClaimBroken(f"{claim.id} is broken: {claim.text}\n  {listing}")
    controls = [outcome for outcome in outcomes if outcome.attempt.is_control]
    wrong = "\n  ".join(str(outcome) for outcome in outcomes if not outcome.as_expected)
    if outcomes and not controls:
        wrong = wrong or "no positive control was tried"
    if wrong:
        raise ControlFailed(f"{way!r} proves nothing:\n  {wrong}")
    if len(controls) == len(outcomes):
        raise Inapplicable(f"{way!r}: on this host there is nobody who could try it, or nobody to try it on")


@contextmanager
def track_machine(config: pytest.Config, machine: AbstractContextManager[Machine]) -> Iterator[Machine]:
    """A machine that is known to the evidence hook while it lives."""
    with machine as made, _known(config, [made]):
        yield made


@contextmanager
def track_network(config: pytest.Config, network: AbstractContextManager[Network]) -> Iterator[Network]:
    """A machine and its peers that are known to the evidence hook while they live."""
    with network as made, _known(config, made.machines):
        yield made


@contextmanager
def _known(config: pytest.Config, machines: list[Machine]) -> Iterator[None]:
    running = config.stash.setdefault(RUNNING, [])
    running.extend(machines)
    try:
        yield
    finally:
        for machine in machines:
            running.remove(machine)
            if config.getoption("vm_keep") == "always":
                keep_machine(machine, _artifacts(config))


def _artifacts(config: pytest.Config) -> Path:
    return config.rootpath / str(config.getoption("vm_artifacts"))


def keep_machine(machine: Machine, artifacts: Path) -> Path:
    """Copy a machine's directory (overlay disk, logs) out of the cache before it is removed."""
    source = machine.process.directory
    target = artifacts / "machines" / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("*.sock", "lock", "qemu.pid")
    with _quiet_disk(machine):
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    # The copy is elsewhere, so its backing file must be named in full.
    overlay = "overlay.qcow2"
    info = subprocess.run(
        ["qemu-img", "info", "--force-share", "--output=json", overlay], cwd=source, check=True, capture_output=True
    )
    backing = (source / json.loads(info.stdout)["backing-filename"]).resolve()
    subprocess.run(["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", str(backing), overlay], cwd=target, check=True)
    return target


@contextmanager
def _quiet_disk(machine: Machine) -> Iterator[None]:
    """For the duration, all that a living guest has written is in its overlay, and nothing is added."""
    with suppress(HarnessError):
        machine.run("sync", timeout=60)
    with suppress(HarnessError):
        machine.pause()  # QEMU writes back its own caches when it stops a machine
    yield
    with suppress(HarnessError):
        machine.resume()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """What is left of machines now is for later tests; until then they stand still."""
    yield
    for machine in item.config.stash.get(RUNNING, []):
        with suppress(HarnessError):  # who needs it next will hear of it
            machine.pause()


# --- evidence -------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On failure, before anything is torn down: evidence to disk, its place into the message."""
    report = yield
    mutant = item.config.getoption("vm_mutant")  # says nothing of the host, and what is wrong with it is known
    # Without a plan it was not run.
    if (
        not mutant
        and item.get_closest_marker("recorded")
        and not isinstance(item, OnRecord)
        and PLAN in item.config.stash
    ):
        test = item.nodeid.rsplit("@", 1)[0]  # pytest-xdist appends the group
        if report.failed:
            records_of(item.config).forget(test)
        elif report.passed and call.when == "call":
            records_of(item.config).write(test, call.duration)
    if call.when == "call" and (cells := item.stash.get(CELLS, None)):
        report.user_properties.append(("cells", cells))
    if call.excinfo is not None:
        report.user_properties.append(("untried", is_untried(call.excinfo)))
    machines = [machine for machine in item.config.stash.get(RUNNING, []) if _used_by(item, machine)]
    if report.failed and call.when in ("setup", "call") and machines and not mutant:
        artifacts = _artifacts(item.config)
        directory = evidence.collect(machines, artifacts, item.nodeid)
        if item.config.getoption("vm_keep") == "on-failure":
            for machine in machines:
                keep_machine(machine, artifacts)
        journal = directory / ("journal.txt" if len(machines) == 1 else "*/journal.txt")
        report.sections.append(("evidence", f"in {directory} (also {artifacts / 'last'})\nlook: less {journal}"))
        if item.config.getoption("vm_shell"):
            _open_shell(item, machines[0])
    return report


def is_untried(error: pytest.ExceptionInfo[BaseException]) -> bool:
    """Whether a failure says nothing of the claim: it is no assertion, or testinfra's about a command that failed.

    That something was not refused (``pytest.raises``) says something.
    """
    is_assertion = error.errisinstance((AssertionError, pytest.fail.Exception))
    return not is_assertion or "testinfra" in Path(error.traceback[-1].path).parts


def _used_by(item: pytest.Item, machine: Machine) -> bool:
    """Whether the test has this machine, itself or by way of a fixture."""
    for value in getattr(item, "funcargs", {}).values():
        if isinstance(value, Recycler):
            return True
        if machine is value or (isinstance(value, Network) and machine in value.machines):
            return True
    return any(name.endswith(("_machine", "_network")) for name in getattr(item, "fixturenames", ()))


def _open_shell(item: pytest.Item, machine: Machine) -> None:
    """An interactive root shell by SSH; the test goes on failing when it is left."""
    capture = item.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else ExitStack():
        try:
            with Path("/dev/tty").open() as terminal:  # standard input is pytest's, and empty
                print(f"\nroot shell in the machine of {item.nodeid}; leave with exit")
                subprocess.run(ssh_command(machine), stdin=terminal, check=False)
        except OSError as error:
            print(f"\nno root shell in the machine of {item.nodeid}: {error}")


def ssh_command(machine: Machine) -> list[str]:
    """An ``ssh`` command line into the machine."""
    return way_into(machine).command()
