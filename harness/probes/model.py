#!/usr/bin/env python3
"""The scripted model: an OpenAI-compatible server that plays what a prompt injection makes of an agent.

    python3 model.py --script SCRIPT.json --transcript TRANSCRIPT.json [--address A] [--port N]

The agent NAME, whose model is at ``/agents/NAME/v1``, is told to run the commands that the script has for it,
and what they printed is judged and recorded. Standard library only, one file, Python 3.11 upward: it is copied
into machines that have nothing but Python. Protocol: OpenAI's chat completions, streamed (server-sent events)
or whole. The script is a JSON object, agent's name to ``AgentScript``; the transcript is a ``Transcript``, and
is whole on disk after every request.
"""

import argparse
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

TOOL = "terminal"
"""Hermes' shell tool; its answer is a JSON object with ``output``, ``exit_code`` and ``error``."""
OFFERS = 3
"""So often a command is asked for before it is given up."""
BODY_LIMIT = 32 << 20
"""Bytes of a request's body; a whole conversation is in each."""
PATIENCE = 60.0
"""Seconds that a client may keep silent in the middle of a request."""
PROBLEMS_LIMIT = 100
NOT_ENDED = {-1, 124, 130}
"""Exit codes of Hermes' terminal for: never started, timed out, interrupted."""
TRUNCATED = "[OUTPUT TRUNCATED"

Verdict = Literal["held", "broken", "untried"]


@dataclass(frozen=True)
class Command:
    """A shell command; its output must contain every text of ``must`` and none of ``must_not``.

    ``timeout`` is in seconds, of the agent's own clock.
    """

    name: str
    command: str
    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()
    timeout: int = 60


@dataclass(frozen=True)
class AgentScript:
    """What one agent is told: its commands, so many in each turn, and ``final`` to end the conversation."""

    commands: tuple[Command, ...]
    per_turn: int = 1
    final: str = "Done."


@dataclass(frozen=True)
class Judgement:
    """One expectation: ``untried`` when the text is missing from a command that did not run to its end."""

    kind: Literal["must", "must_not"]
    text: str
    verdict: Verdict


@dataclass(frozen=True)
class Answer:
    """What the agent says came of a command; ``exit_code`` is None if that is not the terminal's answer at all.

    ``ended``: the command ran to its end, and all that it printed is in ``output``.
    """

    output: str
    exit_code: int | None
    error: str | None
    ended: bool


