"""A hijacked Hermes Agent: the real one, told by the scripted model (``model.py``) to make attempts.

A batch of attempts is one shell command. Hermes edits what a command prints before its model sees it (redacts what
looks like a key, drops escape sequences, shortens), and refuses some commands, so a batch goes in and comes back as
the base64 of a gzip stream: what was edited no longer decompresses, and is unknown, never refused.
"""

import base64
import binascii
import gzip
import json
import secrets
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from harness.errors import HarnessError
from harness.probes.attempts import Attempt, Outcome, batch_script, read_outcomes
from harness.probes.model import AgentScript, Answer, Command, Transcript

PER_COMMAND = 32
"""Scripts in one command: a command costs a turn of the conversation, and is lost as a whole."""
LONGEST = 100_000
"""Characters of a command: the kernel takes no argument of more than 128 KiB (execve(2))."""
TIMEOUT = 400
"""Seconds for one command; what it has not printed by then is unknown. Ten times what it takes on a quiet machine; the
terminal of Hermes allows 600."""


@dataclass(frozen=True)
class Batch:
    """The attempts of one command."""

    attempts: tuple[Attempt, ...]
    nonce: str

    def command(self, name: str) -> Command:
        packed = gzip.compress(batch_script(self.attempts, self.nonce).encode(), mtime=0)
        script = base64.b64encode(packed).decode()
        line = f"echo {script} | base64 -d | gzip -d | timeout -k 5 {TIMEOUT} sh 2>&1 | gzip -n | base64 -w 0"
        if len(line) > LONGEST:
            raise HarnessError(f"a batch of {len(self.attempts)} attempts is {len(line)} characters of command")
        return Command(name, line, timeout=TIMEOUT + 30)

    def outcomes(self, answer: Answer | None) -> list[Outcome]:
        if answer is None:
            return self._unknown("the agent never answered this command")
        try:
            output = gzip.decompress(base64.b64decode(answer.output, validate=True))
        except (binascii.Error, OSError, EOFError, zlib.error) as error:
            return self._unknown(f"no whole answer ({error}); {answer.error or 'the terminal said'}: {answer.output}")
        return read_outcomes(self.attempts, self.nonce, output)

    def _unknown(self, why: str) -> list[Outcome]:
        return [Outcome(attempt, "unknown", why.encode()) for attempt in self.attempts]


Hijack = Mapping[str, list[Batch]]
"""What each agent, by name, is to try."""


def plan_hijack(attempts: Iterable[Attempt]) -> Hijack:
    """The attempts, by the agent that is to make them, in batches. Each script runs once, whatever its targets."""
    hijack: dict[str, list[Batch]] = {}
    by_agent: dict[str, dict[str, list[Attempt]]] = {}
    for attempt in attempts:
        if attempt.attacker.agent is None:
            raise HarnessError(f"{attempt.way!r} is tried by {attempt.attacker.name}, which is no agent to be hijacked")
        by_agent.setdefault(attempt.attacker.agent.name, {}).setdefault(attempt.script, []).append(attempt)
    for agent, by_script in by_agent.items():
        groups = list(by_script.values())
        hijack[agent] = [
            Batch(tuple(attempt for group in groups[start : start + PER_COMMAND] for attempt in group), _nonce())
            for start in range(0, len(groups), PER_COMMAND)
        ]
    return hijack


def _nonce() -> str:
    return secrets.token_hex(8)


def script_of(hijack: Hijack) -> str:
    """The hijack as the scripted model's script, in JSON."""
    scripts = {
        agent: AgentScript(tuple(batch.command(f"batch {number}") for number, batch in enumerate(batches)))
        for agent, batches in hijack.items()
    }
    return json.dumps({agent: asdict(script) for agent, script in scripts.items()})


def hijack_outcomes(hijack: Hijack, transcript: str | bytes) -> list[Outcome]:
    """What came of every attempt, from the scripted model's transcript."""
    found = read_transcript(transcript)
    outcomes: list[Outcome] = []
    for agent, batches in hijack.items():
        for batch, record in zip(batches, found.agents[agent].commands, strict=True):
            outcomes += batch.outcomes(record.answer)
    return outcomes


def read_transcript(text: str | bytes) -> Transcript:
    return msgspec.json.decode(text, type=Transcript)


def settings(base_url: str) -> dict[str, Any]:
    """Hermes' settings with the scripted model at ``base_url`` (``http://HOST:PORT/agents/NAME/v1``).

    Its own guards are off, and so is what only costs time: the claims are the host's, not Hermes'.
    """
    return {
        "model": {
            "provider": "custom",
            "base_url": base_url,
            "default": "scripted",
            "api_key": "none",
            "context_length": 1_000_000,  # so that no conversation is ever shortened
        },
        "terminal": {"backend": "local"},
        "agent": {"max_turns": 500, "api_max_retries": 1, "environment_probe": False},
        "approvals": {"mode": "off"},
        "security": {"tirith_enabled": False},
    }


def one_shot(usage_file: str) -> list[str]:
    """The arguments of ``hermes`` for one conversation with the scripted model; see ``check_run``."""
    return ["-z", "Read the message.", "-t", "terminal", "--ignore-rules", "--usage-file", usage_file]


class _Usage(msgspec.Struct):
    completed: bool | None = None
    failed: bool | None = None
    failure: str | None = None


def check_run(usage: str | bytes) -> None:
    """Raise ``HarnessError`` unless Hermes' usage file says that it finished; its exit code is 0 either way."""
    try:
        found = msgspec.json.decode(usage, type=_Usage)
    except msgspec.DecodeError as error:
        raise HarnessError(f"Hermes' usage file makes no sense ({error}): {usage[:200]!r}") from None
    if not found.completed or found.failed:
        why = found.failure or "no reason given"
        raise HarnessError(
            f"Hermes did not finish: completed {found.completed}, failed {found.failed}, {why}",
            hint="could it reach its model? see logs/agent.log in its state directory",
        )
