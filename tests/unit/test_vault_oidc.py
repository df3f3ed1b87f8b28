"""Sign-on to Vault: what is wanted, what differs, and what is written in which order to a Vault of the test's own."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import hvac
import pytest
from werkzeug import Request, Response

from _runners import vault_oidc as runner
from aiplatform import services, settings, vault_oidc
from aiplatform.errors import PlatformError
from tests.conftest import CHECKOUT

PATH = "secret/data/acme/vault-oidc"
SECRET = "of-the-client"
OWN = {
    "platform": {
        "name": "Acme AI",
        "slug": "acme",
        "domain": "acme.example",
        "hosts": {"box": {"address": "192.0.2.100", "roles": ["ai_server", "nginx_proxy"]}},
    }
}


def pillar(**more):
    merged = settings.effective(OWN | more, CHECKOUT / "salt")
    return merged | {"services": services.expand(merged)}


class Vault:
    """What a Vault holds, by path, and what was written to it in which order."""

    def __init__(self, httpserver) -> None:
        self.held: dict[str, dict] = {"sys/auth": {}, PATH: {"client_secret": SECRET}}
        self.written: list[str] = []
        self.refuses: dict[str, str] = {}
        httpserver.expect_request(re.compile("/v1/.*")).respond_with_handler(self.answer)
        self.client = hvac.Client(httpserver.url_for("").rstrip("/"), token="t")

    def answer(self, request: Request) -> Response:
        path = request.path.removeprefix("/v1/")
        if request.method in ("POST", "PUT"):
            return self.write(path, json.loads(request.data))
        found = self.held.get(path)
        if found is None:
            return Response('{"errors": []}', 404)
        if path == PATH:
            found = {"data": found, "metadata": {"version": 1}}
        return Response(json.dumps({"data": found}))

    def write(self, path: str, body: dict) -> Response:
        if path in self.refuses:
            return Response(json.dumps({"errors": [self.refuses[path]]}), 400)
        self.written.append(path)
        if path == "sys/auth/oidc":
            self.held["sys/auth"]["oidc/"] = {"type": body["type"]}
        elif path == PATH:
            self.held[path] = body["data"]
        else:
            self.held[path] = body
        return Response('{"data": {}}')


@pytest.fixture
def vault(httpserver):
    return Vault(httpserver)


def wanted(**more):
    return vault_oidc.wanted(pillar(**more), "AUTHORITY\n")


# -- what is wanted ------------------------------------------------------------------------------------------------


def test_the_realm_is_asked_by_its_public_name_and_its_authority_is_trusted():
    config = wanted().config
    assert config["oidc_discovery_url"] == "https://idm.acme.example/realms/acme"
    assert config["oidc_discovery_ca_pem"] == "AUTHORITY\n"
    assert config["oidc_client_id"] == "vault"
    assert "oidc_client_secret" not in config


def test_only_administrators_come_in_from_the_pages_and_the_command_line_and_not_for_long():
    role = wanted().role
    assert role["bound_claims"] == {"/realm_access/roles": ["ai-admin"]}
    assert role["token_policies"] == ["vault-admin"]
    assert (role["user_claim"], role["oidc_scopes"]) == ("sub", ["openid", "profile", "email"])
    assert (role["token_ttl"], role["token_max_ttl"]) == (4 * 3600, 8 * 3600)
    assert role["allowed_redirect_uris"] == [
        "https://vault.acme.example/ui/vault/auth/oidc/oidc/callback",
        "http://localhost:8250/oidc/callback",
    ]


def test_the_secret_is_named_and_not_held():
    found = wanted()
    assert (found.mount, found.path, found.key) == ("secret", "acme/vault-oidc", "client_secret")


@pytest.mark.parametrize(("given", "expected"), [(None, ""), ("  OWN\n\n", "OWN\n")])
def test_with_certificates_of_the_operators_his_authority_counts(vault, given, expected):
    nginx = {"nginx": {"certificate": {"mode": "files", "authority": given}}}
    assert vault_oidc.authority(vault.client, pillar(**nginx)) == expected


def test_without_them_it_is_vaults_own(vault):
    assert vault_oidc.authority(vault.client, pillar()) == ""
    vault.held["pki/cert/ca"] = {"certificate": "AUTHORITY"}
    assert vault_oidc.authority(vault.client, pillar()) == "AUTHORITY\n"


# -- what differs --------------------------------------------------------------------------------------------------


def test_of_an_empty_vault_all_differs_and_the_secret_is_not_shown(vault):
    found = vault_oidc.differences(vault.client, wanted())
    assert set(found) == {"login method oidc", "configuration", "role default"}
    assert found["configuration"]["oidc_client_secret"]["new"] == "the one in Vault"
    assert SECRET not in json.dumps(found)
    assert vault.written == []


def test_what_was_written_differs_no_more(vault):
    vault_oidc.write(vault.client, vault.client, wanted())
    assert vault_oidc.differences(vault.client, wanted()) == {}


def test_a_change_by_hand_is_named_with_both_values(vault):
    vault_oidc.write(vault.client, vault.client, wanted())
    vault.held["auth/oidc/role/default"]["bound_claims"] = {}
    found = vault_oidc.differences(vault.client, wanted())
    assert found == {
        "role default": {"bound_claims": {"old": {}, "new": {"/realm_access/roles": ["ai-admin"]}}},
    }


def test_a_secret_that_was_rotated_has_to_be_written(vault):
    vault_oidc.write(vault.client, vault.client, wanted())
    vault.held[PATH]["client_secret"] = "another"
    assert set(vault_oidc.differences(vault.client, wanted())["configuration"]) == {"oidc_client_secret"}


def test_another_method_in_its_place_is_refused_and_named(vault):
    vault.held["sys/auth"]["oidc/"] = {"type": "jwt"}
    with pytest.raises(PlatformError, match=r"auth/oidc/.*expected: oidc.*actual: jwt.*vault auth move"):
        vault_oidc.differences(vault.client, wanted())


@pytest.mark.parametrize("held", [{}, {"client_secret": ""}])
def test_a_client_without_a_secret_is_an_error_that_says_who_makes_it(vault, held):
    vault.held[PATH] = held
    for step in (vault_oidc.differences, lambda client, sign_on: vault_oidc.write(client, client, sign_on)):
        with pytest.raises(PlatformError, match=r"no secret yet.*acme/vault-oidc, key client_secret.*bootstrap"):
            step(vault.client, wanted())
    assert vault.written == []


# -- what is written -----------------------------------------------------------------------------------------------


def test_the_method_comes_first_and_the_note_of_the_secret_last(vault):
    vault_oidc.write(vault.client, vault.client, wanted())
    assert vault.written == ["sys/auth/oidc", "auth/oidc/config", "auth/oidc/role/default", PATH]
    assert vault.held["auth/oidc/config"]["oidc_client_secret"] == SECRET
    kept = vault.held[PATH]
    assert kept["client_secret"] == SECRET
    assert kept["client_secret_in_use"] not in ("", SECRET)


def test_a_method_that_is_there_is_not_mounted_again(vault):
    vault.held["sys/auth"]["oidc/"] = {"type": "oidc"}
    vault_oidc.write(vault.client, vault.client, wanted())
    assert vault.written[0] == "auth/oidc/config"


def test_a_realm_that_vault_does_not_reach_is_told_and_the_secret_counts_as_not_written(vault):
    vault.refuses["auth/oidc/config"] = "error checking oidc discovery URL"
    with pytest.raises(PlatformError, match=r"idm\.acme\.example.*error checking oidc discovery URL.*journalctl"):
        vault_oidc.write(vault.client, vault.client, wanted())
    assert "client_secret_in_use" not in vault.held[PATH]
    assert "auth/oidc/role/default" not in vault.held


# -- the runner ----------------------------------------------------------------------------------------------------


@pytest.fixture
def master(monkeypatch, vault, tmp_path):
    """The runner on a master whose Vault is the test's; what happened to root rights, in order."""
    happened: list[str] = []
    keys = tmp_path / "keys"

    @contextmanager
    def root_rights(url, trust, _store):
        assert (url, trust) == (vault.client.url, str(keys / "ca.pem"))
        happened.append("root")
        yield vault.client
        happened.append("no root")

    monkeypatch.setattr(runner, "__opts__", {}, raising=False)
    monkeypatch.setattr(runner, "__context__", {}, raising=False)
    monkeypatch.setattr(runner.settings, "load", lambda _opts: pillar(vault={"key_store": str(keys)}))
    monkeypatch.setattr(runner.vault_master, "client", lambda *_args: vault.client)
    monkeypatch.setattr(runner.vault_bootstrap, "root_rights", root_rights)
    monkeypatch.setattr(runner.vault_bootstrap, "forget_root", lambda *_args: happened.append("forgotten"))
    return happened


