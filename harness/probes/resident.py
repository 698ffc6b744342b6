#!/usr/bin/env python3
"""Leaves a token wherever processes can meet, and stays.

    resident.py TOKEN

Runs in an agent's container, with its Python alone, and returns when all is left. TOKEN is eight hex digits below
80000000: a System V key is a number. The file that it holds open is ``held`` in its directory, the agent's state.
"""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
IPC_CREAT = 0o1000


def main(token: str) -> None:
    for place in ("/tmp", "/dev/shm", "/dev/mqueue"):
        Path(place, token).touch()
    if libc.shmget(int(token, 16), 4096, IPC_CREAT | 0o666) < 0:
        sys.exit(f"shmget: {os.strerror(ctypes.get_errno())}")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + token)
    with open("held", "w"):
        if os.fork():
            return
        null = os.open("/dev/null", os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
