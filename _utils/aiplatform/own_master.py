"""One host that is its own master: the master from this checkout, and this host as its only minion.

The minion's key is put among the master's accepted ones by whoever owns both, so none is accepted on trust.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import salt.crypt

from aiplatform import bootstrap
from aiplatform.errors import PlatformError

ROLES = ("ai_server", "nginx_proxy", "coredns_host")
SCRIPT = "etc/configure-master.sh"
KEY_BITS = 2048
HASH = "sha256"
LOOPBACK = "127.0.0.1"
SECONDS = 600


def refuse_unless_whole(settings: Mapping[str, Any], host: str) -> None:
    """Raise ``PlatformError`` where pillar does not make this host the whole platform.

    settings
        The effective pillar.
    host
        The minion id.
    """
    hosts = settings["platform"]["hosts"]
    roles = hosts.get(host, {}).get("roles", [])
    if list(hosts) != [host] or set(roles) != set(ROLES):
        raise PlatformError(
            "Pillar does not make this host the whole platform",
            where="platform.hosts",
            expected=f"{host} alone, with roles {', '.join(ROLES)}",
            actual="; ".join(f"{name}: {', '.join(row['roles'])}" for name, row in hosts.items()),
            hint="edit pillar/platform.sls; name the host with salt-call --id=<its name there>",
        )


@dataclass(frozen=True)
class Enrolment:
    """Salt's folder (``/etc/salt``) of a host that is its own master, and its minion id."""

    folder: Path
    minion: str

    def differences(self) -> dict[str, Any]:
        """Return what is to be done, as the changes of a state.

        Raises ``PlatformError`` where the master has accepted another key under this name.
        """
        found: dict[str, Any] = {}
        own, accepted = self._read(self._own), self._read(self._accepted)
        if own and accepted and own.strip() != accepted.strip():
            raise PlatformError(
                f"The master has accepted another key as {self.minion}",
                where=str(self._accepted),
                expected=bootstrap.fingerprint_of(own, HASH),
                actual=bootstrap.fingerprint_of(accepted, HASH),
                hint=f"salt-key -d {self.minion}, and run this again",
            )
        if not own or not accepted:
            found["key"] = {"old": None, "new": "accepted"}
        master = self._read(self.folder / "pki/master/master.pub")
        # Before the first start of the master there is no key of it, and so no configuration that names it.
        if not master or self._read(self._config) != self._wanted(master):
            found["configuration"] = {"old": "present" if self._config.exists() else None, "new": str(self._config)}
        return found

    def make(self) -> None:
        """Make the minion's key where it has none, accept it, and write the minion's configuration.

        Raises ``PlatformError`` where the master has no key yet.
        """
        master = self._read(self.folder / "pki/master/master.pub")
        if not master:
            raise PlatformError("The master has no key", where=str(self.folder / "pki/master"), hint="is it running?")
        if not self._own.exists():
            private, public = salt.crypt.gen_keys(KEY_BITS)
            self._write(self._own.with_name("minion.pem"), private, 0o400)
            self._write(self._own, public)
        self._write(self._accepted, self._read(self._own))
        self._write(self._config, self._wanted(master))

    @property
    def _own(self) -> Path:
        return self.folder / "pki/minion/minion.pub"

    @property
    def _accepted(self) -> Path:
        return self.folder / "pki/master/minions" / self.minion

    @property
    def _config(self) -> Path:
        return self.folder / "minion.d/host.conf"

    def _wanted(self, master: str) -> str:
        finger = bootstrap.fingerprint_of(master, HASH)
        return json.dumps({"id": self.minion, "master": LOOPBACK, "master_finger": finger}) + "\n"

    def _read(self, path: Path) -> str:
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _write(self, path: Path, text: str, mode: int = 0o644) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755 if path == self._config else 0o700)
        path.touch(mode=mode)
        path.write_text(text, encoding="utf-8")


def start_master(checkout: Path, pillar_roots: Sequence[str]) -> None:
    """Configure this checkout's master and start it, by the checkout's own script.

    pillar_roots
        Folders of pillar files; the checkout's own is the last one anyway.

    Raises ``PlatformError`` with what the script said.
    """
    own = str(checkout / "pillar")
    words = [str(checkout / SCRIPT), *(root for root in pillar_roots if root != own)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise PlatformError("The master is not configured", where=words[0], actual=err) from err
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1500:]
        raise PlatformError("The master is not configured", where=words[0], actual=f"exit {done.returncode}: {said}")


def is_of(checkout: Path, folder: Path) -> bool:
    """Return whether Salt's folder has the configuration of this checkout's master."""
    return (folder / "master").resolve() == checkout / "etc/master/master"
