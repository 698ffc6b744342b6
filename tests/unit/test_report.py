"""The page and the summary that are made of a verdict: whole, legible, and never what a machine under attack wants."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.contract import CLAIMS
from harness.errors import HarnessError
from harness.report import Cell, ClaimVerdict, Failure, Verdict, describe_pairs, read_verdict
from harness.report.page import HERE, LIMIT, page_of, visible
from harness.report.summary import plain, summary_of
from tests.unit.support import PROPERTY, REPOSITORY

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "</pre></style></title><!-- --><![CDATA[",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "&lt;b&gt; &#60;i&#62;",
    "\x1b[2J\x1b]0;title\x07\0\r\x7f",
    "\N{RIGHT-TO-LEFT OVERRIDE}fdp.exe\N{ZERO WIDTH SPACE}\N{LINE SEPARATOR}\ud800",
    "javascript:alert(1) | `x` [a](http://b) **c** ~~d~~ #1 @me https://e.test",
]
text = st.sampled_from(HOSTILE) | st.text(max_size=30)


def verdict_with(word: str) -> Verdict:
    """A verdict that has this word, behind a letter, wherever a machine, a flake or a processor can have it."""
    word = f"k{word}"
    cells = [
        Cell("D2", f"{word} (uid)", word, word, "refused", seen) for seen in ("refused", "reached", "unknown", word)
    ]
    return Verdict(
        claims=[
            ClaimVerdict("D2", "broken", [word, "tests/t.py::test"], {word: 1.0}),
            ClaimVerdict("D4", "held", [word], {}),
            ClaimVerdict("T9", "untried", [], {}),
            ClaimVerdict("R1", "to-come", [], {}),
        ],
        matrix=[
            *cells,
            Cell("D2", "root", "host", "look", "reached", "reached"),
            Cell("D2", "b", "/x", "w", "reached", ""),
        ],
        timings={"prepare": 1.0, "attack": 2.5, "total": 3.5},
        guest=word,
        accelerator={"accelerator": word, "reason": word},
        plan=word,
        host=word,
        agents=[word, "b"],
        started=1_700_000_000.0,
        machine={"processor": word},
        failures=[Failure(word, ["D2"], f"{word}\nmore", word), Failure("tests/t.py::test", [], word, "")],
    )


@dataclass
class Page(HTMLParser):
    """A page taken apart: its tags with their attributes, in order, and all its text."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def handle_comment(self, data: str) -> None:
        self.odd.append(data)

    def unknown_decl(self, data: str) -> None:
        self.odd.append(data)

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in self.tags]

    def values(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.tags if attribute in attributes]


def taken_apart(verdict: Verdict) -> Page:
    page = Page()
    page.feed(page_of(verdict))
    page.close()
    return page


# --- hostile text


@PROPERTY
@given(text)
def test_no_text_changes_the_page_around_it(word: str) -> None:
    page = taken_apart(verdict_with(word))
    assert page.shape == taken_apart(verdict_with("word")).shape
    assert page.odd == []


@pytest.mark.parametrize("word", HOSTILE)
def test_a_text_is_shown_as_it_is_with_nothing_hidden(word: str) -> None:
    page = "".join(taken_apart(verdict_with(word)).pieces)
    assert page.count(visible(f"k{word}")) > 10
    assert all(c.isprintable() or c == "\n" for c in page.replace("\t", ""))


def test_what_cannot_be_seen_is_written_as_its_code() -> None:
    assert visible("a\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}\ud800ä\n") == "a\\x1b[2J\\u202e\\ud800ä\n"


def test_of_a_text_without_end_there_is_the_beginning() -> None:
    assert visible("x" * (LIMIT + 7)) == "x" * LIMIT + " … (7 more characters)"


