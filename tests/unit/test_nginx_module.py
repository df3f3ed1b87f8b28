"""The proxy's module and states: certificates, keys, reloads, with Vault and NGINX replaced."""

from __future__ import annotations

import json
import stat

import pytest
from salt.exceptions import CommandExecutionError
from saltext.vault.utils.vault.exceptions import VaultException, VaultNotFoundError

from _modules import nginx, platform_ca
from _states import nginx as states
from _states import platform_ca as ca_states
from aiplatform import api_keys, vault_tls
from aiplatform.errors import PlatformError
from tests.unit.test_sites import pillar


class Vault:
    """An authority that signs, and secrets by path."""

    def __init__(self):
        self.key = vault_tls.new_key()
        self.certificate = vault_tls.authority(self.key, "test")
        self.secrets = {"secret/ai-platform/ollama": {"api_key": "own"}}
        self.down = False
        self.asked = []

    def query(self, method, path, payload=None):
        if self.down:
            raise CommandExecutionError("Vault is sealed")
        self.asked.append((method, path))
        if path == "pki/cert/ca":
            return {"data": {"certificate": self.certificate}}
        names = payload["alt_names"].split(",")
        return {"data": {"certificate": vault_tls.sign(payload["csr"], self.key, self.certificate, names, 90)}}

    def read_kv(self, path, _opts, _context):
        if self.down:
            raise VaultException("sealed")
        if path not in self.secrets:
            raise VaultNotFoundError("nothing there")
        return self.secrets[path]


@pytest.fixture
def vault(monkeypatch, tmp_path):
    found = Vault()
    own = pillar()
    salt = {
        "vault.query": found.query,
        "platform_ca.certificate": platform_ca.certificate,
        "file.group_to_gid": lambda _name: -1,
        "cmd.run_all": lambda argv: {"retcode": found.__dict__.get("refuses", 0), "stderr": "unknown directive"},
        "service.reload": lambda name: found.asked.append(("reload", name)),
    }
    for module in (nginx, platform_ca, states, ca_states):
        for name, value in {
            "__pillar__": own,
            "__opts__": {"test": False},
            "__grains__": {"os_family": "Debian"},
            "__context__": {},
            "__salt__": salt,
        }.items():
            monkeypatch.setattr(module, name, value, raising=False)
    for name in ("certificate_reason", "obtain_certificate", "api_keys_current", "refresh_api_keys"):
        salt[f"nginx.{name}"] = getattr(nginx, name)
    monkeypatch.setattr(nginx.vault, "read_kv", found.read_kv)
    monkeypatch.setattr(nginx, "KEYS", tmp_path / "keys.json")
    monkeypatch.setattr(nginx.sites, "FOLDER", str(tmp_path))
    monkeypatch.setattr(nginx.sites, "ETC", str(tmp_path))
    found.salt, found.folder, found.pillar = salt, tmp_path, own
    return found


# -- certificates -------------------------------------------------------------------------------------------------


def test_the_first_certificate_is_signed_for_a_key_that_stays_here(vault):
    assert states.certificate_valid("x")["changes"]["certificate"]["old"] == "no key is in place"
    key, certificate = vault.folder / "tls/proxy.key", vault.folder / "tls/proxy.crt"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert vault_tls.matches(certificate.read_text(), key.read_text())
    assert ("POST", "pki/sign/proxy") in vault.asked
    assert states.certificate_valid("x")["changes"] == {}


def test_it_is_renewed_for_its_end_for_other_names_and_for_another_authority(vault):
    nginx.obtain_certificate()
    assert nginx.certificate_reason() == ""
    key = (vault.folder / "tls/proxy.key").read_text()
    vault.pillar["nginx"]["certificate"]["renew_days"] = 91
    assert "it ends on" in nginx.certificate_reason()
    vault.pillar["nginx"]["certificate"]["renew_days"] = 30
    vault.pillar["services"]["wiki"] = vault.pillar["services"]["vault"] | {"name": "wiki"}
    assert "its names are" in nginx.certificate_reason()
    nginx.obtain_certificate()
    assert nginx.certificate_reason() == ""
    vault.key = vault_tls.new_key()
    vault.certificate = vault_tls.authority(vault.key, "another life")
    assert "not signed" in nginx.certificate_reason()
    assert (vault.folder / "tls/proxy.key").read_text() == key


