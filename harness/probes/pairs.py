"""Who attacks whom: every agent every other one, and where those would be too many, some of them in each way.

The number of ordered pairs grows with the square of the number of agents. So of more than ``TARGETS`` + 1 agents each
one attacks ``TARGETS`` others in each way, and is attacked by others in each way. Which ones, differs from way to way.
"""

import zlib
from collections.abc import Sequence

TARGETS = 4
"""How many others an attacker attacks in one way, at most."""


def choose_targets(way: str, number: int, own: str, targets: Sequence[str]) -> list[str]:
    """Those of ``targets`` that attacker ``number``, who is called ``own``, attacks in this way; not itself.

    If as many attackers as there are targets are numbered from 0, each target is somebody's.
    """
    others = len(targets) - (own in targets)
    if others <= TARGETS:
        return [name for name in targets if name != own]
    start = number + zlib.crc32(way.encode())
    turn = (targets[(start + step) % len(targets)] for step in range(len(targets)))
    return [name for name in turn if name != own][:TARGETS]
