"""Kills at any moment: what was once read stays, the record stays whole, and nothing is missing in the end.

`AUDITD_KILLS` sets how often the daemon is killed (default: 50).
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.services.auditd.conftest import Start
from tests.services.auditd.support import told, verdicts

KILLS = int(os.environ.get("AUDITD_KILLS", "50"))
ATTACKER = """
import os, sys, time
home, number = sys.argv[1], 0
while True:
    os.makedirs(f"{home}/{number // 100}", exist_ok=True)
    with open(f"{home}/{number // 100}/{number}", "w") as file:
        file.write("x")
    number += 1
    if number % 20 == 0:
        time.sleep(0.02)
"""


@pytest.mark.auditd
def test_a_daemon_killed_at_random_moments_loses_nothing_that_was_read(start: Start, home: Path) -> None:
    running = start(maxBytes=2**30)
    moments = random.Random(7)
    acknowledged: dict[int, dict[str, object]] = {}
    with subprocess.Popen([sys.executable, "-c", ATTACKER, str(home)]) as attacker:
        try:
            for _ in range(KILLS):
                before = max(acknowledged, default=0)
                deadline = time.monotonic() + moments.uniform(0, 0.2)
                while time.monotonic() < deadline:
                    acknowledged |= {row["id"]: row for row in running.rows_after(max(acknowledged, default=0))}
                running.kill()
                recorded = {row["id"]: row for row in running.rows_after(before)}
                assert {
                    number: row for number, row in acknowledged.items() if number > before
                }.items() <= recorded.items()
                running.start()
        finally:
            attacker.kill()
    running.stop()
    assert acknowledged.items() <= {row["id"]: row for row in running.rows()}.items()
    assert [fault for verdict in verdicts(running.data["database"]) for fault in verdict.faults] == []
    made = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
    found = sorted(line.removeprefix("create ") for line in told(running.rows(kinds=("create",)), home))
    assert found == made and len(made) > 10 * KILLS
    starts = [row["detail"] for row in running.rows(agent="", kinds=("start",))]
    assert starts == ["started for the first time"] + ["started after it was killed"] * KILLS
