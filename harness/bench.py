"""What the README claims, measured on this machine in one run: ``harness bench``."""

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from rich.console import Console
from rich.table import Table

from harness import strategies
from harness.errors import HarnessError
from harness.guests.addresses import HOST
from harness.guests.peers import STATIONS
from harness.lab import Lab
from harness.pace import measure_pace
from harness.policy import POLICY, Plan, evaluate, evaluate_many
from harness.progress import step
from harness.strategies import Written
from harness.vm.machine import Machine
from harness.vm.template import BOOT_TIMEOUT, fork_together, power_on

REPOSITORY = POLICY.parent.parent
BATCH = 500
PING_ALL = "for address in {}; do busybox ping -q -c 1 -W 10 $address > /dev/null || exit 1; done"


class Metric(msgspec.Struct, frozen=True):
    """Median and spread of ``n`` samples, in ``unit``."""

    unit: str
    median: float
    min: float
    max: float
    n: int


def summarize(unit: str, samples: list[float]) -> Metric:
    return Metric(unit, statistics.median(samples), min(samples), max(samples), len(samples))


def measure(lab: Lab, repeat: int, only: list[str] | None = None) -> dict[str, Metric]:
    """All metrics, or those named; each one's samples are taken one after the other."""
    unknown = set(only or []) - set(METRICS)
    if unknown:
        raise HarnessError(f"there is no metric {', '.join(sorted(unknown))}", hint=f"there are {', '.join(METRICS)}")
    plan = evaluate(REPOSITORY / "agents.nix")
    if any(not name.startswith("policy_") for name in only or METRICS):
        plan = lab.adapt(plan)
        lab.activated(plan)
    measure_pace()  # which would else be a part of the first fork
    metrics: dict[str, Metric] = {}
    for name in only or METRICS:
        unit, sample = METRICS[name]
        with step(f"measuring {name}"):
            gc.collect()
            metrics[name] = summarize(unit, [sample(lab, plan) for _ in range(repeat)])
    return metrics


def cold_boot(lab: Lab, plan: Plan) -> float:
    """Power on to the reference host with Docker up: what a machine of each test's own would cost without forks."""
    empty = evaluate_many([[]])[0]
    assert isinstance(empty, Plan)
    with lab.cache.run_directory() as directory:
        started = time.monotonic()
        with power_on(lab.image, lab.hardware, directory) as machine:
            lab.guest.set_up(machine, empty, BOOT_TIMEOUT)
            return time.monotonic() - started


def fork_restored(lab: Lab, plan: Plan) -> float:
    """QEMU started to the guest running."""
    with lab.machine(plan) as machine:
        return machine.timings["restored"]


def fork_first_answer(lab: Lab, plan: Plan) -> float:
    """QEMU started to the root shell's first answer, clock and randomness set."""
    with lab.machine(plan) as machine:
        return machine.timings["first_answer"]


def fork_ssh(lab: Lab, plan: Plan) -> float:
    """QEMU started to the first command's output over SSH."""
    started = time.monotonic()
    with lab.machine(plan) as machine, machine.ssh() as client:
        _, stdout, _ = client.exec_command("echo here")
        assert stdout.read() == b"here\n"
        return time.monotonic() - started


CROWD = 32


def crowd_ready(lab: Lab, plan: Plan) -> float:
    """``CROWD`` machines forked at once: the first QEMU started to the last first answer."""
    return _fork_crowd(lab, plan)[0]


def crowd_memory(lab: Lab, plan: Plan) -> float:
    """Memory that each of ``CROWD`` machines has of its own (private dirty pages), when all have answered."""
    return _fork_crowd(lab, plan)[1]


def _fork_crowd(lab: Lab, plan: Plan) -> tuple[float, float]:
    template = lab.activated(plan)
    started = time.monotonic()
    with fork_together(lab.cache, [(template, None)] * CROWD) as forks:
        machines = list(forks)
        seconds = time.monotonic() - started
        return seconds, sum(map(private_memory, machines)) / CROWD


def network_ready(lab: Lab, plan: Plan) -> float:
    """Four machines on a wire: the first QEMU started to each having had an answer of every other, by IPv4 and IPv6."""
    stations = {"host": HOST, **STATIONS}
    for role in STATIONS:
        lab.peer(role)
    started = time.monotonic()
    with lab.network(plan) as network:
        orders = []
        for machine in network.machines:
            others = [address for name in stations if name != machine.name for address in stations[name].addresses]
            orders.append(machine.shell.start(PING_ALL.format(" ".join(others))))
        for finish in orders:
            finish().check()
        return time.monotonic() - started


def command(lab: Lab, plan: Plan) -> float:
    """One testinfra command (median of 20), less what the guest itself needs to start the same process."""
    own = (
        "import subprocess, time\nfor _ in range(20):\n"
        " t = time.monotonic(); subprocess.run(['/bin/sh', '-c', 'true']); print(time.monotonic() - t)"
    )
    with lab.machine(plan) as machine:
        inside = [float(line) for line in machine.host.check_output("python3 -c %s", own).split()]
        outside = []
        for _ in range(20):
            started = time.monotonic()
            machine.host.run("true")
            outside.append(time.monotonic() - started)
    return 1000 * (statistics.median(outside) - statistics.median(inside))


