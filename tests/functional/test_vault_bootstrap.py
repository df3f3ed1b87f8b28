"""The bootstrap against a real Vault: content, rights, certificate, and being killed anywhere."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import stat
import subprocess
import traceback
from pathlib import Path

import pytest
import requests
from hvac.exceptions import Forbidden

from _beacons import vault_sealed
from aiplatform import vault, vault_bootstrap, vault_content, vault_keys
from aiplatform.errors import PlatformError
from aiplatform.wait import until
from tests.functional.local_vault import LOGIN, running

GENERATED = ("ollama", "keycloak", "openwebui", "vault-oidc", "databases")


@pytest.fixture
def fresh(tmp_path):
    """A Vault that runs and was never initialised."""
    with running(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A Vault after its bootstrap, for tests that only look."""
    with running(tmp_path_factory.mktemp("vault")) as server:
        server.first_changes = server.bootstrap().run()
        yield server


def test_first_run_does_everything_and_the_second_nothing(ready):
    assert "initialised with 1 key share(s)" in ready.first_changes["vault"]["new"]
    assert not vault.seal(ready.client()).sealed
    assert ready.first_changes["root token"]["new"] == "revoked"
    assert ready.bootstrap(test=True).run() == {}
    assert ready.bootstrap().run() == {}


def test_no_secret_in_what_is_reported(ready):
    said = str(ready.first_changes)
    for secret in [*ready.keys()["keys"], LOGIN["secret_id"], secret_of(ready, "ollama")["api_key"]]:
        assert secret not in said


def secret_of(server, path):
    reply = server.master().secrets.kv.v2.read_secret_version(
        f"acme/{path}", mount_point="secret", raise_on_deleted_version=True
    )
    return reply["data"]["data"]


def test_every_generated_secret_is_at_its_first_version(ready):
    assert {path: ready.version(path) for path in GENERATED} == dict.fromkeys(GENERATED, 1)
    made = {"admin_password", "client_secret", "realm_admin_password", "check_password"}
    assert set(secret_of(ready, "keycloak")) == made


def test_files_of_the_key_store_are_private(ready):
    assert stat.S_IMODE(ready.store.path.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in ready.store.path.iterdir() if path.is_file()}
    assert modes["init.json"] == modes["ca.key"] == 0o600
    assert "init-started.json" not in modes


def test_both_audit_logs_are_written_and_private(ready):
    for path in (ready.folder / "log/audit.log", ready.folder / "vault/audit/audit.log"):
        assert path.stat().st_size > 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert secret_of(ready, "ollama")["api_key"] not in path.read_text()


def test_no_root_token_is_left(ready):
    assert ready.keys()["root_token"] is None
    others, used = roots_beside_a_new_one(ready)
    assert others == []
    with pytest.raises(Forbidden):
        ready.client(used).auth.token.lookup_self()


def roots_beside_a_new_one(server):
    """The accessors of all root tokens but the one that finds them, and that one."""
    with vault.root_for_a_moment(server.url, str(server.store.path / "ca.pem"), server.keys()["keys"]) as root:
        mine = root.auth.token.lookup_self()["data"]["accessor"]
        accessors = root.list("auth/token/accessors")["data"]["keys"]
        others = [
            accessor
            for accessor in accessors
            if "root" in root.auth.token.lookup_accessor(accessor)["data"]["policies"] and accessor != mine
        ]
        return others, root.token


def test_a_minion_reads_its_own_paths_and_no_other(ready):
    proxy = ready.minion("nginx_proxy")
    read = proxy.secrets.kv.v2.read_secret_version
    assert read("acme/ollama", mount_point="secret", raise_on_deleted_version=True)["data"]["data"]["api_key"]
    for path in ("acme/keycloak", "acme/databases", "other/ollama"):
        with pytest.raises(Forbidden):
            read(path, mount_point="secret", raise_on_deleted_version=True)
    with pytest.raises(Forbidden):
        proxy.secrets.kv.v2.create_or_update_secret("acme/ollama", {"api_key": "x"}, mount_point="secret")
    with pytest.raises(Forbidden):
        proxy.secrets.kv.v2.list_secrets("acme", mount_point="secret")


