"""The voices that are loaded, and what they say."""

import asyncio
import time
from collections.abc import Callable

from tentaflake_tts import voices
from tentaflake_tts.audio import Encoder
from tentaflake_tts.errors import ApiError, SpeechError
from tentaflake_tts.metrics import Metrics
from tentaflake_tts.settings import OPENAI_VOICES, Settings
from tentaflake_tts.turns import Turns
from tentaflake_tts.voices import Voice

LOADING_PATIENCE = 20.0
"""Seconds that who comes during a restart waits for the voices."""


class Utterance:
    """One text being spoken. `begin`, then `next` until it `is_done`, in any thread, one call at a time."""

    def __init__(self, voice: Voice, text: str, speed: float, codec: str, metrics: Metrics) -> None:
        self._voice, self._text, self._speed, self._metrics = voice, text, speed, metrics
        self._encoder = Encoder(codec, voice.rate)
        self._pieces: list[list[str]] = []

    @property
    def is_done(self) -> bool:
        return not self._pieces

    def begin(self) -> bytes:
        """The first bytes, all of them if it is done then; none if there is nothing to say."""
        self._pieces = self._voice.read(self._text, self._speed)[::-1]
        return b"" if self.is_done else self.next()

    def next(self) -> bytes:
        started = time.monotonic()
        samples = self._voice.speak(self._pieces.pop(), self._speed)
        self._metrics.synthesis.inc(time.monotonic() - started)
        self._metrics.audio.inc(len(samples) / self._voice.rate)
        return self._encoder.add(samples, last=self.is_done)


class Engine:
    """Live from the start, ready when `load` is done."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.voices: dict[str, Voice] = {}
        self.failed: list[str] = []
        """Names of voices that cannot be loaded."""
        self.aliases: dict[str, str] = {}
        self._loaded = asyncio.Event()
        self.turns = Turns(settings.workers, settings.queue, settings.queue_per_client)
        self.metrics = Metrics(lambda: self.turns.requests, lambda: (len(self.voices), len(self.failed)))

    async def load(self, report: Callable[[str], None]) -> None:
        """Load every voice there is, and report those that are broken; raises `SpeechError` if none is left."""
        for model in voices.find(self.settings.voices):
            try:
                voice = await asyncio.to_thread(voices.load, model, self.settings.workers)
                self.voices[voice.name] = voice
            except SpeechError as error:
                self.failed.append(model.stem)
                report(str(error))
        self.aliases = _resolve_aliases(self.settings, list(self.voices), self.failed)
        self._loaded.set()

    @property
    def ready(self) -> bool:
        return self._loaded.is_set()

    async def find_voice(self, name: str) -> Voice:
        """By its name or an alias, when the voices are loaded; raises `ApiError`."""
        try:
            await asyncio.wait_for(self._loaded.wait(), LOADING_PATIENCE)
        except TimeoutError:
            raise ApiError(503, "the voices are still being loaded", headers={"Retry-After": "5"}) from None
        voice = self.voices.get(self.aliases.get(name, name))
        if voice is None:
            known = ", ".join([*self.voices, *self.aliases])
            raise ApiError(400, f"there is no voice {name!r:.100}: it is one of {known}", param="voice")
        return voice

    def begin(self, voice: Voice, text: str, speed: float, codec: str) -> Utterance:
        return Utterance(voice, text, speed, codec, self.metrics)

    def close(self) -> None:
        self.turns.close()


def _resolve_aliases(settings: Settings, loaded: list[str], failed: list[str]) -> dict[str, str]:
    """Each alias and the loaded voice that it is. One whose voice is broken is the default voice."""
    if not loaded:
        raise SpeechError(f"none of the voices in {settings.voices} can be loaded", "the reasons are above")
    wanted = {"default": settings.default} if settings.default is not None else {}
    for alias, name in (settings.aliases | wanted).items():
        if name not in [*loaded, *failed]:
            where = "default" if alias == "default" else f"aliases.{alias}"
            raise SpeechError(f"{where} is {name!r}: no such voice", f"there are {', '.join(loaded)}")
    default = settings.default if settings.default in loaded else loaded[0]
    named = {alias: name if name in loaded else default for alias, name in settings.aliases.items()}
    aliases = dict.fromkeys(OPENAI_VOICES, default) | named
    return {alias: name for alias, name in aliases.items() if alias not in loaded}
