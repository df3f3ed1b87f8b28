"""Vault's files on its host."""

import hashlib
import stat
import zipfile

import pytest

from aiplatform import vault_host, vault_tls
from aiplatform.errors import PlatformError
from aiplatform.settings import read_yaml
from tests.conftest import CHECKOUT

NAMES = ["vault.acme.test", "ai", "127.0.0.1"]
PLATFORM = {
    "domain": "acme.test",
    "data_root": "/data",
    "hosts": {"ai": {"address": "192.0.2.29", "roles": ["ai_server"]}},
}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "vault.zip"
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("vault", "#!/bin/sh\n")
        content.writestr("LICENSE.txt", "text")
    return path


def test_configuration():
    found = vault_host.configuration(PLATFORM, 8202, "ai")
    assert [entry["tcp"]["address"] for entry in found["listener"]] == ["192.0.2.29:8202", "127.0.0.1:8202"]
    assert found["storage"]["raft"]["path"] == "/data/vault/data"
    assert found["disable_mlock"] is True
    assert found["api_addr"] == "https://192.0.2.29:8202"
    assert found["cluster_addr"].startswith("https://127.0.0.1:")
    assert not any(entry["tcp"].get("tls_disable") for entry in found["listener"])


def test_an_ipv6_address_is_put_in_brackets():
    hosts = {"ai": {"address": "2001:db8::29", "roles": ["ai_server"]}}
    found = vault_host.configuration(PLATFORM | {"hosts": hosts}, 8202, "ai")
    assert found["listener"][0]["tcp"]["address"] == "[2001:db8::29]:8202"
    assert found["api_addr"] == "https://[2001:db8::29]:8202"


HASHES = {"amd64": "sha256=a", "arm64": "sha256=b"}


@pytest.mark.parametrize(
    ("hashes", "machine", "expected"),
    [
        (HASHES, "x86_64", ("http://x/1.2.3_amd64.zip", "sha256=a")),
        (HASHES, "aarch64", ("http://x/1.2.3_arm64.zip", "sha256=b")),
        ("sha256=c", "aarch64", ("http://x/1.2.3_arm64.zip", "sha256=c")),
    ],
)
def test_each_processor_has_its_archive(hashes, machine, expected):
    source = "http://x/{version}_{arch}.zip"
    assert vault_host.release_archive("1.2.3", source, hashes, machine) == expected


@pytest.mark.parametrize(("hashes", "machine"), [(HASHES, "riscv64"), ({"amd64": "sha256=a"}, "aarch64")])
def test_a_processor_without_a_hash_is_refused(hashes, machine):
    with pytest.raises(PlatformError, match=rf"source_hash.*expected: amd64.*actual: {machine}"):
        vault_host.release_archive("1.2.3", "http://x", hashes, machine)


def test_every_processor_that_preflight_takes_has_a_hash():
    defaults = {}
    for formula in ("vault", "preflight"):
        defaults |= read_yaml(CHECKOUT / f"salt/{formula}/defaults.yaml")
    vault = defaults["vault"]
    for machine in defaults["preflight"]["architectures"]:
        url, wanted = vault_host.release_archive(vault["version"], vault["source"], vault["source_hash"], machine)
        assert "{" not in url
        assert len(wanted) == len("sha256=") + 64


def test_unpacking_is_complete_or_not_there(tmp_path, archive):
    where = tmp_path / "opt"
    assert not vault_host.release_present(where, "1.2.3")
    vault_host.unpack(archive, where, "1.2.3")
    assert vault_host.release_present(where, "1.2.3")
    assert [path.name for path in where.iterdir()] == ["1.2.3"]
    assert stat.S_IMODE((where / "1.2.3").stat().st_mode) == 0o755


def test_a_broken_archive_leaves_nothing(tmp_path, archive):
    where = tmp_path / "opt"
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(PlatformError, match="cannot be unpacked"):
        vault_host.unpack(archive, where, "1.2.3")
    assert list(where.iterdir()) == []


