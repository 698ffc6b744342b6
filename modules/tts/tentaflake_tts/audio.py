"""From a voice's samples to a stream of one of OpenAI's formats, mono.

What is lossless and says its rate (WAV, FLAC) has the voice's own samples; all else is at OpenAI's 24 kHz.
"""

import os
import struct
import weakref
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]

RATE = 24_000
"""Samples per second of what does not keep the voice's own."""
UNKNOWN = 0xFFFFFFFF


@dataclass(frozen=True)
class Format:
    """A format by OpenAI's name, and libsndfile's names for it; without, it is written here."""

    media_type: str
    container: str = ""
    subtype: str = ""
    is_constant: bool = False
    """Of one bit rate (80 kbit/s), by which a player knows the time where no header says it."""
    keeps_rate: bool = False
    """Has the voice's rate."""


FORMATS = {
    "mp3": Format("audio/mpeg", "MP3", "MPEG_LAYER_III", is_constant=True),
    "opus": Format("audio/ogg", "OGG", "OPUS"),
    "flac": Format("audio/flac", "FLAC", "PCM_16", keeps_rate=True),
    "wav": Format("audio/wav", keeps_rate=True),
    "pcm": Format("audio/pcm"),
}


class Encoder:
    """Takes samples of one rate, a sentence at a time, and gives what of the stream is ready by then."""

    def __init__(self, name: str, rate: int) -> None:
        self._name, codec = name, FORMATS[name]
        self._rate = rate if codec.keeps_rate else RATE
        self._resampler = None if rate == self._rate else soxr.ResampleStream(rate, self._rate, 1, dtype="float32")
        self._file = _File(codec, self._rate) if codec.container else None
        self._begun = False

    def add(self, samples: Samples, last: bool) -> bytes:
        """The bytes that follow those given so far. With all of the samples in one call, a header has their length."""
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last)
        np.clip(samples, -1.0, 1.0, out=samples)  # a resampler overshoots
        if self._file is not None:
            return self._file.add(samples, last)
        data = (samples * 32767).astype("<i2").tobytes()
        if self._name == "wav" and not self._begun:
            data = _wav_header(len(data) if last else UNKNOWN, self._rate) + data
        self._begun = True
        return data


def _wav_header(size: int, rate: int) -> bytes:
    """Of 16-bit samples; of a stream whose end is not known yet, both sizes are the largest, as OpenAI has them."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", min(size + 36, UNKNOWN), b"WAVE") + form + struct.pack("<4sI", b"data", size)


class _File:
    """A file in memory that libsndfile writes. Not one of Python's: cffi would need memory to write to and execute."""

    def __init__(self, codec: Format, rate: int) -> None:
        self._memory = os.memfd_create("speech", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._memory)
        constant = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if codec.is_constant else {}
        self._sound = soundfile.SoundFile(
            os.dup(self._memory), "w", rate, 1, subtype=codec.subtype, format=codec.container, **constant
        )
        self._sent = 0

    def add(self, samples: Samples, last: bool) -> bytes:
        self._sound.write(samples)
        if last:
            self._sound.close()
        # What libsndfile then changes at the beginning is lengths, which whoever reads a stream does without.
        data = os.pread(self._memory, os.fstat(self._memory).st_size - self._sent, self._sent)
        self._sent += len(data)
        return data
