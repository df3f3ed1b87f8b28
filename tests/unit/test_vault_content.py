"""Secrets are written with check-and-set: what somebody else writes meanwhile is kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hvac.exceptions import InvalidPath, InvalidRequest

from aiplatform import vault_content
from aiplatform.errors import PlatformError

PATH = "acme/keycloak"
KEYS = {"admin_password": "base64_16", "client_secret": "hex32", "oidc_url": "none"}
WANTED = SimpleNamespace(mount="secret", secrets={PATH: KEYS})


class Store:
    """A path of KV version 2; ``others`` are values that somebody else writes, one just before each write of ours."""

    def __init__(self, others=()):
        self.data, self.version, self.others = {}, 0, list(others)
        self.url = "https://vault.test"
        self.secrets = SimpleNamespace(kv=SimpleNamespace(v2=self))

    def read_secret_version(self, path, mount_point, raise_on_deleted_version):
        if not self.version:
            raise InvalidPath
        return {"data": {"data": dict(self.data), "metadata": {"version": self.version}}}

    def create_or_update_secret(self, path, secret, cas, mount_point):
        if self.others:
            self.data |= self.others.pop(0)
            self.version += 1
        if cas != self.version:
            raise InvalidRequest("check-and-set parameter did not match the current version")
        self.data, self.version = dict(secret), self.version + 1


def test_what_another_writes_meanwhile_is_kept():
    store = Store(others=[{"client_secret": "theirs"}])
    changes = vault_content.secrets(store, WANTED, test=False)
    assert store.data["client_secret"] == "theirs"
    assert changes == {f"secret secret/{PATH}": {"old": None, "new": "generated admin_password"}}
    assert set(store.data) == {"client_secret", "admin_password"}


def test_nothing_is_written_where_nothing_is_absent():
    store = Store()
    vault_content.secrets(store, WANTED, test=False)
    before = store.version
    assert vault_content.secrets(store, WANTED, test=False) == {}
    assert store.version == before == 1


def test_a_path_that_never_rests_is_an_error():
    store = Store(others=[{"oidc_url": str(number)} for number in range(vault_content.ATTEMPTS)])
    with pytest.raises(PlatformError, match=rf"changed by others.*secret/{PATH}"):
        vault_content.secrets(store, WANTED, test=False)
    assert "admin_password" not in store.data


def test_a_dry_run_names_the_keys_and_writes_nothing():
    store = Store()
    changes = vault_content.secrets(store, WANTED, test=True)
    assert changes[f"secret secret/{PATH}"]["new"] == "generated admin_password, client_secret"
    assert store.version == 0


def test_another_refusal_is_no_conflict(monkeypatch):
    store = Store()

    def refuse(*_, **__):
        raise InvalidRequest("missing client token")

    monkeypatch.setattr(store, "create_or_update_secret", refuse)
    with pytest.raises(PlatformError, match="missing client token"):
        vault_content.secrets(store, WANTED, test=False)


def test_a_value_is_put_beside_the_others_and_once():
    store, wanted = Store(others=[{"client_secret": "theirs"}]), {"oidc_url": "https://idm.test"}
    changes = vault_content.put(store, "secret", PATH, wanted)
    assert changes == {"oidc_url": {"old": None, "new": "https://idm.test"}}
    assert store.data == {"client_secret": "theirs", "oidc_url": "https://idm.test"}
    version = store.version
    assert vault_content.put(store, "secret", PATH, wanted) == {}
    assert store.version == version


def test_a_dry_run_puts_nothing():
    store = Store()
    assert vault_content.put(store, "secret", PATH, {"oidc_url": "x"}, test=True)
    assert store.version == 0
