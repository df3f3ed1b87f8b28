"""The master's configuration for Vault."""

import stat

import pytest
import yaml
from saltext.vault.utils.vault import factory

from aiplatform import vault_master
from aiplatform.errors import PlatformError

ADDRESS = "192.0.2.29"


@pytest.fixture
def paths(tmp_path):
    return {"key_store": tmp_path / "keys", "config": tmp_path / "master.d" / "vault.conf"}


def test_written_once_and_private(paths):
    assert vault_master.set_up(ADDRESS, **paths)
    first = paths["config"].read_text()
    assert stat.S_IMODE(paths["config"].stat().st_mode) == 0o600
    assert vault_master.set_up(ADDRESS, **paths) == {}
    assert paths["config"].read_text() == first


def test_a_dry_run_touches_nothing_and_says_the_same(paths):
    dry = vault_master.set_up(ADDRESS, **paths, test=True)
    assert not paths["config"].exists()
    assert not paths["key_store"].exists()
    assert dry == vault_master.set_up(ADDRESS, **paths)


def test_the_changes_hold_no_login(paths):
    changes = vault_master.set_up(ADDRESS, **paths)
    assert vault_master.secret_id(paths["config"]) not in str(changes)


def test_a_new_address_keeps_the_login(paths):
    vault_master.set_up(ADDRESS, **paths)
    login = vault_master.secret_id(paths["config"])
    assert vault_master.set_up("192.0.2.77", **paths)
    assert vault_master.secret_id(paths["config"]) == login
    assert "192.0.2.77" in paths["config"].read_text()


def test_the_extension_takes_the_configuration(paths):
    vault_master.set_up(ADDRESS, **paths)
    parsed = factory.parse_config(yaml.safe_load(paths["config"].read_text())["vault"])
    assert parsed["server"]["url"] == f"https://{ADDRESS}:8202"
    assert parsed["server"]["verify"].startswith("-----BEGIN CERTIFICATE")
    assert parsed["issue"]["type"] == "approle"
    assert parsed["policies"]["assign"] == ["ai-platform/{minion}"]
    # Else each refusal, as the verification asks for one, would cost a new login.
    assert parsed["cache"]["clear_on_unauthorized"] is False


def test_the_authority_is_completed_after_a_crash_between_its_files(paths):
    store = vault_master.KeyStore(paths["key_store"])
    key, certificate = vault_master.authority(store)
    (store.path / "ca.pem").unlink()
    assert vault_master.authority(store)[0] == key
    (store.path / "ca.key").unlink()
    with pytest.raises(PlatformError, match="restore the key"):
        vault_master.authority(store)
    assert certificate


def test_a_damaged_configuration_is_named(paths):
    paths["config"].parent.mkdir()
    paths["config"].write_text("vault: [")
    with pytest.raises(PlatformError, match="damaged"):
        vault_master.set_up(ADDRESS, **paths)