def test_the_services_login_only_reads(ready):
    with vault.root_for_a_moment(ready.url, str(ready.store.path / "ca.pem"), ready.keys()["keys"]) as root:
        role = root.auth.approle.read_role_id("ai-services")["data"]["role_id"]
        secret = root.auth.approle.generate_secret_id("ai-services")["data"]["secret_id"]
    client = ready.client()
    client.auth.approle.login(role, secret)
    read = client.secrets.kv.v2.read_secret_version
    assert read("acme/openwebui", mount_point="secret", raise_on_deleted_version=True)
    with pytest.raises(Forbidden):
        read("acme/keycloak", mount_point="secret", raise_on_deleted_version=True)
    with pytest.raises(Forbidden):
        client.secrets.kv.v2.create_or_update_secret("acme/openwebui", {"secret_key": "x"}, mount_point="secret")


def test_the_masters_login_cannot_widen_its_rights(ready):
    master = ready.master()
    role = "auth/salt-minions/role/ai_server"
    master.write_data(role, data={"token_policies": ["ai-platform/ai_server"]})
    for policies in (["vault-admin"], ["root"], ["ai-platform/ai_server", "salt-automation"]):
        with pytest.raises(Forbidden):
            master.write_data(role, data={"token_policies": policies})
        with pytest.raises(Forbidden):
            master.write_data(role, data={"policies": policies})
    with pytest.raises(Forbidden):
        master.sys.create_or_update_acl_policy("ai-platform/ai_server", 'path "*" { capabilities = ["read"] }')
    with pytest.raises(Forbidden):
        master.write_data("identity/entity/name/salt_minion_x", data={"policies": ["vault-admin"]})


def test_the_certificate_is_trusted_by_every_name_and_by_none_else(ready):
    trust = str(ready.store.path / "ca.pem")
    for host in ("127.0.0.2", "127.0.0.1"):
        assert requests.get(f"https://{host}:{ready.port}/v1/sys/health", verify=trust, timeout=5).status_code == 200
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"https://127.0.0.2:{ready.port}/v1/sys/health", timeout=5)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(f"http://127.0.0.3:{ready.port}/v1/sys/health", timeout=5)


def test_a_key_that_is_absent_is_generated_beside_the_others(fresh):
    fresh.bootstrap().run()
    before = secret_of(fresh, "keycloak")
    kv = fresh.master().secrets.kv.v2
    kv.create_or_update_secret("acme/keycloak", {"client_secret": "mine", "oidc_url": "typed"}, mount_point="secret")
    assert list(fresh.bootstrap().run()) == ["secret secret/acme/keycloak"]
    after = secret_of(fresh, "keycloak")
    assert (after["client_secret"], after["oidc_url"]) == ("mine", "typed")
    assert after["admin_password"] != before["admin_password"]


def test_a_deleted_secret_is_generated_anew(fresh):
    fresh.bootstrap().run()
    before = secret_of(fresh, "ollama")["api_key"]
    fresh.master().secrets.kv.v2.delete_latest_version_of_secret("acme/ollama", mount_point="secret")
    fresh.bootstrap().run()
    assert secret_of(fresh, "ollama")["api_key"] != before
    assert fresh.version("ollama") == 2


def test_pillar_edits_reach_vault_without_a_lasting_root_token(fresh):
    fresh.bootstrap().run()
    del fresh.platform["hosts"]["nginx_proxy"]
    fresh.platform["hosts"]["dns"] = {"address": "192.0.2.31", "roles": ["coredns_host"]}
    dry = fresh.bootstrap(test=True).run()
    assert set(dry) == {"policy ai-platform/dns", "policy ai-platform/nginx_proxy"}
    assert fresh.bootstrap().run() == dry
    assert fresh.bootstrap().run() == {}
    assert fresh.keys()["root_token"] is None


