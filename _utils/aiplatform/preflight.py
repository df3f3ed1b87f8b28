"""Whether a host can carry the platform: the checks before a deploy. Nothing here changes anything."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import PurePosixPath

from aiplatform import hostcheck, instances, services, wait
from aiplatform import ollama as api
from aiplatform.checks import Check, Finding, Host, Suite
from aiplatform.errors import PlatformError


def every_host(host: Host) -> dict[str, Check]:
    """Return the checks that every host has."""
    limits = host.pillar["preflight"]
    return {
        "root": lambda: hostcheck.root(os.geteuid()),
        "system": lambda: hostcheck.system(host.grains, limits["systems"]),
        "architecture": lambda: hostcheck.architecture(host.grains, limits["architectures"]),
        "clock": lambda: hostcheck.clock(time.time(), host.pillar["compiled"], limits["clock_skew"]),
        "other_states": partial(_other_states, host),
    }


def disks(host: Host) -> dict[str, Check]:
    """Return the checks of the disks that the host's roles fill."""
    limits, found = host.pillar["preflight"], dict[str, Check]()
    if "ai_server" in host.roles:
        root = host.pillar["platform"]["data_root"]
        found["data_root_mounted"] = partial(hostcheck.mounted, root, limits["data_root_mounted"])
        # Nearly all of the room is for models, and they may lie on another disk.
        store = instances.models_dir(host.pillar)
        below = PurePosixPath(store).is_relative_to(root)
        name, place = ("data_root_free", root) if below else ("models_dir_free", store)
        found[name] = partial(hostcheck.free_space, place, limits["data_root_free_gb"], counted=place)
    if "coredns_host" in host.roles:
        found["root_free"] = partial(_root_free, host)
    return found


def ollama(host: Host) -> dict[str, Check]:
    """Return a check for each Ollama instance: not installed yet is fine; installed, it must answer."""
    if "ai_server" not in host.roles:
        return {}
    rows = host.pillar["ollama"]["instances"].items()
    return {f"ollama_{name}": partial(_ollama, host, name, row["unit"]) for name, row in rows}


def ports(host: Host) -> dict[str, Check]:
    """Return a check for each service whose process this host runs: its port is free, or held by that process."""
    table = services.expand(host.pillar).values()
    own = [row for row in table if host.id in services.running(host.pillar, row)]
    rows = [row for row in own if row.get("process") and row["scheme"] != "udp"]
    return {f"port_{row['port']}": partial(hostcheck.port, row["port"], row["process"]) for row in rows}


SUITE = Suite(every_host, disks, ollama, ports)


def _root_free(host: Host) -> Finding:
    """What the first installation wants room for is there as soon as the container is."""
    there = host.salt["platform_container.answers"]() and host.salt["platform_container.inspect"]("coredns")
    return hostcheck.free_space("/", 0 if there else host.pillar["preflight"]["root_free_gb"])


def _ollama(host: Host, instance: str, unit: str) -> Finding:
    url = instances.base_url(host.pillar, instance)
    what, expected = f"Ollama at {url}", "not installed or enabled yet, or an answer with HTTP 200"
    if not host.salt["service.available"](unit):
        return Finding(what, ok=True, expected=expected, actual=f"{unit} is not installed")
    if not host.salt["service.enabled"](unit):
        actual = f"{unit} is not enabled yet: the phase ollama enables and starts it"
        return Finding(what, ok=True, expected=expected, actual=actual)
    try:
        wait.until(lambda: _answer(url), host.pillar["preflight"]["ollama_timeout"], interval=1, what=what)
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


def _other_states(host: Host) -> Finding:
    """No other run of states may be under way, such as one that a restarted master has lost sight of."""
    running = [job for job in host.salt["saltutil.is_running"]("state.*") if job["pid"] != os.getpid()]
    return hostcheck.other_states(running)
