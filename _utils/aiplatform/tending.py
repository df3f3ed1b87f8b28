"""Noticing slots that are not loaded, from what the last run of the models phase wrote for the warm-up.

Pillar says what is wanted, and may be ahead of the host: what the warm-up loads is what was last brought into service.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from salt.exceptions import CommandExecutionError

from aiplatform import numa
from aiplatform.errors import PlatformError
from aiplatform.ollama import Client, InstanceDown, OllamaError, Timeout
from aiplatform.slots import Resident

FOLDER = Path("/etc/ai-platform")
SILENT = "the instance does not answer"
LOCK = "ai-platform-tending.lock"


def warmup(url: str, residents: Iterable[Resident], models: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of an instance's warm-up settings.

    url
        Of the instance.
    residents
        What it is to load.
    models
        Pillar ``models``: how long it may take.
    """
    rows = [
        {
            "name": resident.name,
            "holds": resident.model,
            "num_ctx": resident.num_ctx,
            "aliases": [alias.name for alias in resident.aliases],
        }
        for resident in residents
    ]
    return {
        "url": url,
        "wait_seconds": models["warmup_wait"],
        "load_seconds": models["load_timeout"],
        "models": rows,
    }


def warmup_seconds(pillar: Mapping[str, Any], instance: str) -> float:
    """Return how long an instance's warm-up may take: the wait for it and the loads, one after the other."""
    models = pillar["models"]
    places = [slot for slot in pillar["slots"].values() if slot["instance"] == instance]
    own = [row for row in pillar["aliases"].values() if row.get("model") and row.get("instance") == instance]
    seconds: float = models["warmup_wait"] + (len(places) + len(own)) * models["load_timeout"]
    return seconds


def settings(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the warm-up's settings of each instance of this host; those of a refused table are left out."""
    found = {}
    for path in sorted((folder or FOLDER).glob("warmup-*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and "models" in content:
            found[path.stem.removeprefix("warmup-")] = content
    return found


def neglected(wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return ``{instance: what is wrong}`` of those that do not answer or lack a slot.

    wanted
        As ``settings`` returns it.
    """
    found = {name: _wrong(about) for name, about in wanted.items()}
    return {name: wrong for name, wrong in found.items() if wrong}


def _wrong(about: Mapping[str, Any]) -> str:
    with Client(about["url"]) as client:
        try:
            names = {str(row["name"]): row["digest"] for row in client.tags()}
            loaded = [(row["digest"], row.get("context_length")) for row in client.ps()]
        except (InstanceDown, Timeout):
            return SILENT
        except OllamaError:
            return ""  # it answers, and is looked at again in a moment
    cold = []
    for model in about["models"]:
        ways = {names.get(f"{name}:latest") for name in (model["name"], *model["aliases"])}
        if not any((digest, model["num_ctx"]) in loaded for digest in ways):
            cold.append(f"{model['name']} ({model['holds']})")
    if cold:
        return f"not loaded: {', '.join(cold)}"
    # Ollama notices that a runner has ended when it is next asked for its model; until then it says that it is loaded.
    ended = len(loaded) - numa.living_runners(urlsplit(about["url"]).port or 0)
    return f"ended: {ended} of {len(loaded)} runners" if ended > 0 else ""


def heal(
    wrong: Mapping[str, str],
    units: Mapping[str, str],
    restart: Callable[[str], object],
    warm_up: Callable[[str], object],
) -> None:
    """Put instances right, each whatever becomes of the others.

    wrong
        What is wrong with each, as ``neglected`` returns it.
    units
        The unit of each instance that there is.
    restart, warm_up
        Called with the unit of one that does not answer, then with the name of each.

    Raises ``PlatformError`` with each instance that stays cold.
    """
    cold = []
    for name in (name for name in units if name in wrong):
        try:
            if wrong[name] == SILENT:
                restart(units[name])
            warm_up(name)
        except CommandExecutionError as err:
            cold.append(str(err))
    if cold:
        hint = "what else was cold is warm again; the next look at the slots tries these once more"
        raise PlatformError("Not every instance could be warmed again", actual="; ".join(cold), hint=hint)


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Yield whether no other process of this host is at it; the lock ends with the body, or with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