def test_without_vault_a_dry_run_predicts_and_a_real_one_fails_and_changes_nothing(vault, monkeypatch):
    nginx.obtain_certificate()
    before = (vault.folder / "tls/proxy.crt").read_text()
    vault.down = True
    failed = states.certificate_valid("x")
    assert failed["result"] is False
    assert (vault.folder / "tls/proxy.crt").read_text() == before
    monkeypatch.setattr(states, "__opts__", {"test": True})
    assert states.certificate_valid("x")["result"] is None
    assert states.api_keys("x")["result"] is None


def test_an_operators_certificate_that_does_not_serve_is_refused_in_a_dry_run_too(vault, monkeypatch):
    vault.pillar["nginx"]["certificate"] |= {"mode": "files"}
    refused = states.certificate_valid("x")
    assert refused["result"] is False
    assert "the certificate's file is missing" in refused["comment"]
    assert not vault.asked
    monkeypatch.setattr(states, "__opts__", {"test": True})
    assert states.certificate_valid("x") == refused


@pytest.mark.parametrize(
    ("trusted", "expected"),
    [("its own", ""), (None, "its issuer is not trusted"), ("another", "its issuer is not trusted")],
)
def test_an_operators_certificate_is_one_that_clients_trust(vault, tmp_path, trusted, expected):
    key, other = vault_tls.new_key(), vault_tls.new_key()
    authority = vault_tls.authority(other, "the operator's")
    signed = vault_tls.sign(vault_tls.request(key, "a"), other, authority, nginx.sites.names(vault.pillar), 5)
    paths = {"certificate": str(tmp_path / "own.crt"), "key": str(tmp_path / "own.key")}
    for path, text in zip(paths.values(), (signed, key), strict=True):
        (tmp_path / path).write_text(text)
    known = {"its own": authority, "another": vault_tls.authority(vault_tls.new_key(), "another"), None: None}
    vault.pillar["nginx"]["certificate"] |= {"mode": "files", "authority": known[trusted]} | paths
    answer = states.certificate_valid("x")
    assert answer["result"] is not bool(expected)
    assert expected in answer["comment"]
    assert answer["changes"] == {}


# -- keys ---------------------------------------------------------------------------------------------------------


