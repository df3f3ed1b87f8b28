"""One server alone: what its few lines of pillar leave to be filled in.

A host without a master is a server of Ollama where pillar names no hosts. ``ollama.api_port`` gives it one instance on
the whole host in place of the two bound ones; it has the slots that pillar names, and none by itself. All of it may be
done again to its own outcome, for a masterless run compiles the pillar twice.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from aiplatform.schema import Problem

ROLE = "ollama_server"
INSTANCE = "main"
WHOLE_HOST = {"numa_node": None, "cpus": "physical", "membind": False, "unit": "ollama.service"}
# Any address elsewhere will do: nothing is sent there.
ELSEWHERE = ("192.0.2.1", 9)
LOOPBACK = "127.0.0.1"

Settings = dict[str, Any]


def host(merged: Settings, minion_id: str) -> None:
    """Make a host without a master a server of Ollama alone, where pillar names no hosts at all.

    Its ports of other services are then not the platform's, and the firewall has no word about them.

    merged
        The effective settings, which are changed in place.
    """
    platform, services = merged.get("platform"), merged.get("services")
    if not isinstance(platform, dict) or not isinstance(services, dict) or not isinstance(platform.get("hosts"), dict):
        return
    if not platform["hosts"]:
        platform["hosts"] = {minion_id: {"address": own_address(), "roles": [ROLE]}}
    if ROLE in (platform["hosts"].get(minion_id) or {}).get("roles", []) and "ollama" in services:
        services["ollama"]["role"] = ROLE


def instance(merged: Settings, written: Mapping[str, Any]) -> list[Problem]:
    """Give a server with ``ollama.api_port`` its one instance; returns what is wrong with it.

    merged
        The effective settings, which are changed in place; what is misshapen is left to the schema.
    written
        What the operator wrote.
    """
    ollama, mine = merged.get("ollama"), written.get("ollama")
    if not isinstance(ollama, dict) or ollama.get("api_port") is None or not isinstance(mine, Mapping):
        return []
    named = mine.get("instances") or {}
    others = sorted(str(name) for name in named if name != INSTANCE)
    if others:
        return [Problem("ollama.instances", others, f"only {INSTANCE}: ollama.api_port asks for one instance")]
    own = named.get(INSTANCE) or {}
    ollama["instances"] = {INSTANCE: {**WHOLE_HOST, **own, "port": ollama["api_port"]}}
    return []


def slots(merged: Settings, written: Mapping[str, Any]) -> None:
    """Leave a server with ``ollama.api_port`` the slots that pillar names, on its instance, and what follows them.

    merged
        The effective settings, each key as its schema wants it; they are changed in place.
    written
        What the operator wrote.
    """
    if merged["ollama"]["api_port"] is None:
        return
    named, mine = written.get("slots") or {}, written.get("aliases") or {}
    kept = {number: row for number, row in merged["slots"].items() if number in named}
    for number, row in kept.items():
        if not (named[number] or {}).get("instance"):
            row["instance"] = INSTANCE
    aliases = {name: _alias(row, mine.get(name) or {}, kept) for name, row in merged["aliases"].items()}
    merged["slots"] = kept
    merged["aliases"] = {name: row for name, row in aliases.items() if row is not None}


def own_address() -> str:
    """Return the address that this host speaks to others from; loopback where it has no way to them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)
        except OSError:
            return LOOPBACK
        return str(probe.getsockname()[0])


def _alias(alias: Settings, mine: Mapping[str, Any], kept: Mapping[Any, Any]) -> Settings | None:
    """Return an alias of the one instance; None for one of the defaults that nothing here would serve."""
    place = mine.get("instance") or INSTANCE
    if alias.get("model") is not None and (mine or kept):
        return alias | {"instance": place}
    return alias if mine or alias.get("slot") in kept else None
