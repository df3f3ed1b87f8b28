"""Whether Keycloak is as its clients need it: its administrator, the realm's endpoints, the clients' secrets."""

from __future__ import annotations

from functools import partial

from aiplatform import keycloak
from aiplatform.checks import Check, Finding, Host


def checks(host: Host) -> dict[str, Check]:
    """Return the checks of the host that runs Keycloak."""
    if not host.holds_vault or "keycloak" not in host.pillar["services"]:
        return {}
    clients = {f"keycloak_client_{name}": partial(_client, host, name) for name in keycloak.clients(host.pillar)}
    return {
        "keycloak_admin": partial(_administrator, host),
        "keycloak_realm": partial(_realm, host),
        **clients,
    }


def _administrator(host: Host) -> Finding:
    """The administrator gets a token with the password in Vault."""
    fits = host.salt["keycloak_admin.administrator_signs_in"]()
    return Finding(
        "sign-in of Keycloak's administrator with the password in Vault",
        fits,
        "a token",
        "a token" if fits else "the password is refused",
        "docs/keycloak.md, 'When the administrator cannot sign in'",
    )


def _realm(host: Host) -> Finding:
    """The realm's endpoints carry the public name: what is signed under another one is refused everywhere."""
    expected = f"issuer {keycloak.public_url(host.pillar, 'keycloak')}/realms/{keycloak.realm_name(host.pillar)}"
    actual = f"issuer {host.salt['keycloak_admin.issuer']()}"
    return Finding("endpoints of the realm", actual == expected, expected, actual, "salt-call state.apply keycloak")


def _client(host: Host, name: str) -> Finding:
    """The client has the secret that its service gets out of Vault."""
    actual = host.salt["keycloak_admin.client_state"](name)
    return Finding(
        f"client {name} in Keycloak", actual == "its secret fits", "its secret fits", actual, "state.apply keycloak"
    )
