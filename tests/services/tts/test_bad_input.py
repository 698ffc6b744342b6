"""T2: bad input gets an error of OpenAI's shape and the right status, and the server goes on serving."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import tone_voice
from piper.phoneme_ids import DEFAULT_PHONEME_ID_MAP

from tests.services.tts.conftest import Start
from tests.services.tts.support import Server

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Bad:
    """A request for speech with one thing wrong."""

    fields: dict[str, Any]
    says: str
    param: str | None = None
    status: int = 400
    removed: list[str] = field(default_factory=list)


BAD = [
    Bad({"input": ""}, "at least 1 character", "input"),
    Bad({"input": " \n\t"}, "input is ' \\n\\t'", "input"),
    Bad({"input": "x" * 4097}, "at most 4096 characters", "input"),
    Bad({"input": 5}, "input is 5", "input"),
    Bad({"input": None}, "input is None", "input"),
    Bad({"input": ["a"]}, "input is ['a']", "input"),
    Bad({"input": "a\0b"}, "NUL", "input"),
    Bad({"input": "\ud800"}, "unicode", "input"),
    Bad({"input": "..."}, "nothing in it that can be said", "input"),
    Bad({}, "input is missing", "input", removed=["input"]),
    Bad({}, "voice is missing", "voice", removed=["voice"]),
    Bad({}, "model is missing", "model", removed=["model"]),
    Bad({"voice": "nobody"}, "there is no voice 'nobody': it is one of", "voice"),
    Bad({"voice": "../tone"}, "there is no voice '../tone'", "voice"),
    Bad({"voice": {}}, "voice is {}", "voice"),
    Bad({"voice": 1}, "voice is 1", "voice"),
    Bad({"model": "whisper-1"}, "there is no model 'whisper-1'", "model", 404),
    Bad({"response_format": "aac"}, "aac is not offered", "response_format"),
    Bad({"response_format": "ogg"}, "response_format is 'ogg'", "response_format"),
    Bad({"response_format": None}, "response_format is None", "response_format"),
    Bad({"speed": 0.24}, "speed is 0.24", "speed"),
    Bad({"speed": 4.01}, "speed is 4.01", "speed"),
    Bad({"speed": -1}, "speed is -1", "speed"),
    Bad({"speed": float("nan")}, "speed is nan", "speed"),
    Bad({"speed": float("inf")}, "speed is inf", "speed"),
    Bad({"speed": "1"}, "speed is '1'", "speed"),
    Bad({"speed": True}, "speed is True", "speed"),
    Bad({"stream_format": "x"}, "stream_format is 'x'", "stream_format"),
    Bad({"instructions": "x" * 4097}, "at most 4096", "instructions"),
    Bad({"responce_format": "wav"}, "responce_format is 'wav'", "responce_format"),
]


def assert_error(answer: tuple[int, Any], status: int, says: str, param: str | None = None) -> None:
    assert answer[0] == status, answer
    error = answer[1]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"] and error["param"] == param
    assert len(error["message"]) < 1000 and "Traceback" not in error["message"]


@pytest.fixture(autouse=True)
def _goes_on_serving(speech: Server) -> Iterator[None]:
    before = speech.process
    yield
    assert speech.process is before and speech.post()[0] == 200
    assert "Traceback" not in speech.log


@pytest.mark.parametrize("bad", BAD, ids=[bad.says for bad in BAD])
def test_bad_fields_get_an_error_that_names_them(speech: Server, bad: Bad) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": "Hello."} | bad.fields
    body = {name: value for name, value in body.items() if name not in bad.removed}
    assert_error(speech.post_raw(json.dumps(body).encode()), bad.status, bad.says, bad.param)


BODIES = {
    b"": "",
    b"{": "not JSON",
    b"[]": "must be a JSON object",
    b'"text"': "must be a JSON object",
    b"\xff\xfe": "",
    b"[" * 100_000: "",
    b'{"speed": ' + b"9" * 100_000 + b"}": "",
    b'{"input": "\xff"}': "",
}


@pytest.mark.parametrize("body", BODIES, ids=[repr(body[:20]) for body in BODIES])
def test_a_body_that_is_no_json_object_gets_an_error(speech: Server, body: bytes) -> None:
    assert_error(speech.post_raw(body), 400, BODIES[body])


def test_a_body_that_is_not_called_json_gets_an_error(speech: Server) -> None:
    body = json.dumps({"model": "tts-1", "voice": "alloy", "input": "Hello."}).encode()
    assert_error(
        speech.request("POST", "/v1/audio/speech", body, {"Content-Type": "text/plain"})[:2], 400, "application/json"
    )


def test_an_announced_body_that_is_too_large_is_not_read(speech: Server) -> None:
    connection = speech.connect()
    connection.putrequest("POST", "/v1/audio/speech")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    answer = connection.getresponse()
    assert_error((answer.status, json.load(answer)), 413, "131072 bytes")
    connection.close()


def test_a_body_that_turns_out_too_large_gets_an_error(speech: Server) -> None:
    connection = speech.connect()
    connection.putrequest("POST", "/v1/audio/speech")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for _ in range(140):
        connection.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
    answer = connection.getresponse()
    assert_error((answer.status, json.load(answer)), 413, "131072 bytes")
    connection.close()


def test_a_client_that_sends_a_refused_body_to_its_end_gets_the_error(speech: Server) -> None:
    """A connection that is closed with bytes unread is reset, and the answer lost with it."""
    connection = speech.connect()
    connection.request("POST", "/v1/audio/speech", b"x" * 8 * 1024 * 1024)
    answer = connection.getresponse()
    assert_error((answer.status, json.load(answer)), 413, "131072 bytes")
    connection.close()


def test_the_longest_input_that_is_allowed_is_not_too_large(speech: Server) -> None:
    """Four bytes and twelve characters of JSON each."""
    status, _ = speech.post(input="\U0001f600" * 4096, instructions="\U0001f600" * 4096, speed=4.0)
    assert status == 200


def test_other_paths_and_methods_get_errors(speech: Server) -> None:
    assert_error(speech.request("GET", "/v1/audio/nothing")[:2], 404, "there is no /v1/audio/nothing")
    assert_error(speech.request("GET", "/v1/models/gpt-5")[:2], 404, "there is no model 'gpt-5'", "model")
    status, body, headers = speech.request("GET", "/v1/audio/speech")
    assert_error((status, body), 405, "GET is not for /v1/audio/speech")
    assert headers["allow"] == "POST"
    assert_error(speech.request("GET", "/docs")[:2], 404, "there is no /docs")


def test_the_client_raises_what_it_has_for_each(speech: Server) -> None:
    with speech.openai as client:
        with pytest.raises(openai.BadRequestError) as bad:
            client.audio.speech.create(model="tts-1", voice="nobody", input="Hello.")
        assert (bad.value.param, bad.value.type) == ("voice", "invalid_request_error")
        with pytest.raises(openai.NotFoundError) as unknown:
            client.audio.speech.create(model="gpt-5", voice="alloy", input="Hello.")
        assert unknown.value.code == "model_not_found"


def test_half_an_answer_is_never_taken_for_a_whole_one_over_http_1_0(speech: Server) -> None:
    connection = speech.connect()
    connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]
    body = json.dumps({"model": "tts-1", "voice": "alloy", "input": "Hello."})
    connection.request("POST", "/v1/audio/speech", body, JSON)
    answer = connection.getresponse()
    assert_error((answer.status, json.load(answer)), 505, "use HTTP/1.1")
    connection.close()


# --- an engine that fails


FAILING = DEFAULT_PHONEME_ID_MAP | {"z": [tone_voice.IDS]}


@pytest.fixture
def failing(start: Start, tmp_path: Path) -> Server:
    """A server whose voice fails at the sound of a z."""
    tone_voice.make(tmp_path / "voices", "failing", ids=FAILING)
    return start(tmp_path / "voices")


def test_an_engine_that_fails_is_a_server_error(failing: Server) -> None:
    assert_error(failing.post(input="Zoo."), 500, "the server has failed")
    assert failing.post(input="Moo.")[0] == 200
    assert "InvalidArgument" in failing.log or "indices" in failing.log


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_an_engine_that_fails_in_the_middle_ends_the_answer_before_its_end(failing: Server, stream_format: str) -> None:
    with failing.openai as client, pytest.raises(openai.APIError):
        client.audio.speech.create(
            model="tts-1",
            voice="alloy",
            input="Moo moo. Zoo. Moo.",
            response_format="pcm",
            stream_format=stream_format,  # type: ignore[arg-type]
        )
    assert failing.post(input="Moo moo. Moo.")[0] == 200


def test_metrics_are_for_the_host_itself(speech: Server) -> None:
    status, text, _ = speech.request("GET", "/metrics")
    assert status == 200
    lines = dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))
    assert float(lines['tts_answers_total{path="/v1/audio/speech",status="200"}']) >= 1
    assert lines["tts_voices"] == "2.0" and float(lines["process_open_fds"]) < 100
