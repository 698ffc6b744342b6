"""hermes-audit: reads the record."""

import argparse
import csv
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from hermes_auditd.config import DEFAULT_DATABASE
from hermes_auditd.errors import AuditError
from hermes_auditd.reader import Filter, Reader, Row
from hermes_auditd.text import neutralise

SECOND = 1_000_000_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 from ``90s``, ``10m``, ``2h``, ``3d``, ``1w`` (ago), ``@1700000000`` or an ISO time."""
    if found := re.fullmatch(r"([0-9]+)([smhdw])", text):
        return time.time_ns() - int(found[1]) * _UNITS[found[2]] * SECOND
    if found := re.fullmatch(r"@([0-9]+)(?:\.([0-9]{1,9}))?", text):
        return min(int(found[1]) * SECOND + int((found[2] or "0").ljust(9, "0")), 2**63 - 1)
    try:
        return round(datetime.fromisoformat(text).astimezone().timestamp() * 1_000_000) * 1000
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 2h, @1700000000 or 2026-01-31T12:00") from None


def parse_head(text: str) -> tuple[str, tuple[int, str]]:
    """``AGENT:ID:HASH``, as the daemon writes it into the journal."""
    found = re.fullmatch(r"(.+):([0-9]+):([0-9a-f]{64})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no AGENT:ID:HASH, as in the daemon's journal")
    return "" if found[1] == "-" else found[1], (int(found[2]), found[3])


def format_time(nanoseconds: int | None) -> str:
    """Local time with microseconds."""
    if nanoseconds is None:
        return "-"
    try:
        moment = datetime.fromtimestamp(nanoseconds // SECOND).astimezone()
    except (ValueError, OverflowError, OSError):
        return f"@{nanoseconds}"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{nanoseconds % SECOND // 1000:06d}"


# --- output


def as_record(row: Row) -> dict[str, Any]:
    """A row for programs; the mode as chmod(1) takes it."""
    return row | {"mode": None if row["mode"] is None else f"{row['mode']:04o}"}


def print_json(rows: Iterable[Row]) -> None:
    for row in rows:
        print(json.dumps(as_record(row)), flush=True)


def print_csv(rows: Iterable[Row]) -> None:
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(as_record(row))


def line(row: Row) -> str:
    """A row for people."""
    what = neutralise(row["path"])
    if row["old_path"] is not None:
        what = f"{neutralise(row['old_path'])} -> {what}"
    notes = []
    if row["count"] != 1:
        notes.append(f"{row['count']} times")
    if row["first"] is not None:
        notes.append(f"since {format_time(row['first'])}")
    if row["origin"] != "live":
        notes.append(f"found by a look: {neutralise(row['origin'])}")
    if row["mode"] is not None:
        notes.append(f"mode {row['mode']:04o} owner {row['uid']}:{row['gid']}")
    if row["size"] is not None:
        notes.append(f"{row['size']} bytes")
    if row["detail"] is not None:
        notes.append(neutralise(row["detail"]))
    agent = neutralise(row["agent"]) or "(daemon)"
    text = f"{format_time(row['time'])}  {agent:<12}  {row['kind']:<8}  {what}"
    return text + (f"  ({', '.join(notes)})" if notes else "")


def print_lines(rows: Iterable[Row]) -> None:
    for row in rows:
        print(line(row), flush=True)


def print_table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for cells in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


# --- commands


def wanted(options: argparse.Namespace, reader: Reader) -> Filter:
    if options.agent is not None and options.agent not in ("", *reader.agents()):
        known = ", ".join(reader.agents()) or "none"
        raise AuditError(f"the record has no agent {options.agent!r}", f"there are: {known}")
    fields = ("agent", "since", "until", "path", "origin")
    return Filter(kinds=tuple(options.kind), **{field: getattr(options, field) for field in fields})


def print_rows(rows: Iterable[Row], options: argparse.Namespace) -> None:
    (print_json if options.json else print_lines)(rows)


def tail(reader: Reader, options: argparse.Namespace) -> int:
    chosen = wanted(options, reader)
    newest = reader.last_id()
    print_rows(reader.last_rows(chosen, options.lines), options)
    if options.follow:
        print_rows(reader.follow(chosen, newest), options)
    return 0


def query(reader: Reader, options: argparse.Namespace) -> int:
    print_rows(_first(reader.rows(wanted(options, reader)), options.limit), options)
    return 0


def _first(rows: Iterator[Row], count: int | None) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        yield row
        if number == count:
            return


def stats(reader: Reader, options: argparse.Namespace) -> int:
    found = reader.stats()
    if options.json:
        print(json.dumps(found))
        return 0
    rows = [
        [
            neutralise(entry["agent"]) or "(daemon)",
            str(entry["rows"]),
            f"{entry['bytes'] / 1e6:.1f} MB",
            str(entry["files"]),
            format_time(entry["first"]),
            format_time(entry["last"]),
            " ".join(f"{neutralise(kind)}:{count}" for kind, count in entry["kinds"].items()),
        ]
        for entry in found
    ]
    print_table(["agent", "rows", "size", "files", "first", "last", "kinds"], rows)
    return 0


def export(reader: Reader, options: argparse.Namespace) -> int:
    (print_csv if options.format == "csv" else print_json)(reader.rows(wanted(options, reader)))
    return 0


def verify(reader: Reader, options: argparse.Namespace) -> int:
    """Exit code 0 if the record is whole, 1 if it is not."""
    verdicts = reader.verify(dict(options.head))
    if options.json:
        print(json.dumps([vars(verdict) for verdict in verdicts]))
    else:
        for verdict in verdicts:
            name = neutralise(verdict.agent) or "-"
            state = "whole" if not verdict.faults else "NOT WHOLE"
            print(f"{state}: {name}:{verdict.head}:{verdict.hash} ({verdict.rows} rows)")
            for fault in verdict.faults[:20]:
                print(f"  {neutralise(fault)}")
            if len(verdict.faults) > 20:
                print(f"  and {len(verdict.faults) - 20} more")
    return 1 if any(verdict.faults for verdict in verdicts) else 0


# --- the command line


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="hermes-audit", description="Read the record of the agents' state directories.")
    main.add_argument(
        "--database",
        metavar="FILE",
        default=os.environ.get("HERMES_AUDIT_DATABASE", DEFAULT_DATABASE),
        help="default: $HERMES_AUDIT_DATABASE, or %(default)s",
    )
    commands = main.add_subparsers(required=True, metavar="COMMAND")
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--agent", metavar="NAME", help="rows of this agent ('' for the daemon's own)")
    chosen.add_argument("--since", type=parse_time, metavar="TIME", help="2h (ago), @1700000000 or 2026-01-31T12:00")
    chosen.add_argument("--until", type=parse_time, metavar="TIME")
    chosen.add_argument("--kind", action="append", default=[], metavar="KIND", help="can be given several times")
    chosen.add_argument("--path", metavar="GLOB", help="of the path as it is shown; * matches / too")
    chosen.add_argument("--origin", metavar="ORIGIN", help="how it was learnt: live, scan, start, overflow, ...")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="JSON, for programs")

    command = commands.add_parser("tail", parents=[chosen, as_json], help="the newest rows")
    command.add_argument("-n", "--lines", type=int, default=20, metavar="COUNT")
    command.add_argument("-f", "--follow", action="store_true", help="go on with rows as they are recorded")
    command.set_defaults(run=tail)
    command = commands.add_parser("query", parents=[chosen, as_json], help="rows, the oldest first")
    command.add_argument("--limit", type=int, metavar="COUNT")
    command.set_defaults(run=query)
    commands.add_parser("stats", parents=[as_json], help="what there is of each agent").set_defaults(run=stats)
    command = commands.add_parser("export", parents=[chosen], help="rows for programs")
    command.add_argument("--format", choices=["jsonl", "csv"], default="jsonl")
    command.set_defaults(run=export)
    command = commands.add_parser("verify", parents=[as_json], help="is the record as it was written?")
    command.add_argument(
        "--head",
        type=parse_head,
        action="append",
        default=[],
        metavar="AGENT:ID:HASH",
        help="noted elsewhere, such as in the journal: shows that even the whole record was not written anew",
    )
    command.set_defaults(run=verify)
    return main


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        reader = Reader(options.database)
        try:
            result: int = options.run(reader, options)
        finally:
            reader.close()
    except AuditError as error:
        print(f"hermes-audit: {error}", file=sys.stderr)
        return 2
    except sqlite3.Error as error:
        print(f"hermes-audit: {options.database} cannot be read: {neutralise(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return 0
    except KeyboardInterrupt:
        return 130
    return result


if __name__ == "__main__":
    sys.exit(main())
