"""The search for values: it finds every form that it knows, at any alignment, and nothing else."""

import base64
import secrets
from pathlib import Path

import pytest

from harness.guests.canaries import HEAD, canary
from harness.policy import reference_plan
from harness.probes.search import Hit, forms, frame, search_file, search_plan, search_ranges

VALUE = b"A-canary_that.is~sought"
VALUES = {"it": VALUE}


def found(data: bytes) -> bool:
    return bool(search_ranges(data, [(0, len(data))], "here", VALUES))


@pytest.mark.parametrize("before", range(7))
@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize(
    "encode", [bytes, base64.b64encode, base64.urlsafe_b64encode, lambda data: data.hex().encode()]
)
def test_a_value_is_found_whatever_stands_around_it(before: int, after: int, encode: object) -> None:
    assert callable(encode)
    assert found(b"..." + encode(secrets.token_bytes(before) + VALUE + secrets.token_bytes(after)) + b"...")


def test_a_value_is_found_in_capital_hexadecimal() -> None:
    assert found(VALUE.hex().upper().encode())


@pytest.mark.parametrize("value", [b"\xfb\xef\xbe" * 4, b"\xff" * 11, b"?>?>?>?>?>"])
def test_both_alphabets_of_base64_are_known(value: bytes) -> None:
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            data = encode(bytes(shift) + value + bytes(3))
            assert search_ranges(data, [(0, len(data))], "here", {"it": value})


def test_a_part_of_a_value_is_not_the_value() -> None:
    assert not found(VALUE[:-1] + base64.b64encode(VALUE[:-4]) + VALUE[1:].hex().encode())


def test_no_form_is_so_short_that_chance_could_write_it() -> None:
    assert min(map(len, forms(HEAD))) >= 14


def test_any_canary_is_found_by_its_head() -> None:
    data = base64.b64encode(b"x" + canary("secrets/k.age"))
    assert search_ranges(data, [(0, len(data))], "here", {"head": HEAD})


def test_a_file_is_searched_behind_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(10 << 20)
        file.write(b"." + VALUE)
    assert search_file(path, VALUES) == [Hit("it", str(path), (10 << 20) + 1)]


def test_pages_are_numbered_around_the_hole_below_4_gib() -> None:
    assert frame(5 * 4096, 2 << 30) == 5
    assert frame(2 << 30, 8 << 30) == (4 << 30) // 4096
    assert frame((2 << 30) - 1, 8 << 30) == (2 << 30) // 4096 - 1


def test_a_plan_is_searched() -> None:
    assert search_plan(reference_plan(), {"a path": b"/run/agenix/writer-model-key"})
    assert search_plan(reference_plan(), {"a canary": HEAD}) == []
