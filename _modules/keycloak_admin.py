"""Keycloak's admin API on this host, by the python-keycloak library, as Keycloak's own administrator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from keycloak import KeycloakAdmin
from keycloak.exceptions import KeycloakAuthenticationError, KeycloakError, KeycloakGetError

from aiplatform import keycloak
from aiplatform.errors import PlatformError
from aiplatform.secret_text import UNKNOWN

TIMEOUT = 30


def site() -> dict[str, Any]:
    """Return what pillar wants of Keycloak: environment, realm, settings, clients, mapper, users. No secret is in it.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.site
    """
    return {
        "environment": keycloak.environment(__pillar__),
        "realm": keycloak.realm_name(__pillar__),
        "settings": keycloak.realm_settings(__pillar__),
        "clients": keycloak.clients(__pillar__),
        "mapper": keycloak.MAPPER,
        "user": keycloak.first_user(__pillar__),
        "check_people": keycloak.check_people(__pillar__),
        "check_password": keycloak.CHECK_PASSWORD,
    }


def answers() -> bool:
    """Return whether Keycloak answers on this host.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.answers
    """
    try:
        return requests.get(f"{_url()}/realms/master", timeout=TIMEOUT).ok
    except requests.RequestException:
        return False


def admin_password_fits(password: str) -> bool:
    """Return whether Keycloak's administrator can sign in with a password. For states: arguments stay in the job cache.

    CLI Example:

    .. code-block:: bash

        salt-call --local keycloak_admin.admin_password_fits PASSWORD
    """
    with _errors("sign-in of the administrator"):
        try:
            _login(password)
        except KeycloakAuthenticationError:
            return False
    return True


def administrator_signs_in() -> bool:
    """Return whether Keycloak's administrator can sign in with the password in Vault.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.administrator_signs_in
    """
    return admin_password_fits(__salt__["platform_secret.read"]("keycloak", "admin_password"))


def issuer() -> str:
    """Return the name under which the platform's realm signs, as its endpoints say it.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.issuer
    """
    url = f"{_url()}/realms/{keycloak.realm_name(__pillar__)}/.well-known/openid-configuration"
    with _errors("the realm's endpoints"):
        reply = requests.get(url, timeout=TIMEOUT)
        reply.raise_for_status()
        return str(reply.json()["issuer"])


def client_state(name: str) -> str:
    """Return whether a client of the platform's realm has the secret that is in Vault: in words, without the secret.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.client_state open-webui
    """
    realm_name, wanted = keycloak.realm_name(__pillar__), keycloak.clients(__pillar__)[name]
    if client(realm_name, name) is None:
        return "there is no such client"
    secret = __salt__["platform_secret.read"](*wanted["secret"].split(":"))
    return "its secret fits" if client_secret_fits(realm_name, name, secret) else "it has another secret than Vault"


def change_admin_password(old: str, new: str) -> bool:
    """Give Keycloak's administrator a new password. For states: arguments stay in the job cache.

    CLI Example:

    .. code-block:: bash

        salt-call --local keycloak_admin.change_admin_password OLD NEW
    """
    with _errors("the administrator's password"):
        admin = _login(old)
        user = admin.get_user_id(__pillar__["keycloak"]["admin"])
        admin.set_user_password(user, new, temporary=False)
    __context__.pop("keycloak_admin.client", None)
    return True


def realm(name: str) -> dict[str, Any] | None:
    """Return a realm's settings, or None where there is no such realm.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.realm ai-platform
    """
    return _asked(f"realm {name}", lambda: _admin("master").get_realm(name))


def write_realm(name: str, settings: dict[str, Any]) -> bool:
    """Make a realm, or change settings of it.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.write_realm ai-platform settings='{"displayName": "AI Platform"}'
    """
    exists = realm(name) is not None
    with _errors(f"realm {name}"):
        if exists:
            _admin("master").update_realm(name, settings)
        else:
            _admin("master").create_realm({"realm": name, **settings})
            # The administrator's rights to a realm come with a token that is newer than the realm.
            __context__.pop("keycloak_admin.client", None)
    return True


def role(realm: str, name: str) -> dict[str, Any] | None:
    """Return a role of a realm, or None where there is no such role.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.role ai-platform ai-user
    """
    return _asked(f"role {name} of {realm}", lambda: _admin(realm).get_realm_role(name))


def write_role(realm: str, name: str, description: str) -> bool:
    """Make a role of a realm, or change its description.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.write_role ai-platform ai-user 'Standard AI platform user'
    """
    wanted = keycloak.merged(role(realm, name), {"name": name, "description": description})
    with _errors(f"role {name} of {realm}"):
        admin = _admin(realm)
        if "id" in wanted:
            admin.update_realm_role(name, wanted)
        else:
            admin.create_realm_role(wanted)
    return True


def client(realm: str, name: str) -> dict[str, Any] | None:
    """Return a client by its client id, without its secret, or None where there is no such client.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.client ai-platform open-webui
    """
    found = _asked(f"client {name} of {realm}", lambda: _by_id(realm, "get_client_id", "get_client", name))
    return {key: value for key, value in found.items() if key != "secret"} if found else None


def client_secret_fits(realm: str, name: str, secret: str) -> bool:
    """Return whether a client has this secret. For states: arguments stay in the job cache.

    CLI Example:

    .. code-block:: bash

        salt-call --local keycloak_admin.client_secret_fits ai-platform open-webui SECRET
    """
    with _errors(f"client {name} of {realm}"):
        admin = _admin(realm)
        identity = admin.get_client_id(name)
        return bool(identity) and admin.get_client_secrets(identity).get("value") == secret


def write_client(realm: str, name: str, settings: dict[str, Any], secret: str) -> bool:
    """Make a client, or change settings of it. For states: arguments stay in the job cache.

    realm, name
        The realm, and the client's id.

    settings, secret
        As Keycloak's admin API names them, and the client's secret.

    CLI Example:

    .. code-block:: bash

        salt-call --local keycloak_admin.write_client ai-platform open-webui settings='{"enabled": true}' secret=SECRET
    """
    wanted = keycloak.merged(client(realm, name), {"clientId": name, **settings, "secret": secret})
    with _errors(f"client {name} of {realm}"):
        admin = _admin(realm)
        if "id" in wanted:
            admin.update_client(wanted["id"], wanted)
        else:
            admin.create_client(wanted)
    return True


def mapper(realm: str, client: str, name: str) -> dict[str, Any] | None:
    """Return a mapper of a client by its name, or None where there is no such mapper.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.mapper ai-platform open-webui 'realm roles'
    """
    present = _asked(
        f"mapper {name} of {client}", lambda: _by_id(realm, "get_client_id", "get_mappers_from_client", client)
    )
    return next((one for one in present or [] if one["name"] == name), None)


def write_mapper(realm: str, client: str, name: str, settings: dict[str, Any]) -> bool:
    """Make a mapper of a client, or change settings of it.

    realm, client, name
        The realm, the client's id, and the mapper.

    settings
        As Keycloak's admin API names them.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.write_mapper ai-platform open-webui 'realm roles' settings='{}'
    """
    wanted = keycloak.merged(mapper(realm, client, name), {"name": name, **settings})
    with _errors(f"mapper {name} of {client}"):
        admin = _admin(realm)
        identity = admin.get_client_id(client)
        if "id" in wanted:
            admin.update_client_mapper(identity, wanted["id"], wanted)
        else:
            admin.add_mapper_to_client(identity, wanted)
    return True


def user(realm: str, name: str) -> dict[str, Any] | None:
    """Return a user by name, or None where there is no such user.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.user ai-platform ai-platform-admin
    """

    def read() -> dict[str, Any] | None:
        found = _by_id(realm, "get_user_id", "get_user", name)
        if found and not found["enabled"]:
            # So Keycloak also shows one whom guesses have locked out for a while.
            found["enabled"] = bool(_admin(realm).get_bruteforce_detection_status(found["id"])["disabled"])
        return found

    return _asked(f"user {name} of {realm}", read)


def user_roles(realm: str, name: str) -> list[dict[str, Any]]:
    """Return the realm roles that a user was given.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.user_roles ai-platform ai-platform-admin
    """
    return (
        _asked(f"user {name} of {realm}", lambda: _by_id(realm, "get_user_id", "get_realm_roles_of_user", name)) or []
    )


def role_holders(realm: str, role: str) -> list[str]:
    """Return the names of the enabled users who were given a realm role themselves, not by a group.

    CLI Example:

    .. code-block:: bash

        salt ai_server keycloak_admin.role_holders ai-platform ai-admin
    """
    members = _asked(f"users with {role} of {realm}", lambda: _admin(realm).get_realm_role_members(role))
    return sorted(one["username"] for one in members or [] if one["enabled"])


def user_locked(realm: str, name: str) -> bool:
    """Return whether wrong passwords have locked a user out for a while.

    CLI Example:

    .. code-block:: bash

        salt-call --local keycloak_admin.user_locked ai-platform ai-platform-check
    """
    with _errors(f"lock of {name} of {realm}"):
        admin = _admin(realm)
        return bool(admin.get_bruteforce_detection_status(admin.get_user_id(name))["disabled"])


def user_password_fits(realm: str, name: str, password: str) -> bool:
    """Return whether a user's password is this one. For states: arguments stay in the job cache.

    A wrong one counts as an attempt to guess, and so does the right one of whom guesses have locked out. Where somebody
    closed the client that is asked, ``admin-cli``, which every realm has from the start, any password counts as right.

    CLI Example:

    .. code-block:: bash

        salt-call --local keycloak_admin.user_password_fits ai-platform ai-platform-check PASSWORD
    """
    form = {"grant_type": "password", "client_id": "admin-cli", "username": name, "password": password}
    with _errors(f"sign-in of {name}"):
        url = f"{_url()}/realms/{realm}/protocol/openid-connect/token"
        reply = requests.post(url, data=form, timeout=TIMEOUT)
        if reply.status_code >= requests.codes.server_error:
            reply.raise_for_status()
        # Who gives the right one and has to do something else first, as to change it, is answered 400.
        return reply.status_code != requests.codes.unauthorized or reply.json().get("error") != "invalid_grant"


def write_user(
    realm: str,
    name: str,
    settings: dict[str, Any],
    roles: list[str],
    first_password: str | None = None,
    password: str | None = None,
) -> bool:
    """Make a user, or change settings of one and give the roles that are missing. For states only.

    Who is given a password, and was locked out by wrong ones, is let in again.

    realm, name
        The realm and the user's name.

    settings
        As Keycloak's admin API names them.

    roles
        Realm roles to have.

    first_password
        For a user who is made, or has not changed it yet: to be changed at the first sign-in.

    password
        The user's password from now on, whether made or there before.

    CLI Example:

    .. code-block:: bash

        salt-call --local keycloak_admin.write_user ai-platform jane settings='{"enabled": true}' roles='[ai-user]'
    """
    present = user(realm, name)
    wanted = keycloak.merged(present, {"username": name, **settings})
    with _errors(f"user {name} of {realm}"):
        admin = _admin(realm)
        if present is None:
            credential = {"type": "password", "value": first_password, "temporary": True}
            identity = admin.create_user(wanted | ({"credentials": [credential]} if first_password else {}))
        else:
            identity = present["id"]
            admin.update_user(identity, wanted)
            first = first_password if keycloak.awaits_first_sign_in(present) else None
            if first:
                admin.set_user_password(identity, first, temporary=True)
            if first or password:
                admin.clear_bruteforce_attempts_for_user(identity)
        if password:
            admin.set_user_password(identity, password, temporary=False)
        admin.assign_realm_roles(identity, [admin.get_realm_role(role) for role in roles])
    return True


def _url() -> str:
    return f"http://127.0.0.1:{__pillar__['keycloak']['port']}"


def _login(password: str) -> Any:
    if password == UNKNOWN:
        # Of a dry run. Keycloak would count it as an attempt to guess.
        raise PlatformError("The administrator's password cannot be read", where="Vault", actual=UNKNOWN)
    admin = KeycloakAdmin(
        server_url=_url(),
        username=__pillar__["keycloak"]["admin"],
        password=password,
        realm_name="master",
        user_realm_name="master",
        timeout=TIMEOUT,
    )
    admin.connection.get_token()
    return admin


def _admin(realm: str) -> Any:
    """Return a client of the admin API in a realm; one for the run, which renews its token by itself."""
    if "keycloak_admin.client" not in __context__:
        __context__["keycloak_admin.client"] = _login(__salt__["platform_secret.read"]("keycloak", "admin_password"))
    __context__["keycloak_admin.client"].change_current_realm(realm)
    return __context__["keycloak_admin.client"]


def _by_id(realm: str, find: str, read: str, name: str) -> Any:
    """Return what the library's function ``read`` says of the thing whose id ``find`` knows by its name."""
    admin = _admin(realm)
    identity = getattr(admin, find)(name)
    return getattr(admin, read)(identity) if identity else None


def _asked(what: str, ask: Callable[[], Any]) -> Any:
    """Return an answer; None where the thing, or the realm that it would be in, does not exist."""
    with _errors(what):
        try:
            return ask()
        except KeycloakGetError as err:
            if err.response_code == requests.codes.not_found:
                return None
            raise


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn the library's errors into one that says what was asked of whom."""
    try:
        yield
    except KeycloakAuthenticationError as err:
        raise PlatformError(
            "Keycloak refuses its administrator's password",
            where=f"{what} at {_url()}",
            expected="the one in Vault (keycloak admin_password)",
            actual=err,
            hint="docs/keycloak.md, 'When the administrator cannot sign in'",
        ) from None
    except (KeycloakError, requests.RequestException) as err:
        raise PlatformError(
            "Keycloak does not do what it is asked",
            where=f"{what} at {_url()}",
            actual=err,
            hint="docker logs keycloak on this host",
        ) from None
