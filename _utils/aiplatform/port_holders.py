"""Who listens on a TCP port of this host: process, systemd unit, address. Reads only."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

DOCKER_PROXY = "docker-proxy"
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 (compared, not bound)
_UNIT = re.compile(r"/([^/]+\.service)(?:/|$)", re.MULTILINE)


@dataclass(frozen=True)
class Holder:
    """Who listens: ``process`` and ``unit`` are empty where they are not known."""

    address: str
    port: int
    pid: int
    process: str
    unit: str

    def __str__(self) -> str:
        """Return it in words."""
        unit = f" of {self.unit}" if self.unit else ""
        return f"{self.process or 'an unknown process'} (pid {self.pid}){unit} on {self.address}:{self.port}"


def holders(port: int, address: str, proc: Path = Path("/proc")) -> list[Holder]:
    """Return who listens where a service that is to listen on ``address`` and ``port`` could not.

    proc
        Where the kernel shows its processes.
    """
    found = {
        Holder(row.laddr.ip, port, row.pid or 0, _process(row.pid), _unit(row.pid, proc))
        for row in psutil.net_connections("tcp")
        if row.status == psutil.CONN_LISTEN and row.laddr.port == port and meet(row.laddr.ip, address)
    }
    return sorted(found, key=lambda holder: (holder.pid, holder.address))


def meet(one: str, other: str) -> bool:
    """Whether two listeners on these addresses could not have the same port."""
    return one == other or one in _WILDCARDS or other in _WILDCARDS


def _process(pid: int | None) -> str:
    # It may have ended meanwhile.
    with contextlib.suppress(psutil.Error):
        return str(psutil.Process(pid).name()) if pid else ""
    return ""


def _unit(pid: int | None, proc: Path) -> str:
    with contextlib.suppress(OSError):
        return unit_of((proc / str(pid) / "cgroup").read_text(encoding="utf-8")) if pid else ""
    return ""


def unit_of(cgroup: str) -> str:
    """Return the systemd service in the text of ``/proc/<pid>/cgroup``; empty where there is none."""
    found = _UNIT.findall(cgroup)
    return found[-1] if found else ""


def strangers(found: Iterable[Holder], publishers: Collection[str], own: Collection[str]) -> list[str]:
    """Return, in words, who keeps a container from its port: listeners, and containers that publish it.

    found
        As ``holders`` returns them.
    publishers
        The names of the containers that publish the port.
    own
        Those that leave it to the one that is to have it, and that one itself: they and their proxies are no strangers.
    """
    others = [f"container {name}" for name in publishers if name not in own]
    return [
        *(str(holder) for holder in found if holder.process != DOCKER_PROXY),
        *others,
        *(str(holder) for holder in found if holder.process == DOCKER_PROXY and not publishers),
    ]
