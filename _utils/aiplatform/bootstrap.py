"""Turn a bare server with sshd and sudo into an accepted minion.

The order is chosen so that a refusal leaves the server as it was: pillar, host key, login, system and rights are
checked first; then salt-ssh installs Salt (``salt_minion.enrol``); then the key that the server itself shows over
ssh is compared with the one that waits at the master, and only that one is accepted.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import salt.client
import salt.key
import salt.utils.crypt

from aiplatform import schema, settings, ssh, wait
from aiplatform.errors import NotFoundError, PlatformError

FORMULA = "salt_minion.enrol"
MINION_KEY = "/etc/salt/pki/minion/minion.pub"
INSTALL_TIMEOUT = 1800
KEY_TIMEOUT = 90
ANSWER_TIMEOUT = 120

# One question for all that decides whether the server can be a minion; every line is `name=value`.
PROBE = """\
uid=$(id -u)
echo "uid=$uid"
. /etc/os-release 2>/dev/null
echo "id=${ID:-}"
echo "version=${VERSION_ID:-}"
echo "name=${PRETTY_NAME:-unknown}"
echo "init=$(cat /proc/1/comm 2>/dev/null)"
echo "python=$(command -v python3)"
if [ "$uid" = 0 ]; then echo "sudo=yes"
elif ! command -v sudo >/dev/null; then echo "sudo=missing"
else echo "sudo=$(LC_ALL=C sudo -n true 2>&1 && echo yes)"
fi
"""


@dataclass(frozen=True)
class System:
    """An operating system that the platform runs on, and how it gets Python 3, which salt-ssh needs."""

    ids: tuple[str, ...]
    release: str
    python: str


SYSTEMS = (
    System(("debian",), "12", "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3"),
    System(("rhel", "rocky", "almalinux", "centos", "ol"), "9", "dnf -q -y install python3"),
)
SUPPORTED = "Debian 12 or a system of the RHEL 9 family"


class Keys(Protocol):
    """The part of Salt's key store that is used here."""

    def key_str(self, match: str) -> dict[str, dict[str, str]]:
        """Return matching keys by their status."""

    def accept(self, *, match_dict: dict[str, list[str]]) -> object:
        """Accept the named keys."""


def bootstrap(
    opts: Mapping[str, Any],
    host: str,
    user: str,
    minion_id: str = "",
    port: int = 22,
    priv: str = "",
    host_key: str = "",
    accept_new: bool = False,
) -> dict[str, Any]:
    """Make the server at ``host`` a minion of this master.

    opts
        The master's options (``__opts__`` of a runner).
    host
        The server's address, or its minion id in ``platform:hosts``.
    user
        The account to log in to: root, or one with sudo and no password.
    minion_id
        Its id; where it is left out, the entry of ``platform:hosts`` with that address.
    port
        sshd's port.
    priv
        File of the private key; empty for the agent's and the account's own.
    host_key
        The fingerprint of the server's host key, ``SHA256:...``; needed on first contact.
    accept_new
        Accept the host key of a server never met before, unseen.

    Returns what was found and done, ``result`` being ``bootstrapped`` or ``already``. Raises ``PlatformError``.
    """
    pillar = settings.load(opts)
    minion, address = identify(pillar["platform"], host, minion_id)
    master = pillar["platform"]["master"]["address"]
    if not master:
        raise PlatformError(
            "The master's own address is not set",
            where="pillar platform.master.address",
            expected="the address at which minions reach this master",
            actual=master,
        )
    known_hosts = Path(opts["pki_dir"]) / "ssh" / "known_hosts"
    target = ssh.Target(host=address, user=user, known_hosts=known_hosts, port=int(port), priv=priv)
    offered = ssh.scan(target)
    contact = ssh.trust(target, offered, host_key, accept_new)
    facts = inspect(target)
    sudo, hash_type = facts["uid"] != "0", opts["hash_type"]
    with salt.key.get_key(dict(opts)) as keys:
        # Somebody else's key under this name is found before anything is installed.
        known_key(keys, minion, remote_fingerprint(target, sudo, hash_type), hash_type)
        ensure_python(target, facts, sudo)
        changed = install(opts, target, minion, sudo, {"master": master, "master_finger": master_fingerprint(opts)})
        what = f"the minion's key in {MINION_KEY} on {address}"
        fingerprint = wait.until(lambda: remote_fingerprint(target, sudo, hash_type), KEY_TIMEOUT, 1, what)
        accepted = accept(keys, minion, fingerprint, hash_type)
    answer(opts, minion)
    done = bool(changed or accepted)
    return {
        "minion": minion,
        "address": address,
        "system": facts["name"],
        "host_key": {"status": contact, "fingerprints": [key.fingerprint for key in offered]},
        "salt": {"status": "changed" if changed else "already as wanted", "changed": changed},
        "key": {"status": "accepted" if accepted else "already accepted", "fingerprint": fingerprint},
        "result": "bootstrapped" if done else "already",
    }


