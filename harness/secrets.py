"""Age files: the values of secrets, encrypted for the host's SSH key and for the people who look after it.

All cryptography is the program age's. Whom a file is for is read from its header, which is in the clear
(age-encryption.org/v1). The list of recipients is in age's own format: a file ``recipients`` beside the age files, one
public key a line.
"""

import base64
import binascii
import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.policy import Plan

RECIPIENTS = "recipients"
MAGIC = b"age-encryption.org/v1\n"
ARMOR = b"-----BEGIN AGE ENCRYPTED FILE-----"
CHUNK = 65536
TAG = 16
"""Bytes that age adds to each chunk of at most ``CHUNK`` bytes, to authenticate it; its nonce is as long."""
IDENTITIES = ("id_ed25519", "id_rsa")


class SecretError(HarnessError, ValueError):
    """A secret cannot be encrypted or decrypted: no recipient, the wrong key, a file that was damaged.

    The file that it names was not changed.
    """


# ---- recipients


def read_recipients(path: Path) -> list[str]:
    """The public keys in a list of recipients, in its order; raises ``SecretError`` if there is none."""
    hint = f"write the host's public key to it: ssh HOST cat /etc/ssh/ssh_host_ed25519_key.pub >> {path}"
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise SecretError(f"there is no recipient: {path} is missing", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"the recipients {path} cannot be read: {error}", hint=hint) from None
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise SecretError(f"there is no recipient in {path}", hint=hint)
    for line in found:
        if not line.startswith(("ssh-ed25519 ", "ssh-rsa ", "age1")) or _tag(line) is None:
            raise SecretError(
                f"{path}: {line[:60]!r} is no public key that age can encrypt for",
                hint="a line is an ssh-ed25519, ssh-rsa or age1… public key, or a comment after #",
            )
    return found


def _tag(recipient: str) -> str | None:
    """What a header tells of this recipient: four bytes of an SSH key's hash, and of an age key that it is one."""
    kind, _, rest = recipient.partition(" ")
    if kind.startswith("age1"):
        return "X25519"
    try:
        key = base64.b64decode(rest.split()[0], validate=True)
    except (IndexError, binascii.Error):
        return None
    return base64.b64encode(hashlib.sha256(key).digest()[:4]).decode().rstrip("=")


# ---- what can be seen of an age file without a key


def header_tags(data: bytes) -> list[str]:
    """Whom an age file is for, as ``_tag`` puts it; raises ``SecretError`` for one that is not whole."""
    if data.startswith(ARMOR):
        try:
            data = base64.b64decode(b"".join(data.strip().splitlines()[1:-1]), validate=True)
        except binascii.Error:
            raise SecretError("is damaged: its armor is not whole") from None
    if not data.startswith(MAGIC):
        raise SecretError("is no age file")
    head, found, payload = data.partition(b"\n--- ")
    mac, _, body = payload.partition(b"\n")
    if not found or len(mac) != 43 or len(body) < 2 * TAG or 0 < (len(body) - TAG) % (CHUNK + TAG) < TAG:
        raise SecretError("is damaged: it ends too early")
    stanzas = [line.split() for line in head.decode(errors="replace").splitlines() if line.startswith("-> ")]
    known = {"X25519": 1, "ssh-ed25519": 2, "ssh-rsa": 2}
    return [words[known[words[1]]] for words in stanzas if words[1] in known and len(words) > known[words[1]]]


# ---- age


def encrypt(value: bytes, recipients: Sequence[str]) -> bytes:
    """``value`` for those who hold a key to one of the ``recipients``; raises ``SecretError``."""
    return _age(["--encrypt", *(word for each in recipients for word in ("--recipient", each))], value)


def decrypt(data: bytes, identity: Path) -> bytes:
    """The value in an age file, by a private key; raises ``SecretError``."""
    header_tags(data)
    return _age(["--decrypt", "--identity", str(identity)], data)


def _age(arguments: Sequence[str], given: bytes) -> bytes:
    try:
        done = subprocess.run(["age", *arguments], input=given, capture_output=True, check=False)
    except FileNotFoundError:
        raise SecretError("the program age is not installed", hint="apt-get install age, or run ci/setup") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").partition("\n")[0].removeprefix("age: error: ")
        raise SecretError(_explain(said))
    return done.stdout


def _explain(said: str) -> str:
    """age's own message, in terms of the file that is decrypted."""
    if "no identity matched" in said:
        return "is not encrypted for this key"
    if "bad header MAC" in said or "authenticate payload" in said or "EOF" in said:
        return f"was damaged or tampered with ({said})"
    return said or "age failed and said nothing"


