"""The verdict as one page of HTML that needs nothing else: no script, no font, no picture, no network.

Much of what it shows was said by machines under attack. Every text goes through ``visible`` and is escaped, and the
page's own policy lets nothing run or load.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.report import Cell, Verdict, column_of, describe_pairs, describe_part, in_order

HERE = Path(__file__).parent
LIMIT = 20_000
"""Characters of one text that are shown."""
MARKS = {
    "X": ("broken", "got through"),
    "-": ("untried", "refused, but should not be"),
    "?": ("untried", "unknown"),
    ".": ("held", "refused"),
    "+": ("control", "reached, as it should be"),
}
"""What a mark of the matrix means: the style of its claim's verdict, and words. The worst come first."""
OVERALL = {"held": "Held", "partial": "Held so far", "broken": "Broken", "untried": "Not all could be tried"}
"""By the worst verdict."""


def page_of(verdict: Verdict) -> str:
    """The whole page."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # One of its own: autoescape for any name, and no text of the verdict gets out but by `visible`.
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"moment": _moment}
    cells = in_order(verdict.matrix)
    columns = list(dict.fromkeys(map(column_of, cells)))
    return environment.get_template("page.html.j2").render(
        verdict=verdict,
        overall=OVERALL[verdict.worst],
        worst=verdict.worst,
        pairs=describe_pairs(verdict),
        part=describe_part(verdict),
        claims=[_claim(verdict, number) for number in range(len(verdict.claims))],
        columns=columns,
        rows=[
            (attacker, [_square(cells, attacker, column) for column in columns])
            for attacker in dict.fromkeys(cell.attacker for cell in cells)
        ],
        marks=MARKS,
        style=style,
        digest=digest,
    )


def visible(text: str) -> str:
    """A text in which nothing hides: what has no shape of its own, or turns the line around, is written as its code."""
    shown = "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text[:LIMIT])
    rest = len(text) - LIMIT
    return f"{shown} … ({rest} more characters)" if rest > 0 else shown


def _finalize(value: Any) -> Any:
    return visible(value) if type(value) is str else value  # a Markup is the template's own doing


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _seconds(verdict: Verdict, test: str) -> str:
    run = verdict.tests.get(test)
    return f"{run.seconds:.1f} s" if run else ""


def _claim(verdict: Verdict, number: int) -> dict[str, Any]:
    claim = verdict.claims[number]
    attempts = [cell for cell in in_order(verdict.matrix) if cell.claim == claim.id]
    return {
        "place": f"claim-{number}",
        "id": claim.id,
        "verdict": claim.verdict,
        "text": claim.text,
        "count": verdict.count_tests(claim),
        "tests": [(test, claim.on_record.get(test), _seconds(verdict, test)) for test in claim.tests],
        "attempts": sorted(attempts, key=lambda cell: list(MARKS).index(cell.mark[0])),
        "failures": [failure for failure in verdict.failures if claim.id in failure.claims],
    }


def _square(cells: list[Cell], attacker: str, column: str) -> list[tuple[str, int]]:
    """The marks of one square of the matrix with how often each is there, the worst first."""
    found = Counter(cell.mark[0] for cell in cells if (cell.attacker, column_of(cell)) == (attacker, column))
    return [(mark, found[mark]) for mark in MARKS if found[mark]]
