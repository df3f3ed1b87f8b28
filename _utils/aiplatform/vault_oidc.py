"""Sign-on to Vault by the platform's Keycloak: the login method, who comes in by it, and with which rights.

Vault gives the client's secret back to nobody, so a hash of the one that it was given is kept beside the secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hvac
from hvac.exceptions import InvalidPath, InvalidRequest

from aiplatform import keycloak, vault_content, vault_pki
from aiplatform.errors import PlatformError
from aiplatform.states import Changes, diff
from aiplatform.vault import reported
from aiplatform.vault_policy import ADMIN_POLICY, OIDC_MOUNT, OIDC_ROLE

CLIENT = "vault"
# Whoever has this role in the platform's realm administers the secrets.
ADMIN_ROLE = "ai-admin"
HOUR = 3600
CONFIG = f"auth/{OIDC_MOUNT}/config"
ROLE = f"auth/{OIDC_MOUNT}/role/{OIDC_ROLE}"
IN_USE = "client_secret_in_use"


@dataclass(frozen=True)
class SignOn:
    """What Vault should hold: its configuration without the client's secret, the role, and where that secret is."""

    config: Mapping[str, Any]
    role: Mapping[str, Any]
    mount: str
    path: str
    key: str


def wanted(settings: Mapping[str, Any], authority: str) -> SignOn:
    """Return what Vault should hold.

    settings
        The effective pillar.
    authority
        The authority (PEM) of the public names; empty where it is a public one.
    """
    client = keycloak.clients(settings)[CLIENT]
    path, _, key = client["secret"].partition(":")
    return SignOn(
        config={
            "oidc_discovery_url": keycloak.discovery_url(settings).partition("/.well-known/")[0],
            "oidc_discovery_ca_pem": authority,
            "oidc_client_id": CLIENT,
            "default_role": OIDC_ROLE,
        },
        role={
            "role_type": "oidc",
            "user_claim": "sub",
            "bound_claims": {"/realm_access/roles": [ADMIN_ROLE]},
            "oidc_scopes": ["openid", "profile", "email"],
            "allowed_redirect_uris": client["settings"]["redirectUris"],
            "token_policies": [ADMIN_POLICY],
            "token_ttl": 4 * HOUR,
            "token_max_ttl": 8 * HOUR,
        },
        mount=settings["vault"]["mount"],
        path=f"{settings['platform']['slug']}/{path}",
        key=key,
    )


def authority(client: hvac.Client, settings: Mapping[str, Any]) -> str:
    """Return the authority (PEM) of the public names, as the host of Vault should trust it; empty where there is none.

    client
        Any login; Vault shows its authority to everybody.
    """
    certificate = settings["nginx"]["certificate"]
    if certificate["mode"] != "vault":
        found = certificate["authority"] or ""
    else:
        with reported("reading the authority of the public names", client.url):
            found = vault_pki.certificate(client)
    return f"{found.strip()}\n" if found.strip() else ""


def differences(client: hvac.Client, sign_on: SignOn) -> Changes:
    """Return what has to change; of the client's secret it is only said that it differs.

    client
        The master's login: it reads the settings and the secret.

    Raises ``PlatformError`` where another login method is in the way.
    """
    with reported("comparing its sign-on", client.url):
        method = client.sys.list_auth_methods()["data"].get(f"{OIDC_MOUNT}/")
        if method and method["type"] != "oidc":
            raise PlatformError(
                "Another login method is mounted where sign-on belongs",
                where=f"auth/{OIDC_MOUNT}/",
                expected="oidc",
                actual=method["type"],
                hint=f"vault auth move auth/{OIDC_MOUNT}/ to another path",
            )
        changes: Changes = {} if method else {f"login method {OIDC_MOUNT}": {"old": None, "new": "oidc"}}
        config = diff(_read(client, CONFIG) if method else None, sign_on.config)
        kept = vault_content.read(client, sign_on.mount, sign_on.path)
        if kept.get(IN_USE) != _hash(_secret(kept, sign_on)):
            config["oidc_client_secret"] = {"old": "another or none", "new": "the one in Vault"}
        role = diff(_read(client, ROLE) if method else None, sign_on.role)
    return changes | ({"configuration": config} if config else {}) | ({f"role {OIDC_ROLE}": role} if role else {})


def write(root: hvac.Client, client: hvac.Client, sign_on: SignOn) -> None:
    """Bring method, configuration and role in place; Vault asks Keycloak meanwhile.

    root
        With root rights.
    client
        The master's login.

    Raises ``PlatformError`` where Vault does not reach Keycloak by its public name, or does not trust it.
    """
    secret = _secret(vault_content.read(client, sign_on.mount, sign_on.path), sign_on)
    with reported("setting its sign-on up", root.url):
        if f"{OIDC_MOUNT}/" not in root.sys.list_auth_methods()["data"]:
            root.sys.enable_auth_method("oidc", path=OIDC_MOUNT, description="Sign-on by the platform's Keycloak")
        try:
            # All fields at once: Vault empties those that are left out.
            root.write_data(CONFIG, data={**sign_on.config, "oidc_client_secret": secret})
        except InvalidRequest as err:
            raise PlatformError(
                "Vault does not take Keycloak's realm for its sign-on",
                where=sign_on.config["oidc_discovery_url"],
                expected="a realm that Vault's host reaches by this name, and whose certificate it trusts",
                actual=str(err),
                hint="`journalctl -u vault` on that host has the reason; keycloak, nginx and coredns come first",
            ) from err
        root.write_data(ROLE, data=dict(sign_on.role))
    vault_content.put(client, sign_on.mount, sign_on.path, {IN_USE: _hash(secret)})


def _secret(kept: Mapping[str, Any], sign_on: SignOn) -> str:
    if not kept.get(sign_on.key):
        raise PlatformError(
            "Keycloak's client for Vault has no secret yet",
            where=f"{sign_on.mount}/{sign_on.path}, key {sign_on.key}",
            hint="salt-run vault_server.bootstrap makes it, the state keycloak gives it to the client",
        )
    return str(kept[sign_on.key])


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _read(client: hvac.Client, path: str) -> dict[str, Any] | None:
    try:
        reply = client.read(path)
    except InvalidPath:
        return None
    return dict(reply["data"]) if reply else None
