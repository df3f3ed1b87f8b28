"""Whether the applications' roles get into their databases, each by its own password."""

from __future__ import annotations

from functools import partial

from aiplatform.checks import Check, Finding, Host


def checks(host: Host) -> dict[str, Check]:
    """Return a check for each database, on the host that runs PostgreSQL."""
    if not host.holds_vault or "postgres" not in host.pillar["services"]:
        return {}
    return {f"postgres_{name}": partial(_login, host, name) for name in host.pillar["postgres"]["databases"]}


def _login(host: Host, name: str) -> Finding:
    expected = f"{name} in database {name}"
    actual = host.salt["platform_postgres.sign_in"](name)
    return Finding(
        f"sign-in of role {name} to PostgreSQL", actual == expected, expected, actual, "docker logs postgres"
    )
