"""The service: T4's sandbox, readiness, settings, and voices that are broken."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tone_voice

from tests.services.tts.conftest import Start
from tests.services.tts.support import PACKAGE, Server, server

UNIT = json.loads((PACKAGE / "unit.json").read_text())
SOCKET = json.loads((PACKAGE / "socket.json").read_text())


# --- started by systemd


def test_ready_is_who_can_speak(start: Start) -> None:
    speech = start()
    assert speech.post()[0] == 200
    assert speech.get("/health/ready")[0] == 200
    assert "STATUS=2 voices, 0 broken" in speech.said


def test_who_comes_before_it_is_ready_waits_and_sees_that_it_lives(tmp_path: Path, voices: Path) -> None:
    """The first voice does not come to an end, as it is a fifo that nobody writes to."""
    slow = tmp_path / "voices"
    shutil.copytree(voices, slow)
    os.mkfifo(slow / "a.onnx.json")
    shutil.copy(voices / "tone.onnx", slow / "a.onnx")
    with server(tmp_path / "server", slow, ready=False) as speech:
        status, health = speech.get("/health")
        assert (status, health["live"], health["ready"]) == (200, True, False)
        assert speech.get("/health/ready")[0] == 503
        assert "READY=1" not in speech.said
        waiting = speech.connect()
        body = json.dumps({"model": "tts-1", "voice": "alloy", "input": "Hello."})
        waiting.request("POST", "/v1/audio/speech", body, {"Content-Type": "application/json"})
        (slow / "a.onnx.json").write_bytes((voices / "tone.onnx.json").read_bytes())
        assert waiting.getresponse().status == 200
        waiting.close()
        speech.wait_told("READY=1")


def test_it_leaves_nothing_in_a_home_and_onnxruntime_reports_to_nobody(start: Start) -> None:
    """Telemetry, which PyPI's wheels have, begins with an id in the home; the control is onnxruntime by itself."""
    speech = start()
    home = speech.directory / "home"
    assert speech.post()[0] == 200 and not home.exists()
    load = [sys.executable, "-c", "import onnxruntime, time; onnxruntime.get_available_providers()"]
    environment = {name: text for name, text in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run(load, env=environment | {"HOME": str(home)}, check=True)
    if not home.exists():
        pytest.skip("this onnxruntime has no telemetry")


def test_the_watchdog_is_fed(speech: Server) -> None:
    speech.wait_told("WATCHDOG=1")
    speech.said.clear()
    speech.wait_told("WATCHDOG=1")


def test_without_a_socket_it_says_how_to_start_it(tmp_path: Path, voices: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"voices": str(voices)}))
    done = run("--config", str(config))
    assert done.returncode == 1 and "start tentaflake-tts.socket" in done.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tentaflake_tts.server", *arguments]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


# --- voices


