"""Runs in the guest: activate.py, killed before one of its steps (X2).

    killed_switch.py STEP ARGUMENTS…

A step is a command that it starts, the flip of the link to what is in force, the removal of the note that a switch is
under way, or one that puts secrets in force; they are counted from 0, and a word is the first that mentions it. The
step is said on standard output, and the exit code is the signal's; without such a step all is done, and the code is
activate.py's own. That program knows nothing of this: Python's audit events (sys.addaudithook) tell of its steps.
"""

import os
import re
import signal
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

PROGRAM = "/usr/lib/tentaflake/tentaflake_activate.py"
FILES = {
    "os.rename": re.compile("/var/lib/tentaflake/current|/run/agenix"),
    "os.remove": re.compile("/var/lib/tentaflake/switching"),
    "os.mkdir": re.compile("/run/agenix.d/.+"),
}
"""What of the program's audit events is a step: what happens, and to which file."""


def main(step: str, arguments: list[str]) -> int:
    count = 0

    def look(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "subprocess.Popen":
            text = " ".join(map(str, details[1]))
        elif event in FILES and (found := [each for each in map(str, details) if FILES[event].fullmatch(each)]):
            text = f"{event} {found[-1]}"
        else:
            return
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