def test_an_archive_without_the_binary_is_refused(tmp_path):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("README", "x")
    with pytest.raises(PlatformError, match="with the file vault"):
        vault_host.unpack(path, tmp_path / "opt", "1.2.3")


def test_a_wrong_hash_names_both(archive):
    right = hashlib.sha256(archive.read_bytes()).hexdigest()
    vault_host.check_hash(archive, f"sha256={right}", "http://x/vault.zip")
    with pytest.raises(PlatformError, match=rf"expected: sha256={'0' * 64}; actual: sha256={right}"):
        vault_host.check_hash(archive, f"sha256={'0' * 64}", "http://x/vault.zip")


@pytest.fixture
def owned(monkeypatch):
    owners = {}
    monkeypatch.setattr(vault_host.os, "chown", lambda path, user, group: owners.update({str(path): (user, group)}))
    return owners


def test_the_key_is_made_once_and_stays(tmp_path, owned):
    assert not vault_host.key_present(tmp_path)
    assert vault_host.request(tmp_path, "ai") == {}
    vault_host.make_key(tmp_path, NAMES, 77)
    assert vault_host.key_present(tmp_path)
    key = (tmp_path / "vault.key").read_text()
    assert stat.S_IMODE((tmp_path / "vault.key").stat().st_mode) == 0o640
    assert owned[str(tmp_path / "vault.key")] == (0, 77)
    (tmp_path / "vault.crt").unlink()
    vault_host.make_key(tmp_path, NAMES, 77)
    assert (tmp_path / "vault.key").read_text() == key


def test_nothing_of_the_key_is_in_what_the_master_gets(tmp_path, owned):
    vault_host.make_key(tmp_path, NAMES, 77)
    assert "PRIVATE" not in "".join(vault_host.request(tmp_path, "ai").values())


def test_a_certificate_for_another_key_is_refused(tmp_path, owned):
    vault_host.make_key(tmp_path, NAMES, 77)
    before = (tmp_path / "vault.crt").read_text()
    with pytest.raises(PlatformError, match="another key"):
        vault_host.install_certificate(tmp_path, vault_tls.self_signed(vault_tls.new_key(), "x", ["x"]))
    assert (tmp_path / "vault.crt").read_text() == before


def test_a_storage_keeps_its_identity(tmp_path):
    assert vault_host.storage_id(tmp_path) == ""
    first = vault_host.mark_storage(tmp_path)
    assert first
    assert vault_host.mark_storage(tmp_path) == first == vault_host.storage_id(tmp_path)


def test_setting_aside_keeps_the_old_and_starts_empty(tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o750)
    identity = vault_host.mark_storage(data)
    (data / "vault.db").write_text("old")
    aside = vault_host.set_aside(data, identity)
    assert (aside / "vault.db").read_text() == "old"
    assert not (data / "vault.db").exists()
    assert vault_host.storage_id(data) not in ("", identity)
    assert stat.S_IMODE(data.stat().st_mode) == 0o750


def test_another_storage_is_not_set_aside(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    vault_host.mark_storage(data)
    with pytest.raises(PlatformError, match="Another storage"):
        vault_host.set_aside(data, "not-this-one")
    assert data.is_dir()


def test_reasons_to_restart(tmp_path):
    config, started = tmp_path / "vault.json", tmp_path / "started.json"
    binary = tmp_path / "vault"
    for path in (config, started, binary):
        path.write_text("same")
    pairs = {config: started}
    assert vault_host.restart_reason(pairs, binary, binary) == ""
    assert vault_host.restart_reason(pairs, None, binary) == ""
    assert "runs" in vault_host.restart_reason(pairs, tmp_path / "old", binary)
    config.write_text("edited")
    assert "vault.json changed" in vault_host.restart_reason(pairs, binary, binary)
    config.write_text("same")
    started.unlink()
    assert "changed" in vault_host.restart_reason(pairs, binary, binary)
