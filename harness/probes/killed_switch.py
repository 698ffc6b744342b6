"""Runs in the guest: activate.py, killed before one of its steps (X2).

    killed_switch.py STEP ARGUMENTS…

A step is a command that it starts, or a file that it puts in another's place or takes away; they are counted from 0.
A word instead of a number is the first step that mentions it.
The step is said on standard output, and the exit code is the signal's; without such a step all is done, and the code is
activate.py's own. That program knows nothing of this: Python's audit events (sys.addaudithook) tell of its steps.
"""

import os
import signal
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

PROGRAM = "/usr/lib/tentaflake/activate.py"
STEPS = ("subprocess.Popen", "os.rename", "os.remove")


def main(step: str, arguments: list[str]) -> int:
    count = 0

    def look(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in STEPS:
            return
        text = " ".join(map(str, [event, *(details[1] if event == "subprocess.Popen" else details[:2])]))
        if step == str(count) or (not step.isdecimal() and step in text):
            print(text, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    loader = SourceFileLoader("activate", PROGRAM)
    spec = spec_from_loader("activate", loader)
    assert spec is not None
    activate = module_from_spec(spec)
    loader.exec_module(activate)
    sys.addaudithook(look)
    code: int = activate.main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