def find_identity() -> Path:
    """The user's own SSH key; raises ``SecretError``."""
    for name in IDENTITIES:
        if (path := Path.home() / ".ssh" / name).is_file():
            return path
    raise SecretError(
        f"there is no private key to decrypt with: ~/.ssh has no {' or '.join(IDENTITIES)}",
        hint="name one with --identity: an SSH key, or an age key file",
    )


# ---- files


def encrypt_file(path: Path, value: bytes, recipients: Path | None = None) -> int:
    """Write ``value`` to an age file, whole or not at all; returns for how many recipients."""
    if path.suffix != ".age":
        raise SecretError(f"{path} is no name of an age file", hint=f"call it {path}.age")
    keys = read_recipients(recipients or path.with_name(RECIPIENTS))
    if not value.strip():
        raise SecretError(f"{path}: the value is empty", hint=f"printf %s VALUE | harness secrets encrypt {path}")
    _write(path, encrypt(value, keys))
    return len(keys)


def rekey_files(paths: Sequence[Path], identity: Path, recipients: Path | None = None) -> int:
    """Encrypt each file's value anew for the present recipients; none is written unless all can be.

    Returns how many there were.
    """
    written = {}
    for path in paths:
        value = _named(path, identity)
        written[path] = encrypt(value, read_recipients(recipients or path.with_name(RECIPIENTS)))
    for path, data in written.items():
        _write(path, data)
    return len(written)


def _named(path: Path, identity: Path) -> bytes:
    """The value in an age file; errors name the file and say what to do."""
    try:
        return decrypt(path.read_bytes(), identity)
    except OSError as error:
        raise SecretError(f"{path} cannot be read: {error.strerror}") from None
    except SecretError as error:
        what, hint = f"{path} {error.what}", "restore it from git, or encrypt the value again: harness secrets encrypt"
        if "not encrypted for this key" in what:
            what, hint = f"{what}, {identity}", "name the right one with --identity, or encrypt the value again"
        raise SecretError(what, hint=error.hint or hint) from None


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(data)
        new.rename(path)
    except OSError as error:
        raise SecretError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        new.unlink(missing_ok=True)


# ---- a plan's files


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file, and what to do about it."""

    what: str
    hint: str


def check_files(
    plan: Plan, root: Path, *, recipients: Path | None = None, identity: Path | None = None
) -> list[Problem]:
    """What is wrong with the age files of a plan, which are below ``root``; with ``identity``, also inside of them."""
    users: dict[str, list[str]] = {}
    for agent in plan.agents.values():
        for secret in agent.secrets:
            users.setdefault(secret.file, []).append(f"secret {secret.name} of agent {agent.name}")
    directories = {(root / file).parent for file in users} | {root / "secrets"}
    problems: list[Problem] = []
    for file, who in sorted(users.items()):
        problems += _check_file(root / file, " and ".join(who), recipients, identity)
    for path in sorted(path for directory in directories for path in directory.glob("*.age")):
        if str(path.relative_to(root)) not in users:
            problems.append(Problem(f"{path} is the secret of no agent", "list it in an agent's secrets, or delete it"))
    return problems


def _check_file(path: Path, who: str, recipients: Path | None, identity: Path | None) -> Iterable[Problem]:
    if not path.is_file():
        yield Problem(f"{path}, {who}, is missing", f"printf %s VALUE | harness secrets encrypt {path}")
        return
    try:
        keys = read_recipients(recipients or path.with_name(RECIPIENTS))
        yield from _check_recipients(path, keys)
        if identity is not None:
            _named(path, identity)
    except SecretError as error:
        yield Problem(error.what, error.hint or "")


def _check_recipients(path: Path, keys: Sequence[str]) -> Iterable[Problem]:
    try:
        found = Counter(header_tags(path.read_bytes()))
    except SecretError as error:
        raise SecretError(
            f"{path} {error.what}", hint=f"restore it from git, or: printf %s VALUE | harness secrets encrypt {path}"
        ) from None
    wanted = Counter(_tag(key) or "" for key in keys)
    lacking = [key for key in keys if found[_tag(key) or ""] < wanted[_tag(key) or ""]]
    if lacking:
        yield Problem(f"{path} is not encrypted for {_short(lacking[0])}", f"harness secrets rekey {path}")
    elif found - wanted:
        yield Problem(f"{path} is encrypted for somebody who is no recipient", f"harness secrets rekey {path}")


def _short(key: str) -> str:
    """A public key as a person knows it: by its comment, else by its end."""
    words = re.split(r"\s+", key.strip(), maxsplit=2)
    return words[2] if len(words) == 3 else f"{words[0][:11]} …{words[-1][-12:]}"
