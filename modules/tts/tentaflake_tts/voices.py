"""Piper's voices: a directory of NAME.onnx and NAME.onnx.json."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from piper import PiperConfig, PiperVoice, SynthesisConfig
from pydantic_core import from_json

from tentaflake_tts.audio import Samples
from tentaflake_tts.errors import SpeechError

LONGEST = 300
"""Phonemes that are spoken at once, about 20 seconds: memory grows with them, and whoever comes next waits."""
RATES = range(8_000, 96_001)

# It names every phoneme that a voice does not have: what a client says is not for the journal.
logging.getLogger("piper").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Voice:
    """A voice that is loaded and has spoken."""

    name: str
    piper: PiperVoice

    @property
    def language(self) -> str:
        return self.piper.config.espeak_voice

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self.piper.config.sample_rate

    def read(self, text: str, speed: float) -> list[list[str]]:
        """The phonemes of each sentence, long ones in pieces; none if there is nothing to say."""
        longest = max(int(LONGEST * min(1.0, speed)), 1)
        plain = text.replace("[[", "[ [")  # Piper would take what is in them for phonemes
        return [piece for phonemes in self.piper.phonemize(plain) for piece in _pieces(phonemes, longest)]

    def speak(self, phonemes: Sequence[str], speed: float) -> Samples:
        """The samples of one piece, as loud as its loudest one allows, as Piper has it."""
        config = SynthesisConfig(length_scale=self.piper.config.length_scale / speed)
        audio = self.piper.phoneme_ids_to_audio(self.piper.phonemes_to_ids(list(phonemes)), config)
        assert isinstance(audio, np.ndarray)  # no alignments were asked for
        samples: Samples = np.atleast_1d(audio).astype(np.float32)
        loudest = np.max(np.abs(samples), initial=0.0)
        return samples / loudest if loudest > 1e-8 else np.zeros_like(samples)


def _pieces(phonemes: list[str], longest: int) -> list[list[str]]:
    """Cut between words where there are any."""
    pieces = []
    while len(phonemes) > longest:
        spaces = [at for at in range(longest // 2, longest) if phonemes[at] == " "]
        at = spaces[-1] + 1 if spaces else longest
        pieces.append(phonemes[:at])
        phonemes = phonemes[at:]
    return [*pieces, phonemes] if phonemes else pieces


def find(directory: Path) -> list[Path]:
    """The models in a directory, by name; raises `SpeechError`."""
    if not directory.is_dir():
        raise SpeechError(f"{directory}: no such directory of voices", "set voices to where NAME.onnx files are")
    found = sorted(directory.glob("*.onnx"))
    if not found:
        raise SpeechError(f"{directory}: no voice in it", "put NAME.onnx and NAME.onnx.json there")
    return found


def load(model: Path, threads: int) -> Voice:
    """Load a voice and have it say something; raises `SpeechError`."""
    name = model.name.removesuffix(".onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # else it also asks for processors of its own, which a sandbox forbids
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        config = PiperConfig.from_dict(from_json(model.with_name(model.name + ".json").read_bytes()))
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        voice = Voice(name, PiperVoice(session=session, config=config))
        if voice.rate not in RATES:
            raise ValueError(f"its rate is {voice.rate}")
        samples = voice.speak(list("a"), 1.0) if voice.read("a", 1.0) else np.empty(0)
        if not samples.size or not np.isfinite(samples).all():
            raise ValueError("what it says is no sound")
    except Exception as error:  # whatever a broken file brings about, its name is what is wanted
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise SpeechError(f"voice {name} cannot be loaded: {said}", f"replace {model} and its .json") from error
    return voice