@PROPERTY
@given(text)
def test_a_text_means_nothing_in_markdown(word: str) -> None:
    assert "\n" not in plain(word)
    bare = re.sub(r"\\.", "", plain(word))
    assert not re.search(r"[<>|`*_\[\]~@#]", bare.replace("&lt;", "").replace("&gt;", ""))
    rows = [line for line in summary_of(verdict_with(word)).splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


# --- one page that needs no other


def test_nothing_is_loaded_and_nothing_can_run() -> None:
    page = taken_apart(verdict_with("word"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not {
        name for _, attributes in page.tags for name in attributes if name in ("src", "style") or name[:2] == "on"
    }
    assert {reference[0] for reference in page.values("href")} == {"#"}
    style = (HERE / "page.css").read_text()
    assert "url(" not in style and "@import" not in style and "<" not in style


def test_the_pages_own_policy_names_its_style_and_allows_no_more() -> None:
    html = page_of(verdict_with("word"))
    [style] = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"content=\"default-src 'none'; style-src 'sha256-{digest}';" in html


# --- legible


def test_the_page_has_the_marks_that_a_reader_of_screens_goes_by() -> None:
    page = taken_apart(verdict_with("word"))
    tags = [tag for tag, _ in page.tags]
    assert (tags.count("h1"), tags.count("main"), dict(page.tags)["html"]) == (1, 1, {"lang": "en"})
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(here <= before + 1 for before, here in pairwise(levels))
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
    identifiers = page.values("id")
    assert len(set(identifiers)) == len(identifiers)
    assert {reference[1:] for reference in page.values("href")} | set(page.values("aria-labelledby")) <= set(
        identifiers
    )
    for _, attributes in page.tags:
        if attributes.get("role") == "region":  # what scrolls can be reached by the keyboard, and has a name
            assert attributes["tabindex"] == "0" and {"aria-label", "aria-labelledby"} & attributes.keys()


def test_no_outcome_is_told_by_its_colour_alone() -> None:
    shown = "".join(taken_apart(verdict_with("word")).pieces)
    for words in (
        "1 refused",
        "2 got through",
        "1 unknown",
        "1 reached, as it should be",
        "1 refused, but should not be",
    ):
        assert words in shown


def luminance(colour: str) -> float:
    """Of #rrggbb, after WCAG 2.2, "relative luminance"."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_of_text_stands_out_from_what_is_behind_it(theme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", (HERE / "page.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6});", blocks[["light", "dark"].index(theme)]))
    assert colours.keys() == dict(re.findall(r"--(\w+): (#\w{6});", blocks[0])).keys()
    for behind in ("back", "block"):
        for name in colours.keys() - {"back", "block", "line"}:
            pair = sorted(luminance(colours[each]) for each in (name, behind))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (name, behind)


# --- what it holds


def test_every_claim_is_there_with_its_words_and_its_verdict() -> None:
    claims = [ClaimVerdict(claim.id, "held", ["t"], {}) for claim in CLAIMS.values()]
    page = "".join(taken_apart(msgspec.structs.replace(verdict_with("word"), claims=claims)).pieces)
    summary = summary_of(msgspec.structs.replace(verdict_with("word"), claims=claims))
    for claim in CLAIMS.values():
        assert claim.text in page
        assert f"\n| {claim.id} | held | 1 | {plain(claim.text)} |\n" in summary


@pytest.mark.parametrize(
    "part", ["2023-11-14 22:13:20 UTC", "prepare 1.0 s", "Processor", "1 held, 1 broken", "6 attempts"]
)
def test_when_where_and_how_long_is_there(part: str) -> None:
    assert part in re.sub(r"\s+", " ", "".join(taken_apart(verdict_with("word")).pieces))


def test_a_verdict_without_attempts_nor_failures_is_a_page_too() -> None:
    empty = msgspec.structs.replace(verdict_with("word"), matrix=[], failures=[], machine={}, started=0.0, claims=[])
    page = taken_apart(empty)
    assert "table" not in [tag for tag, _ in page.tags]


def attempt_of(own: str, target: str, way: str) -> Cell:
    return Cell("D2", f"{own} (uid)", target, way, "refused", "refused")


def test_it_says_which_pairs_were_tried() -> None:
    """Attackers that are no agents, targets that are none, and agents that are no longer there, are not counted."""
    few, many = ["a", "b", "c"], list("abcdefgh")
    more = [
        Cell("D2", "root", "a", "w", "reached", "reached"),
        attempt_of("a", "host", "w"),
        attempt_of("a", "gone", "w"),
    ]
    cells = [attempt_of(own, other, "w") for own in few for other in few]
    plain_one = msgspec.structs.replace(verdict_with("word"), agents=few, matrix=cells + more)
    assert describe_pairs(plain_one) == "6 of 6 ordered pairs of agents were tried."
    chosen = [attempt_of(own, many[(place + step) % 8], way) for place, own in enumerate(many) for way, step in WAYS]
    large = msgspec.structs.replace(plain_one, agents=many, matrix=chosen)
    assert describe_pairs(large) == (
        "24 of 56 ordered pairs of agents were tried: in each way an agent attacks at most 2 of the 7 others, "
        "in another way others."
    )
    assert describe_pairs(large) in "".join(taken_apart(large).pieces)
    assert plain(describe_pairs(large)) in summary_of(large)
    assert describe_pairs(msgspec.structs.replace(large, matrix=more)) == ""


WAYS = [("w", 1), ("w", 2), ("v", 2), ("v", 3)]


# --- the command


def harness(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "verdict.json"
    path.write_bytes(msgspec.json.encode(verdict_with("wörd")))
    return path


def test_the_command_makes_the_page_and_adds_the_summary(written: Path) -> None:
    html, markdown = written.with_suffix(".html"), written.with_suffix(".md")
    markdown.write_text("what is there\n")
    done = harness("report", written, "--html", html, "--markdown", markdown)
    assert (done.returncode, done.stdout) == (0, "")
    assert html.read_text() == page_of(verdict_with("wörd"))
    assert markdown.read_text() == "what is there\n" + summary_of(verdict_with("wörd"))


def test_the_command_prints_what_verify_did(written: Path) -> None:
    done = harness("report", written)
    assert "isolation matrix" in done.stdout and "1 held, 1 broken, 1 untried, 1 to-come; 6 attempts" in done.stdout


def test_a_verdict_of_before_the_page_can_be_read(written: Path) -> None:
    old: dict[str, Any] = json.loads(written.read_text())
    for name in ("host", "agents", "started", "machine", "failures"):
        del old[name]
    written.write_text(json.dumps(old))
    assert taken_apart(read_verdict(written)).tags


@pytest.mark.parametrize("content", ["", "{", "[]", '{"claims": []}', '{"claims": 7}'])
def test_what_is_no_verdict_is_named(written: Path, content: str) -> None:
    written.write_text(content)
    with pytest.raises(HarnessError, match=r"verdict\.json is no verdict"):
        read_verdict(written)
