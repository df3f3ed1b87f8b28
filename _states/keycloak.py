"""Keycloak's realms, roles, clients, mappers and users, as declared. What is not declared is left alone."""

from __future__ import annotations

from typing import Any

from aiplatform import files, keycloak
from aiplatform.errors import PlatformError
from aiplatform.states import converge


def admin_password(name: str, secret: str, previous: str) -> dict[str, Any]:
    """Keycloak's administrator has the password that is in Vault.

    One that has just been made has it. Another is told the new one, for which the one before is needed.

    name
        The administrator's name.

    secret
        ``<path>:<key>`` in pillar ``vault.secrets``.

    previous
        The file with the password that Keycloak has; it is written anew after this state, and not where this one fails.

    .. code-block:: yaml

        keycloak-admin:
          keycloak.admin_password:
            - name: admin
            - secret: keycloak:admin_password
            - previous: /etc/ai-platform-containers/keycloak-admin
    """
    old = files.text_of(previous)

    def plan() -> dict[str, Any]:
        fits, wanted = __salt__["keycloak_admin.admin_password_fits"], _secret(secret)
        change = {"password": {"old": "as before", "new": "changed"}}
        if old == wanted:
            return {}
        if __opts__["test"] and not __salt__["keycloak_admin.answers"]():
            return change if old else {}
        if fits(wanted):
            return {}
        if not (old and fits(old)):
            raise PlatformError(
                "Keycloak takes neither the administrator's password in Vault nor the one before it",
                where=name,
                hint="docs/keycloak.md, 'When the administrator cannot sign in'",
            )
        return change

    return converge(
        name,
        plan=plan,
        apply=lambda: __salt__["keycloak_admin.change_admin_password"](old, _secret(secret)),
        test=__opts__["test"],
    )


