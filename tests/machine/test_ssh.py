"""SSH into a machine: who gets in, to whom one speaks, and that no two machines share a key exchange."""

import socket
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harness.lab import Lab
from harness.pace import stretch
from harness.policy import Plan
from harness.vm.machine import SSH_HOST_KEY, Machine


def test_the_templates_key_logs_root_in(shared_machine: Machine) -> None:
    with shared_machine.ssh() as client:
        _, stdout, _ = client.exec_command("id -u; hostname")
        assert stdout.read().split() == [b"0", b"agent-host"]


def test_another_key_is_refused(machine: Machine, tmp_path: Path) -> None:
    """The control: the template's key is taken by the same machine."""
    with machine.ssh():
        pass
    machine.ssh_key = tmp_path / "id_ed25519"
    machine.ssh_key.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    with pytest.raises(paramiko.AuthenticationException), machine.ssh():
        pass


def test_a_password_is_not_even_asked_for(shared_machine: Machine) -> None:
    with socket.create_connection(("127.0.0.1", shared_machine.ssh_port), 30) as connection:
        transport = paramiko.Transport(connection)
        try:
            transport.start_client(timeout=stretch(120.0))
            with pytest.raises(paramiko.BadAuthenticationType) as refused:
                transport.auth_none("root")
        finally:
            transport.close()
    assert refused.value.allowed_types == ["publickey"]


def test_another_host_key_than_the_guests_is_refused(machine: Machine) -> None:
    """What is expected is what the guest has on disk: exchange that, and the connection is refused."""
    public = Ed25519PrivateKey.generate().public_key()
    line = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    machine.put(line + b" another\n", SSH_HOST_KEY)
    with pytest.raises(paramiko.BadHostKeyException), machine.ssh():
        pass


def test_two_forks_share_no_key_exchange(lab: Lab, plan: Plan, machine: Machine) -> None:
    """A session's keys come from what both sides draw; the client's part would hide that the server's is the same.

    So look at the server's alone: the cookie of its first message (RFC 4253, section 7.1).
    """
    with lab.machine(plan) as other:
        assert server_cookie(machine.ssh_port) != server_cookie(other.ssh_port)


def server_cookie(port: int) -> bytes:
    """The 16 random bytes in the KEXINIT message of the SSH server on this port of the loopback."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection, connection.makefile("rb") as stream:
        assert stream.readline().startswith(b"SSH-2.0-")
        connection.sendall(b"SSH-2.0-test\r\n")
        length, _padding, kind = stream.read(4), stream.read(1), stream.read(1)
        assert (kind, int.from_bytes(length, "big") > 18) == (b"\x14", True)
        return stream.read(16)
