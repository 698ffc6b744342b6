"""The HTTP API: OpenAI's, as far as it is about speech."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tentaflake_tts.audio import FORMATS
from tentaflake_tts.engine import Engine, Utterance
from tentaflake_tts.errors import ApiError
from tentaflake_tts.middleware import Count, WholeBody

MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "piper")
"""All of them are Piper: clients name the one that they know."""
MOST_CHARACTERS = 4096


class VoiceId(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str


class SpeechRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(examples=["tts-1"])
    input: str = Field(
        min_length=1, max_length=MOST_CHARACTERS, pattern=r"\S", description="What to say.", examples=["Good morning."]
    )
    voice: str | VoiceId = Field(description="A voice's name, or one of OpenAI's.", examples=["alloy"])
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: str | None = Field(None, max_length=MOST_CHARACTERS, description="Taken, and not followed.")

    @field_validator("input")
    @classmethod
    def is_text(cls, text: str) -> str:
        if "\0" in text:
            raise ValueError("it holds a NUL")
        return text


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorDetail


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "piper"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class VoiceInfo(BaseModel):
    id: str
    language: str
    aliases: list[str]


class Voices(BaseModel):
    voices: list[VoiceInfo]


class Health(BaseModel):
    live: Literal[True] = True
    ready: bool
    voices: list[str]
    broken: list[str] = Field(description="Voices whose files cannot be loaded; the journal says why.")


SPEECH: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The speech, mono at 24 kHz; in pieces, if it is more than one sentence.",
        "content": {
            **{codec.media_type: {"schema": {"type": "string", "format": "binary"}} for codec in FORMATS.values()},
            "text/event-stream": {},
        },
    }
}
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Error}, "5XX": {"model": Error}}


def make_app(engine: Engine) -> FastAPI:
    """The API of an engine, which need not be ready yet."""
    app = FastAPI(title="Speech", version="1", responses=ERRORS, docs_url=None, redoc_url=None, redirect_slashes=False)

    @app.post("/v1/audio/speech", response_class=Response, responses=SPEECH)
    async def speak(wanted: SpeechRequest, request: Request) -> Response:
        """Say something."""
        _check_model(wanted.model)
        voice = await engine.find_voice(wanted.voice if isinstance(wanted.voice, str) else wanted.voice.id)
        if request.scope["http_version"] == "1.0":
            raise ApiError(505, "HTTP/1.0 cannot tell half an answer from a whole one: use HTTP/1.1")
        utterance = engine.begin(voice, wanted.input, wanted.speed, wanted.response_format)
        media_type = FORMATS[wanted.response_format].media_type
        return SpeechResponse(engine, utterance, media_type, is_sse=wanted.stream_format == "sse")

    @app.get("/v1/audio/voices")
    async def list_voices() -> Voices:
        """The voices, and the other names that each goes by."""
        names = {name: [alias for alias, of in engine.aliases.items() if of == name] for name in engine.voices}
        found = [VoiceInfo(id=name, language=engine.voices[name].language, aliases=names[name]) for name in names]
        return Voices(voices=found)

    @app.get("/v1/models")
    async def list_models() -> Models:
        return Models(data=[Model(id=name) for name in MODELS])

    @app.get("/v1/models/{model}")
    async def find_model(model: str) -> Model:
        _check_model(model)
        return Model(id=model)

    def health() -> Health:
        return Health(ready=engine.ready, voices=list(engine.voices), broken=engine.failed)

    @app.get("/health")
    @app.get("/health/live")
    async def is_live() -> Health:
        """200 as soon as the server runs."""
        return health()

    @app.get("/health/ready", responses={503: {"model": Health}})
    async def is_ready(response: Response) -> Health:
        """200 when it can speak, 503 before."""
        response.status_code = 200 if engine.ready else 503
        return health()

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(request: Request) -> Response:
        """For the host itself: what one agent does is not another's to know."""
        if request.client is None or not ip_address(request.client.host).is_loopback:
            raise ApiError(403, "metrics are for the host itself")
        return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4")

    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(WholeBody)
    app.add_middleware(Count, metrics=engine.metrics, paths=frozenset(app.openapi()["paths"]))
    return app


