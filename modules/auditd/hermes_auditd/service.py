"""What systemd and whoever watches the service are told."""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

WARNING, NOTICE, INFO = 4, 5, 6


def log(priority: int, text: str) -> None:
    """One line for the journal; the prefix gives it its priority (sd-daemon(3))."""
    print(f"<{priority}>{' '.join(text.splitlines())}", file=sys.stderr, flush=True)


def notify(*assignments: str) -> None:
    """Tell systemd (sd_notify(3)); nothing without systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        # The record does not wait for whoever should listen, and does not end for it: the watchdog notices.
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender,
        ):
            sender.sendto("\n".join(assignments).encode(), "\0" + address[1:] if address[0] == "@" else address)


def write_metrics(path: str, metrics: dict[str, dict[str, float]]) -> None:
    """Replace the file: for each metric its values by agent, in Prometheus' text format."""
    lines = []
    for name, values in metrics.items():
        lines.append(f"# TYPE hermes_auditd_{name} {'counter' if name.endswith('_total') else 'gauge'}")
        for agent, value in values.items():
            label = '{agent="' + agent.replace("\\", "\\\\").replace('"', '\\"') + '"}' if agent else ""
            number = f"{value:.6f}".rstrip("0").rstrip(".")
            lines.append(f"hermes_auditd_{name}{label} {number}")
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    Path(path + ".new").replace(path)
