"""The Ollama instances of a host: address, environment and command line of each, out of the pillar and a NUMA plan."""

from __future__ import annotations

import os.path
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from aiplatform import ollama_container, services
from aiplatform.errors import NotFoundError
from aiplatform.numa import Binding
from aiplatform.schema import Problem

Settings = Mapping[str, Any]

# Besides the resident models: one that a client brings, and one that is being loaded to take another's place.
SPARE_PLACES = 2
# How the platform's own units begin; others' are never touched.
MARK = "# One instance of Ollama;"
UNITS = Path("/etc/systemd/system")
# What a unit does not see of its host (ProtectHome, PrivateTmp), whoever owns it.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 (compared, not written to)
PROC = Path("/proc")


def models_dir(settings: Settings) -> str:
    """Return the folder of the store that all instances share."""
    named = settings["ollama"]["models_dir"]
    return str(named or PurePosixPath(settings["platform"]["data_root"]) / "ollama_models")


def problems(settings: Settings) -> list[Problem]:
    """Return what no schema can say of native units: that they would not see the place of their files."""
    named, root = settings["ollama"]["models_dir"], settings["platform"]["data_root"]
    native = not ollama_container.is_used(settings)
    places = {"ollama.models_dir": named if native else None}
    # The data folder has the store that is not named, and what the Vault of a platform keeps.
    vault = services.hosts_of(settings, "ai_server")
    places["platform.data_root"] = root if vault or (native and not named) else None
    # As text: where a link leads is the host's business, and this may be another one.
    wanted = f"a folder outside of {', '.join(HIDDEN)}, which the confined units do not see, such as /srv/ai"
    return [Problem(key, place, wanted) for key, place in places.items() if place and _is_hidden(place)]


def _is_hidden(place: str) -> bool:
    return any(PurePosixPath(os.path.normpath(place)).is_relative_to(hidden) for hidden in HIDDEN)


def base_url(settings: Settings, instance: str) -> str:
    """Return the URL of an instance as its own host reaches it.

    Raises ``NotFoundError`` for an instance that the pillar does not have.
    """
    known = settings["ollama"]["instances"]
    if instance not in known:
        raise NotFoundError(
            f"There is no instance {instance!r}", where="ollama:instances", expected=" or ".join(sorted(known))
        )
    host = settings["ollama"]["api_host"]
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 (compared, not bound)
    return f"http://{address}:{known[instance]['port']}"


def resolve(settings: Settings, where: str) -> str:
    """Return the base URL of what a person calls an instance: its name, a URL, or an alias that it serves.

    Where Ollama runs in Docker, a name is a profile's.

    Raises ``NotFoundError`` for a name that is neither.
    """
    known = settings["ollama"]["instances"]
    if "://" in where:
        return where
    if ollama_container.is_used(settings):
        return ollama_container.host_url(ollama_container.profile(settings, where))
    if where in known:
        return base_url(settings, where)
    alias, slots = settings.get("aliases", {}).get(where, {}), settings.get("slots", {})
    numbers = {str(number): slot["instance"] for number, slot in slots.items()}
    instance = alias.get("instance") or numbers.get(str(alias.get("slot"))) or numbers.get(where.removeprefix("slot-"))
    if instance is None:
        raise NotFoundError(
            f"{where!r} is no instance, no alias and no URL",
            expected=", ".join([*sorted(known), *sorted(settings.get("aliases", {})), "http://host:port"]),
        )
    return base_url(settings, instance)


def loaded_limit(settings: Settings, instance: str) -> int:
    """Return how many models an instance may hold at once: what pillar gives, else as many as it needs places."""
    return int(settings["ollama"].get("max_loaded_models") or places(settings, instance))


def places(settings: Settings, instance: str) -> int:
    """Return how many models an instance must be able to hold at once without evicting one.

    Ollama evicts by keep-alive and digest, a locked slot as soon as any other. So there is a place for each slot of the
    instance (an empty one too), each model that an alias keeps resident there, an embedding model and one incoming.
    """
    slots = [slot for slot in settings.get("slots", {}).values() if slot["instance"] == instance]
    aliases = settings.get("aliases", {}).values()
    resident = {alias["model"] for alias in aliases if alias.get("model") and alias.get("instance") == instance}
    return len(slots) + len(resident) + SPARE_PLACES


def environment(settings: Settings, instance: str) -> dict[str, str]:
    """Return the environment of an instance's service."""
    ollama = settings["ollama"]
    port = ollama["instances"][instance]["port"]
    return {
        # Neither authentication nor threads are here: Ollama has no variable for either.
        "HOME": f"/var/lib/ollama/{instance}",
        "OLLAMA_NO_CLOUD": "1",
        **ollama["environment"],
        "OLLAMA_HOST": f"{_bracketed(ollama['api_host'])}:{port}",
        "OLLAMA_MODELS": models_dir(settings),
        "OLLAMA_KEEP_ALIVE": str(ollama["keep_alive"]),
        "OLLAMA_FLASH_ATTENTION": str(int(ollama["flash_attention"])),
        "OLLAMA_NUM_PARALLEL": str(ollama["num_parallel"]),
        "OLLAMA_MAX_LOADED_MODELS": str(loaded_limit(settings, instance)),
        "OLLAMA_LOAD_TIMEOUT": str(ollama["load_timeout"]),
        # A start would delete what the other instance is pulling into the shared store.
        "OLLAMA_NOPRUNE": "1",
    }


def command(root: str, binding: Binding) -> list[str]:
    """Return the words of the service's command line."""
    serve = [f"{root}/current/bin/ollama", "serve"]
    return ["/usr/bin/numactl", *binding.numactl, *serve] if binding.numactl else serve


def describe(settings: Settings, bindings: Mapping[str, Binding]) -> dict[str, dict[str, Any]]:
    """Return what a unit file needs of each instance: ``unit``, ``url``, ``command``, ``environment``, ``num_thread``,
    ``warnings``.
    """  # noqa: D205 (one sentence)
    ollama = settings["ollama"]
    return {
        name: {
            "unit": ollama["instances"][name]["unit"],
            "url": base_url(settings, name),
            "command": command(ollama["root"], binding),
            "environment": environment(settings, name),
            "num_thread": binding.num_thread,
            "warnings": list(binding.warnings),
        }
        for name, binding in bindings.items()
    }


def retired(wanted: Collection[str], units: Path | None = None) -> list[str]:
    """Return the units of instances that the pillar has no more.

    wanted
        The units of those that it has.
    """
    found = [path for path in sorted((units or UNITS).glob("*.service")) if path.is_file() and path.name not in wanted]
    return [path.name for path in found if path.read_text(encoding="utf-8", errors="replace").startswith(MARK)]


def outdated(pid: int, environment: Mapping[str, str], proc: Path | None = None) -> dict[str, Any]:
    """Return how the settings of a running instance differ from what they are to be; empty where it does not run.

    pid
        The main process of its unit; 0 where there is none.
    environment
        Its settings.

    Values are left out: a proxy's address may hold a password.
    """
    try:
        words = ((proc or PROC) / str(pid) / "environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return {}
    has = dict(word.split("=", 1) for word in words if "=" in word)
    others = sorted(key for key, value in environment.items() if has.get(key) != value)
    if not others:
        return {}
    return {"environment": {"old": f"other values of {', '.join(others)}", "new": "as in its unit"}}


def warnings(described: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the warnings of all instances."""
    return [warning for instance in described for warning in instance["warnings"]]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
