"""Ollama in Docker on this host: pillar ``ollama`` with ``mode: container``, and its profiles."""

from __future__ import annotations

import logging
import time
from typing import Any

from aiplatform import ollama as api
from aiplatform import ollama_container as described
from aiplatform import ollama_places, port_holders, registry, transfer
from aiplatform.errors import PlatformError

log = logging.getLogger(__name__)

PULL_ATTEMPTS = 5


def profiles() -> dict[str, dict[str, Any]]:
    """Return the profiles that this host runs, with everything that they share.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_container.profiles
    """
    return described.profiles(__pillar__)


def arguments(profile: str) -> dict[str, Any]:
    """Return what the state ``platform_container.running`` is told of a profile on this host.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_container.arguments local
    """
    return described.arguments(__pillar__, profile, __salt__["gpu.in_containers"](), __grains__["num_cpus"])


def warning(profile: str) -> str:
    """Return the warning of a profile that is open to a network; empty where it is not.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_container.warning local
    """
    row = described.profile(__pillar__, profile)
    return described.warning(profile, row) if described.is_exposed(row) else ""


def readiness(profile: str) -> dict[str, Any]:
    """Return what the state ``ollama.ready`` is told of a profile.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_container.readiness local
    """
    row, place = described.profile(__pillar__, profile), ollama_places.in_docker(__pillar__, profile)
    return {
        "url": place.url,
        "version": described.known_version(row),
        "timeout": row["ready_timeout"],
        "log_command": place.log_command,
    }


def demand_gpu(profile: str) -> bool:
    """Refuse a profile that demands a GPU on a host whose driver is not loaded.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_container.demand_gpu prod
    """
    described.demand_gpu(profile, described.profile(__pillar__, profile)["gpu"], __salt__["gpu.in_containers"]())
    return True


def port_holders_of(profile: str) -> list[str]:
    """Return, in words, who keeps a profile from its port: processes, units, containers; empty where it is free.

    A container of a profile is nobody: it has this port already, or leaves it in the same run, see ``others``.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_container.port_holders_of local
    """
    row = described.profile(__pillar__, profile)
    publishers, own = [], {row["name"]}
    if __salt__["platform_container.answers"]():
        publishers = __salt__["platform_container.publishers"](row["port"], row["address"])
        own |= __salt__["platform_container.labelled"](described.LABEL).keys()
    return port_holders.strangers(port_holders.holders(row["port"], row["address"]), publishers, own)


def others() -> dict[str, str]:
    """Return the containers that have to go before others start: ``{container: profile}``.

    Those of profiles that this host does not run, and those that still have a port which another profile was given.
    Where Ollama runs natively these are all that the formula made.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_container.others
    """
    if not __salt__["platform_container.answers"]():
        return {}
    publishers = __salt__["platform_container.publishers"]
    known = described.profiles(__pillar__) if described.is_used(__pillar__) else {}
    rows = {row["name"]: row for row in known.values()}
    moving = {name for own, row in rows.items() for name in publishers(row["port"], row["address"]) if name != own}
    there = __salt__["platform_container.labelled"](described.LABEL)
    return {name: profile for name, profile in there.items() if name not in rows or name in moving}


def missing(profile: str) -> list[str]:
    """Return which of a profile's models its store has not got; all of them where it does not answer yet.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_container.missing local
    """
    row = described.profile(__pillar__, profile)
    with api.Client(described.host_url(row)) as client:
        try:
            there = {api.normalise(tag["name"]) for tag in client.tags()}
        except api.InstanceDown:
            there = set()
    return [model for model in row["models"] if api.normalise(model) not in there]


def pull(profile: str, model: str) -> dict[str, Any]:
    """Fetch a model within the profile's ``pull_timeout``; one that breaks off is carried on with.

    The master is told how far it is.

    CLI Example:

    .. code-block:: bash

        salt-call --local ollama_container.pull local llama3.2:3b
    """
    row = described.profile(__pillar__, profile)
    insecure = registry.is_plain(model, __pillar__["models"]["insecure_registries"])
    began = time.monotonic()
    with api.Client(described.host_url(row)) as client:
        for attempt in range(1, PULL_ATTEMPTS + 1):
            left = row["pull_timeout"] - (time.monotonic() - began)
            try:
                return _whole(client, model, insecure, left)
            except api.ModelNotFound:
                raise
            except api.OllamaError as err:
                over = time.monotonic() - began >= row["pull_timeout"]
                if over or attempt == PULL_ATTEMPTS:
                    raise _failed(profile, model, row["pull_timeout"], attempt, err) from err
                log.warning("Pull of %s broke off (attempt %d of %d): %s", model, attempt, PULL_ATTEMPTS, err)
    return {}


def _whole(client: api.Client, model: str, insecure: bool, seconds: float) -> dict[str, Any]:
    source = f"http://{model}" if insecure else model
    limits = api.Limits(connect=3.0, read=min(300.0, max(seconds, 0.001)), total=max(seconds, 0.001))
    events = client.pull(source, insecure=insecure, limits=limits)
    return transfer.follow("pull", model, events, __opts__, __salt__)


def _failed(profile: str, model: str, limit: float, attempts: int, err: Exception) -> PlatformError:
    return PlatformError(
        f"{model} is not pulled after {attempts} attempts in at most {limit:g} s",
        where=f"ollama.profiles.{profile}.models",
        actual=str(err),
        hint="the next run carries on where this one ended; salt-call ollama.doctor tells about network and disk",
    )