def realm_present(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A realm is there with these settings; others of it are left alone.

    name
        The realm.

    settings
        As Keycloak's admin API names them.

    .. code-block:: yaml

        keycloak-realm:
          keycloak.realm_present:
            - name: ai-platform
            - settings: {displayName: AI Platform}
    """
    return converge(
        name,
        plan=lambda: keycloak.differences(_now("realm", name), settings, "realm"),
        apply=lambda: __salt__["keycloak_admin.write_realm"](name, settings),
        test=__opts__["test"],
    )


def role_present(name: str, realm: str, description: str = "") -> dict[str, Any]:
    """A realm has a role.

    .. code-block:: yaml

        keycloak-role-ai-user:
          keycloak.role_present:
            - name: ai-user
            - realm: ai-platform
            - description: Standard AI platform user
    """
    return converge(
        name,
        plan=lambda: keycloak.differences(_now("role", realm, name), {"description": description}, "role"),
        apply=lambda: __salt__["keycloak_admin.write_role"](realm, name, description),
        test=__opts__["test"],
    )


def client_present(name: str, realm: str, settings: dict[str, Any], secret: str) -> dict[str, Any]:
    """A realm has a client with these settings and with the secret that is in Vault, which no output shows.

    name
        Its client id.

    realm
        The realm.

    settings
        As Keycloak's admin API names them.

    secret
        ``<path>:<key>`` in pillar ``vault.secrets``.

    .. code-block:: yaml

        keycloak-client-open-webui:
          keycloak.client_present:
            - name: open-webui
            - realm: ai-platform
            - settings: {publicClient: false}
            - secret: keycloak:client_secret
    """

    def plan() -> dict[str, Any]:
        present = _now("client", realm, name)
        found = keycloak.differences(present, settings, "client")
        if present and not __salt__["keycloak_admin.client_secret_fits"](realm, name, _secret(secret)):
            found["secret"] = {"old": "as before", "new": "changed"}
        return found

    return converge(
        name,
        plan=plan,
        apply=lambda: __salt__["keycloak_admin.write_client"](realm, name, settings, _secret(secret)),
        test=__opts__["test"],
    )


def mapper_present(name: str, realm: str, client: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A client has a mapper, which writes something about its users into their tokens.

    name
        The mapper.

    realm, client
        Whose it is.

    settings
        As Keycloak's admin API names them.

    .. code-block:: yaml

        keycloak-mapper-open-webui:
          keycloak.mapper_present:
            - name: realm roles
            - realm: ai-platform
            - client: open-webui
            - settings: {protocol: openid-connect}
    """
    return converge(
        name,
        plan=lambda: keycloak.differences(_now("mapper", realm, client, name), settings, "mapper"),
        apply=lambda: __salt__["keycloak_admin.write_mapper"](realm, client, name, settings),
        test=__opts__["test"],
    )


def user_present(
    name: str, realm: str, settings: dict[str, Any], roles: list[str], password: str | None = None
) -> dict[str, Any]:
    """A realm has a user with these settings and at least these roles.

    name
        The user's name.

    realm
        The realm.

    settings
        As Keycloak's admin API names them.

    roles
        Realm roles to have.

    password
        ``<path>:<key>`` in pillar ``vault.secrets``: what the user signs in with, now and after each change in Vault.
        Whom wrong passwords have locked out is let in again. Without it the password is left alone.

    .. code-block:: yaml

        keycloak-user:
          keycloak.user_present:
            - name: ai-platform-check
            - realm: ai-platform
            - settings: {enabled: true}
            - roles: [ai-user]
            - password: keycloak:check_password
    """

    def write() -> None:
        lasting = _secret(password) if password else None
        __salt__["keycloak_admin.write_user"](realm, name, settings, roles, None, lasting)

    return converge(
        name,
        plan=lambda: _differences(name, realm, settings, roles, password),
        apply=write,
        test=__opts__["test"],
    )


def first_user_present(
    name: str, realm: str, settings: dict[str, Any], roles: list[str], password: str
) -> dict[str, Any]:
    """A realm has had its first user, who has these settings and roles until the first sign-in.

    Once the password was changed, or the user disabled or deleted, it is a person's own and left as it is; the host
    notes the name. Another name is another first user, unless somebody has it already.

    name, realm, settings, roles
        As of ``user_present``.

    password
        ``<path>:<key>`` in pillar ``vault.secrets``: to be changed at the first sign-in; until then it follows Vault.

    .. code-block:: yaml

        keycloak-first-user:
          keycloak.first_user_present:
            - name: ai-platform-admin
            - realm: ai-platform
            - settings: {enabled: true}
            - roles: [ai-admin]
            - password: keycloak:realm_admin_password
    """
    checked = {one["name"] for one in keycloak.check_people(__pillar__).values()}

    def look() -> tuple[str | None, str]:
        present, noted = _now("user", realm, name), keycloak.noted_first_user(_now("realm", realm))
        followed = present is None and noted is None and succeeded()
        return noted, keycloak.first_user_step(name, present, noted, followed)

    def succeeded() -> bool:
        return bool(roles) and all(set(_now("role_holders", realm, role) or []) - checked for role in roles)

    def plan() -> dict[str, Any]:
        noted, step = look()
        found = _differences(name, realm, settings, roles, password) if step == "make" else {}
        return found | ({"noted": {"old": noted, "new": name}} if noted != name else {})

    def write() -> None:
        noted, step = look()
        if step == "make":
            __salt__["keycloak_admin.write_user"](realm, name, settings, roles, _secret(password), None)
        if noted != name:
            keycloak.note_first_user(_now("realm", realm), name)

    return converge(name, plan=plan, apply=write, test=__opts__["test"])


def _differences(
    name: str, realm: str, settings: dict[str, Any], roles: list[str], password: str | None
) -> dict[str, Any]:
    present = _now("user", realm, name)
    found = keycloak.differences(present, settings, "user")
    if present is None:
        return found
    found |= keycloak.missing_roles(__salt__["keycloak_admin.user_roles"](realm, name), roles)
    return found | (_entry(name, realm, password) if password else {})


def _entry(name: str, realm: str, password: str) -> dict[str, Any]:
    if __salt__["keycloak_admin.user_locked"](realm, name):
        return {"lock": {"old": "locked out by wrong passwords", "new": "let in again"}}
    fits = __salt__["keycloak_admin.user_password_fits"](realm, name, _secret(password))
    return {} if fits else {"password": {"old": "as before", "new": "changed"}}


def _secret(secret: str) -> str:
    return __salt__["platform_secret.read"](*secret.split(":"))


def _now(kind: str, *names: str) -> Any:
    """Return what is there; in a dry run of a first deploy, where no Keycloak answers yet, nothing is."""
    if __opts__["test"] and not __salt__["keycloak_admin.answers"]():
        return None
    return __salt__[f"keycloak_admin.{kind}"](*names)