def test_a_dry_run_before_the_first_touches_nothing(fresh):
    dry = fresh.bootstrap(test=True).run()
    assert "vault" in dry
    assert not fresh.store.path.exists()
    assert fresh.bootstrap().run()


def test_after_a_restart_it_is_unsealed_again(fresh):
    fresh.bootstrap().run()
    fresh.restart()
    assert vault.seal(fresh.client()).sealed
    assert fresh.bootstrap(test=True).run() == {"seal": {"old": "sealed", "new": "unsealed"}}
    assert vault.seal(fresh.client()).sealed
    assert vault_bootstrap.unseal(fresh.client(), fresh.keys(), fresh.store) is True
    assert vault_bootstrap.unseal(fresh.client(), fresh.keys(), fresh.store) is False
    assert fresh.bootstrap().run() == {}


def test_the_beacon_sees_the_seal(fresh, monkeypatch):
    monkeypatch.setattr(vault_sealed, "CERTIFICATES", str(fresh.tls / "vault.crt"))
    config = [{"interval": 5}, {"port": fresh.port}]
    assert vault_sealed.beacon(config) == []  # not initialised: nothing to unseal
    fresh.bootstrap().run()
    assert vault_sealed.beacon(config) == []
    fresh.restart()
    assert vault_sealed.beacon(config) == [{"tag": "sealed"}]


def test_several_shares(fresh):
    fresh.bootstrap(key_shares=5, key_threshold=3).run()
    assert len(fresh.keys()["keys"]) == 5
    fresh.restart()
    # Somebody began to unseal with a share and left.
    fresh.client().sys.submit_unseal_key(fresh.keys()["keys"][4])
    assert vault_bootstrap.unseal(fresh.client(), fresh.keys(), fresh.store) is True


def test_a_new_login_of_the_master_ends_the_old_one(fresh):
    fresh.bootstrap().run()
    fresh.login["secret_id"] = "6" * 64
    assert fresh.bootstrap(test=True).run() == fresh.bootstrap().run()
    assert fresh.bootstrap().run() == {}
    fresh.login["secret_id"] = LOGIN["secret_id"]
    assert fresh.master() is None


@pytest.fixture
def person(tmp_path):
    """Somebody with a PGP key: ``public`` (base64) and ``decrypt``."""
    if not shutil.which("gpg"):
        pytest.skip("no gpg: install gnupg")
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)

    def gpg(*args, content=b""):
        argv = ["gpg", "--homedir", home, "--batch", "--passphrase", "", "--pinentry-mode", "loopback", *args]
        return subprocess.run(argv, input=content, capture_output=True, check=True).stdout

    gpg("--quick-gen-key", "owner@acme.test", "default", "default", "never")
    yield (
        base64.b64encode(gpg("--export", "owner@acme.test")).decode(),
        lambda share: gpg("--decrypt", content=base64.b64decode(share)).decode(),
    )
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)


def test_shares_that_people_hold(fresh, person):
    public, decrypt = person
    pillar = {"pgp_keys": [public]}
    with pytest.raises(PlatformError, match=r"encrypted to people.*vault operator unseal"):
        fresh.bootstrap(**pillar).run()
    # The shares are base64 of an encrypted message; its content is the share in hex.
    share = decrypt(fresh.keys()["keys"][0])
    fresh.client().sys.submit_unseal_key(share)
    until(lambda: not vault.seal(fresh.client()).sealed, 10, 0.2, "Vault to be unsealed by its owner")
    assert "root token" in fresh.bootstrap(**pillar).run()
    assert fresh.bootstrap(**pillar).run() == {}
    # A change of a policy: the run asks for a root token, uses it once, and ends it.
    del fresh.platform["hosts"]["nginx_proxy"]
    with pytest.raises(PlatformError, match="generate-root"):
        fresh.bootstrap(**pillar).run()
    with vault.root_for_a_moment(fresh.url, str(fresh.store.path / "ca.pem"), [share]) as root:
        token = root.auth.token.create(policies=["root"], no_parent=True, ttl="5m")["auth"]["client_token"]
    fresh.store.write_bytes("root-token", f"{token}\n".encode())
    assert set(fresh.bootstrap(**pillar).run()) == {"policy ai-platform/nginx_proxy", "root token"}
    assert not (fresh.store.path / "root-token").exists()
    with pytest.raises(Forbidden):
        fresh.client(token).auth.token.lookup_self()


