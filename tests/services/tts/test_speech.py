"""T1: the official openai client's speech, from the samples of the answers."""

import base64
import json
import time
from pathlib import Path

import numpy as np
import pytest
from tone_voice import RATE as VOICE_RATE

from tests.services.tts.conftest import Start
from tests.services.tts.support import (
    LONG,
    PHONEME,
    RATE,
    Samples,
    Server,
    decode,
    expected_tones,
    likeness,
    tones,
)

FORMATS = ["mp3", "opus", "flac", "wav", "pcm"]
SLACK = {"mp3": 0.1, "opus": 0.001}
"""Seconds that a decoder may have too much, or be late: a frame of its own, and what it fills the last one with."""
TEXT = "Good morning, Bob."
TWO = "Good morning, Bob. Is it raining?"
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


def say(speech: Server, text: str = TEXT, codec: str = "pcm", voice: str = "alloy", **more: object) -> Samples:
    with speech.openai as client:
        answer = client.audio.speech.create(
            model="tts-1",
            voice=voice,
            input=text,
            response_format=codec,  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )
    assert answer.response.headers["content-type"].split(";")[0] == MEDIA_TYPES[codec]
    return decode(answer.content, codec)


def same(found: list[int], expected: list[float]) -> bool:
    return len(found) == len(expected) and all(abs(f - e) < 25 for f, e in zip(found, expected, strict=True))


def test_every_phoneme_is_its_tone(speech: Server) -> None:
    assert same(tones(say(speech)), expected_tones(TEXT))
    assert not same(tones(say(speech, "Good evening, Bob.")), expected_tones(TEXT))


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.25, 2.0])
def test_speed_changes_the_length_and_no_tone(speech: Server, speed: float) -> None:
    samples = say(speech, speed=speed)
    assert len(samples) == pytest.approx(len(expected_tones(TEXT)) * PHONEME / speed, abs=RATE / 100)
    assert same(tones(samples, speed), expected_tones(TEXT))


def test_the_highest_speed_has_the_shortest_answer(speech: Server) -> None:
    """Its phonemes are too short to have their tones measured."""
    assert len(say(speech, speed=4.0)) == pytest.approx(len(say(speech)) / 4, abs=RATE / 100)


@pytest.mark.parametrize("text", [TEXT, TWO], ids=["one-sentence", "two"])
@pytest.mark.parametrize("codec", FORMATS)
@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_every_format_is_the_same_sound(speech: Server, codec: str, text: str, speed: float) -> None:
    wanted, found = say(speech, text, speed=speed), say(speech, text, codec, speed=speed)
    assert 0 <= len(found) - len(wanted) <= SLACK.get(codec, 0) * RATE
    alike, late = likeness(wanted, found)
    assert alike > (0.8 if codec == "opus" else 0.98) and abs(late) <= SLACK.get(codec, 0) * RATE
    other, _ = likeness(wanted, say(speech, text[::-1], speed=speed))
    assert other < 0.5  # the control: another text is another sound


def test_mp3_is_what_who_names_no_format_gets(speech: Server) -> None:
    with speech.openai as client:
        answer = client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT)
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert len(decode(answer.content, "mp3")) >= len(expected_tones(TEXT)) * PHONEME


def test_a_voice_of_another_rate_sounds_the_same_and_is_not_the_same(speech: Server) -> None:
    """Above 8 kHz it has nothing: its samples are 16,000 a second."""
    assert same(tones(say(speech, voice="low")), expected_tones(TEXT))


def test_voices_are_picked_by_name_alias_and_id(speech: Server) -> None:
    _, low = speech.post(voice="low", response_format="pcm")
    _, tone = speech.post(voice="tone", response_format="pcm")
    assert low != tone
    assert speech.post(voice="echo", response_format="pcm")[1] == low
    assert speech.post(voice="nova", response_format="pcm")[1] == tone
    assert speech.post(voice={"id": "low"}, response_format="pcm")[1] == low
    _, listed = speech.get("/v1/audio/voices")
    assert {voice["id"]: voice["language"] for voice in listed["voices"]} == {"low": "en-us", "tone": "en-us"}
    assert [voice["aliases"] for voice in listed["voices"] if voice["id"] == "low"] == [["echo"]]


def test_a_long_text_is_whole(speech: Server) -> None:
    found = say(speech, LONG[:4096])
    assert same(tones(found), expected_tones(LONG[:4096]))


def test_a_sentence_without_an_end_is_spoken_in_pieces(speech: Server) -> None:
    """A piece has a beginning and an end of its own, which are silent: the sounds are all there, in order."""
    text = "word and " * 400
    found, wanted = tones(say(speech, text)), expected_tones(text)
    assert [tone // 50 for tone in found if tone] == [int(tone) // 50 for tone in wanted if tone]
    assert len(found) > len(wanted)


def test_the_first_sentence_leaves_before_the_last_is_made(start: Start, heavy: Path) -> None:
    with start(heavy).openai as client:
        started, whole, first = time.monotonic(), b"", 0.0
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input=LONG[:4096], response_format="wav", speed=0.25
        ) as answer:
            for data in answer.iter_bytes():
                first = first or time.monotonic() - started
                whole += data
        total = time.monotonic() - started
    assert "content-length" not in answer.headers and first < total / 4
    assert whole[4:8] == whole[40:44] == b"\xff\xff\xff\xff"  # nobody knew the length yet
    assert len(decode(whole, "wav")) == pytest.approx((len(whole) - 44) // 2 * RATE / VOICE_RATE, abs=1)


def test_one_sentence_has_a_length(speech: Server) -> None:
    status, data, headers = speech.request(
        "POST",
        "/v1/audio/speech",
        json.dumps({"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": "wav"}).encode(),
        {"Content-Type": "application/json"},
    )
    assert status == 200 and headers["content-length"] == str(len(data))
    assert int.from_bytes(data[40:44], "little") == len(data) - 44


def test_events_hold_the_same_bytes_as_a_plain_answer(speech: Server) -> None:
    _, plain = speech.post(input=TWO, response_format="pcm")
    _, stream = speech.post(input=TWO, response_format="pcm", stream_format="sse")
    events = [json.loads(line.removeprefix("data: ")) for line in stream.decode().strip().split("\n\n")]
    assert [event["type"] for event in events] == [*["speech.audio.delta"] * 2, "speech.audio.done"]
    assert b"".join(base64.b64decode(event["audio"]) for event in events[:-1]) == plain
    assert set(events[-1]["usage"]) == {"input_tokens", "output_tokens", "total_tokens"}


def test_text_in_double_brackets_is_text(speech: Server) -> None:
    """Piper would take it for phonemes."""
    assert np.array_equal(say(speech, "[[hello]] you."), say(speech, "hello you."))


def test_models_and_health_answer(speech: Server) -> None:
    with speech.openai as client:
        names = [model.id for model in client.models.list()]
        assert "tts-1" in names and client.models.retrieve(names[0]).id == names[0]
    assert speech.get("/health") == speech.get("/health/ready")
    status, health = speech.get("/health/live")
    assert (status, health) == (200, {"live": True, "ready": True, "voices": ["low", "tone"], "broken": []})
