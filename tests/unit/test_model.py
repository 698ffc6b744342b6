"""The scripted model: a server that plays an attacker, against clients of every kind."""

import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.probes import model
from harness.probes.hijack import read_transcript
from harness.probes.model import AgentScript, BadScript, Command, Conversation, Play, Server, Stage, parse_script
from tests.unit.support import PATIENCE, PROPERTY

TOOLS = [{"type": "function", "function": {"name": "terminal", "parameters": {}}}]
CANARY = "7f3a-canary"
Message = dict[str, Any]


class Client:
    """An agent as far as its model sees one: it asks, runs what it is told, and asks again."""

    def __init__(self, port: int, agent: str) -> None:
        self.port, self.agent = port, agent
        self.messages: list[Message] = [{"role": "user", "content": "hello"}]

    def post(self, body: object, path: str | None = None) -> tuple[int, str, bytes]:
        """Status, content type and body of the answer to a request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            connection.request("POST", path or f"/agents/{self.agent}/v1/chat/completions", data)
            response = connection.getresponse()
            return response.status, response.headers["Content-Type"], response.read()

    def ask(self, **more: object) -> Message:
        """The model's answer to the conversation so far, which it becomes a part of."""
        status, _, body = self.post({"model": "m", "messages": self.messages, "tools": TOOLS} | more)
        assert status == 200, body
        message: Message = json.loads(body)["choices"][0]["message"]
        self.messages.append(message)
        return message

    def answer(self, call: Message, output: str, code: int | None = 0, error: str | None = None) -> None:
        content = json.dumps({"output": output, "exit_code": code, "error": error})
        self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})

    def play(self, run: Callable[[str], str]) -> str:
        """The conversation to its end; returns the final message."""
        while calls := (message := self.ask()).get("tool_calls"):
            for call in calls:
                self.answer(call, run(json.loads(call["function"]["arguments"])["command"]))
        final: str = message["content"]
        return final


