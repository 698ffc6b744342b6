"""The command line: `harness --help` lists what it does.

Exit codes: 0 all is well, 1 a claim or a property is broken, a mutant survives, a secret's file is not in order, or a
switch has failed and the former host is in force, 2 it could not be tried (and why) or wrong usage, 3 a switch is done,
but for secrets that could not be decrypted.
"""

import json
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import pytest
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import deploy
from harness import secrets as agefiles
from harness.contract import find_claim
from harness.durations import COMMITTED, commit_durations, read_durations, read_recorded
from harness.errors import HarnessError
from harness.guests.canaries import canaries
from harness.hunt import hunt_mutants, take_part
from harness.lab import Lab, Settings, settings
from harness.mutants import MUTANTS, find_mutant, mutants_of
from harness.mutate import list_table, print_hunt
from harness.nixpkgs import find_nixpkgs, options_page
from harness.plugin import REPOSITORY, ssh_command
from harness.policy import Plan, evaluate_flake, evaluate_specs, read_host, reference_plan
from harness.progress import step
from harness.report import EXIT_UNTRIED, Verdict, print_verdict, read_verdict
from harness.shards import parse_shard
from harness.verify import Attack

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Proves whether AI agents that share a NixOS host can touch each other, by attacking them.",
    epilog="Settings of the machines (guest, accelerator, cache …) are TENTAFLAKE_NAME variables; "
    "`pytest --help` lists them under --vm-NAME.",
)
image_app = typer.Typer(no_args_is_help=True, help="The machines' image and the cache that holds it.")
app.add_typer(image_app, name="image")
secrets_app = typer.Typer(
    no_args_is_help=True,
    help="The agents' secrets, as age files that can be committed. Who can decrypt them is in a file `recipients` "
    "beside them: public keys, one a line, the host's among them "
    "(ssh HOST cat /etc/ssh/ssh_host_ed25519_key.pub >> secrets/recipients).",
    epilog="docs/secrets.md tells the whole story. The files are age's own: `age --decrypt -i KEY FILE` shows a value.",
)
app.add_typer(secrets_app, name="secrets")

AgentsOption = Annotated[
    Path | None, typer.Option("--agents", help="The agents, an agents.nix or a JSON list of specs.", metavar="FILE")
]
FlakeOption = Annotated[
    str | None, typer.Option("--flake", help="A flake's host instead, e.g. .#agent-host.", metavar="REF")
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the result as JSON too; - is standard output.", metavar="FILE")
]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write the result as a page too.", metavar="FILE")]
CacheOption = Annotated[
    Path, typer.Option("--cache", envvar="TENTAFLAKE_CACHE", help="Where images and templates are kept.")
]
GuestOption = Annotated[str, typer.Option("--guest", envvar="TENTAFLAKE_GUEST", help="How a plan becomes a machine.")]
PackagesOption = Annotated[
    str,
    typer.Option(
        "--nixos-packages",
        envvar="TENTAFLAKE_NIXOS_PACKAGES",
        help="Whose packages the nixos guest has: nixpkgs', debian's, or auto (Debian's without a binary cache).",
    ),
]
SuiteOption = Annotated[
    str, typer.Option("--suite", envvar="TENTAFLAKE_SUITE", help="Which Debian the debian guest is: trixie or forky.")
]
AccelOption = Annotated[str, typer.Option("--accel", envvar="TENTAFLAKE_ACCEL", help="auto, kvm or tcg.")]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        envvar="TENTAFLAKE_SHARD",
        help="Only the K-th of N parts; auto: as GitLab, Buildkite, Kubernetes or Slurm say; /N: the same, of N.",
        metavar="K/N",
    ),
]
DurationsOption = Annotated[
    Path,
    typer.Option(
        "--durations",
        envvar="TENTAFLAKE_DURATIONS",
        help="By which shards are balanced; the same for all of them.",
        metavar="FILE",
    ),
]
DEFAULTS = Settings()


