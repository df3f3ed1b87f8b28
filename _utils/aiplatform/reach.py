"""Who can connect to what: the table of services, tried from a host."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiplatform import schema
from aiplatform.checks import Finding
from aiplatform.services import Endpoint, endpoints, expand

REFUSED, ANSWERED = "no connection", "a connection"


def allowed(settings: Mapping[str, Any], endpoint: Endpoint, host: str) -> bool:
    """Say whether ``host`` (a minion id) may reach a service on another host.

    settings
        The effective pillar.
    """
    reach = expand(settings)[endpoint.service]["reach"]
    there = settings["platform"]["hosts"][host]
    address = ipaddress.ip_address(there["address"])
    networks = (ipaddress.ip_network(who) for who in reach if schema.is_network(who))
    return "any" in reach or bool(set(reach) & set(there["roles"])) or any(address in network for network in networks)


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


def connect_all(ends: Iterable[Endpoint], timeout: float) -> dict[str, str]:
    """Try all services at once, by URL: a port that is silent costs its ``timeout`` (seconds) only once."""
    found = list(ends)
    if not found:
        return {}
    with ThreadPoolExecutor(max_workers=len(found)) as pool:
        answers = pool.map(lambda end: connect(end.address, end.port, timeout), found)
        return {end.url: answer for end, answer in zip(found, answers, strict=True)}


def judged(settings: Mapping[str, Any], endpoint: Endpoint, host: str, actual: str) -> Finding:
    """Return whether a service can be reached from ``host`` exactly where the table says so.

    actual
        How the try ended, as ``connect`` says it.
    """
    wanted = ANSWERED if allowed(settings, endpoint, host) else REFUSED
    return Finding(
        f"{endpoint.service} on {endpoint.host} from here ({endpoint.address}:{endpoint.port})",
        actual == wanted,
        wanted,
        actual,
        f"services.{endpoint.service}.reach in pillar; the firewall of {endpoint.host}",
    )
