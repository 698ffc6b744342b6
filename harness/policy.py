"""Evaluates the policy (``modules/policy``, pure Nix) and gives its plan as typed data.

Specs come from an ``agents.nix``, a JSON file, Python data or a flake; all of them go through the same Nix code.
Evaluation needs the ``nix`` programs and nothing else: no network, no daemon, no ``/nix``, no home directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import msgspec

from harness.errors import HarnessError, Untriable

REPOSITORY = Path(__file__).resolve().parent.parent
POLICY = REPOSITORY / "modules" / "policy"
_policies = [POLICY]
"""The last one is what plans are evaluated with; see ``policy_from``."""

Host = Mapping[str, Any]
Spec = Mapping[str, Any]


# ---- the plan, as modules/policy/plan.nix writes it


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A part of the plan: Nix writes ``stateDir``, Python reads ``state_dir``."""


class Subnet(_Struct, frozen=True):
    """One family of an agent's network, in canonical text: ``10.0.0.0/29`` and two addresses in it."""

    subnet: str
    gateway: str
    address: str


class Network(_Struct, frozen=True):
    name: str
    bridge: str
    internal: bool
    ipv4: Subnet
    ipv6: Subnet


class ConfigFile(_Struct, frozen=True):
    path: str
    content: str
    mode: str
    user: str
    group: str


class Container(_Struct, frozen=True):
    """The arguments of ``docker run``; ``options`` are flags that need no further quoting than a shell's."""

    name: str
    image: str
    pull: str
    user: str
    hostname: str
    workdir: str
    environment: dict[str, str]
    ports: list[str]
    networks: list[str]
    options: list[str]
    command: list[str]


class Service(_Struct, frozen=True):
    """The systemd unit of a container; ``restart_sec`` and ``start_limit_interval_sec`` are seconds."""

    name: str
    after: list[str]
    requires: list[str]
    wants: list[str]
    part_of: list[str]
    wanted_by: list[str]
    restart: str
    restart_sec: int
    start_limit_interval_sec: int


class Limits(_Struct, frozen=True):
    """``memory`` and ``disk`` are bytes (no disk: no quota), ``cpus`` a number of CPUs, ``pids`` a number of tasks."""

    memory: int
    cpus: int | float
    pids: int
    disk: int | None


class Slice(_Struct, frozen=True):
    """The cgroup of all agents (systemd.slice(5)); ``memory_max`` as systemd writes it, a percentage of the host's."""

    name: str
    memory_max: str


class EgressRule(_Struct, frozen=True):
    """A destination; no ports means every port, no protocol means every protocol."""

    network: str
    ports: list[int] | None
    protocol: Literal["tcp", "udp"] | None


class PublishedPort(_Struct, frozen=True):
    port: int
    target: int
    protocol: Literal["tcp", "udp"]


class AgentSecret(_Struct, frozen=True):
    """A secret as its agent has it, never what it is: ``path`` on the host, ``target`` in the container."""

    id: str
    name: str
    file: str
    as_: Literal["file", "env"] = msgspec.field(name="as")
    variable: str | None
    shared: bool
    path: str
    target: str


class Secret(_Struct, frozen=True):
    """A decrypted secret on the host; ``file`` is the age file, relative to where the agents are listed."""

    file: str
    path: str
    mode: str
    owner: str
    group: str


class ContainerInit(_Struct, frozen=True):
    """The program that an agent with secrets in its environment starts through."""

    path: str
    mode: str
    content: str


class Agent(_Struct, frozen=True):
    name: str
    user: str
    group: str
    uid: int
    gid: int
    state_dir: str
    auto_start: bool
    tts: bool
    egress: Literal["none", "internet"] | list[EgressRule]
    publish: list[PublishedPort]
    secrets: list[AgentSecret]
    allow_mutable_image: bool
    network: Network
    config: ConfigFile
    container: Container
    service: Service
    limits: Limits


