"""Keycloak's realm out of pillar, and what differs from it."""

from __future__ import annotations

import stat
from types import SimpleNamespace

import pytest

from _modules import keycloak_admin as module
from _runners import keycloak as runner
from _states import keycloak as state
from aiplatform import keycloak, secret_text, settings, states
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


def test_clients_have_one_flow_and_their_own_page_as_origin():
    for name, label in (("open-webui", "ollama-ui"), ("vault", "vault")):
        found = keycloak.clients(PILLAR)[name]["settings"]
        assert found["webOrigins"] == [f"https://{label}.acme.example"]
        assert (found["publicClient"], found["standardFlowEnabled"]) == (False, True)
        flows = ("implicitFlowEnabled", "directAccessGrantsEnabled", "serviceAccountsEnabled")
        assert not any(found[flow] for flow in flows)


@pytest.fixture
def user(monkeypatch, tmp_path):
    """A user who is there, with Vault's password; returns what was written, and how the state is applied."""
    found = SimpleNamespace(present={"email": "a@b.invalid"}, locked=False, password="in Vault", written=[], holders=[])
    salt = {
        "platform_secret.read": lambda path, key: "in Vault",
        "keycloak_admin.answers": lambda: True,
        "keycloak_admin.user": lambda realm, name: found.present,
        "keycloak_admin.realm": lambda realm: {"id": "1"},
        "keycloak_admin.role_holders": lambda realm, role: found.holders,
        "keycloak_admin.user_roles": lambda realm, name: [{"name": "ai-user"}],
        "keycloak_admin.user_locked": lambda realm, name: found.locked,
        "keycloak_admin.user_password_fits": lambda realm, name, password: password == found.password,
        "keycloak_admin.write_user": lambda *given: found.written.append(given),
    }
    monkeypatch.setattr(state, "__salt__", salt, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    monkeypatch.setattr(state, "__pillar__", PILLAR, raising=False)
    monkeypatch.setattr(keycloak, "FIRST_USER_NOTE", tmp_path / "made/first-user.json")
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


@pytest.mark.parametrize("test", [True, False])
def test_whom_guesses_have_locked_out_is_let_in_again_and_no_password_is_tried(user, monkeypatch, test):
    monkeypatch.setitem(state.__opts__, "test", test)
    monkeypatch.setitem(state.__salt__, "keycloak_admin.user_password_fits", None)
    user.locked = True
    ret = user.apply()
    assert ret["result"] is (None if test else True)
    assert ret["changes"] == {"lock": {"old": "locked out by wrong passwords", "new": "let in again"}}
    assert len(user.written) == (0 if test else 1)


@pytest.mark.parametrize("actions", [[], ["UPDATE_PASSWORD"]])
def test_a_first_password_follows_the_one_in_vault_until_it_was_changed(user, actions):
    def apply():
        return state.first_user_present("c", "acme", {}, ["ai-user"], "keycloak:realm_admin_password")

    user.present["requiredActions"] = actions
    keycloak.note_first_user({"id": "1"}, "c")
    assert apply()["changes"] == {}
    user.password = "the earlier one, or a person's own"
    assert set(apply()["changes"]) == ({"password"} if actions else set())
    assert user.written == ([("acme", "c", {}, ["ai-user"], "in Vault", None)] if actions else [])


def first_user_applied():
    return state.first_user_present("c", "acme", {"enabled": True}, ["ai-admin"], "keycloak:realm_admin_password")


SIGNED_IN = {"enabled": True, "requiredActions": []}
AWAITED = {"enabled": True, "requiredActions": ["UPDATE_PASSWORD"]}
DISABLED = AWAITED | {"enabled": False}


@pytest.mark.parametrize(
    ("present", "noted", "holders", "made"),
    [
        (None, None, [], True),  # a first deploy
        (None, None, ["acme-check"], True),
        (None, None, ["ada"], False),  # deleted before there was a note
        (None, "c", [], False),  # deleted
        (None, "b", ["ada"], True),  # another name in pillar
        (AWAITED, None, [], True),  # interrupted
        (AWAITED, "c", [], True),
        (DISABLED, "c", [], False),
        (DISABLED, None, [], False),
        (SIGNED_IN, "c", [], False),
        (SIGNED_IN, None, [], False),
        (SIGNED_IN, "b", [], False),  # pillar names somebody who is there already
    ],
)
def test_the_first_user_is_made_once_and_then_a_persons_own(user, present, noted, holders, made):
    user.present, user.holders = present, holders
    if noted:
        keycloak.note_first_user({"id": "1"}, noted)
    first_user_applied()
    assert (bool(user.written), keycloak.noted_first_user({"id": "1"})) == (made, "c")
    # A realm that was made anew has had nobody.
    assert keycloak.noted_first_user({"id": "2"}) is None
    assert stat.S_IMODE(keycloak.FIRST_USER_NOTE.stat().st_mode) == 0o600


@pytest.mark.parametrize("present", [SIGNED_IN, None])
def test_the_note_of_an_earlier_first_user_is_a_change_of_its_own(user, monkeypatch, present):
    user.present, user.holders = present, ["ada"]
    monkeypatch.setitem(state.__opts__, "test", True)
    assert first_user_applied()["changes"] == {"noted": {"old": None, "new": "c"}}
    monkeypatch.setitem(state.__opts__, "test", False)
    assert first_user_applied()["changes"] == {"noted": {"old": None, "new": "c"}}
    assert first_user_applied()["changes"] == {}
    assert user.written == []


def test_a_dry_run_tells_of_a_user_to_be_made_without_asking_for_the_password(user, monkeypatch):
    monkeypatch.setitem(state.__opts__, "test", True)
    monkeypatch.setitem(state.__salt__, "platform_secret.read", None)
    user.present = None
    ret = user.apply()
    assert (ret["result"], ret["changes"]) == (None, {"user": {"old": None, "new": "present"}})
    assert user.written == []


class Admin:
    """Keycloak's admin API before one user, locked out for guesses or not; remembers what it was told."""

    def __init__(self):
        self.locked, self.told = False, []

    def change_current_realm(self, realm):
        pass

    def get_user_id(self, name):
        return f"number of {name}"

    def get_bruteforce_detection_status(self, identity):
        return {"disabled": self.locked, "numFailures": 0}

    def __getattr__(self, name):
        return lambda *given, **more: self.told.append((name, *given, *more.values()))


@pytest.fixture
def admin(monkeypatch, httpserver):
    found = Admin()
    monkeypatch.setattr(module, "__pillar__", {"keycloak": {"port": httpserver.port}}, raising=False)
    monkeypatch.setattr(module, "__context__", {"keycloak_admin.client": found}, raising=False)
    monkeypatch.setattr(module, "__opts__", {"test": False}, raising=False)
    return found


TOKEN = "/realms/acme/protocol/openid-connect/token"


@pytest.mark.parametrize(
    ("status", "error", "fits"),
    [(200, "", True), (401, "invalid_grant", False), (401, "unauthorized_client", True), (400, "invalid_grant", True)],
)
def test_a_users_password_is_tried_at_keycloak(httpserver, admin, status, error, fits):
    httpserver.expect_request(TOKEN).respond_with_json({"error": error}, status=status)
    assert module.user_password_fits("acme", "c", "p") is fits
    assert "password=p" not in httpserver.log[0][0].url
    assert admin.told == []


@pytest.mark.parametrize("locked", [True, False])
def test_keycloak_is_asked_whether_guesses_have_locked_somebody_out(admin, locked):
    admin.locked = locked
    assert module.user_locked("acme", "c") is locked
    assert admin.told == []


def test_whom_guesses_have_locked_out_is_let_in_again_when_written(admin):
    admin.get_user = lambda identity: {"id": identity, "enabled": True}
    assert module.write_user("acme", "c", {}, [], password="p")
    assert ("clear_bruteforce_attempts_for_user", "number of c") in admin.told


@pytest.mark.parametrize("first", [None, "first"])
def test_who_is_given_no_password_stays_locked_out(admin, first):
    admin.get_user = lambda identity: {"id": identity, "enabled": True, "requiredActions": []}
    assert module.write_user("acme", "c", {}, [], first)
    assert "clear_bruteforce_attempts_for_user" not in {given[0] for given in admin.told}


def test_a_password_that_cannot_be_read_is_not_tried(admin, monkeypatch):
    monkeypatch.setattr(module, "KeycloakAdmin", None)
    with pytest.raises(PlatformError, match="cannot be read"):
        module.admin_password_fits(secret_text.UNKNOWN)


@pytest.mark.parametrize(("actions", "told"), [(["UPDATE_PASSWORD"], ["first"]), ([], [])])
def test_a_first_password_is_written_until_it_was_changed(admin, actions, told):
    admin.get_user = lambda identity: {"id": identity, "enabled": True, "requiredActions": actions}
    assert module.write_user("acme", "c", {}, [], "first")
    assert [given[2] for given in admin.told if given[0] == "set_user_password"] == told


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


@pytest.fixture
def administrator(monkeypatch, tmp_path):
    """Keycloak's administrator, whose password in Vault is new; what the host keeps, and how the state is applied."""
    found = SimpleNamespace(up=True, password="old", kept=tmp_path / "keycloak-admin")
    found.kept.write_text("old")

    def fits(password):
        if not found.up:
            raise PlatformError("Keycloak does not do what it is asked")
        return password == found.password

    salt = {
        "platform_secret.read": lambda path, key: "new",
        "keycloak_admin.answers": lambda: found.up,
        "keycloak_admin.admin_password_fits": fits,
        "keycloak_admin.change_admin_password": lambda old, new: setattr(found, "password", new),
    }
    monkeypatch.setattr(state, "__salt__", salt, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    monkeypatch.setattr(state, "__pillar__", PILLAR, raising=False)
    monkeypatch.setattr(keycloak, "FIRST_USER_NOTE", tmp_path / "made/first-user.json")
    found.apply = lambda: state.admin_password("admin", "keycloak:admin_password", str(found.kept))
    return found


def test_a_new_password_of_the_administrator_is_no_secret_of_the_states(administrator):
    ret = administrator.apply()
    assert (ret["result"], ret["changes"]) == (True, {"password": {"old": "as before", "new": "changed"}})
    assert administrator.password == "new"
    # As after a run that was killed before the file was written.
    assert administrator.apply()["changes"] == {}


def test_the_administrators_password_is_not_given_up_for_a_keycloak_that_does_not_answer(administrator):
    """The file with the password that Keycloak has is written by the next state, which does not run then."""
    administrator.up = False
    assert administrator.apply()["result"] is False
    state.__opts__["test"] = True
    ret = administrator.apply()
    assert (ret["result"], set(ret["changes"])) == (None, {"password"})
    administrator.kept.write_text("new")
    assert administrator.apply()["changes"] == {}


@pytest.mark.parametrize("kept", ["", "neither"])
def test_a_password_that_nobody_knows_is_an_error_that_helps(administrator, kept):
    administrator.kept.write_text(kept)
    assert "docs/keycloak.md" in administrator.apply()["comment"]
    assert administrator.password == "old"
    administrator.kept.unlink()
    administrator.password = "new"
    assert administrator.apply()["changes"] == {}, "a Keycloak that has just been made has it"


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


@pytest.fixture
def in_vault(monkeypatch):
    """What Vault has at ``keycloak``, as the master reads it."""
    kept = {"realm_admin_password": "for the first user", "admin_password": "for the console"}
    asked = []

    def read(client, mount, path):
        asked.append((client, mount, path))
        return dict(kept)

    monkeypatch.setattr(runner.settings, "load", lambda opts: PILLAR | {"vault": {"mount": "secret"}})
    monkeypatch.setattr(runner.vault_master, "client", lambda opts, pillar: "the master's login")
    monkeypatch.setattr(runner.vault_content, "read", read)
    monkeypatch.setattr(runner, "__opts__", {}, raising=False)
    monkeypatch.setattr(runner, "__context__", {}, raising=False)
    yield kept
    assert set(asked) <= {("the master's login", "secret", "acme/keycloak")}


@pytest.mark.parametrize(
    ("console", "user", "key"),
    [(False, "acme-admin", "realm_admin_password"), (True, "admin", "admin_password")],
)
def test_the_first_password_is_in_the_file_and_in_no_answer(in_vault, tmp_path, capsys, console, user, key):
    file = tmp_path / "password"
    runner.__opts__["fun"] = "runner.keycloak.first_password"
    answer = runner.first_password(file=str(file), console=console)
    assert file.read_text() == f"{in_vault[key]}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shown = capsys.readouterr().out
    assert answer["data"] == {"retcode": 0, "user": user, "file": str(file)}
    assert (user in shown, str(file) in shown, in_vault[key] in shown) == (True, True, False)


def test_without_a_file_the_terminal_shows_the_first_password(in_vault, tmp_path, monkeypatch):
    terminal = tmp_path / "tty"
    terminal.touch()
    monkeypatch.setattr(runner.shown_once, "TERMINAL", terminal)
    assert runner.first_password() == {"retcode": 0, "user": "acme-admin", "file": None}
    assert terminal.read_text() == "for the first user\n"


def test_a_file_that_is_there_is_left_alone_and_a_password_that_is_not_is_said(in_vault, tmp_path):
    file = tmp_path / "password"
    file.write_text("mine")
    assert "new file" in runner.first_password(file=str(file))["error"]
    assert file.read_text() == "mine"
    in_vault.clear()
    assert "vault_server.bootstrap" in runner.first_password(file=str(tmp_path / "other"))["error"]
    assert not (tmp_path / "other").exists()
    assert runner.__context__["retcode"] == 1