def broken_voices(directory: Path, good: Path) -> list[str]:
    """Every way in which a voice can be broken, by name."""
    model, config = (good / "tone.onnx").read_bytes(), json.loads((good / "tone.onnx.json").read_text())
    made: dict[str, tuple[bytes, str | None]] = {
        "cut": (model[: len(model) // 2], json.dumps(config)),
        "empty": (b"", json.dumps(config)),
        "rubbish": (os.urandom(10_000), json.dumps(config)),
        "no-config": (model, None),
        "no-json": (model, "{"),
        "no-object": (model, "[]"),
        "no-fields": (model, "{}"),
        "no-phonemes": (model, json.dumps(config | {"phoneme_id_map": {"a": [1]}})),
        "no-language": (model, json.dumps(config | {"espeak": {"voice": "tlh-x"}})),
        "other-type": (model, json.dumps(config | {"phoneme_type": "runes"})),
        "wrong-rate": (model, json.dumps(config | {"audio": {"sample_rate": 5}})),
        "wrong-ids": (model, json.dumps(config | {"phoneme_id_map": {p: [999] for p in config["phoneme_id_map"]}})),
    }
    for name, (data, text) in made.items():
        (directory / f"{name}.onnx").write_bytes(data)
        if text is not None:
            (directory / f"{name}.onnx.json").write_text(text)
    return list(made)


def test_broken_voices_are_named_and_the_others_serve(start: Start, tmp_path: Path, voices: Path) -> None:
    mixed = tmp_path / "voices"
    shutil.copytree(voices, mixed)
    broken = broken_voices(mixed, voices)
    speech = start(mixed, default="cut", aliases={"echo": "empty"})
    for name in broken:
        [line] = [line for line in speech.log.splitlines() if f"voice {name} cannot be loaded" in line]
        assert line.startswith("<3>") and len(line) < 1000
    assert "Traceback" not in speech.log
    status, health = speech.get("/health")
    assert (status, sorted(health["broken"]), health["voices"]) == (200, sorted(broken), ["low", "tone"])
    assert [speech.post(voice=voice)[0] for voice in ("tone", "echo", "alloy", "cut")] == [200, 200, 200, 400]


def test_without_any_voice_it_ends_and_says_why(tmp_path: Path, voices: Path) -> None:
    (tmp_path / "voices").mkdir()
    broken_voices(tmp_path / "voices", voices)
    with server(tmp_path / "server", tmp_path / "voices", ready=False) as speech:
        assert speech.process is not None and speech.process.wait(60) == 1
        assert "none of the voices in" in speech.log and "voice cut cannot be loaded" in speech.log
        speech.hear()
        assert "READY=1" not in speech.said


# --- settings

BAD_SETTINGS: list[tuple[Any, str]] = [
    ("{", "the file is"),
    ({}, "voices is"),
    ({"voices": 5}, "voices is 5"),
    ({"voices": "/x", "worker": 1}, "worker is 1"),
    ({"voices": "/x", "workers": 0}, "workers is 0"),
    ({"voices": "/x", "workers": "2"}, "workers is '2'"),
    ({"voices": "/x", "queue": 0}, "queue is 0"),
    ({"voices": "/x", "aliases": {"a": 1}}, "aliases.a is 1"),
]


@pytest.mark.parametrize(("data", "says"), BAD_SETTINGS, ids=[says for _, says in BAD_SETTINGS])
def test_wrong_settings_get_one_error(tmp_path: Path, data: Any, says: str) -> None:
    config = tmp_path / "config.json"
    config.write_text(data if isinstance(data, str) else json.dumps(data))
    done = run("--config", str(config))
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"voices": "/nonexistent"}, "no such directory of voices"),
        ({"default": "nobody"}, "default is 'nobody'"),
        ({"aliases": {"echo": "nobody"}}, "aliases.echo is 'nobody'"),
    ],
)
def test_settings_that_name_what_is_not_there_get_one_error(
    tmp_path: Path, voices: Path, settings: dict[str, Any], says: str
) -> None:
    where = Path(settings.pop("voices", voices))
    with server(tmp_path / "server", where, ready=False, **settings) as speech:
        assert speech.process is not None and speech.process.wait(60) == 1
        assert says in speech.log and len(speech.log.splitlines()) == 1


# --- the units


def unit_text(data: dict[str, dict[str, Any]]) -> str:
    lines = []
    for section, fields in data.items():
        lines.append(f"[{section}]")
        for name, value in fields.items():
            lines += [f"{name}={text}" for text in ([value] if isinstance(value, str) else value)]
    return "\n".join(lines) + "\n"


def service_text() -> str:
    return unit_text(UNIT | {"Service": UNIT["Service"] | {"ExecStart": "/bin/true"}})


def analyze(*arguments: str) -> str:
    program = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def exposure(directory: Path, text: str) -> float:
    file = directory / "tentaflake-tts.service"
    file.write_text(text)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", analyze("security", "--offline=true", str(file)))
    assert found
    return float(found[1])


def test_the_sandbox_leaves_little_exposed(tmp_path: Path) -> None:
    assert exposure(tmp_path, service_text()) <= 0.5
    bare = re.sub(
        r"^(Protect|Private|Restrict|Capab|SystemCall|DynamicUser).*\n", "", service_text(), flags=re.MULTILINE
    )
    assert exposure(tmp_path, bare) > 5  # the control: what is measured is the sandbox


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    (tmp_path / "tentaflake-tts.service").write_text(service_text())
    listening = unit_text(SOCKET | {"Socket": SOCKET["Socket"] | {"ListenStream": "127.0.0.1:5001"}})
    (tmp_path / "tentaflake-tts.socket").write_text(listening)
    said = analyze("verify", "--man=no", *map(str, tmp_path.iterdir()))
    assert "tentaflake-tts" not in said