class HostSettings(_Struct, frozen=True):
    name: str
    allowed_tcp_ports: list[int] = msgspec.field(name="allowedTCPPorts")
    allowed_udp_ports: list[int] = msgspec.field(name="allowedUDPPorts")
    secrets_identity: str
    tailnet_interface: str | None


class User(_Struct, frozen=True):
    uid: int
    group: str
    home: str
    shell: str
    description: str


class Group(_Struct, frozen=True):
    gid: int


class Directory(_Struct, frozen=True):
    path: str
    mode: str
    user: str
    group: str


class DockerDaemon(_Struct, frozen=True):
    settings: dict[str, Any]


class Nftables(_Struct, frozen=True):
    """One table; ``content`` is what stands between its braces.

    Scripts (modules/policy/guard.nix): ``listing`` prints what is in force, ``note`` notes it down, ``guard`` compares.
    """

    family: str
    table: str
    content: str
    listing: str
    note: str
    guard: str


class Networks(_Struct, frozen=True):
    """A network of each family, in canonical text."""

    ipv4: str
    ipv6: str


class Routing(_Struct, frozen=True):
    """``unreachable``: the networks within which the kernel routes nothing from one to another (ip-rule(8))."""

    unreachable: Networks


class Speech(_Struct, frozen=True):
    """``listen``: addresses and ports of the server; ``clients``: the networks of the agents that may use it;
    ``units``: its systemd units by name, as settings by section, without an ``ExecStart``; none if no agent may.
    """

    port: int
    agents: list[str]
    listen: list[str]
    clients: list[str]
    units: dict[str, dict[str, dict[str, str | list[str]]]]


class AuditedDirectory(_Struct, frozen=True):
    agent: str
    path: str
    uid: int


class Audit(_Struct, frozen=True):
    """``units``: the daemon's systemd units by name, as settings by section, without an ``ExecStart``; none if there is
    no agent. ``config``: its settings (docs/audit.md)."""

    directories: list[AuditedDirectory]
    units: dict[str, dict[str, dict[str, str | list[str]]]]
    config: dict[str, Any]


class Plan(_Struct, frozen=True):
    """All that a host has to be. Users and groups are keyed by user name, agents by agent name, secrets by id."""

    version: Literal[1]
    host: HostSettings
    users: dict[str, User]
    groups: dict[str, Group]
    directories: list[Directory]
    docker: DockerDaemon
    slice: Slice
    container_init: ContainerInit
    agents: dict[str, Agent]
    secrets: dict[str, Secret]
    nftables: Nftables
    nftables_check_sec: int
    watch: str
    routing: Routing
    speech: Speech
    audit: Audit

    def to_json(self) -> str:
        """The one way to write this plan: compact, keys sorted, so that equal plans are equal bytes."""
        return msgspec.json.encode(self, order="sorted").decode()

    @property
    def digest(self) -> str:
        """SHA-256 of ``to_json()``, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


# ---- errors


class SpecError(_Struct, frozen=True):
    """One mistake in a spec; ``agent`` is None when it is the host's. ``message`` says it all in one line."""

    agent: str | None
    field: str
    value: str
    rule: str
    message: str


class PolicyError(HarnessError, ValueError):
    """The agents of a host cannot become a plan.

    Either the policy refused them, and ``errors`` has every mistake; or there was nothing that it could judge (a file
    that is missing or does not parse, a flake without plans, no Nix), and ``errors`` is empty.
    """

    def __init__(self, what: str, *, hint: str | None = None, errors: Sequence[SpecError] = ()) -> None:
        super().__init__(what, hint=hint)
        self.errors = list(errors)


class NoNix(PolicyError, Untriable):
    """There is no Nix on this machine."""


def _refusal(errors: Sequence[SpecError]) -> PolicyError:
    return PolicyError("\n".join(error.message for error in errors), errors=errors)


class _Verdict(_Struct, frozen=True):
    errors: list[SpecError]
    plan: Plan | None


