#!/usr/bin/env python3
"""The official openai client, loaded and waiting: what a template holds, so that forks need not load it.

    python3 -m harness.probes.speaker DIRECTORY BASE

Runs inside a guest as root. Once it has spoken to the server at BASE, whose answers it forgets, there is a file
``ready``. From then on each JSON object that is written to the fifo ``asked`` is answered on the fifo ``said``:

    {"base": URL, "wanted": [FIELDS, ...], "pid": PID, "uid": UID, "gid": GID}
    {"models": [ID, ...], "answers": [{"status": 200, "data": BASE64} | {"status": STATUS, "error": BODY}, ...]}

It speaks in the network namespace of process PID and with the ids, where they are not null. Status 0: nobody answered.
"""

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import openai

from harness.probes.prober import become

Answer = dict[str, Any]
TIMEOUT = 400.0
"""Seconds for one answer, under TCG on a loaded machine."""


def client_of(base: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=TIMEOUT)


def speak(client: openai.OpenAI, fields: dict[str, Any]) -> Answer:
    try:
        spoken = client.audio.speech.create(**{"model": "tts-1", "voice": "alloy", "input": "Hello."} | fields)
    except openai.APIStatusError as error:
        return {"status": error.status_code, "error": error.response.json()}
    except openai.APIConnectionError as error:
        return {"status": 0, "error": repr(error)}
    return {"status": 200, "data": base64.b64encode(spoken.content).decode()}


def list_models(client: openai.OpenAI) -> list[str]:
    try:
        return [model.id for model in client.models.list()]
    except openai.APIConnectionError:
        return []


def answer(client: openai.OpenAI, order: dict[str, Any]) -> Answer:
    asked = client.with_options(base_url=order["base"])
    return {"models": list_models(asked), "answers": [speak(asked, fields) for fields in order["wanted"]]}


def main(directory: str, base: str) -> None:
    place = Path(directory)
    with client_of(base) as first:  # some of its modules are loaded when they are used first
        answer(first, {"base": base, "wanted": [{}, {"input": ""}]})
    client = client_of(base)
    for name in ("asked", "said"):
        os.mkfifo(place / name)
    (place / "ready").touch()
    while True:
        order = json.loads((place / "asked").read_text())
        if os.fork() == 0:
            with (place / "said").open("w") as said:
                become(order)
                json.dump(answer(client, order), said)
            sys.exit()
        os.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
