"""Tells the master that a slot is not loaded on this host, or that an Ollama instance does not answer.

The master's reactor then has it loaded again. The look is two small requests to each instance on loopback.
"""

from __future__ import annotations

import time
from typing import Any

# Between two events about one thing: a large model takes minutes to load.
AGAIN_SECONDS = 60
_seen: dict[str, str] = {}
_told: dict[str, float] = {}


def validate(config: list[dict[str, Any]]) -> tuple[bool, str]:
    """Check the beacon's configuration: an optional ``again``, in seconds."""
    again = _options(config).get("again", AGAIN_SECONDS)
    if isinstance(again, int | float) and again > 0:
        return True, "Valid beacon configuration"
    return False, f"again: expected seconds, more than 0, got {again!r}"


def beacon(config: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return an event for each instance that was found wanting twice in a row: while a slot moves, it may be for once.

    .. code-block:: yaml

        beacons:
          slots_cold:
            - interval: 5
            - again: 60
            - disable_during_state_run: true
    """
    found = __salt__["model_slots.neglected"]()
    twice = {name: about for name, about in found.items() if name in _seen}
    _seen.clear()
    _seen.update(found)
    now, again = time.monotonic(), _options(config).get("again", AGAIN_SECONDS)
    due = {name: about for name, about in twice.items() if now - _told.get(name, -again) >= again}
    _told.update(dict.fromkeys(due, now))
    return [{"tag": name, "instance": name, "about": about} for name, about in due.items()]


def _options(config: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in config:
        merged |= part
    return merged
