"""Root rights for a moment: which tokens are left when something goes wrong."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import requests
from hvac.exceptions import Forbidden, InternalServerError

from aiplatform import vault, vault_bootstrap
from aiplatform.vault_keys import KEYS, KeyStore

OTP = "0" * 4
ROOT, NARROW = ["root"], ["default"]


class Tokens:
    """The tokens of a Vault, each its own accessor; the root token that key shares yield is ``made``."""

    def __init__(self):
        self.there = {}
        self.full = False
        self.gone = None

    def connect(self, url, trust, token=None):
        calls = SimpleNamespace(
            create=self.create,
            revoke_self=lambda: self.there.pop(token),
            list_accessors=lambda: {"data": {"keys": [*self.there, *filter(None, [self.gone])]}},
            lookup_accessor=self.lookup,
            revoke_accessor=self.there.pop,
        )
        sys = SimpleNamespace(
            cancel_root_generation=lambda: None,
            start_root_token_generation=lambda: {"required": 1, "nonce": "n", "otp": OTP},
            generate_root=self.generate,
        )
        return SimpleNamespace(url=url, token=token, sys=sys, auth=SimpleNamespace(token=calls))

    def generate(self, key, nonce):
        self.there["made"] = {"policies": ROOT, "ttl": 0}
        hidden = bytes(a ^ b for a, b in zip(b"made", OTP.encode(), strict=True))
        return {"encoded_token": base64.b64encode(hidden).decode()}

    def create(self, policies, ttl, **_):
        if self.full:
            raise InternalServerError("no space")
        self.there["limited"] = {"policies": policies, "ttl": ttl}
        return {"auth": {"client_token": "limited"}}

    def lookup(self, accessor):
        if accessor == self.gone:
            raise Forbidden("invalid accessor")
        return {"data": self.there[accessor]}


@pytest.fixture
def tokens(monkeypatch):
    found = Tokens()
    monkeypatch.setattr(vault, "connect", found.connect)
    return found


def test_what_the_shares_made_ends_where_nothing_can_be_made_of_it(tokens):
    tokens.full = True
    with pytest.raises(vault.VaultRefusedError, match="no space"), vault.root_for_a_moment("url", True, ["share"]):
        pass
    assert tokens.there == {}


def test_root_tokens_without_an_end_are_revoked_and_no_others(tokens, tmp_path):
    store = KeyStore(tmp_path)
    store.write(KEYS, {"keys": ["share"]})
    narrow = {"policies": NARROW, "ttl": 0}
    ending = {"policies": ROOT, "ttl": 60}
    tokens.there = {"left": {"policies": ROOT, "ttl": 0}, "narrow": narrow, "ending": ending}
    tokens.gone = "expired meanwhile"
    with vault_bootstrap.root_rights("url", "trust", store) as root:
        assert root.token == "limited"
        assert set(tokens.there) == {"limited", "narrow", "ending"}
    assert tokens.there == {"narrow": narrow, "ending": ending}


@pytest.mark.parametrize("error", [requests.ConnectionError("refused"), InternalServerError("starting")])
def test_a_vault_that_does_not_answer_well_yet_is_waited_for(monkeypatch, error):
    client = vault.connect("https://192.0.2.1:8200", True)
    monkeypatch.setattr(client.sys, "read_seal_status", Mock(side_effect=error))
    assert vault.answers(client) is False
