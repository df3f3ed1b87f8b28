"""Keycloak's realm as pillar wants it, and what differs from it. Talks to no server.

Settings are named as Keycloak's admin API names them. Of what a server has, only the settings that are wanted are
compared: the rest is Keycloak's own, or an administrator's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aiplatform import services
from aiplatform.errors import PlatformError
from aiplatform.files import text_of, write_durably

Settings = Mapping[str, Any]
Changes = dict[str, Any]

# Settings whose lists have no order.
_SETS = {"redirectUris", "webOrigins", "requiredActions", "defaultClientScopes", "optionalClientScopes"}
# Settings that no one is shown.
_SECRET = {"secret", "credentials", "value"}
# Where the check people's password is, in pillar ``vault.secrets``.
CHECK_PASSWORD = "keycloak:check_password"  # noqa: S105 (a place, not a password)
# Whom a realm has had as its first user.
FIRST_USER_NOTE = Path("/var/lib/ai-platform/keycloak-first-user.json")
# Keycloak writes them into the access token only, and both Open WebUI and Vault read the ID token.
MAPPER = {
    "protocol": "openid-connect",
    "protocolMapper": "oidc-usermodel-realm-role-mapper",
    "consentRequired": False,
    "config": {
        "claim.name": "realm_access.roles",
        "jsonType.label": "String",
        "multivalued": "true",
        "id.token.claim": "true",
        "access.token.claim": "true",
        "userinfo.token.claim": "true",
        "introspection.token.claim": "true",
    },
}


def realm_name(settings: Settings) -> str:
    """Return the name of the platform's realm."""
    return str(settings["keycloak"]["realm"] or settings["platform"]["slug"])


def public_url(settings: Settings, service: str) -> str:
    """Return ``https://<name>.<domain>`` of a service.

    Raises ``PlatformError`` where the table of services gives it no public name.
    """
    row = settings["services"].get(service) or {}
    if not row.get("name"):
        raise PlatformError(
            "A service that people are sent to has no public name",
            where=f"services.{service}.name",
            expected="a label below platform.domain",
            actual=row.get("name"),
        )
    return f"https://{row['name']}.{settings['platform']['domain']}"


def discovery_url(settings: Settings) -> str:
    """Return where clients find the realm's endpoints."""
    return f"{public_url(settings, 'keycloak')}/realms/{realm_name(settings)}/.well-known/openid-configuration"


def environment(settings: Settings) -> dict[str, str]:
    """Return Keycloak's settings that are no secret, as environment variables."""
    wanted = settings["keycloak"]
    found = {
        **wanted["build"],
        **wanted["environment"],
        "KC_HOSTNAME": public_url(settings, "keycloak"),
        "KC_HTTP_PORT": "8080",
        "KC_DB_URL_HOST": "postgres",
        "KC_DB_URL_DATABASE": "keycloak",
        "KC_DB_USERNAME": "keycloak",
    }
    proxies = sorted(services.hosts_of(settings, "nginx_proxy").values())
    # Whoever else comes may say of himself what he likes: it is not believed.
    return found | ({"KC_PROXY_TRUSTED_ADDRESSES": ",".join(proxies)} if proxies else {})


def realm_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings of the platform's realm."""
    wanted = settings["keycloak"]
    return {**wanted["realm_settings"], **wanted["brute_force"], "displayName": settings["platform"]["name"]}


