"""The records by which others on a network find a host's Ollama instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiplatform import instances

# Where each kind of service discovery reads its records, and the service that does.
PLACES = {"avahi": "/etc/avahi/services/ollama-{}.service", "consul": "/etc/consul.d/ollama-{}.json"}
DAEMONS = {"avahi": "avahi-daemon", "consul": "consul"}


def records(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every record that this host could have: kind, instance (``name``), path, port, URL, and ``wanted``.

    settings
        The effective pillar.
    """
    ollama = settings["ollama"]
    return [
        {
            "kind": kind,
            "name": name,
            "path": place.format(name),
            "port": row["port"],
            "url": instances.base_url(settings, name),
            "wanted": kind in ollama["discovery"],
        }
        for kind, place in PLACES.items()
        for name, row in ollama["instances"].items()
    ]


def daemons(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the services that read the records that pillar asks for, by kind."""
    return {kind: DAEMONS[kind] for kind in settings["ollama"]["discovery"]}
