"""The settings: one JSON file."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tentaflake_tts.errors import SpeechError

OPENAI_VOICES = "alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split()
"""The names that OpenAI's clients know; those without an alias of their own are the default voice."""


class Settings(BaseModel):
    """docs/speech.md says what each is for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    voices: Annotated[Path, Field(strict=False)]
    default: str | None = None
    aliases: dict[str, str] = {}
    workers: Annotated[int, Field(ge=1, le=64)] = min(4, len(os.sched_getaffinity(0)))
    queue: Annotated[int, Field(ge=1, le=4096)] = 128
    queue_per_client: Annotated[int, Field(ge=1, le=4096, alias="queuePerClient")] = 64


def read(path: Path) -> Settings:
    """The settings in a file; raises `SpeechError`."""
    try:
        return Settings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SpeechError(f"the settings cannot be read: {error}", "name the file with --config") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise SpeechError(
            f"{path}: {where} is {first['input']!r:.200}: {first['msg']}", "docs/speech.md lists the settings"
        ) from error
