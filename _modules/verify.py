"""Whether this host does what the platform needs of it. Each check asks the running service itself."""

from __future__ import annotations

from typing import Any

from aiplatform import checks, verification


def names() -> list[str]:
    """Return the names of the checks that this host's roles ask for.

    CLI Example:

    .. code-block:: bash

        salt ai_server verify.names
    """
    return verification.SUITE.names(_host())


def check(name: str) -> dict[str, Any]:
    """Make one check and return ``host``, ``check``, ``ok``, ``expected``, ``actual`` and ``hint``.

    name
        One of ``verify.names``.

    CLI Example:

    .. code-block:: bash

        salt ai_server verify.check vault_health
    """
    return verification.SUITE.check(_host(), name)


def run(only: list[str] | None = None) -> list[dict[str, Any]]:
    """Make every check of this host.

    only
        Beginnings of names; the checks that begin so. All where it is left out.

    CLI Example:

    .. code-block:: bash

        salt '*' verify.run
        salt ai_server verify.run only='[vault, ollama]'
    """
    return verification.SUITE.run(_host(), only or ())


def _host() -> checks.Host:
    # Copies: what Salt's own say depends on the thread that looks.
    return checks.Host(__grains__["id"], dict(__pillar__), dict(__grains__), __salt__, __context__)