def _decide(verdict: _Verdict) -> Plan | PolicyError:
    return verdict.plan if verdict.plan is not None else _refusal(verdict.errors)


# ---- evaluating


def read_host(path: Path) -> Host:
    """The settings of a host from a ``.nix`` file; raises ``PolicyError``."""
    command = ["nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://", str(path)]
    settings: Host = json.loads(run_nix(command, subject=str(path)))
    return settings


def evaluate(agents: Path, *, host: Host | None = None) -> Plan:
    """The plan of the agents in a ``.nix`` or ``.json`` file; raises ``PolicyError``.

    The file is a list of specs or ``{ agents, host }``: then the host has these settings instead of ``host``.
    """
    if not agents.is_file():
        raise PolicyError(f"{agents}: no such file of agents")
    if agents.suffix == ".json":
        content = _read_json(agents)
        if not isinstance(content, Mapping) or "agents" not in content:
            return evaluate_specs(content, host=host)
        if more := content.keys() - {"agents", "host"}:
            raise PolicyError(f"{agents}: {', '.join(sorted(more))}: {WHOLE}")
        return evaluate_specs(content["agents"], host=content.get("host", host))
    arguments = {"agents": str(agents.resolve()), "host": json.dumps(dict(host or {})), "whole": WHOLE}
    return _the_plan(_check(READ, arguments))


WHOLE = "a file with agents in it may have host besides, and nothing else"
READ = """
{ policy, agents, host, whole }:
let
  inherit (builtins) attrNames concatStringsSep fromJSON functionArgs intersectAttrs isAttrs isFunction removeAttrs;
  inherit (import policy) check mkHermesAgent;
  file = import agents;
  arguments = { inherit mkHermesAgent; };
  named = functionArgs file;
  call = file: file (if named == { } then arguments else intersectAttrs named arguments);
  content = if isFunction file then call file else file;
  more = attrNames (removeAttrs content [ "agents" "host" ]);
in
[
  (
    if !(isAttrs content && content ? agents) then
      check { agents = content; host = fromJSON host; }
    else if more != [ ] then
      throw "${concatStringsSep ", " more}: ${whole}"
    else
      check ({ host = fromJSON host; } // content)
  )
]
"""


def evaluate_specs(specs: Any, *, host: Host | None = None) -> Plan:
    """The plan of a list of specs; raises ``PolicyError``."""
    data = _encode(specs, host)
    if isinstance(data, PolicyError):
        raise data
    return _the_plan(_check_data([data]))


@contextmanager
def policy_from(directory: Path) -> Iterator[None]:
    """For the duration, plans are evaluated with the policy in another directory (but for those of a flake)."""
    _policies.append(directory)
    try:
        yield
    finally:
        _policies.pop()


def _the_plan(verdicts: Sequence[_Verdict]) -> Plan:
    [verdict] = verdicts
    plan = _decide(verdict)
    if isinstance(plan, PolicyError):
        raise plan
    return plan


def reference_plan(agents: Path | None = None) -> Plan:
    """The reference host's plan, or what it would be with other agents; raises ``PolicyError``."""
    return evaluate(agents or REPOSITORY / "agents.nix", host=read_host(REPOSITORY / "host.nix"))


def evaluate_many(hosts: Sequence[Any], settings: Sequence[Host] = ()) -> list[Plan | PolicyError]:
    """A plan or what is wrong, for each list of specs, from a single run of Nix; ``settings``: those of each host."""
    encoded = [_encode(specs, host) for specs, host in zip_longest(hosts, settings)]
    verdicts = iter(_check_data([data for data in encoded if isinstance(data, bytes)]))
    return [_decide(next(verdicts)) if isinstance(data, bytes) else data for data in encoded]