def clients(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return ``{client id: {settings, secret}}``; ``secret`` says where it is in Vault.

    A service that this site's table does not have has no client.
    """
    return {
        name: {"settings": _client(settings, row), "secret": row["secret_from"]}
        for name, row in settings["keycloak"]["clients"].items()
        if row["service"] in settings["services"]
    }


def _client(settings: Settings, row: Settings) -> dict[str, Any]:
    """Confidential, and for the flow in which the secret never passes a browser, and for no other."""
    base = public_url(settings, row["service"])
    return {
        "enabled": True,
        "protocol": "openid-connect",
        "publicClient": False,
        "standardFlowEnabled": True,
        "implicitFlowEnabled": False,
        "directAccessGrantsEnabled": False,
        "serviceAccountsEnabled": False,
        "frontchannelLogout": True,
        "rootUrl": base,
        "baseUrl": "/",
        "redirectUris": [f"{base}{path}" if path.startswith("/") else path for path in row["redirects"]],
        "webOrigins": [base],
        "attributes": {
            "post.logout.redirect.uris": f"{base}/*",
            "pkce.code.challenge.method": "S256" if row["pkce"] else "",
        },
    }


def first_user(settings: Settings) -> dict[str, Any]:
    """Return the first administrator: name, settings and roles."""
    wanted, site = settings["keycloak"]["first_user"], settings["platform"]
    name = wanted["name"] or f"{site['slug']}-admin"
    # Keycloak calls a user without these three "not fully set up".
    details = {
        "email": wanted["email"] or f"{name}@{site['domain']}",
        "emailVerified": True,
        "firstName": site["name"],
        "lastName": "Administrator",
    }
    return {"name": name, "settings": {"enabled": True, **details}, "roles": list(wanted["roles"])}


def first_sign_in(settings: Settings, console: bool = False) -> tuple[str, str]:
    """Return who signs in first, and where the password is in pillar ``vault.secrets``.

    console
        Keycloak's own administrator instead, for its console.
    """
    if console:
        return settings["keycloak"]["admin"], "keycloak:admin_password"
    return first_user(settings)["name"], "keycloak:realm_admin_password"


def awaits_first_sign_in(user: Settings | None) -> bool:
    """Return whether a user still has to change the password; None where there is no such user."""
    return user is not None and "UPDATE_PASSWORD" in user.get("requiredActions", [])


def noted_first_user(realm: Settings | None) -> str | None:
    """Return whom a realm, as Keycloak shows it, has had as its first user; None where it has had nobody yet."""
    noted = json.loads(text_of(FIRST_USER_NOTE) or "{}")
    return noted.get("user") if realm and noted.get("realm") == realm["id"] else None


def note_first_user(realm: Settings, name: str) -> None:
    """Remember a realm's first user on the host. A realm that was made anew has another id, and had nobody."""
    FIRST_USER_NOTE.parent.mkdir(parents=True, exist_ok=True)
    write_durably(FIRST_USER_NOTE, (json.dumps({"realm": realm["id"], "user": name}) + "\n").encode(), 0o600)


def first_user_step(name: str, user: Settings | None, noted: str | None, succeeded: bool) -> str:
    """Return what a deploy does about the first user: ``make`` it as declared, ``note`` it, or nothing.

    It is a person's own once the password was changed, or the user disabled or deleted.

    user
        As Keycloak shows it; None where there is no such user.
    noted
        The first user that the realm has had.
    succeeded
        Whether others hold its roles: a realm without a note may be older than notes are.
    """
    if user is None:
        own = noted == name or (noted is None and succeeded)
    else:
        own = not (awaits_first_sign_in(user) and user.get("enabled", True))
    if not own:
        return "make"
    return "" if noted == name else "note"


def check_people(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the two people as whom the verification signs on: ``member`` with roles, ``stranger`` without any.

    Neither administers anything. They need an address, or Keycloak and the chat would refuse them; it is one that no
    mail can reach and nobody can own.
    """
    wanted, site = settings["keycloak"]["check_person"], settings["platform"]
    name = wanted["name"] or f"{site['slug']}-check"
    named = {"member": (name, list(wanted["roles"])), "stranger": (f"{name}-no-role", [])}
    return {
        who: {"name": one, "settings": _check_person(one, site), "roles": roles} for who, (one, roles) in named.items()
    }


def _check_person(name: str, site: Settings) -> dict[str, Any]:
    return {
        "enabled": True,
        "email": f"{name}@verification.invalid",
        "emailVerified": True,
        "firstName": site["name"],
        "lastName": "Verification",
        "requiredActions": [],
    }


def differences(present: Settings | None, wanted: Settings, kind: str) -> Changes:
    """Return what has to change, ``{setting: {old, new}}``; of secret settings it is only said that they differ.

    present
        What the server has, or None where the thing does not exist.
    kind
        What it is, for the case that it does not exist.
    """
    if present is None:
        return {kind: {"old": None, "new": "present"}}
    found: Changes = {}
    for key, value in wanted.items():
        have = present.get(key)
        if isinstance(value, Mapping):
            inner = differences(have or {}, value, key)
            found |= {f"{key}.{name}": change for name, change in inner.items()}
        elif _comparable(key, have) != _comparable(key, value):
            shown = key not in _SECRET
            found[key] = {"old": have if shown else "as before", "new": value if shown else "changed"}
    return found


def _comparable(key: str, value: Any) -> Any:
    """An empty text is how an attribute is taken away, and lists of some settings have no order."""
    if key in _SETS:
        return sorted(value or [])
    return None if value == "" else value


def merged(present: Settings | None, wanted: Settings) -> dict[str, Any]:
    """Return what is sent to the server: what it has, with what is wanted over it, mappings key by key."""
    found = dict(present or {})
    for key, value in wanted.items():
        found[key] = merged(found.get(key), value) if isinstance(value, Mapping) else value
    return found


def missing_roles(present: Iterable[Settings], wanted: Iterable[str]) -> Changes:
    """Return the roles that a user lacks; those that an administrator added stay."""
    have = {role["name"] for role in present}
    lacking = [name for name in wanted if name not in have]
    return {"roles": {"old": sorted(have), "new": sorted({*have, *lacking})}} if lacking else {}
