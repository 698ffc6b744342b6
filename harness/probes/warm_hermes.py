#!/usr/bin/env python3
"""Hermes with its modules loaded, waiting for its start: what a template holds, so that forks need not load them.

    warm_hermes.py MODULES ARGUMENT...

Runs in the agent's container, in its state directory, by the image's Python. MODULES is a file of names, one a line;
ARGUMENTS are those of ``hermes``. It writes "ready" to the fifo ``hermes.said``, and goes on when ``hermes.start``, a
fifo too, has been opened and closed. From then on it is what the image's own entry point is.
"""

import importlib
import sys
from contextlib import suppress
from pathlib import Path


def main(modules: str, *arguments: str) -> None:
    sys.argv = ["hermes", *arguments]  # some modules look at it when they are loaded
    for name in Path(modules).read_text().split():
        with suppress(ImportError):  # a module that only its own package can load
            importlib.import_module(name)
    Path("hermes.said").write_text("ready\n")
    Path("hermes.start").read_text()
    sys.exit(importlib.import_module("hermes_cli.main").main())


if __name__ == "__main__":
    main(*sys.argv[1:])
