"""A speech server to test: the program that systemd starts, with a socket and a place for notifications of our own."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import miniaudio
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from openai import OpenAI
from piper.phoneme_ids import phonemes_to_ids
from piper.phonemize_espeak import EspeakPhonemizer
from tone_voice import DURATION, SILENT, frequency
from tone_voice import RATE as VOICE_RATE

PACKAGE = Path(__file__).resolve().parents[3] / "modules" / "tts"
PATIENCE = 60.0
"""Seconds after which a test gives up; never what a test measures."""
RATE = 24_000
VOICE_RATES = (VOICE_RATE, 16_000)
"""Of the voices of these tests, which WAV and FLAC keep."""
PHONEME = DURATION * RATE // VOICE_RATE
"""Samples of one phoneme in an answer at speed 1."""
LONG = "This is a sentence of some length, and it goes on. " * 60

# Becomes the server, with the sockets where systemd has them. Its patience is as the test says.
STARTER = """
import json, os, sys
options = json.loads(sys.argv[1])
for number, socket in enumerate(options["sockets"]):
    os.dup2(socket, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(options["sockets"]))}
if options["strict"]:
    import ctypes
    assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0  # PR_SET_MDWE, as MemoryDenyWriteExecute=
from tentaflake_tts import connection, middleware, server
connection.REQUEST_PATIENCE = middleware.PATIENCE = connection.READ_PATIENCE = options["patience"]
sys.argv[1:] = ["--config", options["config"]]
server.main()
"""

Samples = NDArray[np.float64]


class Server:
    """A running tentaflake-tts. Its socket is the test's and stays open when it ends, as systemd's does."""

    def __init__(
        self, directory: Path, settings: dict[str, Any], patience: float, strict: bool, wrapper: Sequence[str]
    ) -> None:
        self.directory = directory
        self._wrapper = wrapper
        self.settings = settings
        self.said: list[str] = []
        """What systemd was told, one assignment each."""
        self._options = {"patience": patience, "strict": strict, "config": str(directory / "config.json")}
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(directory / "notify"))
        (directory / "notify").chmod(0o777)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def start(self, ready: bool = True) -> None:
        (self.directory / "config.json").write_text(json.dumps(self.settings))
        number = self._socket.fileno()
        environment = os.environ | {
            "PYTHONPATH": str(PACKAGE),
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "HOME": str(self.directory / "home"),
        }
        command = [*self._wrapper, sys.executable, "-c", STARTER, json.dumps(self._options | {"sockets": [number]})]
        self.said.clear()
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stderr=log, pass_fds=[number]
            )
        if ready:
            self.wait_told("READY=1")

    def hear(self) -> None:
        """Take what systemd was told by now."""
        while True:
            try:
                self.said += self._notify.recv(4096, socket.MSG_DONTWAIT).decode().splitlines()
            except BlockingIOError:
                return

    def wait_told(self, assignment: str) -> None:
        def condition() -> bool:
            assert self.process is not None and self.process.poll() is None, f"tentaflake-tts ended:\n{self.log}"
            self.hear()
            return assignment in self.said

        eventually(condition, f"systemd is told {assignment}")

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._socket.close()
        self._notify.close()

    @property
    def openai(self) -> OpenAI:
        return OpenAI(api_key="none", base_url=f"http://127.0.0.1:{self.port}/v1", max_retries=0, timeout=PATIENCE)

    def connect(self, timeout: float = PATIENCE) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, path: str) -> tuple[int, Any]:
        """The status and the data of a JSON document."""
        return self.request("GET", path)[:2]

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            data = answer.read()
            if answer.headers.get_content_type() == "application/json":
                data = json.loads(data)
            return answer.status, data, {name.lower(): value for name, value in answer.headers.items()}
        finally:
            connection.close()

    def post(self, **fields: Any) -> tuple[int, Any]:
        """A request for speech."""
        body = {"model": "tts-1", "voice": "alloy", "input": "Hello."} | fields
        return self.post_raw(json.dumps(body).encode())

    def post_raw(self, body: bytes) -> tuple[int, Any]:
        return self.request("POST", "/v1/audio/speech", body, {"Content-Type": "application/json"})[:2]

    def memory(self, name: str) -> int:
        """A line of /proc/PID/status, in bytes: VmRSS, or VmHWM, the most that it ever was."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def server(
    directory: Path,
    voices: Path,
    *,
    patience: float = 30.0,
    strict: bool = False,
    wrapper: Sequence[str] = (),
    ready: bool = True,
    **settings: Any,
) -> Iterator[Server]:
    directory.mkdir(parents=True, exist_ok=True)
    running = Server(directory, {"voices": str(voices)} | settings, patience, strict, wrapper)
    try:
        running.start(ready)
        yield running
    finally:
        running.close()


def eventually(condition: Callable[[], bool], what: str, within: float = PATIENCE) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(0.005)


# --- sound


def decode(data: bytes, codec: str) -> Samples:
    """The samples of an answer at 24 kHz, by a decoder that is not the encoder's where there is one."""
    if codec == "pcm":
        return np.frombuffer(data, "<i2") / 32768
    if codec == "opus":
        samples, rate = soundfile.read(io.BytesIO(data))
        assert (rate, samples.ndim) == (RATE, 1)
        return np.asarray(samples, np.float64)
    info = _info(data, codec)
    assert info.nchannels == 1
    assert info.sample_rate in ([RATE] if codec == "mp3" else VOICE_RATES)
    decoded = miniaudio.decode(data, nchannels=1, sample_rate=info.sample_rate)
    samples = np.array(decoded.samples, np.float64) / 32768
    return np.asarray(soxr.resample(samples, info.sample_rate, RATE), np.float64)


def _info(data: bytes, codec: str) -> miniaudio.SoundFileInfo:
    kinds = {"mp3": miniaudio.mp3_get_info, "flac": miniaudio.flac_get_info, "wav": miniaudio.wav_get_info}
    return kinds[codec](data)


def tones(samples: Samples, speed: float = 1.0) -> list[int]:
    """The frequency of each phoneme in Hz, 0 for a silent one."""
    length = PHONEME / speed
    found = []
    for number in range(round(len(samples) / length)):
        part = samples[round(number * length) : round((number + 1) * length)]
        part = part[len(part) // 8 : -len(part) // 8]  # a resampler blurs the borders
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), RATE))
        found.append(int(spectrum.argmax()) if np.abs(part).max() > 0.1 else 0)
    return found


def expected_tones(text: str) -> list[float]:
    """What `tones` should find in a text, by Piper's own phonemes."""
    silent = {number for phoneme in SILENT for number in phonemes_to_ids([phoneme])[2:-2]}
    silent |= set(phonemes_to_ids([]))
    ids = [number for sentence in EspeakPhonemizer().phonemize("en-us", text) for number in phonemes_to_ids(sentence)]
    return [0.0 if number in silent else frequency(number) for number in ids]


def likeness(one: Samples, other: Samples) -> tuple[float, int]:
    """The correlation of two sounds where they match best, from -1 to 1, and by how many samples the second is late."""
    size = 2 ** int(np.ceil(np.log2(len(one) + len(other))))
    products = np.fft.irfft(np.fft.rfft(other, size) * np.conj(np.fft.rfft(one, size)), size)
    lag = int(products.argmax())
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float(products[lag]) / norm, lag if lag < size // 2 else lag - size