def allowed_calls() -> set[str]:
    """What the unit's SystemCallFilter lets through, by this machine's systemd."""
    allowed = _calls("@default")
    for entry in UNIT["Service"]["SystemCallFilter"]:
        names = {call for name in entry.removeprefix("~").split() for call in _calls(name)}
        allowed = allowed - names if entry.startswith("~") else allowed | names
    return allowed | _calls("@default")


def _calls(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    lines = [line.strip() for line in analyze("syscall-filter", name).splitlines()]
    return {call for line in lines[1:] if line and not line.startswith("#") for call in _calls(line)}


# Confines itself as the unit says, then becomes what it is told: seccomp_load(3) by way of systemd's own library.
CONFINE = """
import ctypes, json, os, sys
class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]
library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_init.restype = ctypes.c_void_p
ERRNO, ALLOW, EQUAL, AF_UNIX = 0x00050001, 0x7FFF0000, 4, 1
context = ctypes.c_void_p(library.seccomp_init(ERRNO))
for name in json.loads(sys.argv[1]):
    number = library.seccomp_syscall_resolve_name(name.encode())
    if name == "socket":
        only = Compare(0, EQUAL, AF_UNIX, 0)
        assert library.seccomp_rule_add_array(context, ALLOW, number, 1, ctypes.byref(only)) == 0
    elif number >= 0:
        assert library.seccomp_rule_add(context, ALLOW, number, 0) == 0
assert library.seccomp_load(context) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


def confined() -> list[str]:
    """A command that runs another about as the unit does: no capability, its namespaces and system calls.

    It stays root, as only root may be able to read this Python.
    """
    enter = 'mount -t proc -o hidepid=invisible proc /proc && mount -t tmpfs -o ro tmpfs /var && exec "$@"'
    return [
        *("unshare", "--net", "--ipc", "--uts", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter, "sh"),
        *("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
        *(sys.executable, "-c", CONFINE, json.dumps(sorted(allowed_calls()))),
    ]


@pytest.fixture
def _can_be_confined() -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "systemd-analyze"))):
        pytest.skip("only root can make namespaces")


@pytest.mark.usefixtures("_can_be_confined")
def test_it_works_in_its_sandbox(tmp_path: Path, voices: Path) -> None:
    """Every format, with no way to make memory both writable and executable."""
    with server(tmp_path / "server", voices, strict=True, wrapper=confined()) as speech:
        for codec in ("mp3", "opus", "flac", "wav", "pcm"):
            assert speech.post(response_format=codec)[0] == 200
            assert speech.post(response_format=codec, input="One. Two. Three.")[0] == 200
        assert speech.request("GET", "/metrics")[0] == 200
        assert speech.log.splitlines() == ["<5>tentaflake-tts: ready with low, tone"]


@pytest.mark.usefixtures("_can_be_confined")
@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).close()",
        "import socket; socket.socket(socket.AF_INET6)",
        "open('/proc/%s/status' % sys.argv[2])",
        "os.nice(-1)",
        "os.listdir('/var/lib')[0]",
        "os.chown('/proc/self/fd/0', 0, 0)",
    ],
)
def test_the_sandbox_of_the_test_confines(attempt: str) -> None:
    """The control of the test before, and each attempt's own: outside, all of them succeed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        script = ["-c", f"import os, sys; {attempt}", str(listener.getsockname()[1]), str(os.getpid())]
        free = subprocess.run([sys.executable, *script], capture_output=True, text=True, check=False)
        assert free.returncode == 0, free.stderr
        held = subprocess.run([*confined(), sys.executable, *script], capture_output=True, text=True, check=False)
        assert held.returncode == 1 and "exec(" not in held.stderr and 'File "<string>", line 1' in held.stderr


def test_nix_parses_the_module() -> None:
    program = shutil.which("nix-instantiate") or pytest.skip("nix-instantiate is not installed")
    for name in ("default.nix", "package.nix"):
        done = subprocess.run([program, "--parse", str(PACKAGE / name)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_stand_in_is_made_by_its_script(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(PACKAGE / "tone_voice.py"), str(tmp_path), "x"], check=False)
    assert done.returncode == 0
    assert (tmp_path / "x.onnx").stat().st_size > 1000 and (tmp_path / "x.onnx.json").exists()
    assert tone_voice.frequency(1) != tone_voice.frequency(2)
