"""Commands on a server over ssh, with its host key checked and errors that a person can act on."""

from __future__ import annotations

import base64
import binascii
import hashlib
import shlex
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from aiplatform.errors import PlatformError

CONNECT_TIMEOUT = 10
SSH_FAILED = 255  # ssh's own exit code; every other one is the remote command's


@dataclass(frozen=True)
class Target:
    """Where to connect, as whom, and which host keys are known.

    host, port
        The server's address and its sshd's port.
    user
        The account to log in to; it is root or may use sudo without a password.
    known_hosts
        File of the host keys that were accepted.
    priv
        File of the private key; empty for the agent's and the account's own keys.
    """

    host: str
    user: str
    known_hosts: Path
    port: int = 22
    priv: str = ""

    def __post_init__(self) -> None:
        for name in ("host", "user"):
            value = getattr(self, name)
            # A leading dash would be an option to ssh, a space a second argument.
            if not value or value.startswith("-") or any(char.isspace() for char in value):
                raise PlatformError(f"Bad {name} for ssh", expected=f"a plain {name} name", actual=repr(value))

    @property
    def place(self) -> str:
        """``user@host:port``, for messages."""
        return f"{self.user}@{self.host}:{self.port}"

    @property
    def pattern(self) -> str:
        """How a known_hosts file names this server."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"

    def options(self) -> list[str]:
        """The options, as ``name=value``, of every connection to this server."""
        return [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            f"UserKnownHostsFile={self.known_hosts}",
            "GlobalKnownHostsFile=/dev/null",
            f"ConnectTimeout={CONNECT_TIMEOUT}",
        ]


@dataclass(frozen=True)
class HostKey:
    """A server's public key: its type and its base64 text."""

    kind: str
    blob: str

    @property
    def fingerprint(self) -> str:
        """``SHA256:...`` as ``ssh-keygen -l`` prints it; empty where the text is no key."""
        try:
            raw = base64.b64decode(self.blob, validate=True)
        except binascii.Error:
            return ""
        return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


def parse_keys(text: str, pattern: str) -> list[HostKey]:
    """Read the keys of one server out of known_hosts lines.

    text
        Lines ``names type base64``, as ssh-keyscan prints and known_hosts files hold them.
    pattern
        The name to look for, see ``Target.pattern``.

    Returns the keys in the order of the lines; comments, markers and other servers are left out.
    """
    rows = (line.split() for line in text.splitlines() if line and line[0] not in "#@|")
    return [HostKey(row[1], row[2]) for row in rows if len(row) >= 3 and pattern in row[0].split(",")]


def scan(target: Target) -> list[HostKey]:
    """Ask a server for its host keys, without logging in.

    Raises ``PlatformError`` where nothing answers or what answers does not speak ssh.
    """
    place = f"{target.host}:{target.port}"
    try:
        socket.create_connection((target.host, target.port), timeout=CONNECT_TIMEOUT).close()
    except OSError as err:
        raise PlatformError(
            "The server cannot be reached",
            where=place,
            expected="an sshd that answers",
            actual=str(err),
            hint="check the address, that the server is up, and the firewall on the way",
        ) from err
    argv = ["ssh-keyscan", "-T", str(CONNECT_TIMEOUT), "-p", str(target.port), target.host]
    found = _execute(argv, timeout=6 * CONNECT_TIMEOUT, where=place)
    keys = parse_keys(found.stdout, target.pattern)
    if not keys:
        raise PlatformError(
            "What answers there is no sshd",
            where=place,
            expected="an ssh host key",
            actual=found.stderr.strip() or "no key",
            hint="check port=",
        )
    return keys


def trust(target: Target, offered: list[HostKey], host_key: str = "", accept_new: bool = False) -> str:
    """Make sure that the server is the one it should be, and remember its key.

    target
        The server; its ``known_hosts`` file is extended on first contact.
    offered
        The keys that it showed, see ``scan``.
    host_key
        The expected fingerprint, ``SHA256:...``; for the first contact.
    accept_new
        Accept whatever key a server shows that was never met before.

    Returns ``known`` or ``accepted``. Raises ``PlatformError`` naming the fingerprints otherwise.
    """
    shown = {key.fingerprint: key for key in offered}
    text = target.known_hosts.read_text() if target.known_hosts.exists() else ""
    known = [key.fingerprint for key in parse_keys(text, target.pattern)]
    wanted = [_normal(host_key)] if host_key else []
    for expected in filter(None, (known, wanted)):
        if not set(expected) & set(shown):
            raise PlatformError(
                "The server's host key is not the expected one",
                where=target.place,
                expected=", ".join(expected),
                actual=", ".join(shown),
                hint=f"find out why; if it was reinstalled, remove its lines from {target.known_hosts}",
            )
    if known:
        return "known"
    if not wanted and not accept_new:
        raise PlatformError(
            "The server's host key is not known yet",
            where=target.place,
            expected="host_key=SHA256:... or accept_new=True on the first contact",
            actual=", ".join(f"{key.kind} {key.fingerprint}" for key in offered),
            hint="compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the server's console",
        )
    accepted = [shown[wanted[0]]] if wanted else offered
    target.known_hosts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with target.known_hosts.open("a") as stream:
        stream.writelines(f"{target.pattern} {key.kind} {key.blob}\n" for key in accepted)
    return "accepted"


def run(
    target: Target, command: list[str] | str, timeout: float = 60, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command on the server.

    command
        An argument list, or the text of a ``sh`` script.
    timeout
        Seconds.
    check
        Raise for a remote command that fails, too.

    Returns the finished process. Raises ``PlatformError`` where the connection or the login fails.
    """
    script = command if isinstance(command, str) else shlex.join(command)
    argv = ["ssh", "-p", str(target.port), "-l", target.user]
    for option in target.options():
        argv += ["-o", option]
    if target.priv:
        argv += ["-i", target.priv, "-o", "IdentitiesOnly=yes"]
    done = _execute([*argv, target.host, "sh -s"], timeout=timeout, where=target.place, stdin=script)
    if done.returncode == SSH_FAILED:
        raise _login_error(target, done.stderr)
    if check and done.returncode:
        raise PlatformError(
            "A command on the server failed",
            where=f"{target.place}: {script.splitlines()[0]}",
            expected="exit 0",
            actual=f"exit {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}",
        )
    return done


def _normal(fingerprint: str) -> str:
    """``SHA256:`` in front and no padding behind, however it was typed."""
    return "SHA256:" + fingerprint.strip().removeprefix("SHA256:").rstrip("=")


def _login_error(target: Target, stderr: str) -> PlatformError:
    reason = stderr.strip().splitlines()[-1] if stderr.strip() else "no message"
    hints = {
        "Permission denied": f"put the operator's public key into ~{target.user}/.ssh/authorized_keys there, "
        "or name the private key with priv=",
        "Host key verification failed": f"see {target.known_hosts}",
        "bad permissions": "make the private key readable by its owner only",
    }
    hint = next((text for sign, text in hints.items() if sign in stderr), "try the same with ssh by hand")
    return PlatformError(
        "Cannot log in over ssh", where=target.place, expected="a login by key", actual=reason, hint=hint
    )


def _execute(argv: list[str], timeout: float, where: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError as err:
        raise PlatformError(
            f"The command {argv[0]} is missing on the master",
            expected="OpenSSH's client programs",
            hint="install openssh-client (Debian) or openssh-clients (RHEL family)",
        ) from err
    except subprocess.TimeoutExpired as err:
        raise PlatformError(f"No answer within {timeout:g} s", where=where, actual=argv[0]) from err
