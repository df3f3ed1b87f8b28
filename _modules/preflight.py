"""Whether this host can carry the platform. Nothing here changes anything."""

from __future__ import annotations

from typing import Any

from aiplatform import checks, preflight


def names() -> list[str]:
    """Return the names of the checks that this host's roles ask for.

    CLI Example:

    .. code-block:: bash

        salt ai_server preflight.names
    """
    return preflight.SUITE.names(_host())


def check(name: str) -> dict[str, Any]:
    """Make one check and return ``host``, ``check``, ``ok``, ``expected``, ``actual`` and ``hint``.

    name
        One of ``preflight.names``.

    CLI Example:

    .. code-block:: bash

        salt ai_server preflight.check data_root_free
    """
    return preflight.SUITE.check(_host(), name)


def run() -> list[dict[str, Any]]:
    """Make every check of this host.

    CLI Example:

    .. code-block:: bash

        salt '*' preflight.run
    """
    return preflight.SUITE.run(_host())


def _host() -> checks.Host:
    # Copies: what Salt's own say depends on the thread that looks.
    return checks.Host(__grains__["id"], dict(__pillar__), dict(__grains__), __salt__, __context__)
