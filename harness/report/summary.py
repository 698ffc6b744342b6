"""The verdict in a few lines of Markdown: what GitHub shows on the page of a job."""

from __future__ import annotations

import html
import re

from harness.report import Verdict, describe_nixos, describe_pairs, describe_part


def summary_of(verdict: Verdict) -> str:
    """What came of each claim, and the first line of what each failed test said."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in verdict.counts.items())
    accelerator = verdict.accelerator
    where = f"{plain(verdict.guest)} guest under {plain(accelerator['accelerator'].upper())}"
    lines = [
        f"## {counts}",
        "",
        f"{len(verdict.matrix)} attempts in {verdict.timings['total']:.0f} s, {where}: {plain(accelerator['reason'])}"
        + (f", from {verdict.parts} shards" if verdict.parts else ""),
        "",
        *([plain(describe_nixos(verdict)), ""] if describe_nixos(verdict) else []),
        *([plain(describe_pairs(verdict)), ""] if describe_pairs(verdict) else []),
        *([plain(describe_part(verdict)), ""] if verdict.is_part else []),
        "| claim | verdict | tests | |",
        "|---|---|---|---|",
    ]
    for claim in verdict.claims:
        count = verdict.count_tests(claim).rpartition(" ")[0]
        lines.append(f"| {plain(claim.id)} | {claim.verdict} | {count} | {plain(claim.text)} |")
    if verdict.failures:
        lines += ["", "### Failures", ""]
        for failure in verdict.failures:
            lines.append(f"- {plain(failure.test)}: {plain(failure.message.strip().partition(chr(10))[0])}")
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """A text as one line that means nothing in Markdown nor in HTML, and hides nothing."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:500])
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~@:])", r"\\\1", html.escape(line, quote=False))
