"""The states of Keycloak against a real one on loopback: what they make, that they make it once, what it does then."""

from __future__ import annotations

import base64
import json
import os
import signal
from contextlib import suppress
from unittest.mock import Mock

import pytest
import requests

from _modules import keycloak_admin as module
from _states import keycloak as state
from aiplatform import keycloak, settings, wait
from aiplatform.errors import PlatformError
from lab import packages
from tests.conftest import CHECKOUT
from tests.functional.local_server import free_port, launch, program

REALM = "acme"
SECRETS = {
    "keycloak:admin_password": "first-Admin-password-1",
    "keycloak:check_password": "check-Password-1",
    "keycloak:client_secret": "c1" * 16,
    "keycloak:realm_admin_password": "first-User-password-1",
    "vault-oidc:client_secret": "d1" * 16,
}
NAMES = [
    name for name, one in vars(module).items() if callable(one) and getattr(one, "__module__", "") == module.__name__
]


def pillar(port):
    found = settings.read_yaml(CHECKOUT / "salt/keycloak/defaults.yaml")
    found["keycloak"]["port"] = port
    rows = {"keycloak": "idm", "openwebui": "ollama-ui", "vault": "vault"}
    return found | {
        "platform": {"name": "Acme AI", "slug": REALM, "domain": "acme.example", "hosts": {}},
        "services": {name: {"name": label} for name, label in rows.items()},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Keycloak in production mode, with a database of its own in a file; gives its port."""
    script = program("Keycloak", "AI_PLATFORM_KEYCLOAK", packages.keycloak_root() / "bin/kc.sh")
    folder = tmp_path_factory.mktemp("keycloak")
    port = free_port()
    env = {
        "KC_HTTP_ENABLED": "true",
        "KC_HTTP_HOST": "127.0.0.1",
        "KC_HTTP_PORT": str(port),
        "KC_HTTP_MANAGEMENT_PORT": str(free_port()),
        "KC_HOSTNAME": "https://idm.acme.example",
        "KC_PROXY_HEADERS": "xforwarded",
        "KC_CACHE": "local",
        "KC_DB_URL": f"jdbc:h2:file:{folder}/database;NON_KEYWORDS=VALUE",
        "KC_BOOTSTRAP_ADMIN_USERNAME": "admin",
        "KC_BOOTSTRAP_ADMIN_PASSWORD": SECRETS["keycloak:admin_password"],
        "JAVA_OPTS_APPEND": "-XX:TieredStopAtLevel=1",
    }
    process = launch([script, "start", "--optimized"], folder / "log", os.environ | env)
    try:
        wait.until(lambda: process.poll() is not None or answers(port), 180, 0.5, "Keycloak")
        assert answers(port), (folder / "log").read_text()[-3000:]
        yield port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answers(port):
    try:
        return requests.get(f"http://127.0.0.1:{port}/realms/master", timeout=5).ok
    except requests.RequestException:
        return False


def claims_of(token):
    """What an ID token says; its signature is the server's business."""
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


@pytest.fixture
def secrets():
    """What Vault holds."""
    return dict(SECRETS)


@pytest.fixture(scope="module")
def note(tmp_path_factory):
    return tmp_path_factory.mktemp("note") / "first-user.json"


@pytest.fixture
def states(server, secrets, monkeypatch, note):
    """The state functions, with the module behind them and the secrets of the test."""
    read = Mock(side_effect=lambda path, key: secrets[f"{path}:{key}"])
    functions = {f"keycloak_admin.{name}": getattr(module, name) for name in NAMES}
    options = {"test": False}
    monkeypatch.setattr(keycloak, "FIRST_USER_NOTE", note)
    for one in (module, state):
        monkeypatch.setattr(one, "__pillar__", pillar(server), raising=False)
        monkeypatch.setattr(one, "__salt__", functions | {"platform_secret.read": read}, raising=False)
        monkeypatch.setattr(one, "__context__", {}, raising=False)
        monkeypatch.setattr(one, "__opts__", options, raising=False)
    return state


def converge():
    """What the formula declares, in its order; returns the states' returns by what they are about."""
    site = module.site()
    wanted = pillar(0)["keycloak"]
    found = {"master": state.realm_present("master", wanted["brute_force"])}
    found["realm"] = state.realm_present(site["realm"], site["settings"])
    for name, text in wanted["roles"].items():
        found[f"role {name}"] = state.role_present(name, REALM, text)
    for name, client in site["clients"].items():
        found[f"client {name}"] = state.client_present(name, REALM, client["settings"], client["secret"])
        found[f"mapper {name}"] = state.mapper_present("realm roles", REALM, name, site["mapper"])
    user = site["user"]
    first = "keycloak:realm_admin_password"
    found["user"] = state.first_user_present(user["name"], REALM, user["settings"], user["roles"], first)
    for who, one in site["check_people"].items():
        found[who] = state.user_present(
            one["name"], REALM, one["settings"], one["roles"], password=site["check_password"]
        )
    return found


def test_a_dry_run_tells_all_and_makes_nothing(states, monkeypatch):
    monkeypatch.setitem(state.__opts__, "test", True)
    assert {key: ret["result"] for key, ret in converge().items()} == dict.fromkeys(converge(), None)
    assert module.realm(REALM) is None


def test_the_first_run_makes_it_and_the_second_changes_nothing(states):
    made = converge()
    assert {ret["result"] for ret in made.values()} == {True}, made
    assert all(ret["changes"] for ret in made.values()), made
    again = converge()
    assert {key: ret["changes"] for key, ret in again.items()} == {key: {} for key in again}
    assert not [secret for secret in SECRETS.values() if secret in str(made) + str(again)]


def test_what_somebody_changed_by_hand_comes_back_and_the_rest_stays(states):
    module.write_realm(REALM, {"bruteForceProtected": False, "displayNameHtml": "<b>ours</b>"})
    module.write_client(REALM, "open-webui", {"redirectUris": ["https://evil.example/*"]}, "another")
    found = {key: ret["changes"] for key, ret in converge().items() if ret["changes"]}
    assert found["realm"] == {"bruteForceProtected": {"old": False, "new": True}}
    assert set(found["client open-webui"]) == {"redirectUris", "secret"}
    assert len(found) == 2
    assert "another" not in str(found)
    assert module.realm(REALM)["displayNameHtml"] == "<b>ours</b>"


def token(server, username, password, client="open-webui", secret=SECRETS["keycloak:client_secret"]):
    """Ask for tokens with a password; the clients do not allow it, so the test lets it be for the moment."""
    form = {"grant_type": "password", "client_id": client, "client_secret": secret, "scope": "openid"}
    url = f"http://127.0.0.1:{server}/realms/{REALM}/protocol/openid-connect/token"
    return requests.post(url, data=form | {"username": username, "password": password}, timeout=30)


@pytest.fixture
def direct(states):
    """The client with the direct grant, by which a test can sign in without a browser."""
    module.write_client(REALM, "open-webui", {"directAccessGrantsEnabled": True}, SECRETS["keycloak:client_secret"])
    yield
    converge()


def sign_up(name, roles):
    details = {"enabled": True, "email": f"{name}@acme.example", "firstName": name, "lastName": "Test"}
    module.write_user(REALM, name, details, roles)
    admin = module._admin(REALM)
    admin.set_user_password(admin.get_user_id(name), "right-Password-22", temporary=False)


@pytest.mark.parametrize(("name", "roles"), [("jane", ["ai-user"]), ("ada", ["ai-admin"]), ("nobody", [])])
def test_the_id_token_says_the_roles_and_is_never_without_any(server, direct, name, roles):
    sign_up(name, roles)
    reply = token(server, name, "right-Password-22")
    assert reply.status_code == 200, reply.text
    claims = claims_of(reply.json()["id_token"])
    held = claims["realm_access"]["roles"]
    assert {role for role in held if role.startswith("ai-")} == set(roles)
    assert f"default-roles-{REALM}" in held
    assert claims["iss"] == f"https://idm.acme.example/realms/{REALM}"


def test_the_first_user_has_to_change_the_password(server, direct):
    reply = token(server, f"{REALM}-admin", SECRETS["keycloak:realm_admin_password"])
    assert reply.status_code == 400
    assert "Account is not fully set up" in reply.text
    assert module.user(REALM, f"{REALM}-admin")["requiredActions"] == ["UPDATE_PASSWORD"]


def test_the_first_users_password_follows_the_one_in_vault_until_it_was_changed(states, secrets):
    name, first = f"{REALM}-admin", SECRETS["keycloak:realm_admin_password"]
    assert module.user_password_fits(REALM, name, first)
    secrets["keycloak:realm_admin_password"] = "somebody rotated it"
    assert set(converge()["user"]["changes"]) == {"password"}
    assert module.user_password_fits(REALM, name, "somebody rotated it")
    assert module.user(REALM, name)["requiredActions"] == ["UPDATE_PASSWORD"]
    assert converge()["user"]["changes"] == {}


def test_a_password_of_the_first_user_is_not_touched_again(states, secrets):
    secrets["keycloak:realm_admin_password"] = "it was rotated again"
    module.write_user(REALM, f"{REALM}-admin", {"requiredActions": []}, [], password="the person's own choice")
    assert converge()["user"]["changes"] == {}
    assert module.user_password_fits(REALM, f"{REALM}-admin", "the person's own choice")


def test_a_first_user_who_has_left_does_not_come_back(states, monkeypatch):
    name, admin = f"{REALM}-admin", module._admin(REALM)
    module.write_user(REALM, name, {"enabled": False, "requiredActions": []}, [])
    assert converge()["user"]["changes"] == {}
    assert module.user(REALM, name)["enabled"] is False
    admin.delete_user(admin.get_user_id(name))
    assert converge()["user"]["changes"] == {}
    assert module.user(REALM, name) is None
    # Nor where there is no note yet, and somebody else administers.
    keycloak.FIRST_USER_NOTE.unlink()
    sign_up("other", ["ai-admin"])
    assert "other" in module.role_holders(REALM, "ai-admin")
    assert set(converge()["user"]["changes"]) == {"noted"}
    assert module.user(REALM, name) is None
    site = module.site()
    monkeypatch.setattr(module, "site", lambda: site | {"user": site["user"] | {"name": "successor"}})
    assert converge()["user"]["changes"] == {
        "user": {"old": None, "new": "present"},
        "noted": {"old": name, "new": "successor"},
    }
    assert converge()["user"]["changes"] == {}
    assert module.user(REALM, "successor")["requiredActions"] == ["UPDATE_PASSWORD"]
    assert keycloak.noted_first_user(module.realm(REALM)) == "successor"


@pytest.mark.parametrize(("name", "roles"), [("check", {"ai-user"}), ("check-no-role", set())])
def test_the_verifications_people_sign_in_at_once_with_their_role_alone(server, direct, name, roles):
    reply = token(server, f"{REALM}-{name}", SECRETS["keycloak:check_password"])
    assert reply.status_code == 200, reply.text
    held = set(claims_of(reply.json()["id_token"])["realm_access"]["roles"])
    assert held & set(pillar(0)["keycloak"]["roles"]) == roles


def test_the_verifications_password_follows_the_one_in_vault(states, secrets):
    secrets["keycloak:check_password"] = "check-Password-2"
    found = {key: ret["changes"] for key, ret in converge().items() if ret["changes"]}
    assert found == {who: {"password": {"old": "as before", "new": "changed"}} for who in ("member", "stranger")}
    assert module.user_password_fits(REALM, f"{REALM}-check", "check-Password-2")
    secrets["keycloak:check_password"] = SECRETS["keycloak:check_password"]
    assert set(converge()["member"]["changes"]) == {"password"}


def test_guessing_locks_even_the_right_password_out(server, direct):
    sign_up("victim", ["ai-user"])
    assert [token(server, "victim", "wrong").status_code for _ in range(2)] == [401, 401]
    reply = token(server, "victim", "right-Password-22")
    assert reply.status_code == 401
    assert "Invalid user credentials" in reply.text


def test_a_check_person_whom_somebody_locked_out_is_let_in_again(server, direct, monkeypatch):
    name = f"{REALM}-check"
    assert [token(server, name, "wrong").status_code for _ in range(2)] == [401, 401]
    monkeypatch.setitem(state.__opts__, "test", True)
    foreseen = converge()["member"]["changes"]
    assert foreseen.keys() == {"lock"}
    assert token(server, name, SECRETS["keycloak:check_password"]).status_code == 401
    monkeypatch.setitem(state.__opts__, "test", False)
    assert converge()["member"]["changes"] == foreseen
    assert module.user_password_fits(REALM, name, SECRETS["keycloak:check_password"])
    assert converge()["member"]["changes"] == {}


def test_the_client_takes_a_changed_secret(server, direct, secrets):
    secrets["keycloak:client_secret"] = "e2" * 16
    assert set(converge()["client open-webui"]["changes"]) >= {"secret"}
    assert module.client_secret_fits(REALM, "open-webui", "e2" * 16)


def test_a_new_password_of_the_administrator_reaches_keycloak(states, secrets, tmp_path, monkeypatch):
    old, new = secrets["keycloak:admin_password"], "second-Admin-password-2"
    kept = tmp_path / "keycloak-admin"
    kept.write_text(old)

    def rotate():
        return state.admin_password("admin", "keycloak:admin_password", str(kept))

    assert rotate()["changes"] == {}
    secrets["keycloak:admin_password"] = new
    monkeypatch.setitem(state.__opts__, "test", True)
    assert rotate()["result"] is None
    assert module.admin_password_fits(old)
    monkeypatch.setitem(state.__opts__, "test", False)
    assert rotate()["changes"] == {"password": {"old": "as before", "new": "changed"}}
    assert module.admin_password_fits(new)
    assert not module.admin_password_fits(old)
    assert rotate()["changes"] == {}
    module.change_admin_password(new, old)


def test_an_administrator_whose_password_nobody_knows_is_an_error_that_helps(states, secrets, tmp_path):
    kept = tmp_path / "keycloak-admin"
    kept.write_text("neither")
    secrets["keycloak:admin_password"] = "nor this one"
    ret = state.admin_password("admin", "keycloak:admin_password", str(kept))
    assert ret["result"] is False
    assert "takes neither" in ret["comment"]
    with pytest.raises(PlatformError, match="refuses its administrator's password"):
        module.realm(REALM)


def test_the_vault_client_may_come_back_to_its_command_line(states):
    client = keycloak.clients(pillar(0))["vault"]["settings"]
    assert "http://localhost:8250/oidc/callback" in client["redirectUris"]
