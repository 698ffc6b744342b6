"""The daemon's settings: one JSON file, every field checked."""

import json
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from hermes_auditd.errors import AuditError

DEFAULT_DATABASE = "/var/lib/hermes-auditd/audit.db"


@dataclass(frozen=True)
class Limits:
    """What one agent may use of the record. Each can be set for all agents and for one."""

    max_bytes: int = 256 * 1024 * 1024
    """Of recorded events. Older ones go; what is known of the present files takes at most half as much again."""
    max_age_days: int = 90
    max_watches: int = 65536
    """Directories watched. Those beyond are only looked at, every ``unwatched_seconds``."""
    exclude: tuple[str, ...] = ()
    """Globs of paths relative to the state directory, ``*`` matching ``/`` too. Nothing by default."""

    def excludes(self, path: str) -> bool:
        return any(fnmatchcase(path, glob) for glob in self.exclude)


@dataclass(frozen=True)
class Agent:
    """One state directory to watch."""

    name: str
    path: str
    uid: int
    limits: Limits


@dataclass(frozen=True)
class Config:
    agents: tuple[Agent, ...]
    database: str = DEFAULT_DATABASE
    metrics: str | None = None
    """A file for the metrics, in Prometheus' text format."""
    coalesce_ms: int = 500
    """Writes to one file are one row for as long."""
    rescan_minutes: int = 60
    """How often everything is compared with the record; 0 for never."""
    unwatched_seconds: int = 10
    """How often, while an agent has more directories than it may have watches."""


_HOST = {
    "database": str,
    "metrics": (str, type(None)),
    "coalesceMs": int,
    "rescanMinutes": int,
    "unwatchedSeconds": int,
}
_LIMITS = {"maxBytes": int, "maxAgeDays": int, "maxWatches": int, "exclude": list}
_AGENT = {"agent": str, "path": str, "uid": int}
_LEAST = {"maxBytes": 1024 * 1024, "maxAgeDays": 1, "maxWatches": 1, "coalesceMs": 1, "unwatchedSeconds": 1}
_MOST = {"coalesceMs": 900}  # a row comes within a second of the act (A1)


def load(path: str) -> Config:
    """The settings in a file; raises `AuditError` that names the field, the value and the rule."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError) as error:
        raise AuditError(
            f"the settings cannot be read from {path}: {error}", "name a JSON file with --config"
        ) from None
    return parse(data)


def parse(data: Any) -> Config:
    """The settings from a parsed JSON document."""
    _check("the settings", data, {"directories": list} | _HOST | _LIMITS, {"directories"})
    common = _limits(data)
    agents = tuple(_agent(number, entry, common) for number, entry in enumerate(data["directories"]))
    for field in ("name", "path"):
        values = [getattr(agent, field) for agent in agents]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise AuditError(f"directories: two agents have the {field} {twice[0]!r}", f"give each its own {field}")
    return Config(agents, **{_attribute(field): data[field] for field in _HOST if field in data})


def _agent(number: int, entry: Any, common: dict[str, Any]) -> Agent:
    where = f"directories[{number}]"
    _check(where, entry, _AGENT | _LIMITS, set(_AGENT))
    name, path, uid = entry["agent"], entry["path"], entry["uid"]
    if not name or not name.isprintable():
        raise AuditError(f"{where}.agent is {name!r}, and must be a printable name", "use the agent's name in the plan")
    if not path.startswith("/") or os.path.normpath(path) != path or "\0" in path:
        raise AuditError(f"{where}.path is {path!r}, and must be an absolute path without . or ..", "write it out")
    return Agent(name, path, uid, Limits(**(common | _limits(entry))))


def _limits(data: dict[str, Any]) -> dict[str, Any]:
    limits = {_attribute(field): data[field] for field in _LIMITS if field in data}
    if "exclude" in limits:
        for glob in limits["exclude"]:
            if not isinstance(glob, str):
                raise AuditError(f"exclude holds {glob!r}, and must be a list of globs", 'write one like "cache/*"')
        limits["exclude"] = tuple(limits["exclude"])
    return limits


def _attribute(field: str) -> str:
    """``maxBytes``, as the plan writes it, is ``max_bytes`` here."""
    return re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), field)


def _check(where: str, data: Any, fields: dict[str, Any], required: set[str]) -> None:
    if not isinstance(data, dict):
        raise AuditError(f"{where} is {data!r}, and must be a JSON object", "see docs/audit.md for an example")
    for field, value in data.items():
        if field not in fields:
            raise AuditError(f"{where} has a field {field!r} that does not exist", f"there are {', '.join(fields)}")
        if not isinstance(value, fields[field]) or isinstance(value, bool):
            raise AuditError(f"{where}.{field} is {value!r}, which is of the wrong type", "see docs/audit.md")
        if isinstance(value, int) and not _LEAST.get(field, 0) <= value <= _MOST.get(field, 2**62):
            least, most = _LEAST.get(field, 0), _MOST.get(field)
            rule = f"at least {least}" + (f" and at most {most}" if most else "")
            raise AuditError(f"{where}.{field} is {value}, and must be {rule}", "change the value")
    for field in sorted(required - data.keys()):
        raise AuditError(f"{where} lacks the field {field!r}", "see docs/audit.md for an example")
