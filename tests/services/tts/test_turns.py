"""Whose turn it is, and who may wait."""

import asyncio
import threading

import pytest
from tentaflake_tts.errors import ApiError
from tentaflake_tts.turns import Turns


async def work(turns: Turns, client: str, done: list[str]) -> None:
    await turns.run(client, lambda: done.append(client))


async def order_of(clients: str, cancelled: int | None = None) -> str:
    """In which order clients that ask while the engine is busy have their turns."""
    turns, done, gate = Turns(1, 100, 100), list[str](), threading.Event()
    first = asyncio.create_task(turns.run("first", gate.wait))
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(work(turns, client, done)) for client in clients]
    await asyncio.sleep(0)
    if cancelled is not None:
        tasks.pop(cancelled).cancel()
    gate.set()
    await asyncio.gather(first, *tasks)
    turns.close()
    return "".join(done)


@pytest.mark.parametrize(
    ("asked", "had"), [("ab", "ab"), ("aaab", "abaa"), ("aabbcc", "abcabc"), ("aaaa", "aaaa"), ("", "")]
)
def test_clients_have_their_turns_in_rotation(asked: str, had: str) -> None:
    assert asyncio.run(order_of(asked)) == had


def test_who_goes_away_takes_no_turn() -> None:
    assert asyncio.run(order_of("aab", cancelled=0)) == "ab"


def test_the_turn_of_who_goes_away_ends_with_the_work() -> None:
    async def scenario() -> None:
        turns, gate, done = Turns(1, 100, 100), threading.Event(), list[str]()
        gone = asyncio.create_task(turns.run("a", gate.wait))
        await asyncio.sleep(0)
        gone.cancel()
        waiting = asyncio.create_task(work(turns, "b", done))
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert done == []  # the thread still works
        gate.set()
        await waiting
        assert done == ["b"]
        turns.close()

    asyncio.run(scenario())


def test_a_failure_is_its_own_and_gives_the_turn_back() -> None:
    async def scenario() -> None:
        turns, done = Turns(1, 100, 100), list[str]()
        with pytest.raises(ZeroDivisionError):
            await turns.run("a", lambda: 1 / 0)
        await work(turns, "a", done)
        assert done == ["a"]
        turns.close()

    asyncio.run(scenario())


def test_no_more_may_wait_than_there_is_room_for() -> None:
    turns = Turns(1, 3, 2)
    with turns.admit("a"), turns.admit("a"):
        with pytest.raises(ApiError, match="2 requests of yours wait already") as mine, turns.admit("a"):
            pass
        with turns.admit("b"):
            with pytest.raises(ApiError, match="3 requests wait already") as all_of_them, turns.admit("c"):
                pass
            assert turns.requests == 3
    assert turns.requests == 0
    for error in (mine.value, all_of_them.value):
        assert error.status == 429 and int(error.headers["Retry-After"]) >= 1
    turns.close()