def test_the_certificate_is_renewed_without_a_restart(fresh):
    fresh.bootstrap(certificate_days=20, renew_days=10).run()
    changes = fresh.bootstrap(renew_days=30).run()
    assert list(changes) == ["certificate"]
    assert not vault.seal(fresh.client()).sealed
    assert fresh.bootstrap(renew_days=30).run() == {}


# Killed anywhere ----------------------------------------------------------------------------------------------------

POINTS = {
    "before the marker": (vault_keys.KeyStore, "write", 1, "before"),
    "before the initialisation": (vault, "initialize", 1, "before"),
    "between the initialisation and the storing of its reply": (vault, "initialize", 1, "after"),
    "after the storing": (vault_bootstrap.Bootstrap, "_store_keys", 1, "after"),
    "after the unsealing": (vault, "unseal", 1, "after"),
    "after the audit devices": (vault_content, "_audit", 1, "after"),
    "after the mounts": (vault_content, "_mounts", 1, "after"),
    "after the policies": (vault_content, "_policies", 1, "after"),
    "before the master's login": (vault_content, "register_login", 1, "before"),
    "after the master's login": (vault_content, "register_login", 1, "after"),
    "between two secrets": (vault_content, "_fill", 2, "before"),
    "before the root token's end": (vault_bootstrap.Bootstrap, "_forget_root", 1, "before"),
    "after the root token's end": (vault, "revoke", 1, "after"),
}


def killed_at(server, owner, name, count, when):
    """Run the bootstrap in a process that is killed at the ``count``-th call of ``owner.name``."""
    child = os.fork()
    if not child:
        original, calls = getattr(owner, name), []

        def deadly(*args, **kwargs):
            calls.append(1)
            if len(calls) == count and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, deadly)
        try:
            server.bootstrap().run()
        except BaseException:  # noqa: BLE001 - told, then the child ends at once
            traceback.print_exc()  # what kept it from getting there
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_a_new_run_ends_well(fresh, point):
    assert killed_at(fresh, *POINTS[point]) == -signal.SIGKILL, "the point was not reached"
    fresh.bootstrap().run()
    assert fresh.bootstrap().run() == {}
    assert {path: fresh.version(path) for path in GENERATED} == dict.fromkeys(GENERATED, 1)
    assert fresh.keys()["root_token"] is None
    assert not (fresh.store.path / "init-started.json").exists()


def test_a_root_token_that_a_killed_run_left_ends_with_the_next(fresh):
    fresh.bootstrap().run()
    del fresh.platform["hosts"]["nginx_proxy"]  # a change that takes root rights
    assert killed_at(fresh, vault, "_decoded", 1, "after") == -signal.SIGKILL
    assert len(roots_beside_a_new_one(fresh)[0]) == 1
    assert "policy ai-platform/nginx_proxy" in fresh.bootstrap().run()
    assert roots_beside_a_new_one(fresh)[0] == []


def test_a_dry_run_tells_of_a_token_that_lies_in_the_key_store_and_of_an_open_one(fresh):
    fresh.bootstrap().run()
    fresh.store.write_bytes(vault_keys.ROOT_TOKEN, b"left by somebody")
    fresh.store.path.chmod(0o755)
    foreseen = fresh.bootstrap(test=True).run()
    assert foreseen == {
        "key store": {"old": "mode 0755", "new": "mode 0700"},
        "root token": {"old": "valid", "new": "revoked"},
    }
    assert fresh.bootstrap().run() == foreseen
    assert fresh.bootstrap(test=True).run() == {}