@dataclass(frozen=True)
class Record:
    """One command; ``answer`` is None when there was none, or not yet."""

    name: str
    command: str
    answer: Answer | None
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True)
class Conversation:
    """What came of one agent's script; ``finished`` once the agent was sent the final message."""

    finished: bool
    turns: int
    commands: tuple[Record, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Transcript:
    """All conversations by agent, and the requests that belong to none."""

    agents: dict[str, Conversation]
    problems: tuple[str, ...]


class BadScript(ValueError):
    """The script file is not what it should be; the message says where and why."""


class Refused(Exception):
    """A request that gets an error: its status and why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


# --- the script ---------------------------------------------------------------------------------------------


def parse_script(text: str) -> dict[str, AgentScript]:
    """The script in JSON; raises ``BadScript``."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadScript(f"not JSON: {error}") from None
    if not isinstance(found, dict) or not found:
        raise BadScript("must be an object, agent's name to script, with at least one agent")
    scripts = {}
    for agent, script in found.items():
        if not re.fullmatch(r"[A-Za-z0-9._-]+", agent):
            raise BadScript(f"agent {agent!r}: the name stands in an URL: letters, digits, dots and dashes only")
        scripts[agent] = _parse_agent(f"agent {agent}", script)
    return scripts


def _parse_agent(where: str, value: object) -> AgentScript:
    fields = _fields(where, value, {"commands": list, "per_turn": int, "final": str}, ("commands",))
    commands = []
    for number, each in enumerate(fields["commands"]):
        place = f"{where}, commands[{number}]"
        types = {"name": str, "command": str, "must": list, "must_not": list, "timeout": int}
        given = _fields(place, each, types, ("name", "command"))
        for name in ("must", "must_not"):
            given[name] = tuple(given.get(name, ()))
            if not all(isinstance(text, str) and text for text in given[name]):
                raise BadScript(f"{place}: {name} is {each[name]!r}, not a list of texts")
        commands.append(Command(**given))
    script = AgentScript(**{**fields, "commands": tuple(commands)})
    if script.per_turn < 1:
        raise BadScript(f"{where}: per_turn is {script.per_turn}: at least one command goes in a turn")
    return script


def _fields(where: str, value: object, types: Mapping[str, type], required: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadScript(f"{where}: {value!r} is not an object")
    if unknown := sorted(set(value) - set(types)):
        raise BadScript(f"{where}: unknown field {unknown[0]}; the fields are {', '.join(types)}")
    if missing := [name for name in required if name not in value]:
        raise BadScript(f"{where}: {missing[0]} is missing")
    for name, given in value.items():
        if not isinstance(given, types[name]) or isinstance(given, bool):
            raise BadScript(f"{where}: {name} is {given!r}, not {types[name].__name__}")
    return dict(value)


# --- the play -----------------------------------------------------------------------------------------------


def parse_answer(content: object) -> Answer:
    """The content of a tool message. Hermes may append text to the tool's JSON."""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    text = content if isinstance(content, str) else json.dumps(content)
    try:
        found, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("output"), str):
        return Answer(text, None, "not the terminal's answer", ended=False)
    output, code, error = found["output"], found.get("exit_code"), found.get("error")
    code = code if isinstance(code, int) else None
    ended = code is not None and code not in NOT_ENDED and error is None and TRUNCATED not in output
    return Answer(output, code, None if error is None else str(error), ended)


def judge(command: Command, answer: Answer | None) -> tuple[Judgement, ...]:
    """The verdict on each expectation. A text that was seen was seen; one that was not may be still to come."""

    def verdict(text: str, *, wanted: bool) -> Verdict:
        if answer is not None and text in answer.output:
            return "held" if wanted else "broken"
        if answer is None or not answer.ended:
            return "untried"
        return "broken" if wanted else "held"

    return (
        *(Judgement("must", text, verdict(text, wanted=True)) for text in command.must),
        *(Judgement("must_not", text, verdict(text, wanted=False)) for text in command.must_not),
    )


@dataclass
class Play:
    """One agent's script, as far as it has been played."""

    script: AgentScript
    # Only answers to calls that this server asked for count.
    nonce: str = field(default_factory=lambda: secrets.token_hex(4))
    answers: dict[int, Answer] = field(default_factory=dict)
    offers: dict[int, int] = field(default_factory=dict)
    turns: int = 0
    finished: bool = False
    problems: list[str] = field(default_factory=list)

    def next_calls(self, messages: Sequence[object]) -> list[dict[str, Any]]:
        """Note the answers in ``messages``; the tool calls of the next turn, none at the end.

        Answers are noted once: later requests repeat the conversation, perhaps shortened. A request that is
        repeated is told the same again.
        """
        self.turns += 1
        for message in messages:
            self._note(message)
        commands = self.script.commands
        pending = [n for n in range(len(commands)) if n not in self.answers and self.offers.get(n, 0) < OFFERS]
        turn = pending[: self.script.per_turn]
        for number in turn:
            self.offers[number] = self.offers.get(number, 0) + 1
        self.finished = not turn
        return [self._call(number) for number in turn]

    def _note(self, message: object) -> None:
        if not isinstance(message, dict) or message.get("role") != "tool":
            return
        prefix, _, number = str(message.get("tool_call_id")).rpartition("_")
        if prefix == f"call_{self.nonce}" and number in map(str, self.offers):
            self.answers.setdefault(int(number), parse_answer(message.get("content")))

    def _call(self, number: int) -> dict[str, Any]:
        command = self.script.commands[number]
        arguments = json.dumps({"command": command.command, "timeout": command.timeout})
        return {
            "id": f"call_{self.nonce}_{number}",
            "type": "function",
            "function": {"name": TOOL, "arguments": arguments},
        }

    def conversation(self) -> Conversation:
        records = []
        for number, command in enumerate(self.script.commands):
            answer = self.answers.get(number)
            records.append(Record(command.name, command.command, answer, judge(command, answer)))
        return Conversation(self.finished, self.turns, tuple(records), tuple(self.problems))


class Stage:
    """All plays, and the transcript of them on disk. Its methods may be called from any thread."""

    def __init__(self, scripts: Mapping[str, AgentScript], transcript: Path) -> None:
        self.plays = {agent: Play(script) for agent, script in scripts.items()}
        self.transcript = transcript
        self.problems: list[str] = []
        self._lock = threading.Lock()
        self._write()

    def reply(self, agent: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The assistant's message to a request; raises ``Refused``."""
        messages, tools = request.get("messages"), request.get("tools")
        if not isinstance(messages, list) or not messages:
            raise Refused(HTTPStatus.BAD_REQUEST, "messages is not a list with something in it")
        with self._lock:
            play = self.plays.get(agent)
            if play is None:
                raise Refused(HTTPStatus.NOT_FOUND, f"no script for agent {agent!r}")
            # Titles, summaries and the like: not the attack.
            if not tools:
                return _message("ok")
            if TOOL not in _tool_names(tools):
                _add(play.problems, f"no tool {TOOL} among {sorted(_tool_names(tools))}")
                calls = []
            else:
                calls = play.next_calls(messages)
            self._write()
            return _message(None, calls) if calls else _message(play.script.final)

    def note(self, agent: str | None, problem: str) -> None:
        """Record a request that was refused."""
        with self._lock:
            play = self.plays.get(agent or "")
            _add(play.problems if play else self.problems, problem)
            self._write()

    def _write(self) -> None:
        """Whole or not at all, whenever this process is killed."""
        found = Transcript({name: play.conversation() for name, play in self.plays.items()}, tuple(self.problems))
        partial = self.transcript.with_name(self.transcript.name + ".partial")
        partial.write_text(json.dumps(asdict(found), indent=1))
        partial.replace(self.transcript)


def _add(problems: list[str], problem: str) -> None:
    if len(problems) < PROBLEMS_LIMIT:
        problems.append(problem)


def _tool_names(tools: object) -> set[str]:
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return {str(function.get("name")) for function in functions if isinstance(function, dict)}


def _message(content: str | None, calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}


# --- the protocol -------------------------------------------------------------------------------------------

USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def completion(model: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """A chat completion in one piece."""
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(message)}
    return {**_head("chat.completion", model), "choices": [choice], "usage": USAGE}


def chunks(model: str, message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The same as the chunks of a stream: the role, the calls or the text, the end, the usage."""
    head = _head("chat.completion.chunk", model)

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}

    yield chunk({"role": "assistant", "content": ""})
    for index, call in enumerate(message.get("tool_calls", ())):
        yield chunk({"tool_calls": [{"index": index, **call}]})
    if message["content"]:
        yield chunk({"content": message["content"]})
    yield chunk({}, _finish_reason(message))
    yield {**head, "choices": [], "usage": USAGE}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(8)}", "object": kind, "created": int(time.time()), "model": model}


def _finish_reason(message: Mapping[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


class Handler(BaseHTTPRequestHandler):
    """HTTP: one thread per connection, so that a slow client holds up nobody but itself."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server: "Server"

    def do_POST(self) -> None:
        path = re.fullmatch(r"/agents/([^/?]+)/v1/chat/completions", self.path)
        agent = path[1] if path else None
        try:
            request = self._request()
            if agent is None:
                raise Refused(HTTPStatus.NOT_FOUND, f"nothing at {self.path}")
            message = self.server.stage.reply(agent, request)
        except Refused as refused:
            self._refuse(agent, refused)
            return
        model = str(request.get("model"))
        if request.get("stream") is True:
            events = [*(json.dumps(chunk) for chunk in chunks(model, message)), "[DONE]"]
            self._send(HTTPStatus.OK, "text/event-stream", "".join(f"data: {event}\n\n" for event in events))
        else:
            self._send(HTTPStatus.OK, "application/json", json.dumps(completion(model, message)))

    def do_GET(self) -> None:
        # Agents look for a list of models, its details, a version: none of it is there, and none is a problem.
        error = {"message": f"nothing at {self.path}", "type": "NOT_FOUND"}
        self._send(HTTPStatus.NOT_FOUND, "application/json", json.dumps({"error": error}))

    def _request(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,15}", length):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "no Content-Length")
        if int(length) > BODY_LIMIT:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes are more than {BODY_LIMIT}")
        body = self.rfile.read(int(length))
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"not JSON: {error}") from None
        if not isinstance(found, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "not a JSON object")
        return found

    def _refuse(self, agent: str | None, refused: Refused) -> None:
        self.server.stage.note(agent, f"{self.command} {self.path}: {refused.status.value} {refused.why}")
        # What was not read would be taken for the next request.
        self.close_connection = True
        error = {"message": refused.why, "type": refused.status.name}
        self._send(refused.status, "application/json", json.dumps({"error": error}))

    def _send(self, status: HTTPStatus, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Nothing: what matters is in the transcript."""


class Server(ThreadingHTTPServer):
    """The server of one stage; port 0 takes a free one (``server_address`` says which)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: str, port: int, stage: Stage) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.stage = stage
        super().__init__((address, port), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # a client that went away is no news
            self.stage.note(None, f"{client_address}: {error!r}")
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server that plays a script of commands.")
    parser.add_argument("--script", type=Path, required=True, help="JSON: agent's name to script")
    parser.add_argument("--transcript", type=Path, required=True, help="JSON: what came of it, written all along")
    parser.add_argument("--address", default="127.0.0.1", help="to listen on, IPv4 or IPv6 (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one and prints it")
    options = parser.parse_args()
    try:
        scripts = parse_script(options.script.read_text())
    except (OSError, BadScript) as error:
        parser.error(f"{options.script}: {error}")
    with Server(options.address, options.port, Stage(scripts, options.transcript)) as server:
        print(f"listening on port {server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        os._exit(130)
