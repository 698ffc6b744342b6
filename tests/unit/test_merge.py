"""The verdicts of shards make one verdict, or there is one sentence that says why not."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.errors import HarnessError
from harness.report import Cell, ClaimVerdict, Failure, Part, Result, TestOutcome, Verdict, judge
from harness.report.merge import merge_verdicts
from harness.report.page import page_of
from harness.report.summary import summary_of
from tests.unit.test_report import harness

WHOLE = {"D2": 3, "D4": 1, "U1": 1}
TESTS: Mapping[str, Mapping[str, str]] = {
    "1": {"t.py::a": "D2", "t.py::u": "U1"},
    "2": {"t.py::b": "D2", "t.py::c": "D2"},
    "3": {"t.py::d": "D4"},
}


def part(number: int, **outcomes: TestOutcome) -> Verdict:
    """The verdict of one of three shards; tests are held unless ``outcomes`` say something else by the last letter."""
    tests = TESTS[str(number)]
    runs = {test: Result(outcomes.get(test[-1], "held"), float(number)) for test in tests}

    def judge_claim(claim: str) -> ClaimVerdict:
        mine = [(test, runs[test].outcome) for test, of in tests.items() if of == claim]
        return judge(claim, False, mine, {}, WHOLE[claim])

    return Verdict(
        claims=[judge_claim(claim) for claim in WHOLE],
        matrix=[Cell("D2", "a", f"b{number}", "w", "refused", "refused")],
        timings={"prepare": 10.0, "attack": 10.0 * number, "total": 10.0 + 10 * number},
        guest="debian",
        accelerator={"accelerator": "tcg", "reason": f"no /dev/kvm on {number}"},
        plan="0123",
        host="h",
        started=1000.0 + number,
        machine={"system": "Linux", "processor": f"cpu {number}"},
        failures=[Failure(test, [of], "it failed", "") for test, of in tests.items() if runs[test].outcome != "held"],
        tests=runs,
        source={"commit": "abc", "dirty": "no", "digest": "d"},
        image={"suite": "trixie", "recipe": "r", "packages": "p"},
        shard=Part(number, 3, "whole", list(tests), WHOLE),
    )


def merge(*parts: Verdict) -> Verdict:
    return merge_verdicts({f"{place}.json": each for place, each in enumerate(parts, 1)})


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {claim.id: claim.verdict for claim in verdict.claims}


def test_a_shard_holds_what_is_whole_and_the_rest_in_part() -> None:
    assert outcomes(part(1)) == {"D2": "partial", "D4": "partial", "U1": "held"}
    assert part(1).exit_code == 0
    assert outcomes(part(2, c="broken"))["D2"] == "broken"
    assert part(2, c="broken").exit_code == 1
    assert part(2, c="untried").exit_code == 2


def test_claims_are_judged_by_the_tests_of_all_parts() -> None:
    merged = merge(part(3), part(1), part(2))
    assert outcomes(merged) == {"D2": "held", "D4": "held", "U1": "held"}
    assert [claim.tests for claim in merged.claims if claim.id == "D2"] == [["t.py::a", "t.py::b", "t.py::c"]]
    assert merged.exit_code == 0
    assert (merged.parts, merged.shard, len(merged.matrix), len(merged.tests)) == (3, None, 3, 5)


@pytest.mark.parametrize(("outcome", "code"), [("broken", 1), ("untried", 2)])
def test_one_test_of_one_part_decides(outcome: TestOutcome, code: int) -> None:
    merged = merge(part(1), part(2, b=outcome), part(3))
    assert outcomes(merged) == {"D2": outcome, "D4": "held", "U1": "held"}
    assert merged.exit_code == code
    assert [failure.test for failure in merged.failures] == ["t.py::b"]


def test_when_and_where_it_ran_is_of_all_parts() -> None:
    merged = merge(part(1), part(2), part(3))
    assert merged.timings == {"prepare": 10.0, "attack": 30.0, "total": 42.0}
    assert merged.started == 1001
    assert merged.machine == {"system": "Linux", "processor": "cpu 1 / cpu 2 / cpu 3"}


def test_a_shard_without_tests_is_a_part_too() -> None:
    empty = msgspec.structs.replace(part(3), tests={}, matrix=[], shard=Part(3, 3, "whole", [], WHOLE))
    empty = msgspec.structs.replace(
        empty, claims=[judge(claim, False, [], {}, whole) for claim, whole in WHOLE.items()]
    )
    assert outcomes(empty) == dict.fromkeys(WHOLE, "partial")
    merged = merge(part(1), part(2), empty)
    assert outcomes(merged)["D4"] == "untried"  # nobody has tried it, though the parts are all there


def test_a_test_that_a_part_lost_is_untried() -> None:
    lost = msgspec.structs.replace(part(3), tests={})
    assert outcomes(merge(part(1), part(2), lost))["D4"] == "untried"


# --- refused


def changed(verdict: Verdict, **changes: Any) -> Verdict:
    return msgspec.structs.replace(verdict, **changes)


SOURCE, IMAGE = part(1).source, part(1).image
REFUSED: dict[str, tuple[Callable[[], list[Verdict]], str]] = {
    "plans": (lambda: [part(1), changed(part(2), plan="4567"), part(3)], "different plans: 1.json of 0123, 2.json of"),
    "commits": (
        lambda: [part(1), part(2), changed(part(3), source=SOURCE | {"commit": "def"})],
        "different commits: 1.json of commit abc .*, 3.json of commit def",
    ),
    "dirty": (lambda: [part(1), part(2), changed(part(3), source=SOURCE | {"dirty": "yes"})], "commits: .* dirty yes"),
    "guests": (lambda: [part(1), changed(part(2), guest="nixos"), part(3)], "different guests: .* nixos"),
    "suites": (
        lambda: [part(1), changed(part(2), image=IMAGE | {"suite": "sid"}), part(3)],
        "different images: 1.json of suite trixie .*, 2.json of suite sid",
    ),
    "accelerators": (
        lambda: [part(1), changed(part(2), accelerator={"accelerator": "kvm", "reason": ""}), part(3)],
        "different accelerators: 1.json of tcg, 2.json of kvm",
    ),
    "totals": (
        lambda: [part(1), changed(part(2), shard=Part(2, 4, "whole", [], {})), part(3)],
        "different numbers of shards: 1.json of 3, 2.json of 4",
    ),
    "partitions": (
        lambda: [part(1), changed(part(2), shard=Part(2, 3, "other", [], {})), part(3)],
        "different choices of tests or durations: 1.json of whole, 2.json of other",
    ),
    "missing": (lambda: [part(1), part(3)], "of 3 shards there is no verdict of: 2/3"),
    "two missing": (lambda: [part(2)], "no verdict of: 1/3, 3/3"),
    "twice": (lambda: [part(1), part(2), part(3), part(2)], "shard 2/3 is there twice: 2.json and 4.json"),
    "whole": (lambda: [part(1), changed(part(2), shard=None)], "2.json is a whole verdict, and no part"),
    "early": (
        lambda: [part(1), changed(part(2), shard=Part(2, 3, "", [], {})), part(3)],
        "2.json .shard 2/3. ended before its tests were chosen",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_is_refused_with_one_sentence(name: str) -> None:
    parts, words = REFUSED[name]
    with pytest.raises(HarnessError, match=words) as refused:
        merge(*parts())
    assert "hint: " in str(refused.value)


# --- the command


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.json" for number in (1, 2, 3)]
    for number, path in enumerate(paths, 1):
        path.write_bytes(msgspec.json.encode(part(number)))
    return paths


def test_the_command_makes_one_verdict_of_all_parts(files: list[Path], tmp_path: Path) -> None:
    html, markdown, whole = (tmp_path / name for name in ("v.html", "v.md", "v.json"))
    done = harness("report", "--merge", *files, "--json", whole, "--html", html, "--markdown", markdown)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    merged = merge(part(1), part(2), part(3))
    assert msgspec.json.decode(whole.read_bytes(), type=Verdict) == merged
    assert html.read_text() == page_of(merged)
    assert markdown.read_text() == summary_of(merged)


def test_the_command_exits_as_the_verdict_says_and_names_what_is_missing(files: list[Path]) -> None:
    files[1].write_bytes(msgspec.json.encode(part(2, c="broken")))
    broken = harness("report", "--merge", *files)
    assert broken.returncode == 1
    assert "1 broken" in broken.stdout and "from 3 shards" in broken.stdout
    missing = harness("report", "--merge", *files[:2])
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "there is no verdict of: 3/3" in missing.stderr and "Traceback" not in missing.stderr


def test_the_command_refuses_what_it_cannot_read(files: list[Path]) -> None:
    files[1].write_text("{")
    said = {
        "2.json is no verdict": harness("report", "--merge", *files),
        "is named twice": harness("report", "--merge", files[0], files[0]),
        "--merge makes one": harness("report", *files),
    }
    for words, done in said.items():
        assert words in " ".join(done.stderr.split()) and done.returncode == 2


# --- what a shard's verdict shows


def test_a_shards_verdict_says_that_it_is_no_verdict_of_the_whole(files: list[Path]) -> None:
    done = harness("report", files[0])
    assert "1 held, 2 partial" in done.stdout
    assert "This is shard 1/3, with 2 tests: no verdict of the whole" in done.stdout
    assert "1 of 3 tests" in done.stdout and "0 of 1 tests" in done.stdout
    assert "no verdict of the whole" in page_of(part(1)) and "Held so far" in page_of(part(1))
    assert "| D2 | partial | 1 of 3 |" in summary_of(part(1)) and "no verdict of the whole" in summary_of(part(1))


def test_one_shard_of_one_is_the_whole_and_can_be_merged_all_the_same() -> None:
    runs = {test: Result("held", 1.0) for tests in TESTS.values() for test in tests}
    alone = changed(part(1), shard=Part(1, 1, "whole", list(runs), WHOLE), tests=runs)
    assert not alone.is_part and "no verdict" not in page_of(alone) + summary_of(alone)
    assert merge(alone).parts == 1


def test_the_slowest_tests_are_named_with_their_seconds(files: list[Path]) -> None:
    done = harness("report", files[2])
    assert "slowest tests" in done.stdout and "3.0 s" in done.stdout
    runs = {f"t{number}": Result("held", number) for number in range(20)}
    slowest = changed(part(1), tests=runs).slowest()
    assert slowest == [(f"t{number}", number) for number in range(19, 9, -1)]
    assert json.loads(files[2].read_text())["tests"]["t.py::d"] == {"outcome": "held", "seconds": 3.0}
