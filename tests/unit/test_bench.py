"""What ``harness bench --compare`` says of two runs, and what no command waits for."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from harness.bench import Metric, describe_change, print_table, read_metrics
from harness.errors import HarnessError
from tests.unit.support import REPOSITORY

BEFORE = Metric("s", 1.0, 0.9, 1.1, 5)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (Metric("s", 1.05, 0.8, 1.2, 5), "1.05"),
        (Metric("s", 2.0, 1.9, 2.1, 5), "2.00 worse"),
        (Metric("s", 0.5, 0.4, 0.6, 5), "0.50 better"),
    ],
)
def test_only_spreads_that_are_apart_are_a_change(now: Metric, said: str) -> None:
    assert describe_change(BEFORE, now) == said


def test_more_of_a_rate_is_better() -> None:
    assert describe_change(Metric("specs/s", 10, 9, 11, 5), Metric("specs/s", 20, 19, 21, 5)) == "2.00 better"


def test_the_table_has_a_column_for_the_former_run(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_bytes(msgspec.json.encode({"fork": BEFORE}))
    console = Console(record=True, width=120)
    print_table(console, {"fork": Metric("s", 2.0, 1.9, 2.1, 5), "other": BEFORE}, read_metrics(file))
    text = console.export_text()
    assert "2.00 worse" in text and "new" in text


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="has no metrics"):
        read_metrics(tmp_path / "nothing.json")


def test_a_command_starts_without_what_few_commands_need() -> None:
    """hypothesis and paramiko take as long to import as all the rest."""
    said = "import harness.cli, sys; print(*sorted({'hypothesis', 'paramiko', 'msgspec'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", said], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "msgspec\n"
