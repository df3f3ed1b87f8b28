"""Roles and databases of the platform's PostgreSQL."""

from __future__ import annotations

from typing import Any

from aiplatform import postgres
from aiplatform.errors import PlatformError
from aiplatform.states import converge


def role_present(name: str, secret: str) -> dict[str, Any]:
    """A role may log in with a password out of Vault, and may do nothing else. ``changes`` never show a password.

    name
        The role.

    secret
        ``<path>:<key>`` of its password in pillar ``vault.secrets``.

    .. code-block:: yaml

        postgres-role-keycloak:
          platform_postgres.role_present:
            - name: keycloak
            - secret: databases:keycloak
    """
    return converge(
        name,
        plan=lambda: postgres.role_changes(_now("role", name), _password(secret)),
        apply=lambda: __salt__["platform_postgres.write_role"](name, _password(secret)),
        test=__opts__["test"],
    )


def database_present(name: str, owner: str) -> dict[str, Any]:
    """A database belongs to a role, and nobody else may connect to it.

    name
        The database.

    owner
        The role.

    .. code-block:: yaml

        postgres-database-keycloak:
          platform_postgres.database_present:
            - name: keycloak
            - owner: keycloak
    """
    return converge(
        name,
        plan=lambda: postgres.database_changes(_now("database", name), owner),
        apply=lambda: __salt__["platform_postgres.write_database"](name, owner),
        test=__opts__["test"],
    )


def _password(secret: str) -> str:
    return __salt__["platform_secret.read"](*secret.split(":"))


def _now(kind: str, name: str) -> dict[str, Any] | None:
    """Return what is there; in a dry run of a first deploy, where no server answers yet, nothing is."""
    try:
        return __salt__[f"platform_postgres.{kind}"](name)
    except PlatformError:
        if __opts__["test"]:
            return None
        raise
