"""Whether this host can carry the platform. Nothing here changes anything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from aiplatform import checks, hostcheck, instances, services, wait
from aiplatform import ollama as api
from aiplatform.checks import Finding
from aiplatform.errors import PlatformError

ROOT_FREE = "root_free"


def names() -> list[str]:
    """Return the names of the checks that this host's roles ask for.

    CLI Example:

    .. code-block:: bash

        salt ai_server preflight.names
    """
    return list(_checks())


def check(name: str) -> dict[str, Any]:
    """Make one check and return ``host``, ``check``, ``ok``, ``expected``, ``actual`` and ``hint``.

    name
        One of ``preflight.names``.

    CLI Example:

    .. code-block:: bash

        salt ai_server preflight.check data_root_free
    """
    return checks.run(name, _checks()[name]).on(__grains__["id"])


def run() -> list[dict[str, Any]]:
    """Make every check of this host.

    CLI Example:

    .. code-block:: bash

        salt '*' preflight.run
    """
    return [check(name) for name in names()]


def _checks() -> dict[str, Callable[[], Finding]]:
    limits = __pillar__["preflight"]
    found: dict[str, Callable[[], Finding]] = {
        "root": lambda: hostcheck.root(os.geteuid()),
        "system": lambda: hostcheck.system(__grains__, limits["systems"]),
        "architecture": lambda: hostcheck.architecture(__grains__, limits["architectures"]),
        "clock": lambda: hostcheck.clock(time.time(), __pillar__["compiled"], limits["clock_skew"]),
        "other_states": _other_states,
    }
    if "ai_server" in __pillar__["roles"]:
        found |= _data_checks()
    if "coredns_host" in __pillar__["roles"]:
        found[ROOT_FREE] = lambda: hostcheck.free_space("/", limits["root_free_gb"])
    return found | _port_checks()


def _data_checks() -> dict[str, Callable[[], Finding]]:
    limits, path = __pillar__["preflight"], __pillar__["platform"]["data_root"]
    found: dict[str, Callable[[], Finding]] = {
        "data_root_mounted": lambda: hostcheck.mounted(path, limits["data_root_mounted"]),
        "data_root_free": lambda: hostcheck.free_space(path, limits["data_root_free_gb"], counted=path),
    }
    for name, instance in __pillar__["ollama"]["instances"].items():
        found[f"ollama_{name}"] = lambda name=name, unit=instance["unit"]: _ollama(name, unit)
    return found


def _port_checks() -> dict[str, Callable[[], Finding]]:
    """One check for each service whose process this host runs."""
    table = services.expand(__pillar__).values()
    rows = [row for row in table if row["role"] in __pillar__["roles"] and row.get("process")]
    return {
        f"port_{row['port']}": lambda row=row: hostcheck.port(row["port"], row["process"])
        for row in rows
        if row["scheme"] != "udp"
    }


def _ollama(instance: str, unit: str) -> Finding:
    """An instance that is not installed yet is fine; one that is installed must answer."""
    url = instances.base_url(__pillar__, instance)
    what, expected = f"Ollama at {url}", "not installed, or an answer with HTTP 200"
    if not __salt__["service.available"](unit) or not __salt__["service.enabled"](unit):
        return Finding(what, ok=True, expected=expected, actual=f"{unit} is not installed")
    try:
        wait.until(lambda: _answer(url), __pillar__["preflight"]["ollama_timeout"], interval=1, what=what)
    except PlatformError as err:
        hint = f"journalctl -u {unit}; salt-run ai_platform.deploy phases=ollama puts it right"
        return Finding(what, ok=False, expected=expected, actual=f"{unit} is installed and silent: {err}", hint=hint)
    return Finding(what, ok=True, expected=expected, actual="HTTP 200")


def _answer(url: str) -> str:
    """Return the version of the Ollama at ``url``; empty while it does not answer."""
    try:
        return api.Client(url).version()
    except PlatformError:
        return ""


def _other_states() -> Finding:
    """No other run of states may be under way, such as one that a restarted master has lost sight of."""
    running = [job for job in __salt__["saltutil.is_running"]("state.*") if job["pid"] != os.getpid()]
    return hostcheck.other_states(running)
