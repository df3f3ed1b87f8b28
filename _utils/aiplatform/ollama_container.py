"""Ollama in Docker: the profiles that a host runs, and what Docker is told of each. Pure: talks to no engine."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aiplatform import containers
from aiplatform.errors import NotFoundError, PlatformError
from aiplatform.schema import Problem, one_of
from aiplatform.settings import merge

Settings = Mapping[str, Any]
Profile = dict[str, Any]

MODE = "container"
LABEL = "ai-platform.ollama"
# Where Ollama listens in every container, whatever port of the host leads there.
PORT = 11434
# A volume of upstream's layout: the image keeps it in root's home, which nobody else can enter.
HOME = "/var/lib/ollama"
DATA = f"{HOME}/.ollama"
MODELS = "/models"
PIDS = 2048
# Whose devices Docker is asked for.
VENDOR = "nvidia"
VERSION = re.compile(r"\d+\.\d+\.\d+")
ANYWHERE = "0.0.0.0"  # noqa: S104 (compared and told to a container; who gets in is the published address)


def is_used(settings: Settings) -> bool:
    """Whether Ollama runs in Docker here."""
    return bool(settings["ollama"].get("mode") == MODE)


def profiles(settings: Settings) -> dict[str, Profile]:
    """Return the profiles that this host runs, each whole: what all share, under what the profile says itself.

    Raises ``NotFoundError`` for one that pillar has not got.
    """
    ollama = settings["ollama"]
    for name in ollama["run"]:
        if name not in ollama["profiles"]:
            raise NotFoundError(f"There is no profile {name!r}", where="ollama:run", expected=_known(ollama, name))
    return {name: _whole(ollama, name) for name in ollama["run"]}


def _known(ollama: Settings, name: str) -> str:
    return one_of(name, ollama["profiles"])


def _whole(ollama: Settings, name: str) -> Profile:
    found: Profile = merge(ollama["container"], ollama["profiles"][name])
    found["name"] = found["name"] or f"ollama-{name}"
    found["volume"] = found["volume"] or f"{found['name']}_data"
    found["version"] = found["version"] or ollama["version"]
    found["memory_reservation_mib"] = found["memory_reservation_mib"] or found["memory_mib"] // 2
    return found


def profile(settings: Settings, name: str) -> Profile:
    """Return one of the profiles that this host runs.

    Raises ``NotFoundError`` where it does not run it.
    """
    known = profiles(settings)
    if name not in known:
        raise NotFoundError(f"This host runs no profile {name!r}", where="ollama:run", expected=one_of(name, known))
    return known[name]


def problems(settings: Settings, defaults: Settings) -> list[Problem]:
    """Return what no schema can say: profiles that are not there, get into each other's way, or are open to anybody.

    defaults
        The defaults of all formulas: the digest of an image there is that of the version there.
    """
    if not is_used(settings):
        return []
    ollama = settings["ollama"]
    missing = [name for name in ollama["run"] if name not in ollama["profiles"]]
    if missing:
        return [Problem("ollama.run", missing[0], _known(ollama, missing[0]))]
    known = profiles(settings)
    found = [*_without_port(known), *_collisions(known), *_open(known), *_reservations(known)]
    return [*found, *_other_digests(known, defaults["ollama"])]


def _without_port(known: Mapping[str, Profile]) -> Iterator[Problem]:
    for name, row in known.items():
        if "port" not in row:
            yield Problem(f"ollama.profiles.{name}.port", None, "the port of the host that it is published on")


def _collisions(known: Mapping[str, Profile]) -> Iterator[Problem]:
    for key in ("port", "name", "volume", "storage"):
        taken: dict[Any, str] = {}
        for name, row in known.items():
            value = row.get(key)
            other = taken.setdefault(value, name) if value is not None else name
            if other != name:
                yield Problem(f"ollama.profiles.{name}.{key}", value, f"one of its own: profile {other} has this one")


def _open(known: Mapping[str, Profile]) -> Iterator[Problem]:
    for name, row in known.items():
        if is_exposed(row) and not row["sources"]:
            wanted = "the networks that may reach it: Ollama has no authentication, and its address is not loopback"
            yield Problem(f"ollama.profiles.{name}.sources", [], wanted)
        if row["sources"] and not is_exposed(row):
            wanted = "an address of this host that these sources can reach, or no sources"
            yield Problem(f"ollama.profiles.{name}.address", row["address"], wanted)


def _reservations(known: Mapping[str, Profile]) -> Iterator[Problem]:
    for name, row in known.items():
        if row["memory_reservation_mib"] > row["memory_mib"]:
            yield Problem(
                f"ollama.profiles.{name}.memory_reservation_mib",
                row["memory_reservation_mib"],
                f"at most its memory_mib, {row['memory_mib']}",
            )


def _other_digests(known: Mapping[str, Profile], default: Settings) -> Iterator[Problem]:
    shipped = default["container"] | {"version": default["version"]}
    for name, row in known.items():
        if row["digest"] == shipped["digest"] and (expected := containers.other_digest(row, shipped)):
            everywhere = "ollama.container.digest is that of all profiles"
            yield Problem(f"ollama.profiles.{name}.digest", row["digest"], f"{expected}; {everywhere}")


def is_exposed(row: Profile) -> bool:
    """Whether a profile is published on another address than loopback."""
    return not ipaddress.ip_address(row["address"]).is_loopback


def rows(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    """Return a row of the table of services for each profile that is open to a network, for the firewall."""
    if not is_used(settings):
        return []
    return [
        (f"ollama-{name}", {"port": row["port"], "scheme": "http", "reach": row["sources"]})
        for name, row in profiles(settings).items()
        if is_exposed(row)
    ]


def warning(name: str, row: Profile) -> str:
    """Return what the operator of a profile that is open to a network has to know."""
    return (
        f"Profile {name} is published on {row['address']}:{row['port']}. Ollama has no authentication: whoever is in "
        f"{', '.join(row['sources'])} can use, replace and delete its models. The firewall keeps all others out."
    )


def host_url(row: Profile) -> str:
    """Return the base URL of a profile for programs on its host."""
    address = row["address"]
    if address in (ANYWHERE, "::"):
        address = "127.0.0.1"
    return f"http://{f'[{address}]' if ':' in address else address}:{row['port']}"


def inner_url(row: Profile) -> str:
    """Return the base URL of a profile for containers in its network: by its name, never by localhost."""
    return f"http://{row['name']}:{PORT}"


def image(settings: Settings, row: Profile) -> str:
    """Return the full name of a profile's image."""
    registry = settings["containers"]["registry"]
    return containers.reference(registry, row["image"], row["version"], row["digest"])