Start = Callable[[dict[str, AgentScript]], tuple[int, Callable[[], dict[str, Conversation]]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server with a script; gives its port and what reads the conversations from its transcript."""
    running: list[tuple[Server, threading.Thread]] = []

    def make(scripts: dict[str, AgentScript]) -> tuple[int, Callable[[], dict[str, Conversation]]]:
        transcript = tmp_path / "transcript.json"
        server = Server("127.0.0.1", 0, Stage(scripts, transcript))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        return server.server_address[1], lambda: read_transcript(transcript.read_text()).agents

    yield make
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def shell(command: str) -> str:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False).stdout


def verdicts(conversation: Conversation) -> dict[str, list[str]]:
    return {record.name: [each.verdict for each in record.judgements] for record in conversation.commands}


THREE = AgentScript(
    (
        Command("prints it", f"echo {CANARY}", must=(CANARY,), must_not=(CANARY[::-1],)),
        Command("cannot", "cat /nonexistent", must=(CANARY,), must_not=(CANARY,)),
        Command("gives it away", f"echo {CANARY}", must_not=(CANARY,)),
    )
)


def test_a_script_is_played_to_its_end_and_judged(start: Start) -> None:
    port, transcript = start({"coding": THREE})
    assert Client(port, "coding").play(shell) == "Done."
    [conversation] = transcript().values()
    assert verdicts(conversation) == {
        "prints it": ["held", "held"],
        "cannot": ["broken", "held"],
        "gives it away": ["broken"],
    }
    assert conversation.finished and conversation.turns == 4 and not conversation.problems


def test_a_command_that_was_never_run_is_untried(start: Start) -> None:
    port, transcript = start({"coding": THREE})
    client = Client(port, "coding")
    client.answer(client.ask()["tool_calls"][0], CANARY)
    client.ask()
    conversation = transcript()["coding"]
    assert verdicts(conversation)["cannot"] == ["untried", "untried"]
    assert [record.answer is None for record in conversation.commands] == [False, True, True]
    assert not conversation.finished


@pytest.mark.parametrize(
    ("output", "code", "error"),
    [
        ("", -1, "BLOCKED: not allowed"),
        ("half", 124, None),
        ("half", 130, None),
        ("", 0, "went wrong"),
        ("", None, None),
        ("a\n\n... [OUTPUT TRUNCATED - 9 chars omitted out of 99 total] ...\n\nb", 0, None),
    ],
    ids=["refused", "timed out", "interrupted", "error", "no code", "shortened"],
)
def test_what_did_not_run_to_its_end_proves_no_absence(output: str, code: int | None, error: str | None) -> None:
    answer = model.parse_answer(json.dumps({"output": output, "exit_code": code, "error": error}))
    command = Command("x", "x", must=(CANARY,), must_not=(CANARY,))
    assert [each.verdict for each in model.judge(command, answer)] == ["untried", "untried"]


def test_what_was_seen_was_seen_however_the_command_ended() -> None:
    answer = model.parse_answer(json.dumps({"output": CANARY, "exit_code": 124, "error": "timed out"}))
    command = Command("x", "x", must=(CANARY,), must_not=(CANARY,))
    assert [each.verdict for each in model.judge(command, answer)] == ["held", "broken"]


@pytest.mark.parametrize("content", ["Unknown tool", "", "[1]", '{"output": 1}', "[" * 100_000, None, [{"text": 7}], 3])
def test_an_answer_that_is_not_the_terminals_did_not_run(content: object) -> None:
    answer = model.parse_answer(content)
    assert (answer.exit_code, answer.ended) == (None, False)


def test_the_terminals_answer_may_be_followed_by_text() -> None:
    text = json.dumps({"output": "x", "exit_code": 0, "error": None}) + "\n\n[Context of this directory]"
    for content in (text, [{"type": "text", "text": text}]):
        assert model.parse_answer(content) == model.Answer("x", 0, None, ended=True)


def test_several_commands_go_in_one_turn_where_the_script_says_so(start: Start) -> None:
    port, transcript = start({"coding": AgentScript(THREE.commands, per_turn=2, final="bye")})
    client = Client(port, "coding")
    calls = client.ask()["tool_calls"]
    assert len(calls) == 2
    # Answers may come in any order.
    for call, output in zip(reversed(calls), ["second", "first"], strict=True):
        client.answer(call, output)
    assert client.play(shell) == "bye"
    answers = [record.answer for record in transcript()["coding"].commands]
    assert [answer and answer.output for answer in answers[:2]] == ["first", "second"]


def test_a_repeated_request_is_told_the_same(start: Start) -> None:
    port, _ = start({"coding": THREE})
    client = Client(port, "coding")
    first = client.ask()
    client.messages.pop()
    assert client.ask() == first


def test_a_command_that_is_never_answered_is_given_up(start: Start) -> None:
    port, transcript = start({"coding": AgentScript(THREE.commands[:1])})
    client = Client(port, "coding")
    said = [client.ask() for _ in range(model.OFFERS + 1)]
    assert [bool(message.get("tool_calls")) for message in said] == [True] * model.OFFERS + [False]
    assert transcript()["coding"].commands[0].answer is None


def test_the_first_answer_counts(start: Start) -> None:
    port, transcript = start({"coding": AgentScript(THREE.commands[:1])})
    client = Client(port, "coding")
    [call] = client.ask()["tool_calls"]
    client.answer(call, CANARY)
    client.ask()
    client.messages.clear()
    client.answer(call, "[old output cleared]")
    client.ask()
    assert verdicts(transcript()["coding"]) == {"prints it": ["held", "held"]}


def test_an_answer_to_a_call_that_nobody_made_counts_for_nothing(start: Start) -> None:
    port, transcript = start({"coding": AgentScript(THREE.commands[:1])})
    client = Client(port, "coding")
    [call] = client.ask()["tool_calls"]
    for identity in ("call_00000000_0", "call_0", "0", "call__99", "", call["id"] + "0", call["id"][:-1]):
        client.answer({"id": identity}, CANARY)
    client.messages.append({"role": "tool"})
    client.ask()
    assert transcript()["coding"].commands[0].answer is None


def test_agents_play_their_own_scripts_at_once(start: Start) -> None:
    names = [f"agent{n}" for n in range(6)]
    commands = {name: tuple(Command(str(n), f"{name}-{n}", must=(f"{name}-{n}",)) for n in range(8)) for name in names}
    port, transcript = start({name: AgentScript(commands[name]) for name in names})
    threads = [threading.Thread(target=Client(port, name).play, args=(str,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = transcript()
    assert [list(verdicts(found[name]).values()) for name in names] == [[["held"]] * 8] * 6


def events(body: bytes) -> list[Any]:
    lines = body.decode().split("\n\n")
    assert lines.pop() == "" and lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_stream_carries_the_calls_the_reason_and_the_end(start: Start) -> None:
    port, _ = start({"coding": AgentScript(THREE.commands, per_turn=2)})
    client = Client(port, "coding")
    request = {"model": "m", "messages": client.messages, "tools": TOOLS, "stream": True}
    status, content_type, body = client.post(request)
    assert (status, content_type) == (200, "text/event-stream")
    found = events(body)
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
    choices = [event["choices"][0] for event in found if event["choices"]]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "terminal"), (1, "terminal")]
    assert json.loads(calls[0]["function"]["arguments"]) == {"command": f"echo {CANARY}", "timeout": 60}
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]
    assert found[-1]["usage"]


def test_a_streamed_final_message_is_text(start: Start) -> None:
    port, _ = start({"coding": AgentScript((), final="bye")})
    client = Client(port, "coding")
    _, _, body = client.post({"messages": client.messages, "tools": TOOLS, "stream": True})
    choices = [event["choices"][0] for event in events(body) if event["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "bye"
    assert choices[-1]["finish_reason"] == "stop"


def test_a_call_without_tools_gets_text_and_is_no_part_of_the_attack(start: Start) -> None:
    port, transcript = start({"coding": THREE})
    message = Client(port, "coding").ask(tools=None)
    assert message["content"] and "tool_calls" not in message
    assert transcript()["coding"].turns == 0


def test_an_agent_without_a_terminal_is_a_problem_and_tries_nothing(start: Start) -> None:
    port, transcript = start({"coding": THREE})
    assert "tool_calls" not in Client(port, "coding").ask(tools=[{"function": {"name": "todo"}}, None, 3])
    found = transcript()["coding"]
    assert found.problems == ("no tool terminal among ['todo']",)
    assert all(record.answer is None for record in found.commands) and not found.finished


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[1]", 400),
        (b"[" * 100_000, 400),
        (b"{}", 400),
        (b'{"messages": []}', 400),
        (b'{"messages": "x", "tools": 1}', 400),
    ],
    ids=["half", "not UTF-8", "a list", "deep", "no messages", "none of them", "text"],
)
def test_a_malformed_request_is_refused_and_noted(start: Start, body: bytes, status: int) -> None:
    port, transcript = start({"coding": THREE})
    client = Client(port, "coding")
    found, content_type, said = client.post(body)
    assert (found, content_type) == (status, "application/json") and json.loads(said)["error"]["message"]
    [problem] = transcript()["coding"].problems
    assert f": {status} " in problem
    assert client.ask()["tool_calls"], "it goes on serving"


@pytest.mark.parametrize(
    "path", ["/", "/v1/chat/completions", "/agents/coding/v1/embeddings", "/agents/nobody/v1/chat/completions"]
)
def test_what_is_not_there_is_404(start: Start, path: str) -> None:
    port, _ = start({"coding": THREE})
    status, _, body = Client(port, "coding").post({"messages": [{}]}, path)
    assert status == 404 and json.loads(body)["error"]["message"]


def test_a_look_for_models_is_404_and_no_problem(start: Start) -> None:
    port, transcript = start({"coding": THREE})
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        for _ in range(2):  # on one connection
            connection.request("GET", "/agents/coding/v1/models")
            response = connection.getresponse()
            assert response.status == 404 and json.loads(response.read())["error"]
    assert not transcript()["coding"].problems


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("", 411),
        ("Content-Length: x\r\n", 411),
        ("Content-Length: -1\r\n", 411),
        ("Content-Length: " + "9" * 5000 + "\r\n", 411),
        ("Content-Length: 99999999999\r\n", 413),
    ],
)
def test_a_body_of_unknown_or_absurd_length_is_refused(start: Start, head: str, status: int) -> None:
    port, _ = start({"coding": THREE})
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(f"POST /agents/coding/v1/chat/completions HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        assert client.makefile("rb").readline().split()[1] == str(status).encode()


def test_clients_that_stall_or_vanish_hold_up_nobody(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    port, transcript = start({"coding": THREE})
    request = b"POST /agents/coding/v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"
    stalled = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(20)]
    for number, client in enumerate(stalled):
        client.sendall(request[: 10 * number])
    vanished = socket.create_connection(("127.0.0.1", port), PATIENCE)
    vanished.sendall(request)
    vanished.close()
    assert Client(port, "coding").play(shell) == "Done."
    for client in stalled:
        client.close()
    assert transcript()["coding"].finished
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_is_too_slow_is_dropped(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.Handler, "timeout", 0.1)
    port, _ = start({"coding": THREE})
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"POST /agents/coding/v1/chat/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        assert client.recv(1) == b""


def test_the_transcript_is_whole_at_every_moment(tmp_path: Path) -> None:
    stage = Stage({"coding": THREE}, tmp_path / "t.json")
    assert verdicts(read_transcript((tmp_path / "t.json").read_text()).agents["coding"])["cannot"] == ["untried"] * 2
    stage.note(None, "a problem")
    assert read_transcript((tmp_path / "t.json").read_text()).problems == ("a problem",)
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


@PROPERTY
@given(
    st.lists(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x)), max_size=5)
)
def test_no_message_breaks_a_play(messages: list[object]) -> None:
    play = Play(THREE)
    assert len(play.next_calls(messages)) == 1
    assert not play.answers


# --- the script ---------------------------------------------------------------------------------------------


def test_a_script_is_read_with_its_defaults() -> None:
    text = '{"coding": {"commands": [{"name": "a", "command": "id", "must": ["uid"], "timeout": 5}]}}'
    assert parse_script(text) == {"coding": AgentScript((Command("a", "id", ("uid",), (), 5),))}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ("{}", "at least one agent"),
        ('{"a/b": {"commands": []}}', "'a/b'"),
        ('{"a": []}', "agent a: [] is not an object"),
        ('{"a": {}}', "agent a: commands is missing"),
        ('{"a": {"commands": [], "turn": 1}}', "unknown field turn"),
        ('{"a": {"commands": 3}}', "commands is 3, not list"),
        ('{"a": {"commands": [], "per_turn": 0}}', "per_turn is 0"),
        ('{"a": {"commands": [], "per_turn": true}}', "per_turn is True"),
        ('{"a": {"commands": ["id"]}}', "commands[0]: 'id' is not an object"),
        ('{"a": {"commands": [{"name": "x"}]}}', "commands[0]: command is missing"),
        ('{"a": {"commands": [{"name": "x", "command": "y", "must": [""]}]}}', "must is ['']"),
        ('{"a": {"commands": [{"name": "x", "command": "y", "must": "z"}]}}', "must is 'z', not list"),
    ],
)
def test_a_bad_script_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(BadScript) as error:
        parse_script(text)
    assert said in str(error.value)


def run(*arguments: object) -> list[str]:
    """The command line of the program, with nothing but the standard library in reach."""
    return [sys.executable, "-I", "-S", model.__file__, *map(str, arguments)]


def test_the_program_says_its_port_and_answers(tmp_path: Path) -> None:
    script, transcript = tmp_path / "s.json", tmp_path / "t.json"
    script.write_text('{"coding": {"commands": [{"name": "a", "command": "echo hi", "must": ["hi"]}]}}')
    command = run("--script", script, "--transcript", transcript, "--address", "127.0.0.1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().removeprefix("listening on port "))
            Client(port, "coding").play(shell)
        finally:
            process.kill()
    assert verdicts(read_transcript(transcript.read_text()).agents["coding"]) == {"a": ["held"]}


def test_the_program_says_what_is_wrong_with_its_script(tmp_path: Path) -> None:
    script = tmp_path / "s.json"
    script.write_text('{"a": {}}')
    done = subprocess.run(run("--script", script, "--transcript", "t"), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "agent a: commands is missing" in done.stderr