def main() -> None:
    """Run the command line; errors that are the user's or the machine's are one message, not a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: nothing is left behind
    try:
        app()
    except HarnessError as error:
        Console(stderr=True, highlight=False, emoji=False).print(f"harness: {error}", style="red", markup=False)
        sys.exit(EXIT_UNTRIED)
    except KeyboardInterrupt:
        sys.exit(130)


def read_plan(agents: Path | None, flake: str | None) -> Plan:
    """The plan that the options name; by default the repository's own ``agents.nix``."""
    if agents and flake:
        raise HarnessError("--agents and --flake exclude each other", hint="give the one that you mean")
    return evaluate_flake(flake) if flake else reference_plan(agents)


def home_of(agents: Path | None, flake: str | None) -> Path:
    """The directory of what ``read_plan`` reads, which the files of secrets are relative to."""
    return Path(flake.partition("#")[0] or ".") if flake else (agents or REPOSITORY / "agents.nix").parent


def check_place(target: Path | None) -> None:
    """That a file can be written there is known before what takes minutes; raises ``HarnessError``."""
    if target is not None and str(target) != "-" and not target.parent.is_dir():
        raise HarnessError(f"{target} cannot be written: there is no directory {target.parent}", hint="make it first")


def write_json(target: Path | None, value: Any) -> None:
    """Write ``value`` where ``--json`` says."""
    if target is None:
        return
    text = json.dumps(msgspec.to_builtins(value), indent=1) + "\n"
    if str(target) == "-":
        sys.stdout.write(text)
    else:
        target.write_text(text)


@app.command()
def verify(
    agents: AgentsOption = None,
    flake: FlakeOption = None,
    json_file: JsonOption = None,
    html: HtmlOption = None,
    claim: Annotated[list[str] | None, typer.Option("--claim", help="Only this claim (may be repeated).")] = None,
    hijack: Annotated[
        bool, typer.Option("--hijack/--no-hijack", help="Have real Hermes agents attack too, told to by their model.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run the tests again too that take long and passed on the same host before.")
    ] = False,
    workers: Annotated[int, typer.Option("--workers", "-n", min=1, help="Machines at once.")] = 2,
    shard: ShardOption = None,
    durations: DurationsOption = COMMITTED,
    guest: GuestOption = DEFAULTS.guest,
    suite: SuiteOption = DEFAULTS.suite,
    nixos_packages: PackagesOption = DEFAULTS.nixos_packages,
    accel: AccelOption = DEFAULTS.accel,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """Boot the host, attack its agents from each other, and print the verdict.

    Exits 0 when every claim is held, 1 when one is broken, 2 when one could not be tried. A shard (--shard) exits with
    0 when all that it tried is held; `harness report --merge` judges the claims by the tests of all shards.
    """
    for each in claim or []:
        find_claim(each)
    for target in (json_file, html):
        check_place(target)
    part = parse_shard(shard)
    lab = Lab(settings(guest=guest, suite=suite, nixos_packages=nixos_packages, accel=accel, cache=cache))
    read_durations(durations, lab.settings.label)
    plan = read_plan(agents, flake)
    attack = Attack(lab, plan, agents, flake, claim or (), hijack, fresh, workers, part, durations)
    Console(stderr=True, highlight=False, emoji=False).print(attack.describe(), markup=False, soft_wrap=True)
    verdict, code = attack.run()
    print_verdict(Console(highlight=False, emoji=False, stderr=str(json_file) == "-"), verdict)
    write_json(json_file, verdict)
    write_page(html, verdict)
    is_empty = part is not None and code == pytest.ExitCode.NO_TESTS_COLLECTED
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not is_empty:
        raise HarnessError(f"the tests of the claims did not run to their end (pytest: {code.name})")
    raise typer.Exit(verdict.exit_code)


def write_page(target: Path | None, verdict: Verdict) -> None:
    """Write the page where ``--html`` says."""
    if target is not None:
        from harness.report.page import page_of

        target.write_text(page_of(verdict), encoding="utf-8")


@app.command()
def report(
    verdict_files: Annotated[list[Path], typer.Argument(help="What `harness verify --json` wrote.", metavar="JSON")],
    merge: Annotated[bool, typer.Option("--merge", help="Make one verdict of those of all shards.")] = False,
    json_file: JsonOption = None,
    html: HtmlOption = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Add a summary of the claims to this file.", metavar="FILE")
    ] = None,
) -> None:
    """Print a verdict again, or make a page of it: one file that needs no other, and no network.

    --merge takes the verdicts of all shards, and exits as `harness verify` does: 0 when every claim is held, 1 when one
    is broken, 2 when one could not be tried, or when the files are not the parts of one verdict.
    """
    verdict = read_verdicts(verdict_files, merge=merge)
    for target in (json_file, html, markdown):
        check_place(target)
    write_json(json_file, verdict)
    write_page(html, verdict)
    if markdown is not None:
        from harness.report.summary import summary_of

        with markdown.open("a", encoding="utf-8") as file:
            file.write(summary_of(verdict))
    if html is None and markdown is None and json_file is None:
        print_verdict(Console(highlight=False, emoji=False), verdict)
    raise typer.Exit(verdict.exit_code if merge else 0)