def test_an_authority_without_its_key_is_refused_in_a_dry_run_too(fresh):
    fresh.bootstrap().run()
    fresh.store.remove("ca.key")
    for test in (True, False):
        with pytest.raises(PlatformError, match="its key is not"):
            fresh.bootstrap(test=test).run()


def test_killed_again_while_it_recovers(fresh):
    lost = (vault, "initialize", 1, "after")
    assert killed_at(fresh, *lost) == -signal.SIGKILL
    assert set(fresh.bootstrap(test=True).run()) == {"storage", "vault"}
    assert list(fresh.data.parent.glob("data.aside-*")) == []
    assert killed_at(fresh, *lost) == -signal.SIGKILL
    fresh.bootstrap().run()
    assert fresh.bootstrap().run() == {}
    # Nothing was deleted: both storages whose keys are lost lie beside the one in use.
    assert len(list(fresh.data.parent.glob("data.aside-*"))) == 2


def test_the_lost_initialisation_is_not_recovered_once_it_was_unsealed_by_somebody(fresh):
    assert killed_at(fresh, vault, "initialize", 1, "before") == -signal.SIGKILL
    reply = vault.initialize(fresh.client(), 1, 1, [])  # a person, meanwhile
    vault.unseal(fresh.client(), reply["keys_base64"])
    with pytest.raises(PlatformError, match=r"no keys of it.*vault_server\.reset"):
        fresh.bootstrap().run()
    assert not vault.seal(fresh.client()).sealed


# An earlier life ----------------------------------------------------------------------------------------------------


def test_an_empty_vault_with_keys_of_an_earlier_one_is_not_initialised(fresh):
    fresh.bootstrap().run()
    keys = (fresh.store.path / "init.json").read_text()
    fresh.set_storage_aside(fresh.facts()["storage_id"])  # as if its file system were not mounted
    for test in (True, False):
        with pytest.raises(PlatformError, match="keys of an earlier one"):
            fresh.bootstrap(test=test).run()
    assert not vault.seal(fresh.client()).initialized
    assert (fresh.store.path / "init.json").read_text() == keys


def test_an_initialised_vault_without_keys_stops(fresh):
    fresh.bootstrap().run()
    (fresh.store.path / "init.json").rename(fresh.folder / "elsewhere")
    fresh.restart()
    for test in (True, False):
        with pytest.raises(PlatformError, match="restore the key store"):
            fresh.bootstrap(test=test).run()
    assert list(fresh.data.parent.glob("data.aside-*")) == []


def test_keys_of_another_vault_stop(fresh):
    fresh.bootstrap().run()
    kept = fresh.keys()
    fresh.store.write("init.json", kept | {"storage_id": "another"})
    for test in (True, False):
        with pytest.raises(PlatformError, match="belong to another Vault"):
            fresh.bootstrap(test=test).run()
    fresh.restart()
    fresh.store.write("init.json", kept | {"keys": ["QUFB" * 11]})
    with pytest.raises(PlatformError, match="another Vault's"):
        fresh.bootstrap().run()
    assert vault.seal(fresh.client()).sealed
    fresh.store.write("init.json", kept)
    assert fresh.bootstrap().run() == {"seal": {"old": "sealed", "new": "unsealed"}}


def test_a_key_store_that_takes_nothing_stops_before_the_initialisation(fresh, monkeypatch):
    monkeypatch.setattr(vault_keys, "SPACE_NEEDED", 1 << 62)
    with pytest.raises(PlatformError, match="Vault was not initialised"):
        fresh.bootstrap().run()
    assert not vault.seal(fresh.client()).initialized


def test_a_vault_that_does_not_run_is_named(fresh):
    fresh.bootstrap().run()
    fresh.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vault_bootstrap, "START_SECONDS", 0.1)
        with pytest.raises(PlatformError, match=r"does not answer.*systemctl status vault"):
            fresh.bootstrap().run()


def test_a_host_without_the_state_is_told_to_apply_it(fresh):
    shutil.rmtree(fresh.tls)
    Path(fresh.tls).mkdir()
    with pytest.raises(PlatformError, match="apply the state `vault`"):
        fresh.bootstrap().run()
