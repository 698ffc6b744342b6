"""The speech server in the Debian guest: its wheels, its package (``modules/tts``), and the stand-in for a voice."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.guests.bootstrap import Suite, install_requirements
from harness.progress import step

MODULE = Path(__file__).resolve().parents[2] / "modules" / "tts"
REQUIREMENTS = Path(__file__).parent / "files" / "speech-requirements.txt"
WHEELS = "/usr/lib/tentaflake/speech-wheels"
PACKAGE = "/usr/lib/tentaflake/speech"
VOICES = "/usr/lib/tentaflake/voices"
PYTHONPATH = f"{WHEELS}:{PACKAGE}"
CONFIG = f'{{"voices": "{VOICES}"}}\n'


def root_key() -> str:
    """What the guest's root has of it."""
    return REQUIREMENTS.read_text()


def disk_key() -> list[str]:
    """What is laid on top of the root."""
    return [path.read_text() for path in [MODULE / "tone_voice.py", *sorted(MODULE.glob("tentaflake_tts/*.py"))]]


def install_wheels(directory: Path, suite: Suite) -> None:
    """Fill ``directory``, which becomes `WHEELS`."""
    with step("building the Debian guest: the speech server's Python packages"):
        install_requirements(directory, REQUIREMENTS, suite)


def root_hooks(wheels: Path) -> Sequence[str]:
    """mmdebstrap's customize hooks that put the wheels there, compiled: the server has nowhere to write bytecode to."""
    return [
        f'mkdir -p "$1"{WHEELS}',
        f"sync-in {shlex.quote(str(wheels))} {WHEELS}",
        f'chroot "$1" python3 -m compileall -q {WHEELS}',
    ]


def lay_out(top: Path) -> None:
    """Put the package and a voice below ``top``."""
    shutil.copytree(
        MODULE / "tentaflake_tts", top / PACKAGE.lstrip("/") / "tentaflake_tts", ignore=shutil.ignore_patterns("__*__")
    )
    command = [sys.executable, str(MODULE / "tone_voice.py"), str(top / VOICES.lstrip("/"))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(
            f"the stand-in for a voice could not be made:\n{done.stderr.strip()[-2000:]}", hint="run ci/setup"
        )