def test_the_runner_writes_what_differs_with_root_rights_that_it_gives_back(master, vault):
    answer = runner.configure()
    assert (answer["result"], runner.__context__["retcode"]) == (True, 0)
    assert set(answer["changes"]) == {"login method oidc", "configuration", "role default"}
    assert master == ["root", "no root", "forgotten"]
    assert SECRET not in json.dumps(answer)


def test_a_second_run_needs_no_root_rights(master):
    runner.configure()
    master.clear()
    assert runner.configure() == runner.configure(test=True)
    assert runner.configure()["changes"] == {}
    assert master == []


def test_a_dry_run_says_the_same_and_writes_nothing(master, vault):
    dry = runner.configure(test=True)
    assert (dry["result"], vault.written, master) == (None, [], [])
    assert dry["changes"] == runner.configure()["changes"]


def test_before_there_is_a_vault_a_dry_run_says_so_and_a_run_fails(master, monkeypatch):
    def none(*_args):
        raise PlatformError("Vault does not answer")

    monkeypatch.setattr(runner.vault_master, "client", none)
    dry = runner.configure(test=True)
    assert (dry["result"], dry["changes"]) == (None, {"sign-on": {"old": None, "new": "set up"}})
    answer = runner.configure()
    assert (answer["result"], runner.__context__["retcode"]) == (False, 1)
    assert "Vault does not answer" in answer["comment"]


def test_a_failed_write_leaves_the_root_token_to_the_next_run(master, vault):
    vault.refuses["auth/oidc/config"] = "error checking oidc discovery URL"
    answer = runner.configure()
    assert (answer["result"], runner.__context__["retcode"]) == (False, 1)
    assert "forgotten" not in master
