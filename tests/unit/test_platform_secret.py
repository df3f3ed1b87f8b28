"""Secrets as states read them."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from salt.exceptions import CommandExecutionError

from _modules import platform_secret as module
from aiplatform.errors import NotFoundError, PlatformError


@pytest.fixture
def vault(monkeypatch):
    """Vault's part of the call, and whether this is a dry run."""
    read = Mock(return_value="value")
    secrets = {"keycloak": {"readers": ["ai_server"], "keys": {"admin_password": "base64_16"}}}
    pillar = {"vault": {"mount": "secret", "secrets": secrets}, "platform": {"slug": "acme"}}
    monkeypatch.setattr(module, "__pillar__", pillar, raising=False)
    monkeypatch.setattr(module, "__salt__", {"vault.read_secret": read}, raising=False)
    monkeypatch.setattr(module, "__opts__", {"test": False}, raising=False)
    return read


def test_the_path_is_the_platforms_own(vault):
    assert module.read("keycloak", "admin_password") == "value"
    vault.assert_called_once_with("secret/acme/keycloak", "admin_password")


@pytest.mark.parametrize(("path", "key"), [("keycloak", "other"), ("other", "admin_password")])
def test_what_the_map_does_not_name_is_refused(vault, path, key):
    with pytest.raises(NotFoundError, match=f"vault:secrets:{path}:keys:{key}"):
        module.read(path, key)
    assert not vault.called


def test_a_sealed_vault_is_an_error_and_a_placeholder_in_a_dry_run(vault, monkeypatch):
    vault.side_effect = CommandExecutionError("VaultUnavailableError: sealed")
    with pytest.raises(
        PlatformError, match="secret/acme/keycloak admin_password; actual: VaultUnavailableError: sealed"
    ):
        module.read("keycloak", "admin_password")
    monkeypatch.setitem(module.__opts__, "test", True)
    assert module.read("keycloak", "admin_password") == module.UNKNOWN