def _check_model(name: str) -> None:
    if name not in MODELS:
        raise ApiError(
            404,
            f"there is no model {name!r:.100}: it is one of {', '.join(MODELS)}",
            code="model_not_found",
            param="model",
        )


# --- the answer

PART = 64 << 10
"""Bytes that are sent at once: before each, the client has to take what is buffered for it (``READ_PATIENCE``)."""


class SpeechResponse(Response):
    """Speech as it is made. It ends early when the client goes away."""

    def __init__(self, engine: Engine, utterance: Utterance, media_type: str, is_sse: bool) -> None:
        super().__init__(media_type="text/event-stream" if is_sse else media_type)
        self._engine, self._utterance, self._is_sse = engine, utterance, is_sse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._answer(scope, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            work.cancel()
        if work.done():
            work.result()

    async def _answer(self, scope: Scope, send: Send) -> None:
        started, turns, utterance = time.monotonic(), self._engine.turns, self._utterance
        client = scope["client"][0] if scope["client"] else ""
        with turns.admit(client):
            first = await turns.run(client, utterance.begin)
            if not first and utterance.is_done:
                raise ApiError(400, "input has nothing in it that can be said", param="input")
            self._engine.metrics.first_byte.observe(time.monotonic() - started)
            headers = [(b"content-type", (self.media_type or "").encode()), (b"cache-control", b"no-store")]
            if utterance.is_done and not self._is_sse:
                headers.append((b"content-length", str(len(first)).encode()))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for data in self._pieces(first, lambda: turns.run(client, utterance.next)):
                for start in range(0, len(data), PART):
                    await send({"type": "http.response.body", "body": data[start : start + PART], "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _pieces(self, data: bytes, next_piece: Callable[[], Awaitable[bytes]]) -> AsyncIterator[bytes]:
        while True:
            if data:  # an encoder may wait for more
                yield _event("speech.audio.delta", audio=base64.b64encode(data).decode()) if self._is_sse else data
            if self._utterance.is_done:
                break
            data = await next_piece()
        if self._is_sse:  # nothing is counted in tokens here
            yield _event("speech.audio.done", usage={"input_tokens": 0, "output_tokens": 0, "total_tokens": 0})


def _event(kind: str, **fields: Any) -> bytes:
    return b"data: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- errors


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Of the framework: no such path, another method, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    what = {404: f"there is no {request.url.path:.200}", 405: f"{request.method} is not for {request.url.path:.200}"}
    said = ApiError(error.status_code, what.get(error.status_code, "the body is not JSON"), headers=error.headers)
    return await _api_error(request, said)


async def _validation_error(request: Request, error: Exception) -> Response:
    """The first thing that is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    steps = [str(step) for step in first["loc"][1:]]
    if first["type"] == "json_invalid":
        return await _api_error(request, ApiError(400, "the body is not JSON"))
    if not steps:
        return await _api_error(request, ApiError(400, "the body must be a JSON object, sent as application/json"))
    param, value = steps[0], first["input"]
    what = f"{param} is missing" if first["type"] == "missing" else f"{param} is {value!r:.100}"
    hint = "; aac is not offered" if param == "response_format" and value == "aac" else ""
    return await _api_error(request, ApiError(400, f"{what}: {first['msg']}{hint}", param=param))


async def _unexpected(request: Request, _: Exception) -> Response:
    """The journal has the traceback."""
    return await _api_error(request, ApiError(500, "the server has failed: its journal says how"))


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    ApiError: _api_error,
    HTTPException: _http_error,
    RequestValidationError: _validation_error,
    Exception: _unexpected,
}
