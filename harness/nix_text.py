"""JSON data as a Nix expression: a host that a test has found, as the file that its owner would have written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def to_nix(value: Any, indent: str = "") -> str:
    """A Nix expression that evaluates to ``value``, JSON data."""
    inner = indent + "  "
    if isinstance(value, Mapping):
        lines = [f"{inner}{_key(key)} = {to_nix(item, inner)};\n" for key, item in value.items()]
        return "{\n" + "".join(lines) + indent + "}" if lines else "{ }"
    if isinstance(value, list | tuple):
        return "[\n" + "".join(f"{inner}{to_nix(item, inner)}\n" for item in value) + indent + "]" if value else "[ ]"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if value == -(2**63):  # its digits alone are out of range
        return "(-9223372036854775807 - 1)"
    return f"({_number(value)})" if value < 0 else _number(value)


def _number(value: float) -> str:
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _key(key: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", key) and key not in KEYWORDS:
        return key
    text = _string(key)
    return f"${{{text}}}" if text.startswith("(") else text


KEYWORDS = ("assert", "else", "if", "in", "inherit", "let", "or", "rec", "then", "with")


def _string(text: str) -> str:
    """A string; one that a terminal or an editor would not keep is written in ASCII."""
    if not re.sub(r"[\n\r\t]", "", text).isprintable():
        return f"(builtins.fromJSON {_string(json.dumps(text))})"
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"), ("${", "\\${")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def agents_nix(host: Mapping[str, Any]) -> str:
    """An ``agents.nix`` of the whole host, its settings included."""
    return to_nix({name: host[name] for name in ("agents", "host")}) + "\n"
