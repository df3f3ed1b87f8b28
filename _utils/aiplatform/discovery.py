"""The records by which others on a network find a host's Ollama instances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aiplatform import instances, ollama_container

# Where each kind of service discovery reads its records, and the service that does.
PLACES = {"avahi": "/etc/avahi/services/ollama-{}.service", "consul": "/etc/consul.d/ollama-{}.json"}
DAEMONS = {"avahi": "avahi-daemon", "consul": "consul"}
# What the platform's own records hold; others' are never touched.
MARKS = {"avahi": "<!-- The Ollama instance {}. Managed by Salt. -->", "consul": '"id": "ollama-{}"'}


def records(settings: Mapping[str, Any], root: Path = Path("/")) -> list[dict[str, Any]]:
    """Return every record that this host could have or has: kind, instance (``name``), path, ``daemon``, ``wanted``.

    Those of instances that the pillar has also name ``port`` and ``url``. Containers have none.

    settings
        The effective pillar.
    root
        Where ``etc`` is.
    """
    known = {} if ollama_container.is_used(settings) else settings["ollama"]["instances"]
    described = [
        {
            "kind": kind,
            "name": name,
            "path": place.format(name),
            "daemon": DAEMONS[kind],
            "port": row["port"],
            "url": instances.base_url(settings, name),
            "wanted": kind in settings["ollama"]["discovery"],
        }
        for kind, place in PLACES.items()
        for name, row in known.items()
    ]
    return [*described, *(record for record in _written(root) if record["name"] not in known)]


def _written(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the records that lie on this host."""
    for kind, place in PLACES.items():
        before, after = place.lstrip("/").split("{}")
        for path in sorted(root.glob(f"{before}*{after}")):
            name = path.name.removeprefix(Path(before).name).removesuffix(after)
            if MARKS[kind].format(name) in path.read_text(encoding="utf-8", errors="replace"):
                yield {"kind": kind, "name": name, "path": str(path), "daemon": DAEMONS[kind], "wanted": False}


def daemons(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the services that read the records that pillar asks for, by kind; none in Docker."""
    if ollama_container.is_used(settings):
        return {}
    return {kind: DAEMONS[kind] for kind in settings["ollama"]["discovery"]}