def identify(platform: Mapping[str, Any], host: str, minion_id: str = "") -> tuple[str, str]:
    """Find the minion id and the address that belong together.

    platform
        The pillar key of that name.
    host
        An address or a minion id.
    minion_id
        The id, where the operator gave one.

    Returns ``(minion id, address)``. Raises ``NotFoundError`` naming the nearest id, and ``PlatformError`` where the
    address belongs to another host than the id.
    """
    hosts = platform["hosts"]
    by_address = {row["address"]: name for name, row in hosts.items()}
    minion = minion_id or (host if host in hosts else by_address.get(host, ""))
    if minion not in hosts:
        raise NotFoundError(
            f"{minion or host} is no host of the platform",
            where="pillar platform.hosts",
            expected=schema.one_of(minion or host, hosts if minion_id else [*hosts, *by_address]),
            actual=minion or host,
            hint="add the host to platform.hosts, or name it with minion_id=",
        )
    address = hosts[host]["address"] if host in hosts else host
    owner = by_address.get(address, minion)
    if owner != minion:
        raise PlatformError(
            f"{host} is another host than {minion}",
            where="pillar platform.hosts",
            expected=f"{minion} at {hosts[minion]['address']}",
            actual=f"{address} is {owner}",
            hint="leave minion_id out, or mend the addresses",
        )
    return minion, address


def inspect(target: ssh.Target) -> dict[str, str]:
    """Log in and find out whether the server can be a minion.

    Returns the facts of the probe. Raises ``PlatformError`` for what stands in the way.
    """
    lines = ssh.run(target, PROBE).stdout.splitlines()
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    supported(facts, target.place)
    if facts.get("sudo") != "yes":
        raise _sudo_error(target, facts.get("sudo", ""), "missing" in facts.get("sudo", ""))
    if facts.get("init") != "systemd":
        raise PlatformError(
            "The server is not run by systemd",
            where=target.place,
            expected="systemd as process 1",
            actual=facts.get("init"),
        )
    return facts


def supported(facts: Mapping[str, str], place: str) -> System:
    """Return the system that the probe's facts name, or raise ``PlatformError``."""
    for system in SYSTEMS:
        if facts.get("id") in system.ids and facts.get("version", "").split(".")[0] == system.release:
            return system
    raise PlatformError(
        "The server's operating system is not supported",
        where=place,
        expected=SUPPORTED,
        actual=facts.get("name", "unknown"),
    )


def ensure_python(target: ssh.Target, facts: Mapping[str, str], sudo: bool) -> None:
    """Install Python 3 with the system's package manager where the probe found none."""
    if facts.get("python"):
        return
    install = supported(facts, target.place).python
    shell = ["sudo", "-n", "sh", "-c", install] if sudo else ["sh", "-c", install]
    done = ssh.run(target, shell, timeout=600, check=False)
    if done.returncode:
        raise PlatformError(
            "The server has no Python 3, and it could not be installed",
            where=target.place,
            expected="python3, which salt-ssh needs",
            actual=(done.stderr or done.stdout).strip()[-500:],
            hint="install the package python3 there by hand, then run this again",
        )


