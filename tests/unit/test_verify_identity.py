"""The checks of PostgreSQL and Keycloak: all well, and each fault by its name."""

from __future__ import annotations

import http.client

import pytest
from salt.exceptions import CommandExecutionError
from werkzeug import Response

from aiplatform import checks, settings, verify_keycloak, verify_postgres
from tests.conftest import CHECKOUT

PILLAR = {
    **settings.read_yaml(CHECKOUT / "salt/keycloak/defaults.yaml"),
    "postgres": {"databases": ["keycloak", "openwebui"]},
    "platform": {
        "slug": "acme",
        "name": "Acme",
        "domain": "acme.example",
        "hosts": {"box": {"address": "127.0.0.1", "roles": ["ai_server"]}},
    },
    "vault": {"host": None},
    "services": {
        "postgres": {"name": None},
        "keycloak": {"name": "idm"},
        "openwebui": {"name": "ollama-ui"},
        "vault": {"name": "vault"},
    },
    "roles": ["ai_server"],
}
REALM = "/realms/acme"
SIGN_ON = f"https://idm.acme.example{REALM}/protocol/openid-connect/auth?client_id=vault"
FORM = f'<form action="https://idm.acme.example{REALM}/login-actions/authenticate?code=1">'
FINE = {
    "vault.query": lambda _method, _path, payload: {"data": {"auth_url": SIGN_ON}},
    "platform_postgres.sign_in": lambda name: f"{name} in database {name}",
    "keycloak_admin.administrator_signs_in": lambda: True,
    "keycloak_admin.issuer": lambda: "https://idm.acme.example/realms/acme",
    "keycloak_admin.client_state": lambda name: "its secret fits",
}


@pytest.fixture(autouse=True)
def site(httpserver, monkeypatch):
    """A chat and a Keycloak, whose TLS is left out; returns what can be made to answer otherwise."""

    class Plain(http.client.HTTPConnection):
        def __init__(self, host, timeout, context):
            assert (host, context.check_hostname) == ("idm.acme.example", True)
            super().__init__("127.0.0.1", httpserver.port, timeout=timeout)

    monkeypatch.setattr(http.client, "HTTPSConnection", Plain)
    monkeypatch.setitem(PILLAR["services"], "openwebui", {"name": "ollama-ui", "port": httpserver.port})
    found = {"way": SIGN_ON, "page": FORM}
    httpserver.expect_request("/oauth/oidc/login").respond_with_handler(
        lambda _: Response("", 302, {"Location": found["way"]}) if found["way"] else Response("down", 503)
    )
    httpserver.expect_request(f"{REALM}/protocol/openid-connect/auth").respond_with_handler(
        lambda _: Response(found["page"], 200 if found["page"] else 400)
    )
    return found


def findings(pillar=PILLAR, **answers):
    changed = {name.replace("__", "."): value for name, value in answers.items()}
    host = checks.Host("box", pillar, {}, FINE | changed, {})
    made = verify_postgres.checks(host) | verify_keycloak.checks(host)
    return {name: checks.run(name, check) for name, check in made.items()}


def test_all_is_well():
    assert {name: finding.ok for name, finding in findings().items()} == dict.fromkeys(
        [
            "postgres_keycloak",
            "postgres_openwebui",
            "keycloak_admin",
            "keycloak_realm",
            "keycloak_client_open-webui",
            "keycloak_client_vault",
            "sign_on_chat",
            "sign_on_vault",
        ],
        True,
    )


@pytest.mark.parametrize(
    ("function", "answer", "check"),
    [
        ("platform_postgres__sign_in", lambda name: "postgres in database keycloak", "postgres_keycloak"),
        ("keycloak_admin__administrator_signs_in", lambda: False, "keycloak_admin"),
        ("keycloak_admin__issuer", lambda: "http://127.0.0.1:8180/realms/acme", "keycloak_realm"),
        ("keycloak_admin__client_state", lambda name: "it has another secret than Vault", "keycloak_client_vault"),
    ],
)
def test_a_fault_is_found(function, answer, check):
    assert not findings(**{function: answer})[check].ok


@pytest.mark.parametrize("changed", [{"roles": ["nginx_proxy"]}, {"services": {}}])
def test_other_hosts_and_sites_have_nothing_to_prove(changed):
    assert findings(PILLAR | changed) == {}


@pytest.mark.parametrize(
    ("spoil", "value", "wrong", "actual"),
    [
        ("way", "http://127.0.0.1:8180/realms/acme/auth", ["sign_on_chat"], "http://127.0.0.1:8180/realms/acme/auth"),
        ("way", "https://idm.acme.example/realms/other/auth", ["sign_on_chat"], "realms/other"),
        ("way", "", ["sign_on_chat"], "HTTP 503"),
        ("page", "", ["sign_on_chat", "sign_on_vault"], "HTTP 400"),
        ("page", "We are sorry", ["sign_on_chat", "sign_on_vault"], "HTTP 200, no form"),
    ],
)
def test_a_way_that_leads_nowhere_is_found(site, spoil, value, wrong, actual):
    site[spoil] = value
    found = {name: finding for name, finding in findings().items() if not finding.ok}
    assert list(found) == wrong
    assert all(actual in finding.actual for finding in found.values())


def test_a_vault_without_sign_on_is_found():
    def refuses(*_args, **_kwargs):
        raise CommandExecutionError("role default could not be found")

    assert findings(vault__query=refuses)["sign_on_vault"].actual == "role default could not be found"


def test_the_way_into_vault_is_looked_at_where_vault_is():
    assert "sign_on_vault" not in findings(PILLAR | {"vault": {"host": "another"}})
