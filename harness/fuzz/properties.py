"""What the policy owes to any host: each property is a strategy and a check, for pytest and for ``harness fuzz``."""

from __future__ import annotations

import difflib
import itertools
import json
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from hypothesis.strategies import SearchStrategy

from harness.errors import HarnessError
from harness.fuzz import meant, parsers
from harness.fuzz.blame import is_finding
from harness.guests import activate
from harness.nix_text import agents_nix
from harness.policy import HOST_VARIABLES, Agent, Plan, PolicyError, evaluate, evaluate_many
from harness.strategies import Mistake, Written, hostile_hosts, hosts, identity_of, mistakes

Case = Any


@dataclass(frozen=True)
class Property:
    """``text`` is what is promised; ``check`` raises something for a case that breaks it, mostly ``AssertionError``.

    ``obstacle`` says why it cannot be tried on this machine, if it cannot.
    """

    name: str
    text: str
    cases: SearchStrategy[Case]
    check: Callable[[Case], None]
    obstacle: Callable[[], str | None]


PROPERTIES: dict[str, Property] = {}


def find_property(name: str) -> Property:
    """The property of that name; an unknown one says which are near, or which there are."""
    if name not in PROPERTIES:
        near = difflib.get_close_matches(name, PROPERTIES, n=3) or [each for each in PROPERTIES if name in each]
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(PROPERTIES)}"
        raise HarnessError(f"there is no property {name!r}", hint=hint)
    return PROPERTIES[name]


def prove(name: str, case: Case) -> None:
    """Check one case of a property; the error has the ``agents.nix`` that reproduces it."""
    try:
        PROPERTIES[name].check(case)
    except Exception as error:
        host = written_of(case)
        if is_finding(error) and isinstance(host["agents"], list):
            error.add_note(f"agents.nix that reproduces it, with harness plan --agents FILE:\n\n{agents_nix(host)}")
        raise


def written_of(case: Case) -> Written:
    return case.host if isinstance(case, Mistake) else case


