"""A real Vault on loopback, run by the test as its host would run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiplatform import vault, vault_host, vault_policy
from aiplatform.settings import read_yaml
from aiplatform.vault_bootstrap import Bootstrap
from aiplatform.vault_keys import KeyStore
from aiplatform.wait import until
from lab.artifacts import VAULT
from tests.conftest import CHECKOUT
from tests.functional.local_server import free_port, launch, program

MINION = "ai_server"
# Loopback, but not the address that the second listener has.
ADDRESS = "127.0.0.2"
LOGIN = {"role_id": "salt-master", "secret_id": "5" * 64}


@contextmanager
def running(folder: Path) -> Iterator[LocalVault]:
    """A Vault that runs and was never initialised; it is stopped at the end."""
    with pytest.MonkeyPatch.context() as patch:
        server = LocalVault(folder, binary())
        patch.setattr("aiplatform.vault_host.TLS_DIR", server.tls)
        server.prepare()
        server.start()
        try:
            yield server
        finally:
            server.stop()


def binary() -> Path:
    """The Vault that the tests run; skips where there is none."""
    return program("Vault", "AI_PLATFORM_VAULT", VAULT.unpacked / "vault")


class LocalVault:
    """The process, its files, and what the master asks of its host."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.folder = folder
        self.program = program
        self.tls = folder / "tls"
        self.data = folder / "vault" / "data"
        self.pid_file = folder / "pid"
        self.login = dict(LOGIN)
        self.started: list[subprocess.Popen] = []  # kept, so that Python does not warn of them
        self.port = free_port()  # and the next for its cluster
        self.store = KeyStore(folder / "keys")
        self.vault = read_yaml(CHECKOUT / "salt/vault/defaults.yaml")["vault"] | {"log_dir": str(folder / "log")}
        self.platform = {
            "slug": "acme",
            "domain": "acme.test",
            "data_root": str(folder),
            "hosts": {
                MINION: {"address": ADDRESS, "roles": ["ai_server"]},
                "nginx_proxy": {"address": "192.0.2.30", "roles": ["nginx_proxy"]},
            },
        }

    @property
    def names(self) -> list[str]:
        settings = {"platform": self.platform, "services": {"vault": {"name": "vault"}}}
        return vault_policy.certificate_names(settings, MINION)

    @property
    def url(self) -> str:
        return f"https://{ADDRESS}:{self.port}"

    def prepare(self) -> None:
        """What the state does on a host."""
        for path in (self.tls, self.data, self.folder / "log", self.folder / "vault/audit"):
            path.mkdir(parents=True, exist_ok=True)
        vault_host.mark_storage(self.data)
        if not vault_host.key_present(self.tls):
            vault_host.make_key(self.tls, self.names, os.getgid())
        (self.folder / "vault.json").write_text(json.dumps(vault_host.configuration(self.platform, self.port, MINION)))

    def start(self) -> None:
        argv = [self.program, "server", f"-config={self.folder / 'vault.json'}"]
        process = launch(argv, self.folder / "vault.log")
        self.started.append(process)
        self.pid_file.write_text(str(process.pid))
        log = self.folder / "vault.log"
        until(lambda: process.poll() is not None or self._listens(), 30, 0.1, f"Vault on {self.url}; its log: {log}")
        assert process.poll() is None, f"Vault ended by itself:\n{log.read_text()}"

    def stop(self) -> None:
        if self.pid_file.exists():
            pid = int(self.pid_file.read_text())
            os.kill(pid, signal.SIGTERM)
            until(lambda: _gone(pid), 30, 0.05, "Vault to stop")
            self.pid_file.unlink()
        for process in self.started:
            process.wait(10)  # each of them has been told to end, here or by a process of an earlier step
        self.started.clear()

    # The host's side of the bootstrap

    def facts(self) -> dict:
        request = vault_host.request(self.tls, MINION)
        return request | {"storage_id": vault_host.storage_id(self.data), "restart_reason": ""} if request else {}

    def install_certificate(self, certificate: str) -> None:
        vault_host.install_certificate(self.tls, certificate)
        os.kill(int(self.pid_file.read_text()), signal.SIGHUP)

    def restart(self) -> None:
        self.stop()
        self.start()

    def set_storage_aside(self, storage_id: str) -> str:
        self.stop()
        vault_host.set_aside(self.data, storage_id)
        self.start()
        return vault_host.storage_id(self.data)

    # The master's side

    def bootstrap(self, test: bool = False, **settings) -> Bootstrap:
        pillar = self.vault | settings
        return Bootstrap(
            url=self.url,
            names=self.names,
            store=self.store,
            login=self.login,
            settings=pillar,
            wanted=vault_policy.wanted(self.platform, pillar),
            host=self,
            test=test,
        )

    def client(self, token: str | None = None):
        return vault.connect(self.url, str(self.store.path / "ca.pem"), token)

    def master(self):
        return vault.log_in(self.url, str(self.store.path / "ca.pem"), *self.login.values(), mount="approle")

    def version(self, path: str) -> int:
        """How often the secret at ``path`` was written."""
        reply = self.master().secrets.kv.v2.read_secret_metadata(f"acme/{path}", mount_point="secret")
        return reply["data"]["current_version"]

    def minion(self, minion: str):
        """A client with the rights that a minion's login has."""
        with vault.root_for_a_moment(self.url, str(self.store.path / "ca.pem"), self.keys()["keys"]) as root:
            made = root.auth.token.create(policies=[f"ai-platform/{minion}"], no_parent=True, ttl="5m")
        return self.client(made["auth"]["client_token"])

    def keys(self) -> dict:
        return self.store.read("init.json") or {}

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((ADDRESS, self.port)) == 0


def _gone(pid: int) -> bool:
    """Whether a process ended; also one that a process of an earlier step started."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
