"""Keycloak's realm out of pillar, and what differs from it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from _modules import keycloak_admin as module
from _runners import keycloak as runner
from _states import keycloak as state
from aiplatform import keycloak, settings, states
from aiplatform.errors import PlatformError
from tests.conftest import CHECKOUT

PILLAR = settings.read_yaml(CHECKOUT / "salt/keycloak/defaults.yaml") | {
    "platform": {
        "name": "Acme AI",
        "slug": "acme",
        "domain": "acme.example",
        "hosts": {
            "edge": {"address": "192.0.2.30", "roles": ["nginx_proxy"]},
            "box": {"address": "192.0.2.100", "roles": ["ai_server"]},
        },
    },
    "services": {
        "keycloak": {"name": "idm"},
        "openwebui": {"name": "ollama-ui"},
        "vault": {"name": "vault"},
        "qdrant": {"name": None},
    },
}


def test_keycloak_is_known_by_its_public_name_and_believes_the_proxy_only():
    found = keycloak.environment(PILLAR)
    assert found["KC_HOSTNAME"] == "https://idm.acme.example"
    assert found["KC_PROXY_HEADERS"] == "xforwarded"
    assert found["KC_PROXY_TRUSTED_ADDRESSES"] == "192.0.2.30"
    assert found["KC_CACHE"] == "local"
    assert found["KC_HEALTH_ENABLED"] == "true"
    assert not [key for key in found if "PASSWORD" in key]


def test_every_setting_of_the_container_is_a_text():
    assert {type(value) for value in keycloak.environment(PILLAR).values()} == {str}


def test_names_come_from_the_slug_and_the_platforms_name():
    assert keycloak.realm_name(PILLAR) == "acme"
    assert keycloak.realm_settings(PILLAR)["displayName"] == "Acme AI"
    assert keycloak.realm_settings(PILLAR)["bruteForceProtected"] is True
    assert keycloak.discovery_url(PILLAR) == "https://idm.acme.example/realms/acme/.well-known/openid-configuration"
    user = keycloak.first_user(PILLAR)
    assert (user["name"], user["settings"]["email"], user["roles"]) == (
        "acme-admin",
        "acme-admin@acme.example",
        ["ai-admin"],
    )


def test_the_verification_signs_on_as_a_user_and_as_nobody():
    found = keycloak.check_people(PILLAR)
    assert {who: (one["name"], one["roles"]) for who, one in found.items()} == {
        "member": ("acme-check", ["ai-user"]),
        "stranger": ("acme-check-no-role", []),
    }
    # No mail reaches them, and nobody can own their address.
    assert {one["settings"]["email"].rpartition(".")[2] for one in found.values()} == {"invalid"}
    path, key = keycloak.CHECK_PASSWORD.split(":")
    vault = settings.read_yaml(CHECKOUT / "salt/vault/defaults.yaml")["vault"]
    assert vault["secrets"][path]["keys"][key] == "base64_16"


@pytest.fixture
def user(monkeypatch):
    """A user who is there, with Vault's password; returns what was written, and how the state is applied."""
    found = SimpleNamespace(present={"email": "a@b.invalid"}, password="in Vault", written=[])
    salt = {
        "platform_secret.read": lambda path, key: "in Vault",
        "keycloak_admin.answers": lambda: True,
        "keycloak_admin.user": lambda realm, name: found.present,
        "keycloak_admin.user_roles": lambda realm, name: [{"name": "ai-user"}],
        "keycloak_admin.user_password_fits": lambda realm, name, password: password == found.password,
        "keycloak_admin.write_user": lambda *given: found.written.append(given),
    }
    monkeypatch.setattr(state, "__salt__", salt, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    found.apply = lambda **more: state.user_present(
        "c", "acme", {"email": "a@b.invalid"}, ["ai-user"], password="keycloak:check_password", **more
    )
    return found


def test_a_lasting_password_is_left_alone_while_it_fits(user):
    assert user.apply()["changes"] == {}
    assert user.written == []


def test_a_lasting_password_follows_the_one_in_vault(user):
    user.password = "the earlier one"
    ret = user.apply()
    assert (ret["result"], ret["changes"]) == (True, {"password": {"old": "as before", "new": "changed"}})
    assert user.written == [("acme", "c", {"email": "a@b.invalid"}, ["ai-user"], None, "in Vault")]


def test_a_dry_run_tells_of_a_user_to_be_made_without_asking_for_the_password(user, monkeypatch):
    monkeypatch.setitem(state.__opts__, "test", True)
    monkeypatch.setitem(state.__salt__, "platform_secret.read", None)
    user.present = None
    ret = user.apply()
    assert (ret["result"], ret["changes"]) == (None, {"user": {"old": None, "new": "present"}})
    assert user.written == []


@pytest.mark.parametrize(
    ("status", "error", "fits"),
    [(200, "", True), (401, "invalid_grant", False), (401, "unauthorized_client", True)],
)
def test_a_users_password_is_tried_at_keycloak(httpserver, monkeypatch, status, error, fits):
    monkeypatch.setattr(module, "__pillar__", {"keycloak": {"port": httpserver.port}}, raising=False)
    where = "/realms/acme/protocol/openid-connect/token"
    httpserver.expect_request(where).respond_with_json({"error": error}, status=status)
    assert module.user_password_fits("acme", "c", "p") is fits
    assert "password=p" not in httpserver.log[0][0].url


def test_a_client_may_send_people_back_to_its_own_name_only():
    found = keycloak.clients(PILLAR)
    assert found["open-webui"]["settings"]["redirectUris"] == ["https://ollama-ui.acme.example/oauth/oidc/callback"]
    assert found["open-webui"]["secret"] == "keycloak:client_secret"
    vault = found["vault"]["settings"]
    assert vault["redirectUris"] == [
        "https://vault.acme.example/ui/vault/auth/oidc/oidc/callback",
        "http://localhost:8250/oidc/callback",
    ]
    for client in found.values():
        assert client["settings"]["publicClient"] is False
        assert client["settings"]["directAccessGrantsEnabled"] is False


def client_of(service):
    client = {"service": service, "secret": "a:b", "redirects": ["/x"], "pkce": True}
    return PILLAR | {"keycloak": PILLAR["keycloak"] | {"clients": {"web": client}}}


def test_a_client_of_a_service_without_a_name_is_refused():
    with pytest.raises(PlatformError, match=r"no public name; where: services\.qdrant\.name"):
        keycloak.clients(client_of("qdrant"))


def test_a_site_without_the_service_has_no_client_for_it():
    assert keycloak.clients(client_of("unknown")) == {}


def test_what_is_absent_is_one_change():
    assert keycloak.differences(None, {"a": 1}, "realm") == {"realm": {"old": None, "new": "present"}}


@pytest.mark.parametrize(
    ("present", "wanted", "expected"),
    [
        ({"a": 1, "other": 2}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": {"old": 1, "new": 2}}),
        ({}, {"a": False}, {"a": {"old": None, "new": False}}),
        ({"redirectUris": ["y", "x"]}, {"redirectUris": ["x", "y"]}, {}),
        ({"redirectUris": ["x"]}, {"redirectUris": ["x", "y"]}, {"redirectUris": {"old": ["x"], "new": ["x", "y"]}}),
        ({"attributes": {"a": "1", "b": "2"}}, {"attributes": {"a": "1"}}, {}),
        ({"attributes": {"a": "1"}}, {"attributes": {"a": "2"}}, {"attributes.a": {"old": "1", "new": "2"}}),
        ({}, {"attributes": {"pkce": ""}}, {}),
        ({"secret": "old"}, {"secret": "new"}, {"secret": {"old": "as before", "new": "changed"}}),
    ],
)
def test_only_what_is_wanted_is_compared(present, wanted, expected):
    assert keycloak.differences(present, wanted, "client") == expected


def test_what_is_sent_keeps_what_is_not_declared():
    present = {"id": "1", "attributes": {"theirs": "x", "ours": "1"}, "enabled": False}
    wanted = {"attributes": {"ours": "2"}, "enabled": True}
    assert keycloak.merged(present, wanted) == {
        "id": "1",
        "attributes": {"theirs": "x", "ours": "2"},
        "enabled": True,
    }
    assert present["attributes"]["ours"] == "1"


def test_roles_that_an_administrator_added_stay():
    have = [{"name": "default-roles-acme"}, {"name": "ai-user"}]
    assert keycloak.missing_roles(have, ["ai-user"]) == {}
    assert keycloak.missing_roles(have, ["ai-admin"])["roles"]["new"] == ["ai-admin", "ai-user", "default-roles-acme"]


def test_roles_reach_the_id_token_too():
    assert keycloak.MAPPER["config"]["id.token.claim"] == "true"
    assert keycloak.MAPPER["config"]["claim.name"] == "realm_access.roles"


def test_the_earlier_password_is_read_as_the_shell_reads_it(tmp_path):
    path = tmp_path / "secrets.env"
    assert module.previous_admin_password(str(path)) == ""
    path.write_text("KC_DB_PASSWORD=x\nKC_BOOTSTRAP_ADMIN_PASSWORD='it'\"'\"'s/+='\n")
    assert module.previous_admin_password(str(path)) == "it's/+="


# -- the master's part --------------------------------------------------------------------------------------------


@pytest.fixture
def publish(monkeypatch):
    """The runner, with what Vault has at the path; returns how it is called."""
    kept = {"admin_password": "x"}

    def put(client, mount, path, values, test):
        assert (mount, path) == ("secret", "acme/keycloak")
        found = states.diff(kept, values)
        if not test:
            kept.update(values)
        return found

    monkeypatch.setattr(runner.settings, "load", lambda opts: PILLAR | {"vault": {"mount": "secret"}})
    monkeypatch.setattr(runner.vault_master, "client", lambda opts, pillar: "a client")
    monkeypatch.setattr(runner.vault_content, "put", put)
    monkeypatch.setattr(runner, "__opts__", {}, raising=False)
    monkeypatch.setattr(runner, "__context__", {}, raising=False)
    return kept


def test_the_address_of_the_realm_is_published_once(publish):
    url = "https://idm.acme.example/realms/acme/.well-known/openid-configuration"
    assert runner.publish(test=True)["result"] is None
    assert "oidc_url" not in publish
    assert runner.publish()["changes"] == {"oidc_url": {"old": None, "new": url}}
    assert publish == {"admin_password": "x", "oidc_url": url}
    assert runner.publish()["changes"] == {}


def test_a_vault_that_does_not_answer_fails_the_run_and_not_the_dry_run(publish, monkeypatch):
    def refuse(opts, pillar):
        raise PlatformError("Vault does not answer")

    monkeypatch.setattr(runner.vault_master, "client", refuse)
    assert runner.publish(test=True)["result"] is None
    assert runner.publish()["result"] is False
    assert runner.__context__["retcode"] == 1
