"""Where an Ollama runs that a person means by name: as a unit of systemd, or as a container. For both modes alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiplatform import instances, ollama_container
from aiplatform.errors import NotFoundError, PlatformError
from aiplatform.schema import one_of

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """One server: a native one has a ``unit``, one in Docker has a ``container`` and a ``volume``.

    ``url`` is for programs on its host, ``inner_url`` for containers there.
    """

    name: str
    url: str
    inner_url: str
    port: int
    address: str
    unit: str = ""
    container: str = ""
    volume: str = ""

    @property
    def running_as(self) -> str:
        """What people call it."""
        return f"container {self.container}" if self.container else self.unit

    @property
    def status_command(self) -> str:
        """The command that shows whether it runs."""
        if self.container:
            return f"docker ps --all --filter name=^{self.container}$"
        return f"systemctl status {self.unit}"

    @property
    def log_command(self) -> str:
        """The command that shows the end of its log."""
        if self.container:
            return f"docker logs --tail 100 {self.container}"
        return f"journalctl --unit {self.unit} --lines 100"


def place(settings: Settings, name: str = "") -> Place:
    """Return where an instance or profile of this host runs; the first one without a name.

    Raises ``NotFoundError`` for a name that pillar does not have on this host.
    """
    if ollama_container.is_used(settings):
        return in_docker(settings, name or next(iter(ollama_container.profiles(settings))))
    return _native(settings, name)


def in_docker(settings: Settings, name: str) -> Place:
    """Return where a profile of this host runs.

    Raises ``NotFoundError`` for one that it does not run.
    """
    row = ollama_container.profile(settings, name)
    return Place(
        name=name,
        url=ollama_container.host_url(row),
        inner_url=ollama_container.inner_url(row),
        port=row["port"],
        address=row["address"],
        container=row["name"],
        volume=row["volume"],
    )


def _native(settings: Settings, name: str) -> Place:
    known = settings["ollama"]["instances"]
    name = name or next(iter(known))
    if name not in known:
        raise NotFoundError(
            f"There is no instance {name!r}", where="ollama:instances", expected=one_of(name, sorted(known))
        )
    port = known[name]["port"]
    return Place(
        name=name,
        url=instances.base_url(settings, name),
        inner_url=f"http://host.docker.internal:{port}",
        port=port,
        address=settings["ollama"]["api_host"],
        unit=known[name]["unit"],
    )


def every(settings: Settings) -> list[Place]:
    """Return all instances or profiles of this host."""
    used = ollama_container.is_used(settings)
    names = settings["ollama"]["run"] if used else settings["ollama"]["instances"]
    return [place(settings, name) for name in names]


def env_text(first: Place) -> str:
    """Return the env file by which other programs of a host find its first Ollama."""
    return (
        "# Where Ollama is, managed by Salt: for containers of this host, and for programs on it.\n"
        f"OLLAMA_BASE_URL={first.inner_url}\nOLLAMA_HOST_BASE_URL={first.url}\n"
    )


def demand_confirmation(confirm: str, wanted: str, what: str) -> None:
    """Refuse to destroy anything that is not named once more.

    confirm
        What the operator typed.
    wanted
        What they have to.
    what
        What would be lost, in words.

    Raises ``PlatformError``.
    """
    if confirm != wanted:
        raise PlatformError(
            f"This deletes {what} for good, so it has to be confirmed; nothing was changed",
            where=wanted,
            expected=f"confirm={wanted}",
            actual=f"confirm={confirm}" if confirm else "no confirmation",
        )
