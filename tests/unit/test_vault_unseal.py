"""Unsealing with several shares, also where another one does so at the same moment."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from aiplatform import vault_bootstrap
from aiplatform.errors import PlatformError
from aiplatform.vault_keys import KeyStore

THRESHOLD = 2


class Server:
    """A sealed Vault; the first ``others`` times another one begins anew while the second share is on its way."""

    url = "https://192.0.2.29:8202"

    def __init__(self, others=0):
        self.others = others
        self.sealed = True
        self.shares = set()
        self.sys = self

    def read_seal_status(self):
        return {"initialized": True, "sealed": self.sealed, "version": "1", "t": THRESHOLD}

    def read_health_status(self, method):
        return SimpleNamespace(status_code=503 if self.sealed else 200)

    def submit_unseal_key(self, reset):
        self.shares.clear()

    def submit_unseal_keys(self, keys):
        for key in keys:
            if self.shares and self.others:
                self.others -= 1
                self.submit_unseal_key(reset=True)
            self.shares.add(key)
        self.sealed = len(self.shares) < THRESHOLD


def test_what_another_one_begins_anew_is_submitted_again(tmp_path):
    server = Server(others=1)
    assert vault_bootstrap.unseal(server, {"keys": ["a", "b"]}, KeyStore(tmp_path)) is True
    assert not server.sealed


def test_too_few_shares_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(vault_bootstrap, "UNSEAL_SECONDS", 0)
    with pytest.raises(PlatformError, match="stays sealed"):
        vault_bootstrap.unseal(Server(), {"keys": ["a"]}, KeyStore(tmp_path))
