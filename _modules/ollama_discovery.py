"""This host's Ollama instances in service discovery, by pillar ``ollama:discovery``."""

from __future__ import annotations

from typing import Any

from aiplatform import discovery


def records() -> list[dict[str, Any]]:
    """Return every record that this host could have or has: kind, instance, path, service, and whether it is wanted.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_discovery.records
    """
    return discovery.records(__pillar__)


def daemons() -> dict[str, str]:
    """Return the services that read the wanted records, by kind.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_discovery.daemons
    """
    return discovery.daemons(__pillar__)
