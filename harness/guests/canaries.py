"""Values for the secrets of a test machine, which has a key of its own and so cannot read the owner's age files.

A plan's secrets are substituted as its images are: each age file holds a canary, encrypted for the machine's host key.
A canary occurs nowhere by chance, looks like no key to a program that hides keys, and is the same for the same file:
activating the same plan twice changes nothing.
"""

import hashlib

from harness.policy import Plan
from harness.secrets import encrypt

HEAD = b"Kanarienvogel-"
"""What all canaries begin with, so that one search finds any."""
LETTERS = bytes.maketrans(b"0123456789abcdef", b"abcdefghijklmnop")


def canary(file: str) -> bytes:
    """The value in a test machine of the secret in ``file``."""
    return HEAD + hashlib.sha256(file.encode()).hexdigest().encode().translate(LETTERS)


def canaries(plan: Plan, public_key: str) -> dict[str, bytes]:
    """The age files of a plan, by name, for the holder of an SSH key."""
    files = sorted({secret.file for secret in plan.secrets.values()})
    return {file: encrypt(canary(file), [public_key]) for file in files}