def _sudo_error(target: ssh.Target, answer: str, missing: bool) -> PlatformError:
    rule = f"{target.user} ALL=(ALL) NOPASSWD: ALL"
    hint = f"add `{rule}` to /etc/sudoers.d/{target.user} there"
    return PlatformError(
        "sudo is not installed there" if missing else "sudo does not let the account become root without a password",
        where=target.place,
        expected="root, or an account for which `sudo -n true` succeeds",
        actual=answer,
        hint=f"install sudo there and {hint}, or use user=root" if missing else hint,
    )


def master_fingerprint(opts: Mapping[str, Any]) -> str:
    """Return the fingerprint of this master's public key, as a minion compares it."""
    path = Path(opts["pki_dir"]) / "master.pub"
    finger = fingerprint_of(path.read_text(), opts["hash_type"]) if path.exists() else ""
    if not finger:
        raise PlatformError(
            "This master has no key yet", where=str(path), expected="a public key", hint="start the salt-master"
        )
    return finger


def install(
    opts: Mapping[str, Any], target: ssh.Target, minion: str, sudo: bool, enrol: Mapping[str, str]
) -> list[str]:
    """Apply the formula over salt-ssh.

    minion
        The id that the server gets.
    sudo
        Whether the account has to use sudo.
    enrol
        The master's address and fingerprint, for the minion's configuration.

    Returns the names of the states that changed something. Raises ``PlatformError`` with each one that failed.
    """
    row = {
        "host": target.host,
        "user": target.user,
        "port": target.port,
        "priv": target.priv or "agent-forwarding",
        "sudo": sudo,
        "ssh_options": target.options(),
        # Not pillar=: salt-ssh 3008 then compiles the pillar anew from the one that is already compiled.
        "grains": {"enrol": dict(enrol)},
    }
    lock = Path(opts["cachedir"]) / "bootstrap.lock"
    with tempfile.TemporaryDirectory(prefix="bootstrap-") as folder, lock.open("w") as held:
        # Two at once would take turns in making the one archive that salt-ssh sends.
        fcntl.flock(held, fcntl.LOCK_EX)
        roster = Path(folder) / "roster"
        roster.write_text(json.dumps({minion: row}))
        argv = salt_ssh(opts["config_dir"], roster, minion)
        # What the states import is a package, which salt-ssh sends only where it is named and can be imported.
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False, env=environment
            )
        except subprocess.TimeoutExpired as err:
            raise PlatformError(f"salt-ssh took longer than {INSTALL_TIMEOUT} s", where=target.place) from err
    return changed_states(done, minion, target.place)


def salt_ssh(config_dir: str, roster: Path, minion: str) -> list[str]:
    """Return the command that applies the formula to the one server in ``roster``, leaving nothing else there."""
    options = {
        "config-dir": config_dir,
        "roster-file": roster,
        "log-file": "/dev/null",
        "log-level": "error",
        "out": "json",
        "thin-extra-modules": "aiplatform",
    }
    argv = [str(Path(sys.executable).with_name("salt-ssh")), *(f"--{name}={value}" for name, value in options.items())]
    # Made anew each time: Salt would go on sending the package as it was when it first did.
    return [*argv, "--thin-exclude-saltexts", "--regen-thin", "--wipe", "--static", minion, "state.apply", FORMULA]


def changed_states(done: subprocess.CompletedProcess[str], minion: str, place: str) -> list[str]:
    """Read what salt-ssh printed: the states that changed something, or a ``PlatformError`` for what failed."""
    try:
        states = json.loads(done.stdout)[minion]
    except (ValueError, KeyError, TypeError):
        states = None
    rows = states if isinstance(states, dict) else {}
    if not rows or not all(isinstance(row, dict) and "result" in row for row in rows.values()):
        text = states if isinstance(states, str | list) else (done.stdout.strip() or done.stderr.strip())
        raise PlatformError("salt-ssh could not apply the formula", where=place, actual=_tail(text))
    # A state that Salt cannot even find has no id of its own in the answer.
    named = {row.get("__id__", key): row for key, row in rows.items()}
    failed = [f"{name}: {row['comment']}" for name, row in named.items() if row["result"] is not True]
    if failed:
        raise PlatformError("Installing Salt failed", where=place, actual="\n  " + "\n  ".join(failed))
    return [name for name, row in named.items() if row["changes"]]