def evaluate_flake(ref: str) -> Plan:
    """The plan ``plans.<host>`` of a flake: ``path#host``, ``github:owner/repo#host``, or without ``#host`` when the
    flake has only one; raises ``PolicyError``.
    """
    flake, _, host = ref.partition("#")
    select = f"plans: {{ hosts = builtins.attrNames plans; plan = {_choose(host)}; }}"
    with _private_store() as environment:
        output = run_nix(
            ["nix", "eval", "--json", "--no-write-lock-file", f"{flake or '.'}#plans", "--apply", select],
            subject=ref,
            environment=environment,
        )
    result = json.loads(output)
    if result["plan"] is None:
        known = ", ".join(result["hosts"]) or "none"
        raise PolicyError(f"{ref}: no plan of that host", hint=f"name one of its hosts, {flake or '.'}#HOST: {known}")
    return msgspec.convert(result["plan"], Plan)


def _choose(host: str) -> str:
    """The Nix expression that takes a host's plan out of ``plans``, or null."""
    if not host:
        return "let all = builtins.attrValues plans; in if builtins.length all == 1 then builtins.head all else null"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", host):
        raise PolicyError(f"{host!r} is not the name of a host", hint="write FLAKE#HOST, e.g. .#agent-host")
    return f'plans."{host}" or null'


def substitute_image(plan: Plan, image: str) -> Plan:
    """The same plan with every agent running ``image`` with its own entry point, for guests that cannot pull."""

    def substituted(agent: Agent) -> Agent:
        container = msgspec.structs.replace(agent.container, image=image, command=[])
        return msgspec.structs.replace(agent, container=container)

    return msgspec.structs.replace(plan, agents={name: substituted(agent) for name, agent in plan.agents.items()})


def specs_of(plan: Plan) -> list[dict[str, Any]]:
    """Specs that come to the same agents, for variants of a plan whose specs are not at hand (a flake's, say)."""
    return [_spec_of(agent) for agent in plan.agents.values()]


def host_of(plan: Plan) -> Host:
    """The settings of the plan's host."""
    settings: Host = msgspec.to_builtins(plan.host)
    return settings


def _spec_of(agent: Agent) -> dict[str, Any]:
    limits, container = agent.limits, agent.container
    spec: dict[str, Any] = {
        "name": agent.name,
        "uid": agent.uid,
        "stateDir": agent.state_dir,
        "image": container.image,
        "command": container.command,
        "environment": {name: text for name, text in container.environment.items() if name not in HOST_VARIABLES},
        "settings": json.loads(agent.config.content),
        "allowMutableImage": agent.allow_mutable_image,
        "autoStart": agent.auto_start,
        "tts": agent.tts,
        "secrets": [{name: written[name] for name in SECRET_FIELDS} for written in msgspec.to_builtins(agent.secrets)],
        **msgspec.to_builtins({"egress": agent.egress, "publish": agent.publish}),
    }
    return spec | {"memory": limits.memory, "cpus": limits.cpus, "pids": limits.pids, "disk": limits.disk}


SECRET_FIELDS = ("name", "file", "as", "variable", "shared")
"""What a spec says of a secret; the rest of it follows."""
HOST_VARIABLES = ("HOME", "HERMES_HOME", "USER", "LOGNAME")
"""What modules/policy/container.nix adds to a spec's own variables."""


