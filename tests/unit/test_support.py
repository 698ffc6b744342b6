"""The helpers keep their own promises."""

import os
import subprocess
import sys
from pathlib import Path

from tests.unit.support import ends, line_of, python, sleeper, unable_to_set_the_clock

CAP_SYS_TIME = 25


def test_a_running_process_has_not_ended(tmp_path: Path) -> None:
    with sleeper(tmp_path) as pid:
        assert not ends(pid, within=0)


def test_a_killed_process_has_ended(tmp_path: Path) -> None:
    with sleeper(tmp_path) as pid:
        os.kill(pid, 9)
        assert ends(pid)


def test_a_helper_python_is_gone_at_the_end() -> None:
    with python("print('here', flush=True); input()") as process:
        assert line_of(process) == "here"
    assert process.returncode == -9


def test_a_shell_under_test_may_not_set_the_clock() -> None:
    show = [sys.executable, "-c", "print(open('/proc/self/status').read())"]
    done = subprocess.run(unable_to_set_the_clock(show), check=True, capture_output=True, text=True)
    effective = next(line for line in done.stdout.splitlines() if line.startswith("CapEff:"))
    assert not int(effective.split()[1], 16) >> CAP_SYS_TIME & 1