def pytest_first_result(lab: Lab, plan: Plan) -> float:
    """``pytest`` on one test with a machine of its own, from the command to the first result."""
    started = time.monotonic()
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--vm-cache={lab.cache.root}"]
    with subprocess.Popen(
        [*command, "tests/contract", "-k", "state_directories_are_private"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": str(Path.home())},
    ) as process:
        assert process.stdout
        first = process.stdout.read(1)
        seconds = time.monotonic() - started
        rest = process.stdout.read()
    if process.returncode or first != b".":
        raise HarnessError(f"the measured test did not pass:\n{(first + rest).decode(errors='replace')}")
    return seconds


def fork_memory(lab: Lab, plan: Plan) -> float:
    """Memory that a fork has of its own, one second after its first answer."""
    with lab.machine(plan) as machine:
        machine.run("sleep 1").check()
        return private_memory(machine)


def private_memory(machine: Machine) -> float:
    """Private dirty pages of its QEMU (proc_pid_smaps(5)), in MiB."""
    text = Path(f"/proc/{machine.process.popen.pid}/smaps_rollup").read_text()
    dirty = next(line for line in text.splitlines() if line.startswith("Private_Dirty:"))
    return int(dirty.split()[1]) / 1024


def policy_eval_single(lab: Lab, plan: Plan) -> float:
    """Specs evaluated per second, with a process of Nix for each."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "agents.json"
        file.write_bytes(msgspec.json.encode(_specs(1)))
        started = time.monotonic()
        for _ in range(10):
            evaluate(file)
        return 10 / (time.monotonic() - started)


def policy_eval_batched(lab: Lab, plan: Plan) -> float:
    """Specs evaluated per second, all in one process of Nix."""
    hosts = [_specs(1) for _ in range(BATCH)]
    started = time.monotonic()
    evaluate_many(hosts)
    return BATCH / (time.monotonic() - started)


def policy_random(lab: Lab, plan: Plan) -> float:
    """Specs of random hosts evaluated per second, drawing them included: what ``harness fuzz`` can try."""
    hosts: list[Written] = []
    drawing = settings(
        max_examples=100, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
    )
    started = time.monotonic()
    drawing(given(strategies.hosts())(lambda host: hosts.append(host)))()  # noqa: PLW0108 (hypothesis wants a function)
    evaluate_many([host["agents"] for host in hosts], [host["host"] for host in hosts])
    return sum(len(host["agents"]) for host in hosts) / (time.monotonic() - started)


def policy_thousand_agents(lab: Lab, plan: Plan) -> float:
    """A host of a thousand agents, evaluated."""
    hosts = [_specs(1000)]
    started = time.monotonic()
    [result] = evaluate_many(hosts)
    assert isinstance(result, Plan)
    return time.monotonic() - started


def _specs(count: int) -> list[dict[str, Any]]:
    """Agents with a number for a uid: of a thousand derived ones, two may be the same."""
    return [
        {"name": f"agent-{number}", "uid": 1900000000 + number, "egress": "internet", "memory": "512m"}
        for number in range(count)
    ]


METRICS: dict[str, tuple[str, Callable[[Lab, Plan], float]]] = {
    "cold_boot": ("s", cold_boot),
    "fork_restored": ("s", fork_restored),
    "fork_first_answer": ("s", fork_first_answer),
    "fork_ssh": ("s", fork_ssh),
    "network_ready": ("s", network_ready),
    "crowd_ready": ("s", crowd_ready),
    "crowd_memory": ("MiB", crowd_memory),
    "command": ("ms", command),
    "pytest_first_result": ("s", pytest_first_result),
    "fork_memory": ("MiB", fork_memory),
    "policy_eval_single": ("specs/s", policy_eval_single),
    "policy_eval_batched": ("specs/s", policy_eval_batched),
    "policy_random": ("specs/s", policy_random),
    "policy_thousand_agents": ("s", policy_thousand_agents),
}


def read_metrics(path: Path) -> dict[str, Metric]:
    """What ``harness bench --json`` wrote; raises ``HarnessError`` if this is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Metric])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path} has no metrics: {error}", hint="name what `harness bench --json` wrote") from None


def describe_change(before: Metric, now: Metric) -> str:
    """The median's ratio to the former one; a word where the two spreads have nothing in common."""
    ratio = f"{now.median / before.median:.2f}" if before.median else "?"
    if now.min > before.max or now.max < before.min:
        is_more = now.min > before.max
        return f"{ratio} {'better' if is_more == now.unit.endswith('/s') else 'worse'}"
    return ratio


def print_table(console: Console, metrics: dict[str, Metric], former: dict[str, Metric] | None = None) -> None:
    """The metrics; with ``former`` ones, each one's ratio to those of the same name."""
    table = Table(title="measured on this machine, in one run", title_justify="left")
    for name in ("metric", "median", "min", "max", "n", *(["of the former"] if former else [])):
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    for name, metric in metrics.items():
        values = (
            f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in (metric.median, metric.min, metric.max)
        )
        before = (former or {}).get(name)
        change = [] if former is None else [describe_change(before, metric) if before else "new"]
        table.add_row(f"{name} ({metric.unit})", *values, str(metric.n), *change)
    console.print(table)
