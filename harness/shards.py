"""Which part of the work is this machine's: ``--shard K/N``, or what a CI engine says of its parallel jobs.

    2/4     the second of four
    auto    as the variables of GitLab, Buildkite, Kubernetes or Slurm say
    /4      one of four: which one, they say

Nothing is read from the environment unless ``auto`` or ``/N`` asks for it: a run inside somebody's parallel job tests
everything.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.errors import HarnessError

TOTAL = "TENTAFLAKE_SHARDS"
"""The variable with the number of shards, for an engine that does not say it (Kubernetes)."""
FORMS = "write K/N with K from 1 to N, e.g. 2/4; or auto, or /N, in a parallel job of a CI engine"


@dataclass(frozen=True)
class Shard:
    """One of ``total`` parts; ``number`` counts from 1."""

    number: int
    total: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.total:
            raise HarnessError(f"shard {self}: there is no such part", hint=FORMS)

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def parse_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard | None:
    """The shard that ``--shard`` names, or None for all of the work; raises ``HarnessError``."""
    if not text:
        return None
    if found := re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII):
        return Shard(int(found[1]), int(found[2]))
    if text == "auto":
        total = _read_number(environment, TOTAL) if environment.get(TOTAL) else None
        return find_shard(environment, total)
    if found := re.fullmatch(r"/(\d{1,6})", text, re.ASCII):
        return find_shard(environment, int(found[1]))
    raise HarnessError(f"--shard is {text!r}, which names no part", hint=FORMS)


def find_shard(environment: Mapping[str, str], total: int | None = None) -> Shard:
    """The shard that the engine's variables name, of ``total`` if that is given; raises ``HarnessError``."""
    found = {name: place for name, read in ENGINES.items() if (place := read(environment))}
    if not found:
        raise HarnessError(
            f"no parallel job is known here: none of {', '.join(VARIABLES)} is set",
            hint="give the part itself: --shard K/N",
        )
    shards = {name: _complete(name, number, said, total) for name, (number, said) in found.items()}
    if len(set(shards.values())) > 1:
        said = ", ".join(f"{name} {shard}" for name, shard in shards.items())
        raise HarnessError(f"several engines say which shard this is: {said}", hint="give the part itself: --shard K/N")
    return next(iter(shards.values()))


def _complete(engine: str, number: int, said: int | None, total: int | None) -> Shard:
    """The shard of an engine that says ``number`` and maybe a total."""
    if said is None and total is None:
        raise HarnessError(
            f"{engine} says that this is shard {number}, and not of how many", hint=f"set {TOTAL}=N, or --shard /N"
        )
    if said and total and said != total:
        raise HarnessError(f"{engine} has {said} parallel jobs, and {total} shards are asked for", hint="make them one")
    return Shard(number, said or total or 0)


def _read_number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise HarnessError(f"{name} is {text!r}: not a whole number", hint="give the part itself: --shard K/N")
    return int(text)


# --- engines: each says this job's number, from 1, and the total, where it does; None if this is none of its jobs

Place = tuple[int, int | None]


def read_gitlab(environment: Mapping[str, str]) -> Place | None:
    """``parallel:``; from 1. Without it there is a total of 1 and no index."""
    if "CI_NODE_TOTAL" not in environment:
        return None
    number = _read_number(environment, "CI_NODE_INDEX") if "CI_NODE_INDEX" in environment else 1
    return number, _read_number(environment, "CI_NODE_TOTAL")


def read_buildkite(environment: Mapping[str, str]) -> Place | None:
    """``parallelism:``; from 0."""
    if "BUILDKITE_PARALLEL_JOB" not in environment:
        return None
    number = _read_number(environment, "BUILDKITE_PARALLEL_JOB") + 1
    return number, _read_number(environment, "BUILDKITE_PARALLEL_JOB_COUNT")


def read_kubernetes(environment: Mapping[str, str]) -> Place | None:
    """``completionMode: Indexed``; from 0, and a container is not told ``completions``."""
    if "JOB_COMPLETION_INDEX" not in environment:
        return None
    return _read_number(environment, "JOB_COMPLETION_INDEX") + 1, None


def read_slurm(environment: Mapping[str, str]) -> Place | None:
    """``sbatch --array``; from anywhere, in steps. A list of indices without a rule cannot be counted."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    names = ("ID", "MIN", "MAX", "COUNT")
    index, first, last, count = (_read_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in names)
    step = _read_number(environment, "SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in environment else 1
    if step == 1 and count > 1 and (last - first) % (count - 1) == 0:
        step = (last - first) // (count - 1)  # of a list like 1,3,5 it is not said
    if step < 1 or (index - first) % step or (last - first) // step + 1 != count:
        raise HarnessError(
            f"task {index} of the Slurm array from {first} to {last}, {count} tasks: no rule says which of them it is",
            hint="make the array START-END or START-END:STEP, or give the part itself: --shard K/N",
        )
    return (index - first) // step + 1, count


ENGINES: dict[str, Callable[[Mapping[str, str]], Place | None]] = {
    "GitLab": read_gitlab,
    "Buildkite": read_buildkite,
    "Kubernetes": read_kubernetes,
    "Slurm": read_slurm,
}
VARIABLES = ("CI_NODE_INDEX", "BUILDKITE_PARALLEL_JOB", "JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID")
