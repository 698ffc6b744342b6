"""T2: whatever is sent, the answer is one that the OpenAPI document has."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("schemathesis", reason="schemathesis is not installed: ci/setup does, nixpkgs has none")

import schemathesis
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.openapi.loaders import from_dict, from_url
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.services.tts.support import RATE, Server, decode

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
OPERATIONS = [
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/v1/audio/voices"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/audio/speech"),
]


@pytest.fixture(autouse=True)
def _goes_on_serving(speech: Server) -> Iterator[None]:
    before = speech.process
    yield
    assert speech.process is before and speech.post()[0] == 200
    assert "Traceback" not in speech.log


@given(
    text=st.text(st.characters(codec="utf-8"), max_size=300),
    speed=st.floats(0.25, 4.0),
    codec=st.sampled_from(["mp3", "opus", "flac", "wav", "pcm"]),
)
@QUICK
def test_any_text_is_speech_or_an_error(speech: Server, text: str, speed: float, codec: str) -> None:
    status, data = speech.post(input=text, speed=speed, response_format=codec)
    if status == 200:
        assert len(decode(data, codec)) > RATE // 200
    else:
        assert status == 400 and data["error"]["param"] == "input"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["model", "input", "voice", "response_format", "speed", "stream_format", "instructions"]


@given(fields=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=10), JSON, max_size=4))
@QUICK
def test_any_field_is_right_or_named(speech: Server, fields: dict[str, Any]) -> None:
    status, data = speech.post(**fields)
    if status != 200:
        assert status in (400, 404) and data["error"]["param"] in [*fields, ""]


@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@QUICK
def test_any_body_is_an_error(speech: Server, body: bytes) -> None:
    status, data = speech.post_raw(body)
    assert status == 400 and data["error"]["type"] == "invalid_request_error"


@pytest.fixture(scope="module")
def api(speech: Server) -> schemathesis.schemas.BaseSchema:
    return from_url(f"http://127.0.0.1:{speech.port}/openapi.json")


def test_the_document_has_every_operation(api: schemathesis.schemas.BaseSchema) -> None:
    found = [
        (result.ok().method.upper(), result.ok().path) for result in api.get_all_operations() if isinstance(result, Ok)
    ]
    assert sorted(found) == sorted(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path in OPERATIONS if method == "GET"])
def test_every_operation_answers_as_its_document_says(
    api: schemathesis.schemas.BaseSchema, method: str, path: str
) -> None:
    @given(case=api[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE))
    @QUICK
    def validate(case: Any) -> None:
        case.call_and_validate()

    validate()


def test_what_the_document_allows_is_spoken(api: schemathesis.schemas.BaseSchema) -> None:
    """But for a NUL, and what has nothing to say. The document does not know which models and voices there are."""

    @given(case=api["/v1/audio/speech"]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE))
    @QUICK
    def validate(case: Any) -> None:
        case.body |= {"model": "tts-1", "voice": "alloy"}
        answer = case.call()
        case.validate_response(answer, excluded_checks=[positive_data_acceptance])
        assert answer.status_code == 200 or answer.json()["error"]["param"] == "input"

    validate()


def test_what_the_document_does_not_allow_is_refused(api: schemathesis.schemas.BaseSchema) -> None:
    @given(case=api["/v1/audio/speech"]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    @QUICK
    def validate(case: Any) -> None:
        case.call_and_validate()

    validate()


def test_an_answer_that_the_document_does_not_have_is_found(speech: Server) -> None:
    """The control of the tests before."""
    document = speech.get("/openapi.json")[1]
    del document["paths"]["/v1/audio/speech"]["post"]["responses"]["4XX"]
    changed = from_dict(document)

    @given(case=changed["/v1/audio/speech"]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    @settings(QUICK, report_multiple_bugs=False)
    def validate(case: Any) -> None:
        case.call_and_validate(base_url=f"http://127.0.0.1:{speech.port}")

    with pytest.raises(FailureGroup, match="Received: 400"):
        validate()
