"""Who can connect to what: the table of services, tried from a host."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

from aiplatform.checks import Finding
from aiplatform.services import Endpoint, endpoints

Connect = Callable[[str, int, float], str]
REFUSED, ANSWERED = "no connection", "a connection"


def allowed(settings: Mapping[str, Any], endpoint: Endpoint, host: str) -> bool:
    """Say whether ``host`` (a minion id) may reach a service on another host.

    settings
        The effective pillar.
    """
    reach = settings["services"][endpoint.service]["reach"]
    roles = settings["platform"]["hosts"][host]["roles"]
    return "any" in reach or bool(set(reach) & set(roles))


def from_host(settings: Mapping[str, Any], host: str) -> dict[str, Endpoint]:
    """Return the services on other hosts by the name of their check; ``udp`` cannot be tried by connecting."""
    known = host in settings["platform"]["hosts"]
    return {
        f"reach_{end.service}_{end.host}": end
        for end in endpoints(settings)
        if known and end.host != host and end.scheme != "udp"
    }


def connect(address: str, port: int, timeout: float) -> str:
    """Try a TCP connection and say how it ended: ``a connection`` or ``no connection``."""
    try:
        with socket.create_connection((address, port), timeout=timeout):
            return ANSWERED
    except OSError:
        return REFUSED


def tried(
    settings: Mapping[str, Any], endpoint: Endpoint, host: str, timeout: float, how: Connect = connect
) -> Finding:
    """Return whether a service can be reached from ``host`` exactly where the table says so.

    timeout
        Seconds until silence counts as no connection.
    """
    wanted = ANSWERED if allowed(settings, endpoint, host) else REFUSED
    actual = how(endpoint.address, endpoint.port, timeout)
    return Finding(
        f"{endpoint.service} on {endpoint.host} from here ({endpoint.address}:{endpoint.port})",
        actual == wanted,
        wanted,
        actual,
        f"services.{endpoint.service}.reach in pillar; the firewall of {endpoint.host}",
    )