def known_version(row: Profile) -> str:
    """Return the version that a profile's server has to answer; empty where its image's name does not tell.

    A tag such as ``latest`` or ``0.17.4-rocm`` is no version, and a digest counts before the tag.
    """
    return "" if row["digest"] or not VERSION.fullmatch(row["version"]) else row["version"]


def environment(settings: Settings, row: Profile) -> dict[str, str]:
    """Return the environment of a profile's server."""
    ollama = settings["ollama"]
    optional = {"OLLAMA_CONTEXT_LENGTH": row["context_length"], "OLLAMA_ORIGINS": ",".join(row["origins"])}
    return {
        "HOME": HOME,
        "OLLAMA_NO_CLOUD": "1",
        **row["environment"],
        "OLLAMA_HOST": f"{ANYWHERE}:{PORT}",
        "OLLAMA_MODELS": f"{DATA}/models",
        "OLLAMA_KEEP_ALIVE": str(row["keep_alive"]),
        "OLLAMA_FLASH_ATTENTION": str(int(ollama["flash_attention"])),
        "OLLAMA_NUM_PARALLEL": str(row["num_parallel"]),
        "OLLAMA_MAX_LOADED_MODELS": str(row["max_loaded_models"]),
        "OLLAMA_LOAD_TIMEOUT": str(ollama["load_timeout"]),
        # A start would delete what a pull that broke off has fetched so far.
        "OLLAMA_NOPRUNE": "1",
        **{key: str(value) for key, value in optional.items() if value},
    }


def gpus(wanted: bool | str, drivers: list[str]) -> str | None:
    """Return how many GPUs Docker is asked for: ``all``, or None.

    wanted
        false, auto or true, as pillar says.
    drivers
        The vendors whose devices Docker hands to a container on the host.
    """
    return "all" if wanted and VENDOR in drivers else None


def demand_gpu(name: str, wanted: bool | str, drivers: list[str]) -> None:
    """Refuse a profile that demands a GPU on a host where no container gets one.

    wanted, drivers
        As of ``gpus``.

    Raises ``PlatformError``.
    """
    if wanted is True and not gpus(wanted, drivers):
        raise PlatformError(
            f"Profile {name} demands a GPU, and no container gets one of NVIDIA's here; nothing was changed",
            where=f"ollama.profiles.{name}.gpu",
            expected="NVIDIA's driver loaded, and nvidia-container-runtime-hook of its toolkit",
            actual=f"devices of {', '.join(drivers)}" if drivers else "not both",
            hint="install the driver and nvidia-container-toolkit, or set gpu to auto or false",
        )


def arguments(settings: Settings, name: str, drivers: list[str], cpus: int) -> dict[str, Any]:
    """Return the arguments of the state ``platform_container.running`` for a profile.

    drivers
        The vendors of GPUs whose devices Docker hands to a container on the host.
    cpus
        How many CPUs the host has; Docker refuses a limit above that.
    """
    row = profile(settings, name)
    volumes = {row["volume"]: DATA}
    if row["models_folder"]:
        volumes[row["models_folder"]] = f"{MODELS}{containers.READ_ONLY}"
    address = f"[{row['address']}]" if ":" in row["address"] else row["address"]
    return {
        "image": image(settings, row),
        "user": f"{row['uid']}:{row['uid']}",
        "memory_mib": row["memory_mib"],
        "memory_reservation_mib": row["memory_reservation_mib"],
        "cpus": min(row["cpus"], cpus) if row["cpus"] else None,
        "gpus": gpus(row["gpu"], drivers),
        "environment": environment(settings, row),
        "publish": [f"{address}:{row['port']}:{PORT}"],
        "volumes": volumes,
        "labels": row["labels"] | {LABEL: name},
        "restart": row["restart"],
        "log_options": row["log_options"],
        "pids": PIDS,
        "health": {"test": ["ollama", "list"], "start_interval": 1, **row["health"]},
        "timeout": row["ready_timeout"],
    }
