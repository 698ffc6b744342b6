r"""File names as text that can be stored, searched and printed, and turned back into the same bytes.

A name is bytes. What is printable UTF-8 stands for itself; every other byte is ``\xHH``, and a backslash is ``\\``. So
no stored path holds a control character, a newline, a terminal escape or a mark that reverses the direction of writing.
"""

import re

CUT = "\\.../"
r"""What a path starts with that was too long to record whole. ``\.`` is not otherwise part of an escaped path."""

LONGEST = 16384
"""Characters of an escaped path that are kept: the longest that the kernel takes, all of it escaped."""

_ESCAPED = re.compile(r"\\(\\|x[0-9a-f]{2})")


def escape(raw: bytes) -> str:
    """The text for these bytes."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode(errors="surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    return "\\\\" if character == "\\" else neutralise(character)


def neutralise(text: str) -> str:
    r"""The text with each character that is not printable as ``\xHH``: safe on a terminal, whoever wrote it."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))
        for character in text
    )


def shorten(path: str) -> str:
    """The end of a path that is longer than any the kernel takes: there are such, made step by step."""
    if len(path) <= LONGEST:
        return path
    return CUT + path[path.index("/", len(path) - LONGEST) + 1 :]


def unescape(text: str) -> bytes:
    """The bytes of an escaped path; raises `ValueError` for one that was cut."""
    if text.startswith(CUT):
        raise ValueError(f"the path was too long to be recorded whole: {text[:60]}")
    raw = _ESCAPED.sub(lambda found: "\\" if found[1] == "\\" else chr(0xDC00 + int(found[1][1:], 16)), text)
    return b"".join(
        bytes([ord(character) - 0xDC00]) if 0xDC00 <= ord(character) <= 0xDCFF else character.encode()
        for character in raw
    )
