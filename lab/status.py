"""What each host is, does and uses."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from lab import machine
from lab.process import docker
from lab.settings import LabError
from lab.topology import HOSTS, Host, execute, listed

HEADS = ("host", "address", "state", "memory", "limit", "cpu", "disk", "services")


def table() -> str:
    """The table of all hosts.

    Raises:
        LabError: there is no lab.
    """
    if not machine.engine_answers():
        raise LabError("No container engine answers: the lab is down. Raise it with: make lab")
    containers = {item["Name"].lstrip("/"): item for item in listed()}
    if not containers:
        raise LabError("The lab is down. Raise it with: make lab")
    used = usage()
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        rows = list(pool.map(lambda host: row(host, host.container in containers, used.get(host.container, {})), HOSTS))
    return text_table([list(HEADS), *rows])


def usage() -> dict[str, dict[str, str]]:
    """Memory and CPU of each running container, by name."""
    lines = docker("stats", "--no-stream", "--format", "{{json .}}").splitlines()
    return {item["Name"]: item for item in map(json.loads, lines)}


def row(host: Host, exists: bool, used: dict[str, str]) -> list[str]:
    """One host's cells."""
    if not exists:
        return [host.name, host.address, "missing", *[""] * 5]
    if not used:
        return [host.name, host.address, "stopped", *[""] * 5]
    state = execute(host, "systemctl", "is-system-running", check=False).strip()
    memory, _, limit = used["MemUsage"].partition(" / ")
    return [host.name, host.address, state, memory, limit, used["CPUPerc"], disk(host), services(host)]


def disk(host: Host) -> str:
    """What a host has written, besides its image and the cache."""
    paths = ["/etc", "/opt", "/root", "/srv", "/var", "/mnt", "/usr/local"]
    excluded = ["--exclude=/srv/files", "--exclude=/var/lib/docker-registry"]
    return execute(host, "du", "-shc", *excluded, *paths, check=False).splitlines()[-1].split()[0]


def services(host: Host) -> str:
    """A host's units and their states; what is not installed yet is left out."""
    out = execute(host, "systemctl", "show", "--property=Id,LoadState,ActiveState", *host.services, check=False)
    shown = []
    for block in out.strip().split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if unit.get("LoadState") == "loaded":
            shown.append(f"{unit['Id'].removesuffix('.service')} {unit['ActiveState']}")
    return ", ".join(shown)


def text_table(rows: list[list[str]]) -> str:
    r"""Rows with their columns under one another.

    >>> text_table([["a", "b"], ["cc", "d"]])
    'a   b\ncc  d'
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows)
