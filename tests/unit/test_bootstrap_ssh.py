"""Ssh to a server: host keys, options and the errors that a person reads."""

from __future__ import annotations

import socket
import stat

import pytest

from aiplatform import ssh
from aiplatform.errors import PlatformError

# Public keys in the form of ed25519; no private halves exist.
ONE = "AAAAC3NzaC1lZDI1NTE5AAAAIKBxAM5n4mQAZ3mAlqU0hrJlJcSkFiGyB6EY0p3mO9nd"
TWO = "AAAAC3NzaC1lZDI1NTE5AAAAIAcXRYiI7m4iYq5zZ1yJtrP9mSPyjMBUyEJXTV0wQn7q"


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Put scripts in front of the real commands; each records its arguments and standard input."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def command(name, stdout="", stderr="", code=0):
        path = folder / name
        path.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/{name}.args\ncat > {tmp_path}/{name}.stdin\n"
            f"cat <<'OUT'\n{stdout}\nOUT\ncat >&2 <<'ERR'\n{stderr}\nERR\nexit {code}\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return tmp_path / f"{name}.args"

    return command


@pytest.fixture
def target(tmp_path):
    return ssh.Target(host="127.0.0.1", user="admin", known_hosts=tmp_path / "ssh" / "known_hosts", port=2222)


@pytest.fixture
def listening(target):
    """A target whose port accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield ssh.Target(target.host, target.user, target.known_hosts, server.getsockname()[1])


def keys(*blobs):
    return [ssh.HostKey("ssh-ed25519", blob) for blob in blobs]


def test_the_fingerprint_is_what_ssh_keygen_prints(tmp_path):
    import subprocess

    path = tmp_path / "key.pub"
    path.write_text(f"ssh-ed25519 {ONE} comment\n")
    printed = subprocess.run(["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True).stdout
    assert printed.split()[1] == keys(ONE)[0].fingerprint


def test_lines_of_other_servers_and_comments_are_left_out(target):
    text = f"# note\n[127.0.0.1]:2222 ssh-ed25519 {ONE}\n127.0.0.1 ssh-ed25519 {TWO}\n@revoked x y z\n\n|1|h|h y z\n"
    assert ssh.parse_keys(text, target.pattern) == keys(ONE)


def test_scan_names_a_port_where_nothing_listens(target):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(PlatformError, match=rf"cannot be reached.*127\.0\.0\.1:{port}.*refused"):
        ssh.scan(ssh.Target(target.host, "admin", target.known_hosts, port))


def test_scan_reads_the_keys(commands, listening):
    commands("ssh-keyscan", stdout=f"[127.0.0.1]:{listening.port} ssh-ed25519 {ONE}")
    assert ssh.scan(listening) == keys(ONE)


def test_scan_names_a_server_that_is_no_sshd(commands, listening):
    commands("ssh-keyscan", stderr="Bad packet")
    with pytest.raises(PlatformError, match=r"no sshd.*Bad packet"):
        ssh.scan(listening)


def test_an_unknown_key_is_refused_and_shown(target):
    with pytest.raises(PlatformError, match=r"not known yet.*SHA256:.*ssh-keygen -lf") as caught:
        ssh.trust(target, keys(ONE))
    assert keys(ONE)[0].fingerprint in str(caught.value)
    assert not target.known_hosts.exists()


@pytest.mark.parametrize("typed", ["{0}", "{0}=", " {0}\n"])
def test_the_named_fingerprint_is_accepted_and_only_that_key_is_kept(target, typed):
    assert ssh.trust(target, keys(ONE, TWO), typed.format(keys(TWO)[0].fingerprint)) == "accepted"
    assert target.known_hosts.read_text() == f"[127.0.0.1]:2222 ssh-ed25519 {TWO}\n"


def test_another_fingerprint_than_named_is_refused(target):
    wanted = keys(TWO)[0].fingerprint
    with pytest.raises(PlatformError, match="not the expected one") as caught:
        ssh.trust(target, keys(ONE), wanted)
    assert wanted in str(caught.value)
    assert keys(ONE)[0].fingerprint in str(caught.value)
    assert not target.known_hosts.exists()


def test_accept_new_trusts_the_first_contact_only(target):
    assert ssh.trust(target, keys(ONE), accept_new=True) == "accepted"
    assert ssh.trust(target, keys(ONE)) == "known"
    with pytest.raises(PlatformError, match="not the expected one"):
        ssh.trust(target, keys(TWO), accept_new=True)


def test_a_known_server_must_also_have_the_named_key(target):
    ssh.trust(target, keys(ONE), accept_new=True)
    with pytest.raises(PlatformError, match="not the expected one"):
        ssh.trust(target, keys(ONE), keys(TWO)[0].fingerprint)


def test_a_command_goes_over_standard_input_with_the_key_checked(commands, target, tmp_path):
    args = commands("ssh", stdout="root")
    priv = ssh.Target(target.host, target.user, target.known_hosts, target.port, priv="/keys/id")
    assert ssh.run(priv, ["cat", "a b"]).stdout == "root\n"
    given = args.read_text().splitlines()
    assert given[-2:] == ["127.0.0.1", "sh -s"]
    assert "StrictHostKeyChecking=yes" in given
    assert f"UserKnownHostsFile={target.known_hosts}" in given
    assert given[given.index("-i") + 1] == "/keys/id"
    assert (tmp_path / "ssh.stdin").read_text() == "cat 'a b'"


@pytest.mark.parametrize(
    ("stderr", "hint"),
    [
        ("admin@127.0.0.1: Permission denied (publickey).", "authorized_keys"),
        ("Host key verification failed.", "known_hosts"),
        ("Connection closed", "by hand"),
    ],
)
def test_a_login_that_fails_says_what_to_do(commands, target, stderr, hint):
    commands("ssh", stderr=stderr, code=255)
    with pytest.raises(PlatformError, match="Cannot log in") as caught:
        ssh.run(target, "true")
    assert stderr in str(caught.value)
    assert hint in str(caught.value)


def test_a_remote_command_that_fails_is_told_apart_from_the_login(commands, target):
    commands("ssh", stderr="no such file", code=1)
    with pytest.raises(PlatformError, match=r"command on the server failed.*cat /x.*exit 1: no such file"):
        ssh.run(target, ["cat", "/x"])
    assert ssh.run(target, ["cat", "/x"], check=False).returncode == 1


def test_a_master_without_ssh_is_named(target, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlatformError, match=r"ssh is missing on the master.*openssh-client"):
        ssh.run(target, "true")


@pytest.mark.parametrize(("host", "user"), [("-oProxyCommand=x", "admin"), ("h", "a b"), ("", "admin")])
def test_names_that_would_be_options_are_refused(tmp_path, host, user):
    with pytest.raises(PlatformError, match=r"Bad (host|user) for ssh"):
        ssh.Target(host=host, user=user, known_hosts=tmp_path / "known_hosts")