# ---- reading JSON


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except ValueError as error:
        raise PolicyError(f"{path}: not valid JSON: {error}", hint="write a list of agent specs") from error
    except RecursionError as error:
        raise PolicyError(f"{path}: nested too deeply", hint="write a list of agent specs") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        again = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {again!r} stands twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _encode(agents: Any, host: Host | None = None) -> bytes | PolicyError:
    """The policy's arguments in JSON that Nix reads as it is meant: a string of Nix ends at a NUL."""
    data = {"agents": agents, "host": host or {}}
    try:
        encoded = json.dumps(data, allow_nan=False, ensure_ascii=False, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return PolicyError(f"agents that JSON cannot express: {error}")
    for argument, value in data.items():
        if b"\\u0000" in encoded and (place := _find(value, _has_nul)) is not None:
            return PolicyError(
                f"{argument}{place}: a NUL character in a string", hint="remove it: no program can be given one"
            )
        if MANY_DIGITS.search(encoded) and (place := _find(value, _is_too_big)) is not None:
            return PolicyError(
                f"{argument}{place}: an integer beyond 64 bits, which Nix would take for another",
                hint="write it as a string",
            )
    return encoded


MANY_DIGITS = re.compile(rb"[0-9]{19}")


def _has_nul(value: Any) -> bool:
    return isinstance(value, str) and "\0" in value


def _is_too_big(value: Any) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _find(data: Any, is_wrong: Callable[[Any], bool]) -> str | None:
    """Where in the data the first such value is, like ``[0].settings.key``."""
    if is_wrong(data):
        return ""
    if isinstance(data, Mapping):
        steps = [(f".{key!r}" if is_wrong(key) else f".{key}", [key, value]) for key, value in data.items()]
    elif isinstance(data, list | tuple):
        steps = [(f"[{i}]", [value]) for i, value in enumerate(data)]
    else:
        return None
    for step, values in steps:
        for value in values:
            found = _find(value, is_wrong)
            if found is not None:
                return step + found
    return None


# ---- running Nix


def _check_data(hosts: Sequence[bytes]) -> list[_Verdict]:
    """Judges hosts, each encoded by ``_encode``."""
    expression = "{ policy, hosts }: map (import policy).check (builtins.fromJSON (builtins.readFile hosts))"
    with tempfile.NamedTemporaryFile(prefix="hosts-", suffix=".json") as file:
        file.write(b"[" + b",".join(hosts) + b"]")
        file.flush()
        return _check(expression, {"hosts": file.name})


def _check(expression: str, arguments: Mapping[str, str]) -> list[_Verdict]:
    # A store that is not there: nothing is written, and no /nix and no daemon is needed.
    command = ["nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://", "--expr", expression]
    for name, value in {"policy": str(_policies[-1]), **arguments}.items():
        command += ["--argstr", name, value]
    output = run_nix(command, subject=arguments.get("agents", "the agents"))
    return msgspec.json.decode(output, type=list[_Verdict])


@contextmanager
def _private_store() -> Iterator[dict[str, str]]:
    """An environment in which ``nix eval`` can copy a flake's source. With a daemon, its store; else one of our own,
    so that neither /nix nor the user's home is written.
    """
    if Path("/nix/var/nix/daemon-socket/socket").exists():
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="nix-store-") as directory:
        yield {"NIX_REMOTE": directory, "XDG_CACHE_HOME": f"{directory}/cache"}


def run_nix(command: Sequence[str], *, subject: str, environment: Mapping[str, str] | None = None) -> bytes:
    """What one of the ``nix`` programs writes; raises ``PolicyError`` that says what it was about."""
    config = "\n".join(filter(None, [os.environ.get("NIX_CONFIG"), "extra-experimental-features = nix-command flakes"]))
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env={**os.environ, "NIX_CONFIG": config, **(environment or {})},
        )
    except FileNotFoundError:
        raise NoNix(
            f"{command[0]} is not installed, and the policy is written in Nix",
            hint="apt-get install nix-bin, or run ci/verify, which installs what is missing",
        ) from None
    if done.returncode != 0:
        raise PolicyError(f"{subject} cannot be evaluated: {reason_of(done)}")
    return done.stdout


def reason_of(done: subprocess.CompletedProcess[bytes]) -> str:
    """Nix' own message, without the warnings and the frames before it."""
    text = done.stderr.decode(errors="replace").strip()
    message = re.split(r"^ *error: ", text, flags=re.MULTILINE)[-1]
    message = message.removesuffix("(use '--show-trace' to show detailed location information)").strip()
    if said := re.findall(r"^fatal: (.+)", text, flags=re.MULTILINE):  # git's own words, for which Nix has a number
        message += f": {said[0]}"
    return message or f"{done.args[0]} ended with status {done.returncode}"