def read_verdicts(files: Sequence[Path], *, merge: bool) -> Verdict:
    """The verdict in a file, or of the parts in several; raises ``HarnessError``."""
    if merge:
        from harness.report.merge import merge_verdicts

        twice = [str(file) for file in files if files.count(file) > 1]
        if twice:
            raise HarnessError(f"{twice[0]} is named twice", hint="name each part once")
        return merge_verdicts({str(file): read_verdict(file) for file in files})
    if len(files) > 1:
        raise HarnessError(f"{len(files)} verdicts, and one is shown", hint="--merge makes one of the parts of a run")
    return read_verdict(files[0])


@app.command()
def mutate(
    claim: Annotated[
        list[str] | None,
        typer.Option("--claim", help="Only the mutants of this claim (may be repeated).", metavar="ID"),
    ] = None,
    mutant: Annotated[
        list[str] | None, typer.Option("--mutant", help="Only this mutant (may be repeated).", metavar="ID")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the mutants, and run none.")] = False,
    json_file: JsonOption = None,
    workers: Annotated[
        int, typer.Option("--workers", "-n", min=1, help="Mutants at once, besides half as many that wait.")
    ] = 2,
    shard: ShardOption = None,
    durations: DurationsOption = COMMITTED,
    guest: GuestOption = DEFAULTS.guest,
    suite: SuiteOption = DEFAULTS.suite,
    accel: AccelOption = DEFAULTS.accel,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """Break the reference host on purpose, in one way after the other, and see whether the tests notice.

    Each break (a mutant) belongs to a claim. It is killed when a test of that claim fails by it, survives when none
    does, and is untried when a control failed instead. Claims other than its own that break are listed; only tests
    that look at the same machines anyway are asked.

    Exits 0 when all are killed, 1 when one survives, 2 when one could not be tried. docs/writing-a-claim.md says how to
    write one; `pytest --vm-mutant ID` runs any test on a broken host.
    """
    for each in claim or []:
        find_claim(each)
    named = [find_mutant(each) for each in mutant or []]
    part = parse_shard(shard)
    machines = settings(guest=guest, suite=suite, accel=accel, cache=cache)
    chosen = take_part(
        named + (mutants_of(claim or []) if claim or not named else []),
        part,
        read_durations(durations, machines.label),
    )
    console = Console(highlight=False, emoji=False, stderr=str(json_file) == "-")
    if listing:
        console.print(list_table(chosen))
        return
    check_place(json_file)
    lab = Lab(machines)
    options = [f"--vm-guest={guest}", f"--vm-suite={suite}", f"--vm-accel={accel}", f"--vm-cache={cache}"]
    hunt = hunt_mutants(lab, chosen, options, workers, lambda: read_plan(None, None), part)
    print_hunt(console, hunt, MUTANTS)
    write_json(json_file, hunt)
    raise typer.Exit(hunt.exit_code)


@app.command()
def plan(
    agents: AgentsOption = None,
    flake: FlakeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole plan as JSON.")] = False,
    firewall: Annotated[bool, typer.Option("--firewall", help="The nftables table alone.")] = False,
) -> None:
    """Print what the agents of a host come to: users, networks, containers, firewall."""
    evaluated = read_plan(agents, flake)
    if as_json:
        print(evaluated.to_json())
    elif firewall:
        print(f"table {evaluated.nftables.family} {evaluated.nftables.table} {{\n{evaluated.nftables.content}\n}}")
    else:
        print_plan(Console(highlight=False, emoji=False), evaluated)


def print_plan(console: Console, plan: Plan) -> None:
    """The plan for a person: what each agent comes to, and the sum of the rest."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for agent in plan.agents.values():
        limits = agent.limits
        disk = "no disk quota" if limits.disk is None else f"{limits.disk >> 20} MiB on disk"
        rows = {
            "user": f"{agent.user}, uid {agent.uid}, {agent.state_dir}",
            "network": f"{agent.network.bridge}, {agent.network.ipv4.address}, {agent.network.ipv6.address}",
            "limits": f"{limits.memory >> 20} MiB, {limits.cpus:g} CPUs, {limits.pids} processes, {disk}",
            "egress": agent.egress if isinstance(agent.egress, str) else "\n".join(map(_rule, agent.egress)),
            "publishes": " ".join(f"{port.port}/{port.protocol}" for port in agent.publish),
            "speech": "yes" if agent.tts else "",
        }
        table.add_row(f"[bold]{agent.name}")
        for name, text in rows.items():
            if text:
                table.add_row(f"  {name}", text)
    console.print(table)
    ports = " ".join(map(str, plan.host.allowed_tcp_ports)) or "none"
    console.print(
        f"{plan.host.name} opens to the LAN: TCP {ports}; tailnet: {plan.host.tailnet_interface or 'disabled'}"
    )
    console.print(f"digest {plan.digest}", soft_wrap=True)
    console.print("--json prints all of it, --firewall the nftables table")


def _rule(rule: Any) -> str:
    ports = ",".join(map(str, rule.ports)) if rule.ports else "all ports"
    return f"{rule.network} {rule.protocol or 'any'} {ports}"


@image_app.command("show")
def image_show(
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as JSON.")] = False,
    guest: GuestOption = DEFAULTS.guest,
    suite: SuiteOption = DEFAULTS.suite,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """What the machines boot: the packages' versions, the container images. Builds it if need be."""
    lab = Lab(settings(guest=guest, suite=suite, cache=cache))
    manifest, hermes = lab.image.manifest, lab.find_hermes()
    if as_json:
        print(json.dumps(manifest | {"hermes": hermes and hermes.manifest}, indent=1, sort_keys=True))
        return
    print(f"{manifest['guest']} {manifest['suite']}  key {lab.image.key}  in {lab.image.directory}")
    for name, reference in manifest["images"].items():
        print(f"image {name}: {reference}")
    for name, version in manifest["packages"].items():
        print(f"{name} {version}")
    if hermes is None:
        print("image hermes: not built yet; `harness verify --hijack` does")
        return
    print(f"image hermes: {hermes.reference}")
    for kind in ("packages", "python"):
        for name, version in hermes.manifest[kind].items():
            print(f"hermes {name} {version}")


@image_app.command("build")
def image_build(
    guest: GuestOption = DEFAULTS.guest,
    suite: SuiteOption = DEFAULTS.suite,
    accel: AccelOption = DEFAULTS.accel,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """Make everything that a run needs: the image, the booted template, the activated one."""
    lab = Lab(settings(guest=guest, suite=suite, accel=accel, cache=cache))
    template = lab.activated(lab.adapt(read_plan(None, None)))
    print(f"ready: image {lab.image.key}, template {template.key}, under {lab.accelerator.accelerator.upper()}")


@image_app.command("prune")
def image_prune(
    days: Annotated[float, typer.Option("--days", min=0, help="Delete what was not used for so many days.")] = 14,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """Delete images and templates that were not used for a while; 0 days deletes all of them."""
    lab = Lab(settings(cache=cache))
    pruned = lab.cache.prune(unused_for=days * 86400)
    for path in pruned:
        print(f"deleted {path.relative_to(lab.cache.root)}")
    print(f"{len(pruned)} deleted")


RecipientsOption = Annotated[
    Path | None,
    typer.Option("--recipients", help="Another list of public keys than the file recipients beside.", metavar="FILE"),
]
IdentityOption = Annotated[
    Path | None,
    typer.Option("--identity", "-i", help="A private key to decrypt with: SSH, or age's own.", metavar="KEY"),
]


@secrets_app.command("encrypt")
def secrets_encrypt(
    file: Annotated[Path, typer.Argument(help="The age file to write, or to write anew.")],
    recipients: RecipientsOption = None,
) -> None:
    """Encrypt a value for the recipients. It is asked for, or read from standard input as it is.

    To rotate a secret, encrypt its new value over the old one and deploy.
    """
    if sys.stdin.isatty():
        value = str(typer.prompt("value", hide_input=True, confirmation_prompt=True, err=True)).encode()
    else:
        value = sys.stdin.buffer.read()
    count = agefiles.encrypt_file(file, value, recipients)
    print(f"{file}: encrypted for {count} recipient{'' if count == 1 else 's'}")


@secrets_app.command("rekey")
def secrets_rekey(
    files: Annotated[list[Path] | None, typer.Argument(help="Only these (default: secrets/*.age).")] = None,
    recipients: RecipientsOption = None,
    identity: IdentityOption = None,
) -> None:
    """Encrypt all values anew, after `recipients` has changed. Needs a private key that could decrypt them so far.

    Who was taken off the list can still decrypt what git keeps: rotate what they should no longer know.
    """
    paths = files or sorted(Path("secrets").glob("*.age"))
    if not paths:
        raise HarnessError("there is no secrets/*.age here", hint="go to where agents.nix is, or name the files")
    count = agefiles.rekey_files(paths, identity or agefiles.find_identity(), recipients)
    print(f"{count} file{'' if count == 1 else 's'} encrypted anew")


RootOption = Annotated[
    Path | None, typer.Option("--root", help="Where the files are (default: where the agents are).", metavar="DIR")
]


@secrets_app.command("check")
def secrets_check(
    agents: AgentsOption = None,
    flake: FlakeOption = None,
    root: RootOption = None,
    recipients: RecipientsOption = None,
    identity: IdentityOption = None,
) -> None:
    """Compare the age files with the plan: missing, damaged, unused, or not encrypted for just the recipients.

    That a file was tampered with shows only with --identity. Exits with 1 if something is wrong.
    """
    evaluated = read_plan(agents, flake)
    where = root or home_of(agents, flake)
    if not where.is_dir():
        raise HarnessError(f"{where} is no directory", hint="name the one that the age files are in with --root")
    problems = agefiles.check_files(evaluated, where, recipients=recipients, identity=identity)
    console = Console(stderr=True, highlight=False, emoji=False)
    for problem in problems:
        console.print(f"{problem.what}\n  hint: {problem.hint}", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    print(f"{len({secret.file for secret in evaluated.secrets.values()})} files are in order")


@app.command()
def shell(
    command: Annotated[list[str] | None, typer.Argument(help="Run this instead of an interactive shell.")] = None,
    agents: AgentsOption = None,
    flake: FlakeOption = None,
    guest: GuestOption = DEFAULTS.guest,
    suite: SuiteOption = DEFAULTS.suite,
    accel: AccelOption = DEFAULTS.accel,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """A root shell in a fresh machine with the agents running; the machine is gone when you leave.

    Meanwhile `harness switch`, `rollback`, `generations` and `purge` in another terminal are about this machine.
    """
    lab = Lab(settings(guest=guest, suite=suite, accel=accel, cache=cache))
    with lab.machine(lab.adapt(read_plan(agents, flake))) as machine:
        deploy.publish_way_in(machine)
        if command:
            result = machine.run(" ".join(command), timeout=3600)
            sys.stdout.buffer.write(result.stdout)
            sys.stderr.buffer.write(result.stderr)
            raise typer.Exit(result.exit)
        raise typer.Exit(subprocess.run(ssh_command(machine), check=False).returncode)


ToOption = Annotated[
    str | None,
    typer.Option(
        "--to", help="A host by SSH, as root or with sudo (default: the machine of `harness shell`).", metavar="HOST"
    ),
]

GenerationsJsonOption = Annotated[bool, typer.Option("--json", help="List the host's generations as JSON, when done.")]


def as_flag(*, as_json: bool) -> list[str]:
    return ["--json"] if as_json else []


@app.command()
def switch(
    plan_file: Annotated[
        Path | None,
        typer.Argument(
            help="A plan, as `harness plan --json` writes it, or agents as --agents takes them; - is standard input.",
            metavar="PLAN",
        ),
    ] = None,
    agents: AgentsOption = None,
    flake: FlakeOption = None,
    to: ToOption = None,
    root: RootOption = None,
    as_json: GenerationsJsonOption = False,
    guest: GuestOption = DEFAULTS.guest,
    suite: SuiteOption = DEFAULTS.suite,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """Switch a running host to a plan, or to these agents; those that do not change run on.

    Exits 0 when done, 1 when it failed and the former agents are back in force, 2 when nothing was tried, 3 when it is
    done but for secrets that could not be decrypted. What a removed agent leaves is kept: see `harness purge`, and
    docs/deployment.md.
    """
    plan, home = read_subject(plan_file, agents, flake)
    lab = Lab(settings(guest=guest, suite=suite, cache=cache))
    remote = deploy.find_remote(to, lab.cache)
    if remote.is_machine:
        plan = lab.adapt(plan)
        key = remote.run(f"cat {shlex.quote(plan.host.secrets_identity)}.pub", capture=True)
        files = canaries(plan, key.stdout.decode()) if plan.secrets else {}
    else:
        files = deploy.read_files(plan, root or home)
    tell(f"switching {remote.name} to {len(plan.agents)} agent{'' if len(plan.agents) == 1 else 's'}")
    exit_as(deploy.switch(remote, plan, files, *as_flag(as_json=as_json)))


def read_subject(plan_file: Path | None, agents: Path | None, flake: str | None) -> tuple[Plan, Path]:
    """The plan that a file or the options name, and the directory that the files of its secrets are relative to."""
    if plan_file is None:
        return read_plan(agents, flake), home_of(agents, flake)
    if agents or flake:
        raise HarnessError(f"{plan_file} and --{'agents' if agents else 'flake'} exclude each other", hint="give one")
    if plan_file.suffix == ".nix":
        return reference_plan(plan_file), plan_file.parent
    found = deploy.read_plan_file(plan_file)
    if isinstance(found, list):
        found = evaluate_specs(found, host=read_host(REPOSITORY / "host.nix"))
    return found, Path() if str(plan_file) == "-" else plan_file.parent


def tell(text: str) -> None:
    """Say on a terminal what takes a while. No moving line: ssh may ask for a password there."""
    console = Console(stderr=True, highlight=False, emoji=False)
    if console.is_terminal:
        console.print(f"{text} ...", markup=False)


def exit_as(code: int) -> NoReturn:
    """Exit as activate.py did: its codes are this command's too; any other is a failure."""
    raise typer.Exit(code if code in (0, EXIT_UNTRIED, 3) else 1)


@app.command()
def rollback(
    number: Annotated[int | None, typer.Argument(help="The generation (default: the one before the current).")] = None,
    to: ToOption = None,
    as_json: GenerationsJsonOption = False,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """Switch a host back to agents that it had before; `harness generations` lists them. Exits as `harness switch`."""
    remote = deploy.find_remote(to, Lab(settings(cache=cache)).cache)
    tell(f"rolling {remote.name} back to generation {'before the current one' if number is None else number}")
    exit_as(deploy.activate(remote, "rollback", *as_flag(as_json=as_json), *([] if number is None else [str(number)])))


@app.command()
def generations(
    to: ToOption = None,
    as_json: GenerationsJsonOption = False,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """List the agents that a host had, switch by switch; the current ones are marked."""
    remote = deploy.find_remote(to, Lab(settings(cache=cache)).cache)
    exit_as(deploy.activate(remote, "generations", *as_flag(as_json=as_json)))


@app.command()
def purge(
    name: Annotated[str | None, typer.Argument(help="The agent (default: list those that left something).")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    to: ToOption = None,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """Delete, for good, what an agent has left that was removed from a host: its state directory.

    Refused for an agent that the host has.
    """
    remote = deploy.find_remote(to, Lab(settings(cache=cache)).cache)
    if name is not None and not yes:
        if code := deploy.activate(remote, "purge", "--show", "--", name):
            exit_as(code)
        typer.confirm(f"Delete that on {remote.name} for good?", abort=True)
    exit_as(deploy.activate(remote, "purge", *([] if name is None else ["--yes", "--", name])))


@app.command()
def options(
    nixpkgs: Annotated[
        Path | None,
        typer.Option(
            envvar="TENTAFLAKE_NIXPKGS", help="A clone of nixpkgs or of nix-community/nixpkgs.lib.", metavar="DIR"
        ),
    ] = None,
) -> None:
    """The reference of the NixOS modules' options, in Markdown: what docs/options.md is."""
    print(options_page(find_nixpkgs(nixpkgs)), end="")


@app.command()
def fuzz(
    minutes: Annotated[float, typer.Option("--minutes", min=0, help="How long to go on.")] = 5,
    json_file: JsonOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Draw the same hosts each time, none of the corpus.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only this property (may be repeated).")] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the properties, and try none.")] = False,
    tests: Annotated[
        Path, typer.Option("--tests", help="Where a test is written for what is found.", metavar="DIR")
    ] = REPOSITORY / "tests" / "fuzz",
    live: Annotated[bool, typer.Option("--live", help="Change, break and attack running machines instead.")] = False,
    shard: ShardOption = None,
    accel: AccelOption = DEFAULTS.accel,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """Throw random hosts at the policy, until the time is up; or random changes, faults and attacks at running hosts.

    Shards of one --seed try what one run would, each its part; without a seed each draws its own hosts.
    What breaks one is made small, printed as an agents.nix and written as a test. Exits 1 if anything was found, 2 if
    nothing could be tried; after Ctrl-C it says what there is so far, and exits 130.
    The cache keeps such hosts as a corpus that is tried first the next time.
    """
    from harness.fuzz import run
    from harness.fuzz.live import template_of
    from harness.fuzz.properties import find_property

    if live and only:
        raise HarnessError(
            "--only names properties of the policy, and --live tries running hosts", hint="leave one out"
        )
    chosen = [find_property(each).name for each in only or []]
    part = parse_shard(shard)
    console = Console(highlight=False, emoji=False, stderr=str(json_file) == "-")
    if listing:
        print_properties(console)
        return
    check_place(json_file)
    check_writable(tests)
    lab = Lab(settings(accel=accel, cache=cache))
    if live:
        template_of(lab)
    with step(f"fuzzing {'running hosts' if live else 'the policy'} for {minutes:g} min") as progress:
        corpus = lab.cache.root / "corpus"
        if live:
            report = run.fuzz_live(lab, minutes, corpus, tests, progress, seed, part)
        else:
            report = run.fuzz(minutes, corpus, tests, progress, seed, chosen, part)
    print_fuzzing(console, report)
    write_json(json_file, report)
    if report.is_empty and not report.interrupted:
        raise HarnessError("nothing was tried", hint="the table says why, or give it more --minutes")
    raise typer.Exit(130 if report.interrupted else 1 if report.findings else 0)


def check_writable(directory: Path) -> None:
    """That a test can be written there is known before what takes minutes; raises ``HarnessError``."""
    if not directory.is_dir():
        raise HarnessError(f"{directory} is no directory", hint="name one with --tests")
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise HarnessError(
            f"no test can be written to {directory}: {error.strerror}", hint="name another directory with --tests"
        ) from None


def print_properties(console: Console) -> None:
    """The properties of the policy, and why those that cannot be tried here cannot."""
    from harness.fuzz.properties import PROPERTIES

    table = Table(box=None, show_header=False, pad_edge=False)
    for each in PROPERTIES.values():
        obstacle = each.obstacle()
        table.add_row(each.name, each.text, f"not here: {obstacle}" if obstacle else "")
    console.print(table)


def print_fuzzing(console: Console, report: Any) -> None:
    """What was tried, and in full what was found."""
    for finding in report.findings:
        console.print(f"[bold red]{finding.property}[/bold red]")
        console.print(finding.message, markup=False, soft_wrap=True)
        console.print(f"shown from now on by {finding.file}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    live = [tried.property for tried in report.tried] == ["live"]
    for name in ("property", "hosts", "steps" if live else "specs", "s", "what holds"):
        table.add_column(name, justify="left" if name in ("property", "what holds") else "right", overflow="fold")
    broken = {finding.property for finding in report.findings}
    for tried in report.tried:
        style = "red" if tried.property in broken else ""
        row = (
            tried.property,
            str(tried.examples),
            str(tried.specs),
            f"{tried.seconds:.0f}",
            tried.obstacle or tried.text,
        )
        table.add_row(*row, style=style)
    console.print(table)
    if report.trouble:
        console.print(f"[red]it ended before its time:[/red] {escape(report.trouble)}", soft_wrap=True)
    console.print(
        f"{report.seconds:.0f} s, {len(report.findings)} found{', interrupted' if report.interrupted else ''}"
        + (f", shard {report.shard}" if report.shard else "")
    )


@app.command("durations")
def show_durations(
    write: Annotated[bool, typer.Option("--write", help="Write them, for shards.")] = False,
    target: Annotated[Path, typer.Argument(help="Where to.", metavar="FILE")] = COMMITTED,
    guest: GuestOption = DEFAULTS.guest,
    suite: SuiteOption = DEFAULTS.suite,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """Print what tests and shared fixtures took here the last time, the longest first.

    --write makes the file of them by which shards are balanced: commit it, so that all shards have the same.
    """
    lab = Lab(settings(guest=guest, suite=suite, cache=cache))
    if write:
        check_place(target)
        print(f"{target}: {commit_durations(lab.cache, target)} tests")
        return
    known = read_recorded(lab.cache, lab.settings.label)
    for kind in ("runs", "fixtures", "mutants", "tests"):
        for name, seconds in sorted(getattr(known, kind).items(), key=lambda item: -item[1]):
            print(f"{seconds:8.1f} s  {kind.removesuffix('s'):8}{name}")


@app.command()
def bench(
    json_file: JsonOption = None,
    repeat: Annotated[int, typer.Option("--repeat", min=5, help="Samples of each metric (the cold boot too).")] = 5,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only this metric (may be repeated).")] = None,
    former_file: Annotated[
        Path | None,
        typer.Option("--compare", help="Show the ratio to what an earlier --json wrote.", metavar="JSON"),
    ] = None,
    accel: AccelOption = DEFAULTS.accel,
    cache: CacheOption = DEFAULTS.cache,
) -> None:
    """Measure, on this machine and in one run, what the README claims.

    A comparison is of two machines unless both ran on the same one: it decides nothing, and the exit code is 0.
    """
    from harness import bench as benchmarks  # with all of hypothesis, which nobody else waits for

    check_place(json_file)
    former = benchmarks.read_metrics(former_file) if former_file else None
    lab = Lab(settings(accel=accel, cache=cache))
    metrics = benchmarks.measure(lab, repeat, only)
    benchmarks.print_table(Console(highlight=False, emoji=False, stderr=str(json_file) == "-"), metrics, former)
    write_json(json_file, metrics)
