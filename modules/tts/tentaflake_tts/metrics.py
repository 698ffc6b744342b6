"""What Prometheus is told."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Of one server. ``requests`` is how many it has now, ``voices`` how many are loaded and how many broken."""

    def __init__(self, requests: Callable[[], int], voices: Callable[[], tuple[int, int]]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.answers = Counter("tts_answers", "Answers by status", ["path", "status"], registry=registry)
        self.first_byte = Histogram(
            "tts_first_byte_seconds", "From a request to the first byte of speech", buckets=SECONDS, registry=registry
        )
        self.synthesis = Counter("tts_synthesis_seconds", "Time that the engine took", registry=registry)
        self.audio = Counter("tts_audio_seconds", "Speech that the engine made", registry=registry)
        Gauge("tts_requests", "Requests for speech that are answered or wait", registry=registry).set_function(requests)
        loaded = Gauge("tts_voices", "Voices that are loaded", registry=registry)
        loaded.set_function(lambda: voices()[0])
        broken = Gauge("tts_voices_broken", "Voices that cannot be loaded", registry=registry)
        broken.set_function(lambda: voices()[1])

    def text(self) -> bytes:
        return generate_latest(self._registry)