def _tail(text: object) -> str:
    return "\n".join(map(str, text)) if isinstance(text, list) else str(text)[-2000:]


def fingerprint_of(pem: str, hash_type: str) -> str:
    """Return the fingerprint of a public key, as ``salt-call key.finger`` and ``master_finger`` have it.

    Salt 3008's ``salt-key -f`` hashes the key's first and last line too, and so prints another one for the same key.
    """
    lines = [line.strip() for line in pem.splitlines() if line.strip()]
    body = "".join(f"{line}\n" for line in lines[1:-1])
    return cast("str", salt.utils.crypt.pem_finger(key=body, sum_type=hash_type)) if body else ""


def remote_fingerprint(target: ssh.Target, sudo: bool, hash_type: str) -> str:
    """Read the minion's public key over ssh and return its fingerprint; empty where it has none yet."""
    command = [*(["sudo", "-n"] if sudo else []), "cat", MINION_KEY]
    return fingerprint_of(ssh.run(target, command, check=False).stdout, hash_type)


def known_key(keys: Keys, minion: str, fingerprint: str, hash_type: str) -> str:
    """Look the minion up among the master's keys.

    keys
        The master's key store.
    fingerprint
        The fingerprint of the key that the server showed over ssh; empty where it has none yet.
    hash_type
        How fingerprints are made.

    Returns the key's state (``minions``: accepted, ``minions_pre``: pending), empty where the master has no key of
    that name. Raises ``PlatformError`` naming both keys where they differ, and for a rejected one.
    """
    for state, found in keys.key_str(minion).items():
        if state not in ("minions", "minions_pre", "minions_rejected"):
            continue
        shown = fingerprint_of(found[minion], hash_type)
        if shown != fingerprint or state == "minions_rejected":
            raise PlatformError(
                f"The key of {minion} at this master is "
                + ("not the server's" if shown != fingerprint else "rejected"),
                where=f"salt-key ({state})",
                expected=f"{fingerprint or 'none yet'} (on the server)",
                actual=f"{shown} (at the master)",
                hint=f"find out who sent it; then `salt-key -d {minion}` and run this again",
            )
        return state
    return ""


def accept(keys: Keys, minion: str, fingerprint: str, hash_type: str, timeout: float = KEY_TIMEOUT) -> bool:
    """Accept the key of ``minion`` if it is the one that the server has, see ``known_key``.

    timeout
        Seconds until the key must have arrived at the master.

    Returns False where it was accepted before.
    """
    what = f"the key of {minion} at this master (does salt-master run, does the server reach its ports 4505 and 4506?)"
    state = wait.until(lambda: known_key(keys, minion, fingerprint, hash_type), timeout, what=what)
    if state == "minions":
        return False
    keys.accept(match_dict={"minions_pre": [minion]})
    return True


def answer(opts: Mapping[str, Any], minion: str, timeout: float = ANSWER_TIMEOUT) -> None:
    """Wait until the minion answers, and give it this checkout's modules.

    Raises ``WaitTimeoutError`` where it stays silent.
    """
    with salt.client.get_local_client(mopts=dict(opts)) as client:

        def pinged() -> bool:
            found = client.cmd([minion], "test.ping", tgt_type="list", timeout=5)
            return found.get(minion) is True

        wait.until(pinged, timeout, what=f"the minion {minion} to answer test.ping")
        client.cmd([minion], "saltutil.sync_all", tgt_type="list", timeout=60)


def summary(data: Mapping[str, Any]) -> str:
    """Return what ``bootstrap`` did as a few lines for a person."""
    rows = {
        "minion": f"{data['minion']} at {data['address']} ({data['system']})",
        "host key": f"{data['host_key']['status']}: {', '.join(data['host_key']['fingerprints'])}",
        "Salt": f"{data['salt']['status']} {', '.join(data['salt']['changed'])}".rstrip(),
        "minion key": f"{data['key']['status']}: {data['key']['fingerprint']}",
        "result": "already a minion of this master" if data["result"] == "already" else "now a minion of this master",
    }
    return "\n".join(f"{name:<11} {text}" for name, text in rows.items())