def test_the_file_of_keys_holds_hashes_and_is_read_by_the_proxy_only(vault):
    vault.secrets["secret/ai-platform/api-keys"] = {"ci": {"sha256": "aa", "slots": [1]}}
    assert states.api_keys("x")["changes"] == {"keys": {"old": "others", "new": "as in Vault"}}
    file = vault.folder / "keys.json"
    assert json.loads(file.read_text()) == {
        "aa": {"name": "ci", "slots": [1]},
        api_keys.fingerprint("own"): {"name": "platform"},
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert states.api_keys("x")["changes"] == {}


def test_keys_are_kept_while_vault_cannot_be_asked(vault):
    nginx.refresh_api_keys()
    before = (vault.folder / "keys.json").read_text()
    vault.down = True
    with pytest.raises(PlatformError, match="cannot be read"):
        nginx.refresh_api_keys()
    assert states.api_keys("x")["result"] is False
    assert (vault.folder / "keys.json").read_text() == before


# -- reloads ------------------------------------------------------------------------------------------------------


def test_a_configuration_that_nginx_refuses_is_not_loaded(vault):
    vault.refuses = 1
    with pytest.raises(PlatformError, match="unknown directive"):
        nginx.reload()
    assert ("reload", "nginx") not in vault.asked


@pytest.mark.parametrize("file", ["conf.d/own.conf", "upstream-authority.pem", "wiki.pem", "tls/proxy.crt"])
def test_a_new_and_a_changed_file_is_loaded_by_the_state(vault, monkeypatch, file):
    vault.pillar["nginx"]["sites"]["openwebui"]["authority"] = str(vault.folder / "wiki.pem")
    before = nginx.wanted()
    loaded = [before]
    vault.salt |= {name: getattr(nginx, name.partition(".")[2]) for name in ("nginx.wanted", "nginx.reload")}
    vault.salt |= {"nginx.loaded": lambda: loaded[0], "service.reload": lambda _: loaded.__setitem__(0, nginx.wanted())}
    monkeypatch.setattr(nginx, "loaded", lambda: loaded[0])
    assert states.loaded("x")["changes"] == {}
    (vault.folder / file).parent.mkdir(exist_ok=True)
    for text in ("one", "another"):
        (vault.folder / file).write_text(text)
        assert states.loaded("x")["changes"]["configuration"]["new"] == nginx.wanted()[:12]
        assert states.loaded("x")["changes"] == {}
    assert nginx.wanted() != before


@pytest.mark.parametrize(
    ("place", "state", "again"),
    [
        ("nginx.conf", "file_|-nginx-config_|-{}_|-managed", True),
        ("tls/proxy.crt", "nginx_|-nginx-certificate_|-{}_|-certificate_valid", True),
        ("lua", "file_|-nginx-lua_|-{}_|-recurse", True),
        ("keys.json", "nginx_|-nginx-api-keys_|-{}_|-api_keys", False),
    ],
)
def test_a_dry_run_knows_of_the_files_that_another_state_would_write(vault, monkeypatch, place, state, again):
    vault.salt |= {f"nginx.{name}": getattr(nginx, name) for name in ("wanted", "reload", "context")}
    vault.salt["nginx.loaded"] = nginx.wanted
    row = {"result": None, "changes": {"diff": "another"}}
    monkeypatch.setattr(states, "__running__", {state.format(vault.folder / place): row}, raising=False)
    assert states.loaded("x")["changes"] == {}
    monkeypatch.setattr(states, "__opts__", {"test": True})
    assert bool(states.loaded("x")["changes"]) is again


def test_a_damaged_drop_in_fails_the_state(vault):
    vault.salt |= {name: getattr(nginx, name.partition(".")[2]) for name in ("nginx.wanted", "nginx.reload")}
    before = nginx.wanted()
    vault.salt["nginx.loaded"] = lambda: before
    vault.refuses = 1
    (vault.folder / "conf.d").mkdir()
    (vault.folder / "conf.d/.draft.conf").write_text("NGINX leaves this out")
    assert states.loaded("x")["result"] is True
    (vault.folder / "conf.d/bad.conf").write_text("no_such_directive on;")
    failed = states.loaded("x")
    assert failed["result"] is False
    assert "unknown directive" in failed["comment"]
    assert ("reload", "nginx") not in vault.asked


def test_the_timer_renews_and_reloads_only_where_it_is_time(vault, monkeypatch):
    nginx.obtain_certificate()
    loaded = [nginx.wanted()]
    monkeypatch.setattr(nginx, "loaded", lambda: loaded[0])
    monkeypatch.setattr(nginx, "reload", lambda: loaded.__setitem__(0, nginx.wanted()))
    assert nginx.renew() == ""
    vault.pillar["nginx"]["certificate"]["renew_days"] = 91
    assert "it ends on" in nginx.renew()
    assert loaded == [nginx.wanted()]


# -- trust --------------------------------------------------------------------------------------------------------


def test_a_host_trusts_the_authority_and_forgets_an_earlier_one(vault, monkeypatch):
    bundle, anchor = vault.folder / "bundle.crt", vault.folder / "anchors/ai-platform.crt"
    monkeypatch.setattr(platform_ca, "FILE", vault.folder / "ca.pem")
    monkeypatch.setattr(platform_ca, "STORES", {"Debian": (anchor, ["update"], str(bundle))})

    def update(_argv):
        bundle.write_text("others\n" + (anchor.read_text() if anchor.exists() else ""))
        return {"retcode": 0}

    vault.salt |= {"cmd.run_all": update}
    for name in ("trusted", "trust"):
        vault.salt[f"platform_ca.{name}"] = getattr(platform_ca, name)
    assert ca_states.trusted("x")["changes"]
    assert ca_states.trusted("x")["changes"] == {}
    vault.certificate = vault_tls.authority(vault_tls.new_key(), "another life")
    assert ca_states.trusted("x")["changes"]
    assert vault.certificate.strip() in bundle.read_text()
    vault.pillar["nginx"]["certificate"] |= {"mode": "files"}
    assert ca_states.trusted("x")["changes"]
    assert not anchor.exists()
    assert platform_ca.bundle() == str(bundle)
