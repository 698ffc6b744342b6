"""``harness secrets``: what a person sees when all is well, and one clear error each when it is not."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import secrets
from harness.cli import app
from harness.errors import HarnessError
from harness.policy import REPOSITORY, Plan, PolicyError, evaluate_many, reference_plan
from harness.secrets import SecretError, check_files, decrypt, encrypt, encrypt_file, read_recipients, rekey_files

VALUE = b"a value\n"


def make_key(path: Path, comment: str = "") -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "host", "root@agent-host")


@pytest.fixture
def directory(tmp_path: Path, key: Path) -> Path:
    """A directory of secrets with a recipient."""
    directory = tmp_path / "secrets"
    directory.mkdir()
    (directory / "recipients").write_text(f"# the host\n\n{key.with_suffix('.pub').read_text()}")
    return directory


@pytest.fixture
def file(directory: Path) -> Path:
    encrypt_file(directory / "k.age", VALUE)
    return directory / "k.age"


@pytest.fixture
def plan() -> Plan:
    [plan] = evaluate_many([[{"name": "coding", "secrets": [{"name": "k", "file": "secrets/k.age"}]}]])
    assert isinstance(plan, Plan)
    return plan


def raised(action: Callable[[], object]) -> str:
    """The one error, which says what to do about it."""
    with pytest.raises(SecretError) as caught:
        action()
    assert caught.value.hint
    return caught.value.what


# --- encrypt


def test_what_was_encrypted_can_be_decrypted_with_the_hosts_key(file: Path, key: Path) -> None:
    assert decrypt(file.read_bytes(), key) == VALUE
    assert VALUE.strip() not in file.read_bytes()


def test_every_recipient_can_decrypt(directory: Path, key: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    with (directory / "recipients").open("a") as recipients:
        recipients.write(other.with_suffix(".pub").read_text())
    assert encrypt_file(directory / "k.age", VALUE) == 2
    assert {decrypt((directory / "k.age").read_bytes(), each) for each in (key, other)} == {VALUE}


@pytest.mark.parametrize("text", ["", "# nobody\n\n"])
def test_without_a_recipient_nothing_is_written(directory: Path, text: str) -> None:
    (directory / "recipients").write_text(text)
    assert "there is no recipient" in raised(lambda: encrypt_file(directory / "k.age", VALUE))
    assert not (directory / "k.age").exists()


def test_a_missing_list_of_recipients_is_named(tmp_path: Path) -> None:
    said = raised(lambda: encrypt_file(tmp_path / "k.age", VALUE))
    assert said == f"there is no recipient: {tmp_path}/recipients is missing"


@pytest.mark.parametrize("line", ["me", "ecdsa-sha2-nistp256 AAAA", "ssh-ed25519", "ssh-ed25519 ???", "-r x"])
def test_what_is_no_public_key_is_quoted(directory: Path, line: str) -> None:
    (directory / "recipients").write_text(line)
    assert repr(line) in raised(lambda: read_recipients(directory / "recipients"))


def test_a_public_key_that_age_refuses_is_an_error_too(directory: Path) -> None:
    (directory / "recipients").write_text("ssh-ed25519 AAAA")
    with pytest.raises(SecretError, match="AAAA"):
        encrypt_file(directory / "k.age", VALUE)


@pytest.mark.parametrize("value", [b"", b" \n"])
def test_an_empty_value_is_refused(directory: Path, value: bytes) -> None:
    assert "the value is empty" in raised(lambda: encrypt_file(directory / "k.age", value))


def test_a_name_that_is_not_an_age_files_is_refused(directory: Path) -> None:
    assert "k.txt" in raised(lambda: encrypt_file(directory / "k.txt", VALUE))


# --- rekey


def test_a_new_recipient_can_decrypt_after_rekeying(file: Path, key: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    file.with_name("recipients").write_text(other.with_suffix(".pub").read_text())
    assert rekey_files([file], key) == 1
    assert decrypt(file.read_bytes(), other) == VALUE
    with pytest.raises(SecretError, match="not encrypted for this key"):
        decrypt(file.read_bytes(), key)


def test_the_wrong_key_is_named_and_changes_no_file(file: Path, key: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    good = file.with_name("a.age")
    good.write_bytes(encrypt(VALUE, [other.with_suffix(".pub").read_text().strip()]))
    before = good.read_bytes(), file.read_bytes()
    said = raised(lambda: rekey_files([good, file], other))
    assert said == f"{file} is not encrypted for this key, {other}"
    assert (good.read_bytes(), file.read_bytes()) == before


# --- damage


def shortened(file: Path, to: int) -> None:
    file.write_bytes(file.read_bytes()[:to])


def flipped(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def replaced(file: Path, data: bytes) -> None:
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": lambda file: shortened(file, 0),
    "cut in the header": lambda file: shortened(file, 60),
    "cut at the end": lambda file: shortened(file, -1),
    "cut to the nonce": lambda file: shortened(file, -len(VALUE) - 1),
    "tampered with in the header": lambda file: flipped(file, 100),
    "tampered with in the value": lambda file: flipped(file, -1),
    "in the clear": lambda file: replaced(file, VALUE),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named(plan: Plan, file: Path, key: Path, damage: Callable[[Path], None]) -> None:
    damage(file)
    [problem] = check_files(plan, file.parent.parent, identity=key)
    assert str(file) in problem.what and problem.hint
    assert "a value" not in problem.what
    assert str(file) in raised(lambda: rekey_files([file], key))


@pytest.mark.parametrize("name", ["empty", "cut in the header", "cut to the nonce", "in the clear"])
def test_a_file_that_is_not_whole_is_found_without_a_key(plan: Plan, file: Path, name: str) -> None:
    DAMAGE[name](file)
    assert len(check_files(plan, file.parent.parent)) == 1


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 200_000])
def test_a_whole_file_of_any_size_is_in_order(plan: Plan, file: Path, size: int) -> None:
    encrypt_file(file, b"x" * size)
    assert check_files(plan, file.parent.parent) == []


def test_an_armored_file_is_in_order(plan: Plan, file: Path, key: Path) -> None:
    command = ["age", "--encrypt", "--armor", "-R", f"{key}.pub", "-o", str(file)]
    subprocess.run(command, input=VALUE, check=True)
    assert check_files(plan, file.parent.parent, identity=key) == []
    file.write_bytes(file.read_bytes()[:-40])
    assert len(check_files(plan, file.parent.parent)) == 1


# --- check


def test_files_that_are_as_planned_are_in_order(plan: Plan, file: Path, key: Path) -> None:
    assert check_files(plan, file.parent.parent) == check_files(plan, file.parent.parent, identity=key) == []


def test_a_secret_that_nobody_uses_is_named(plan: Plan, file: Path) -> None:
    encrypt_file(file.with_name("old.age"), VALUE)
    [problem] = check_files(plan, file.parent.parent)
    assert problem.what == f"{file.with_name('old.age')} is the secret of no agent"


def test_a_missing_file_is_named_with_its_agent(plan: Plan, file: Path) -> None:
    file.unlink()
    [problem] = check_files(plan, file.parent.parent)
    assert problem.what == f"{file}, secret k of agent coding, is missing"


def test_a_recipient_who_came_later_is_named(plan: Plan, file: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other", "somebody@else")
    with file.with_name("recipients").open("a") as recipients:
        recipients.write(other.with_suffix(".pub").read_text())
    [problem] = check_files(plan, file.parent.parent)
    assert (problem.what, problem.hint) == (
        f"{file} is not encrypted for somebody@else",
        f"harness secrets rekey {file}",
    )


def test_a_recipient_who_has_gone_is_seen(plan: Plan, file: Path, key: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    both = [each.with_suffix(".pub").read_text().strip() for each in (key, other)]
    file.write_bytes(encrypt(VALUE, both))
    [problem] = check_files(plan, file.parent.parent)
    assert "for somebody who is no recipient" in problem.what


def test_ages_own_keys_are_recipients_too(plan: Plan, file: Path, tmp_path: Path) -> None:
    subprocess.run(["age-keygen", "-o", tmp_path / "age-key"], check=True, capture_output=True)
    public = subprocess.run(["age-keygen", "-y", tmp_path / "age-key"], check=True, capture_output=True, text=True)
    file.with_name("recipients").write_text(public.stdout)
    assert len(check_files(plan, file.parent.parent)) == 1
    encrypt_file(file, VALUE)
    assert check_files(plan, file.parent.parent, identity=tmp_path / "age-key") == []


def test_two_agents_with_one_secret_are_one_error() -> None:
    secret = {"name": "k", "file": "secrets/k.age"}
    [result] = evaluate_many([[{"name": "a", "secrets": [secret]}, {"name": "b", "secrets": [secret]}]])
    assert isinstance(result, PolicyError)
    assert "set shared = true on both" in str(result) and len(result.errors) == 1


def test_the_reference_hosts_files_are_in_order() -> None:
    assert check_files(reference_plan(), REPOSITORY) == []


# --- the commands


@pytest.fixture
def agents(file: Path) -> Path:
    path = file.parent.parent / "agents.json"
    path.write_text('[{"name": "coding", "secrets": [{"name": "k", "file": "secrets/k.age"}]}]')
    return path


def test_a_value_is_read_from_standard_input_as_it_is(file: Path, key: Path) -> None:
    done = CliRunner().invoke(app, ["secrets", "encrypt", str(file)], input="two\nlines\n")
    assert (done.exit_code, done.output) == (0, f"{file}: encrypted for 1 recipient\n")
    assert decrypt(file.read_bytes(), key) == b"two\nlines\n"


def test_check_says_that_all_is_in_order(agents: Path, key: Path) -> None:
    done = CliRunner().invoke(app, ["secrets", "check", "--agents", str(agents), "-i", str(key)])
    assert (done.exit_code, done.output) == (0, "1 files are in order\n")


def test_check_says_what_is_not_in_order_and_what_to_do(agents: Path, file: Path) -> None:
    file.unlink()
    done = CliRunner().invoke(app, ["secrets", "check", "--agents", str(agents)])
    assert done.exit_code == 1
    assert done.output.startswith(f"{file}, secret k of agent coding, is missing\n  hint: printf")


def test_rekey_needs_a_key_of_the_users(file: Path, key: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["secrets", "rekey", str(file)])
    assert isinstance(done.exception, HarnessError) and "--identity" in str(done.exception)
    (tmp_path / ".ssh").mkdir()
    key.rename(tmp_path / ".ssh" / "id_ed25519")
    assert CliRunner().invoke(app, ["secrets", "rekey", str(file)]).output == "1 file encrypted anew\n"


def test_rekey_without_files_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["secrets", "rekey"])
    assert "no secrets/*.age here" in str(done.exception)


@pytest.mark.parametrize("command", ["encrypt", "rekey", "check"])
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, ["secrets", command, "--help"])
    assert done.exit_code == 0 and "--recipients" in done.output


def test_without_age_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SecretError, match="age is not installed"):
        secrets.encrypt(VALUE, [])
