"""The checks of PostgreSQL and Keycloak: all well, and each fault by its name."""

from __future__ import annotations

import pytest

from aiplatform import checks, settings, verify_keycloak, verify_postgres
from tests.conftest import CHECKOUT

PILLAR = {
    **settings.read_yaml(CHECKOUT / "salt/keycloak/defaults.yaml"),
    "postgres": {"databases": ["keycloak", "openwebui"]},
    "platform": {"slug": "acme", "name": "Acme", "domain": "acme.example", "hosts": {}},
    "services": {
        "postgres": {"name": None},
        "keycloak": {"name": "idm"},
        "openwebui": {"name": "ollama-ui"},
        "vault": {"name": "vault"},
    },
    "roles": ["ai_server"],
}
FINE = {
    "platform_postgres.sign_in": lambda name: f"{name} in database {name}",
    "keycloak_admin.administrator_signs_in": lambda: True,
    "keycloak_admin.issuer": lambda: "https://idm.acme.example/realms/acme",
    "keycloak_admin.client_state": lambda name: "its secret fits",
}


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
