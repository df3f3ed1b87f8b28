"""What each host is, does and uses."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from lab import machine
from lab.settings import LAB, LabError
from lab.topology import HOSTS, Host, execute, listed

PROBE = LAB / "probe.py"
HEADS = ("host", "address", "state", "memory", "limit", "cpu", "disk", "services")


def table() -> str:
    """The table of all hosts.

    Raises:
        LabError: there is no lab.
    """
    if not machine.engine_answers():
        raise LabError("No container engine answers to this user. Raise the lab with: make lab")
    running = {item["Name"].lstrip("/"): bool(item["State"]["Running"]) for item in listed()}
    if not running:
        raise LabError("The lab is down. Raise it with: make lab")
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        rows = list(pool.map(lambda host: row(host, running.get(host.container)), HOSTS))
    return text_table([list(HEADS), *rows])


def row(host: Host, running: bool | None) -> list[str]:
    """One host's cells; ``running`` is None where there is no such container."""
    if not running:
        return [host.name, host.address, "missing" if running is None else "stopped", *[""] * 5]
    state = execute(host, "systemctl", "is-system-running", check=False).strip()
    used = json.loads(execute(host, "python3", "-", stdin=PROBE.read_text()))
    memory = f"{used['memory'] / 2**20:.0f} MiB"
    return [
        host.name,
        host.address,
        state,
        memory,
        f"{host.memory} MiB",
        f"{used['cpu']:.0f} %",
        disk(host),
        services(host),
    ]


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
