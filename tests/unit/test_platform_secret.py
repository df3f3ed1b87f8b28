"""Secrets as states read them."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from salt.exceptions import CommandExecutionError
from saltext.vault.utils.vault.exceptions import (
    VaultNotFoundError,
    VaultPermissionDeniedError,
    VaultUnavailableError,
)

from _modules import platform_secret as module
from _states import platform_secret as state
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


def test_a_secret_that_was_taken_out_is_an_error_and_never_the_word_none(vault, monkeypatch):
    vault.return_value = None
    with pytest.raises(PlatformError, match=r"taken out; where: secret/acme/keycloak admin_password.*bootstrap"):
        module.read("keycloak", "admin_password")
    monkeypatch.setitem(module.__opts__, "test", True)
    assert module.read("keycloak", "admin_password") == module.UNKNOWN


@pytest.fixture
def kv(monkeypatch, vault):
    read = Mock(return_value={"telegram_token": "1:a"})
    monkeypatch.setattr(module.vault, "read_kv", read)
    monkeypatch.setattr(module, "__context__", {}, raising=False)
    return read


@pytest.mark.parametrize(
    ("holds", "found"), [({"telegram_token": "1:a"}, "1:a"), ({}, ""), ({"telegram_token": ""}, "")]
)
def test_what_a_person_has_not_entered_is_absent(kv, holds, found):
    kv.return_value = holds
    assert module.optional("openclaw", "telegram_token") == found
    assert kv.call_args.args[0] == "secret/acme/openclaw"


def test_a_path_that_was_never_written_is_absent(kv):
    kv.side_effect = VaultNotFoundError("no")
    assert module.optional("openclaw", "telegram_token") == ""


@pytest.mark.parametrize("error", [VaultUnavailableError("sealed"), VaultPermissionDeniedError("no")])
def test_a_vault_that_cannot_be_asked_is_no_absence(kv, monkeypatch, error):
    kv.side_effect = error
    with pytest.raises(PlatformError, match="secret/acme/openclaw telegram_token"):
        module.optional("openclaw", "telegram_token")
    monkeypatch.setitem(module.__opts__, "test", True)
    assert module.optional("openclaw", "telegram_token") == ""


@pytest.mark.parametrize(
    ("test", "there", "error", "kept"),
    [
        (True, True, VaultUnavailableError("sealed"), True),
        (True, True, VaultPermissionDeniedError("no"), True),
        (True, False, VaultUnavailableError("sealed"), False),  # a first deploy
        (True, True, VaultNotFoundError("never written"), False),
        (True, True, None, False),
        (False, True, VaultUnavailableError("sealed"), False),
    ],
)
def test_a_dry_run_that_cannot_ask_keeps_what_an_earlier_run_has_written(
    kv, monkeypatch, tmp_path, test, there, error, kept
):
    file = tmp_path / "token"
    if there:
        file.touch()
    kv.side_effect, kv.return_value = error, {}
    monkeypatch.setitem(module.__opts__, "test", test)
    assert module.kept("openclaw", "telegram_token", str(file)) is kept


# -- the state ----------------------------------------------------------------------------------------------------


@pytest.fixture
def managed(vault, monkeypatch):
    """What ``file.managed`` is asked for."""
    asked = Mock(return_value={"result": True})
    monkeypatch.setattr(state, "__salt__", {"platform_secret.read": lambda path, key: f"{path}'s {key}"}, raising=False)
    monkeypatch.setattr(state, "__states__", {"file.managed": asked}, raising=False)
    return asked


def test_a_file_is_filled_when_it_is_written(managed):
    assert state.file("/x/token", content="{openclaw:token}", user="bot") == {"result": True}
    managed.assert_called_once_with(
        "/x/token", contents="openclaw's token", contents_newline=False, mode="0400", show_changes=False, user="bot"
    )


def test_settings_are_lines_that_a_shell_reads(managed):
    state.file("/x/secrets.env", settings={"URL": "db://me:{databases:me|urlencode}@host/db", "ADMIN": "root"})
    assert managed.call_args.kwargs["contents"] == "ADMIN=root\nURL=db://me:databases%27s%20me@host/db\n"


def test_a_secret_that_cannot_be_had_fails_the_state_and_writes_nothing(managed, monkeypatch):
    def refuse(path, key):
        raise PlatformError("The secret cannot be read", where=f"{path} {key}")

    monkeypatch.setattr(state, "__salt__", {"platform_secret.read": refuse}, raising=False)
    answer = state.file("/x/secrets.env", settings={"KEY": "{qdrant:api_key}"})
    assert answer["result"] is False
    assert "qdrant api_key" in answer["comment"]
    assert not managed.called


def test_an_empty_secret_is_refused(managed, monkeypatch):
    monkeypatch.setattr(state, "__salt__", {"platform_secret.read": lambda path, key: ""}, raising=False)
    assert state.file("/x/secrets.env", settings={"KEY": "{qdrant:api_key}"})["result"] is False
    assert not managed.called
