"""The platform's PostgreSQL on this host, as its superuser: by a socket that only root reaches, without a password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pg8000.native

from aiplatform import postgres
from aiplatform.errors import PlatformError


def role(name: str) -> dict[str, Any] | None:
    """Return a role's attributes and its password's verifier, or None where there is no such role.

    CLI Example:

    .. code-block:: bash

        salt-call --local platform_postgres.role keycloak
    """
    rows = _rows("SELECT row_to_json(pg_authid) FROM pg_authid WHERE rolname = :name", name=name)
    return {key: rows[0][0][key] for key in (*postgres.ROLE, "rolpassword")} if rows else None


def write_role(name: str, password: str) -> bool:
    """Make a role that may log in and nothing else, or bring it back to that; the server gets no password.

    CLI Example:

    .. code-block:: bash

        salt-call --local platform_postgres.write_role keycloak PASSWORD
    """
    quoted = pg8000.native.identifier(name)
    _rows(postgres.role_statement(quoted, password, exists=role(name) is not None))
    return True


def database(name: str) -> dict[str, Any] | None:
    """Return a database's ``owner`` and whether everybody may connect to it (``public``), or None.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_postgres.database keycloak
    """
    rows = _rows(
        "SELECT r.rolname, has_database_privilege('public', d.datname, 'CONNECT') FROM pg_database d"
        " JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = :name",
        name=name,
    )
    return {"owner": rows[0][0], "public": rows[0][1]} if rows else None


def write_database(name: str, owner: str) -> bool:
    """Make a database that only its owner may connect to, or bring it back to that.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_postgres.write_database keycloak keycloak
    """
    quoted, role_name = pg8000.native.identifier(name), pg8000.native.identifier(owner)
    if database(name) is None:
        _rows(f"CREATE DATABASE {quoted} OWNER {role_name}")
    _rows(f"ALTER DATABASE {quoted} OWNER TO {role_name}")
    _rows(f"REVOKE CONNECT, TEMPORARY ON DATABASE {quoted} FROM PUBLIC")
    return True


def sign_in(name: str) -> str:
    """Sign in over the containers' network as a database's role, with its password from Vault; say as whom and where.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_postgres.sign_in keycloak
    """
    shown = __salt__["platform_container.inspect"]("postgres")
    network = __pillar__["containers"]["network"]
    if not shown or network not in shown["NetworkSettings"]["Networks"]:
        raise PlatformError("The container of PostgreSQL is not there", where=network, hint="state.apply postgres")
    address = shown["NetworkSettings"]["Networks"][network]["IPAddress"]
    password = __salt__["platform_secret.read"]("databases", name)
    try:
        connection = pg8000.native.Connection(name, host=address, database=name, password=password, timeout=10)
        user, database_name = connection.run("SELECT current_user, current_database()")[0]
        connection.close()
    except (pg8000.native.Error, OSError) as err:
        raise PlatformError(
            "PostgreSQL does not let the role in", where=f"{name} at {address}", actual=str(err)
        ) from None
    return f"{user} in database {database_name}"


def _rows(statement: str, **values: Any) -> list[Any]:
    with _connection() as connection:
        return list(connection.run(statement, **values) or [])


@contextmanager
def _connection() -> Iterator[Any]:
    """Connect as the superuser; errors come without the statement, which may hold a verifier."""
    socket = f"{__pillar__['platform']['data_root']}/postgres/socket/.s.PGSQL.5432"
    try:
        connection = pg8000.native.Connection("postgres", unix_sock=socket, database="postgres", timeout=30)
    except (pg8000.native.Error, OSError) as err:
        raise PlatformError(
            "PostgreSQL does not answer",
            where=socket,
            actual=str(err),
            hint="docker logs postgres on this host; salt-call state.apply postgres",
        ) from err
    try:
        yield connection
    except pg8000.native.Error as err:
        told = err.args[0].get("M", "") if err.args and isinstance(err.args[0], dict) else str(err)
        raise PlatformError("PostgreSQL refuses a statement", where=socket, actual=told) from None
    finally:
        connection.close()