def holds(
    cases: SearchStrategy[Case], obstacle: Callable[[], str | None] = lambda: None
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a property; its name is the function's and its text the docstring's first line."""

    def register(check: Callable[[Case], None]) -> Callable[[Case], None]:
        text = (check.__doc__ or "").partition("\n")[0]
        PROPERTIES[check.__name__] = Property(check.__name__, text, cases, check, obstacle)
        return check

    return register


def plans(*variants: Written) -> list[Plan]:
    """All of them evaluated in one go; each has to be taken."""
    results = evaluate_many([host["agents"] for host in variants], [host["host"] for host in variants])
    for result in results:
        assert isinstance(result, Plan), f"a valid host is refused: {result}"
    return [result for result in results if isinstance(result, Plan)]


def rendered(plan: Plan) -> dict[str, tuple[int, str]]:
    return activate.render(json.loads(plan.to_json()))


# ---- what can be read off a plan


@holds(hosts())
def invariants(host: Written) -> None:
    """A valid host evaluates, and its plan keeps what the contract promises."""
    [plan] = plans(host)
    specs = {spec["name"]: spec for spec in host["agents"]}
    assert plan.agents.keys() == specs.keys()
    check_whole(plan)
    for name, spec in specs.items():
        check_agent(plan, plan.agents[name], spec)


def check_whole(plan: Plan) -> None:
    """What holds between the agents: U1, U3, D1, F2, S1, T3, A1."""
    agents = list(plan.agents.values())
    for key in ("uid", "gid", "user", "state_dir"):
        assert len({getattr(agent, key) for agent in agents}) == len(agents), f"two agents have one {key}"
    for key in ("name", "bridge", "ipv4", "ipv6"):
        assert len({getattr(agent.network, key) for agent in agents}) == len(agents), f"two networks have one {key}"
    for family in ("ipv4", "ipv6"):
        # Sorted, networks that overlap are neighbours.
        subnets = sorted(
            (ip_network(getattr(agent.network, family).subnet) for agent in agents),
            key=lambda subnet: int(subnet.network_address),
        )
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(subnets))
        whole = ip_network(getattr(plan.routing.unreachable, family))
        assert all(subnet[0] in whole and subnet[-1] in whole for subnet in subnets)
    paths = sorted(agent.state_dir.split("/") for agent in agents)
    assert not any(outer == inner[: len(outer)] for outer, inner in itertools.pairwise(paths)), "a state within another"
    assert plan.users.keys() == plan.groups.keys() == {agent.user for agent in agents}
    assert len({secret.path for secret in plan.secrets.values()}) == len(plan.secrets), "two secrets at one path"
    assert {secret.owner for secret in plan.secrets.values()} <= plan.users.keys()
    speaking = [agent for agent in agents if agent.tts]
    assert plan.speech.agents == [agent.name for agent in speaking]
    assert sorted(plan.speech.clients) == sorted(
        subnet for agent in speaking for subnet in (agent.network.ipv4.subnet, agent.network.ipv6.subnet)
    )
    watched = [(directory.agent, directory.path, directory.uid) for directory in plan.audit.directories]
    assert watched == [(agent.name, agent.state_dir, agent.uid) for agent in agents]
    check_firewall(plan)


ELEMENT = re.compile(r'^ +("h-[^"]*"|\d+)(?: \. .*?)?(?: comment ".*")?,?$', re.MULTILINE)


def check_firewall(plan: Plan) -> None:
    """Who is in which set follows from the plan, and no rule is of one agent (F2, F3, F4, F5)."""
    sets = dict(re.findall(r"^set (\w+) \{\n(.*?)^\}", plan.nftables.content, re.DOTALL | re.MULTILINE))
    members = {name: ELEMENT.findall(body) for name, body in sets.items()}
    agents = plan.agents.values()

    def bridges(chosen: Callable[[Agent], bool]) -> list[str]:
        return sorted(f'"{agent.network.bridge}"' for agent in agents if chosen(agent))

    everyone = bridges(lambda _: True)
    for name in ("address_ipv4", "address_ipv6", "refused"):
        assert sorted(members[name]) == everyone, f"set {name}"
    assert sorted(members["agent_uids"]) == sorted(str(agent.uid) for agent in agents)
    assert sorted(members["on_internet"]) == bridges(lambda agent: agent.egress == "internet")
    for name in ("speech_ipv4", "speech_ipv6"):
        assert sorted(members[name]) == bridges(lambda agent: agent.tts)
    listed = {bridge for name, found in members.items() if name.startswith("egress_") for bridge in found}
    assert sorted(listed) == bridges(lambda agent: isinstance(agent.egress, list))
    published = sorted(set(members.get("published", [])))
    assert published == (bridges(lambda agent: bool(agent.publish)) if plan.host.tailnet_interface else [])
    assert '"h-' not in plan.nftables.content[plan.nftables.content.index("chain ") :].replace('"h-*"', "")


def check_agent(plan: Plan, agent: Agent, spec: dict[str, Any]) -> None:
    """What holds of one agent, against what was written: U1, D1, D4, C1 to C5, S1, S2."""
    assert (agent.user, agent.group, agent.gid) == (f"hermes-{agent.name}", agent.user, agent.uid)
    user = plan.users[agent.user]
    assert (user.uid, user.group, user.home) == (agent.uid, agent.group, agent.state_dir)
    assert (user.shell, plan.groups[agent.group].gid) == ("/usr/sbin/nologin", agent.gid)
    assert spec.get("uid") in (None, agent.uid)
    assert len(agent.user) <= 31
    assert re.fullmatch(r"h-[a-z0-9-]{1,13}", agent.network.bridge)
    for family in (agent.network.ipv4, agent.network.ipv6):
        inside = {ip_address(family.gateway), ip_address(family.address)}
        assert len(inside) == 2 and all(address in ip_network(family.subnet) for address in inside)
    modes = {
        entry.path: (entry.mode, entry.user, entry.group) for entry in plan.directories if entry.group == agent.group
    }
    assert modes == {
        agent.state_dir: ("0700", agent.user, agent.group),
        f"/etc/hermes/{agent.name}": ("0750", "root", agent.group),
    }
    assert agent.state_dir == (spec.get("stateDir") or f"/var/lib/hermes-{agent.name}")
    assert json.loads(agent.config.content) == spec.get("settings", {})
    assert "nftables.service" in agent.service.requires and "nftables.service" in agent.service.after
    assert bool(agent.service.wanted_by) == spec.get("autoStart", True)
    check_container(plan, agent, spec)
    check_limits(agent, spec)
    for secret in agent.secrets:
        here = plan.secrets[secret.id]
        assert (here.mode, here.owner, here.group, here.path) == ("0400", agent.user, agent.group, secret.path)
        assert secret.path.startswith("/run/agenix/")
    assert [secret.file for secret in agent.secrets] == [secret["file"] for secret in spec.get("secrets", [])]


def check_container(plan: Plan, agent: Agent, spec: dict[str, Any]) -> None:
    container = agent.container
    assert (container.user, container.networks) == (f"{agent.uid}:{agent.gid}", [agent.network.name])
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(container.options)
    assert f"--cgroup-parent={plan.slice.name}" in container.options
    ours = {name: text for name, text in container.environment.items() if name not in HOST_VARIABLES}
    assert ours == spec.get("environment", {})
    assert container.command == spec.get("command", [])
    assert spec.get("image") in (None, container.image)
    assert "@sha256:" in container.image or agent.allow_mutable_image or spec.get("image") is None
    mounts = [option for option in container.options if option.startswith(("--mount=", "--volume", "--device"))]
    assert mounts == [
        f"--mount=type=bind,source={agent.state_dir},target={agent.state_dir}",
        f"--mount=type=bind,source={agent.config.path},target={agent.state_dir}/config.yaml,readonly",
        *(f"--mount=type=bind,source={secret.path},target={secret.target},readonly" for secret in agent.secrets),
    ]
    assert len({secret.target for secret in agent.secrets}) == len(agent.secrets)
    assert bool(container.ports) == bool(agent.publish and plan.host.tailnet_interface)
    assert agent.network.internal == (agent.egress == "none" and not agent.publish)
    assert ("--dns=127.0.0.1" in container.options) == (agent.egress == "none")


UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def bytes_of(size: int | str) -> int:
    if isinstance(size, int):
        return size
    number, unit = re.fullmatch(r"(\d+)([a-z]?).*", size.lower(), re.DOTALL).groups()  # type: ignore[union-attr]
    return int(number) * UNITS["" if unit == "b" else unit]


def check_limits(agent: Agent, spec: dict[str, Any]) -> None:
    """Every limit is what was written, to the last digit (D4)."""
    options = dict(option.partition("=")[::2] for option in agent.container.options)
    memory, cpus, pids = bytes_of(spec.get("memory", 1 << 30)), spec.get("cpus", 1), spec.get("pids", 256)
    assert int(options["--memory"]) == int(options["--memory-swap"]) == agent.limits.memory == memory
    assert Fraction(options["--cpus"]) == Fraction(str(cpus)), f"{cpus} CPUs became {options['--cpus']}"
    assert Fraction(str(agent.limits.cpus)) == Fraction(str(cpus))
    assert int(options["--pids-limit"]) == agent.limits.pids == pids
    disk = spec.get("disk")
    assert agent.limits.disk == (None if disk is None else bytes_of(disk))


# ---- hosts beside each other


def shared_lines(plan: Plan) -> set[str]:
    """The lines of what all agents share, in any order."""
    files = rendered(plan)
    texts = [plan.nftables.content, files["sysusers.conf"][1], files["tmpfiles.conf"][1]]
    return {line.strip(" ,") for text in texts for line in text.splitlines()} - {"elements = {", "}"}


def own_files(plan: Plan, name: str) -> dict[str, tuple[int, str]]:
    """What is rendered for one agent."""
    unit = f"units/docker-hermes-{name}.service"
    return {path: file for path, file in rendered(plan).items() if path == unit or path.startswith(f"agents/{name}/")}


@holds(hosts(min_agents=2, max_agents=60))
def alone(host: Written) -> None:
    """An agent's files are the same whoever else is on the host, and its coming changes no other's (U3)."""
    agents = host["agents"]
    one = agents[len(agents) // 2]
    others = [spec for spec in agents if spec is not one]
    whole, single, without = plans(host, {**host, "agents": [one]}, {**host, "agents": others})
    assert own_files(whole, one["name"]) == own_files(single, one["name"])
    for name, agent in without.agents.items():
        assert whole.agents[name] == agent
        assert whole.users[agent.user] == without.users[agent.user]
    for spec in others[:3]:
        assert own_files(whole, spec["name"]) == own_files(without, spec["name"])
    assert shared_lines(whole) == shared_lines(single) | shared_lines(without)


@holds(hosts(min_agents=2, max_agents=60))
def order(host: Written) -> None:
    """The order in which agents are written makes no difference (X4)."""
    agents = host["agents"]
    by_length = sorted(agents, key=lambda spec: (len(spec["name"]), spec["name"]))
    first, *rest = plans(host, {**host, "agents": agents[::-1]}, {**host, "agents": by_length})
    assert all(plan.to_json() == first.to_json() for plan in rest)


@holds(hosts(min_agents=2, max_agents=20))
def renamed(host: Written) -> None:
    """Renaming an agent changes no other (U3)."""
    first, *others = host["agents"]
    taken = set[tuple[str, str | int]]().union(*map(identity_of, others))
    names = (f"renamed-{number}" for number in itertools.count())  # two names may come to one uid
    other = next(spec for name in names if not identity_of(spec := {**first, "name": name}) & taken)
    before, after = plans(host, {**host, "agents": [other, *others]})
    assert other["name"] in after.agents
    for spec in others:
        name = spec["name"]
        assert before.agents[name] == after.agents[name]
        assert own_files(before, name) == own_files(after, name)


def plain(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec with nothing in place of its free text."""
    return {name: value for name, value in spec.items() if name not in ("command", "environment", "settings")}


@holds(hosts(max_agents=6))
def free_text(host: Written) -> None:
    """What an agent is told in free text is in its start script and its configuration alone."""
    whole, without = plans(host, {**host, "agents": [plain(spec) for spec in host["agents"]]})
    files, plain_files = rendered(whole), rendered(without)
    assert files.keys() == plain_files.keys()
    for path, file in files.items():
        if not re.fullmatch(r"plan\.json|agents/[^/]+/(start|config\.yaml)", path):
            assert file == plain_files[path], path


@holds(hosts(max_agents=6))
def as_nix(host: Written) -> None:
    """Written as an agents.nix, a host is the same host."""
    with directory() as here:
        path = here / "agents.nix"
        path.write_bytes(agents_nix(host).encode())
        assert evaluate(path, host=host["host"]).to_json() == plans(host)[0].to_json()


# ---- who reads it in the end


def texts(plan: Plan) -> dict[str, str]:
    return {path: text for path, (_, text) in rendered(plan).items()}


@contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as path:
        yield Path(path)


@holds(hosts(max_agents=20), parsers.systemd_obstacle)
def units(host: Written) -> None:
    """systemd takes every unit, and of an agent's it reads what the plan says."""
    [plan] = plans(host)
    found = {path.removeprefix("units/"): text for path, text in texts(plan).items() if path.startswith("units/")}
    with directory() as here:
        parsers.verify_units(here / "units", found)
    check_units(plan, found)


def check_units(plan: Plan, found: Mapping[str, str]) -> None:
    """Every setting of the agents' units, of the target that starts them, and of the host's own services."""
    for agent in plan.agents.values():
        unit = f"{agent.service.name}.service"
        assert meant.read_unit(found[unit]) == meant.unit_of(agent), unit
    wanted = {value for key, value in meant.read_unit(found["tentaflake.target"])["Unit"] if key == "Wants"}
    agents = {f"{agent.service.name}.service" for agent in plan.agents.values()}
    assert wanted & agents == meant.wanted_by_target(plan)
    for unit, sections in meant.services_of(plan).items():
        here = meant.read_unit(found[unit])
        assert here.keys() == sections.keys(), unit
        for section, settings in sections.items():
            more = [setting for setting in here[section] if setting not in settings]
            assert [setting for setting in here[section] if setting in settings] == settings, unit
            assert {key for key, _ in more} <= {"ExecStart", "ExecReload", "Environment"}, f"{unit}: {more}"
        assert unit in wanted


@holds(hosts(max_agents=20), parsers.accounts_obstacle)
def accounts(host: Written) -> None:
    """systemd makes the users and the directories that the plan says, and no others."""
    [plan] = plans(host)
    files = texts(plan)
    with directory() as here:
        users, made = parsers.make_accounts(here / "root", files["sysusers.conf"], files["tmpfiles.conf"])
    users.pop("hermes-auditd", None)
    assert {name: (user.pw_uid, user.pw_gid, user.pw_dir, user.pw_shell) for name, user in users.items()} == {
        name: (user.uid, plan.groups[user.group].gid, user.home, user.shell) for name, user in plan.users.items()
    }
    assert made == {entry.path: f"{entry.mode} {entry.user} {entry.group}" for entry in plan.directories}


@holds(hosts(), parsers.nft_obstacle)
def firewall(host: Written) -> None:
    """nft takes the rules of any host."""
    [plan] = plans(host)
    done = parsers.nft_check(texts(plan)["nftables.nft"])
    assert done.returncode == 0, f"nft: {done.stderr}"


@holds(hosts(max_agents=4))
def words(host: Written) -> None:
    """Two shells read from a start script the words of the plan, and run nothing else."""
    [plan] = plans(host)
    files = texts(plan)
    with directory() as here:
        stage = parsers.Stage(here)
        for agent in plan.agents.values():
            check_words(stage, agent, files[f"agents/{agent.name}/start"])


def check_words(stage: parsers.Stage, agent: Agent, script: str) -> None:
    """Whether the network is there already or not, both shells run the commands that the plan means."""
    first, again = (meant.start_of(agent, has_network=there) for there in (False, True))
    assert stage.run(script, shell="/bin/sh") == first, f"the words of {agent.name}"
    assert stage.run(script, shell="/bin/bash") == first, f"bash reads other words of {agent.name} than sh"
    label = shlex.join(meant.network_create(agent.network))
    assert stage.run(script, label) == again, f"the words of {agent.name}, whose network is there"


@holds(hosts(max_agents=4))
def conditions(host: Written) -> None:
    """An agent does not start without one of its secrets, and the one that it lacks is named (S3)."""
    [plan] = plans(host)
    files = texts(plan)
    for agent in plan.agents.values():
        script = files.get(f"agents/{agent.name}/condition")
        assert (script is not None) == bool(agent.secrets)
        if script is not None:
            with directory() as here:
                check_condition(here, agent, script)


def check_condition(here: Path, agent: Agent, script: str) -> None:
    """Two shells let it start with all secrets, and not without any one of them; ``here`` stands for where they are."""
    script = script.replace("/run/agenix/", f"{here}/")
    paths = [here / secret.path.removeprefix("/run/agenix/") for secret in agent.secrets]
    for path in paths:
        path.touch()
    for shell in ("/bin/sh", "/bin/bash"):
        assert parsers.run_shell(script, shell) == (0, "", "")
        for path, secret in zip(paths, agent.secrets, strict=True):
            path.unlink()
            code, said, complaint = parsers.run_shell(script, shell)
            path.touch()
            assert (code, said) == (1, ""), f"without {secret.name}: {code}, {said}"
            assert f"agent {agent.name} does not start without its secret {secret.name}:" in complaint
            assert complaint.count("\n") == 1, complaint


@holds(hosts(max_agents=4), parsers.docker_obstacle)
def flags(host: Written) -> None:
    """Docker's client takes every image and every flag."""
    [plan] = plans(host)
    for agent in json.loads(plan.to_json())["agents"].values():
        complaint = parsers.docker_run_complaint(activate.run_arguments(agent))
        assert complaint is None, f"docker: {complaint}"


@holds(hosts(max_agents=6))
def configuration(host: Written) -> None:
    """A YAML parser reads from config.yaml what was written, and a JSON parser from daemon.json."""
    [plan] = plans(host)
    files = texts(plan)
    assert json.loads(files["daemon.json"]) == plan.docker.settings
    for spec in host["agents"]:
        assert parsers.read_yaml(files[f"agents/{spec['name']}/config.yaml"]) == spec.get("settings", {})


# ---- hosts that are wrong


@holds(mistakes())
def one_mistake(mistake: Mistake) -> None:
    """A host with one mistake is refused, with exactly the error that belongs to it."""
    [result] = evaluate_many([mistake.host["agents"]], [mistake.host["host"]])
    assert isinstance(result, PolicyError), f"the policy accepts it, and {mistake.field} is wrong: {mistake.rule}"
    found = [(error.agent, error.field) for error in result.errors]
    assert found == [(mistake.agent, mistake.field)], f"instead of {mistake.agent}, {mistake.field}: {result}"
    assert mistake.rule in result.errors[0].message, f"instead of {mistake.rule}: {result}"
    check_message(result.errors[0].message)


def check_message(message: str) -> None:
    assert len(message) < 600, "a message that nobody reads"
    assert message.isprintable() or not set(message) & set(map(chr, range(32))), "a message that is not one line"


@holds(hostile_hosts())
def anything(host: Written) -> None:
    """Whatever is written, the answer is a plan or errors in one line each, and no other host is spoiled."""
    result, good = evaluate_many([host["agents"], [{"name": "good"}]], [host["host"], {}])
    assert isinstance(good, Plan)
    if isinstance(result, PolicyError):
        assert result.errors or "JSON" in str(result) or "NUL" in str(result) or "64 bits" in str(result)
        for error in result.errors:
            check_message(error.message)
    else:
        check_whole(result)
