"""Who can connect to what: the table of services, tried from a host.

This is about firewalls. Whether a service does what it is for is checked beside its logic, in ``verify_<service>.py``.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dns.exception
import dns.message
import dns.query

from aiplatform import plain_http, schema, sites
from aiplatform.checks import Finding
from aiplatform.services import Endpoint, endpoints, expand

REFUSED, ANSWERED, MUTE = "no connection", "a connection", "a connection, but no answer"


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
    """Return the services on other hosts by the name of their check.

    By ``udp``, which has no connection to try, name servers only: they answer a question.
    """
    known, rows = host in settings["platform"]["hosts"], expand(settings)
    return {
        f"reach_{end.service}_{end.host}": end
        for end in endpoints(settings)
        if known and end.host != host and (end.scheme != "udp" or rows[end.service]["role"] == "coredns_host")
    }


def connect(address: str, port: int, timeout: float) -> str:
    """Try a TCP connection and say how it ended: ``a connection`` or ``no connection``."""
    try:
        with socket.create_connection((address, port), timeout=timeout):
            return ANSWERED
    except OSError:
        return REFUSED


def speak(endpoint: Endpoint, name: str, timeout: float) -> str:
    """Ask a service that speaks HTTP, and say how it went; any answer is one.

    name
        The public name to ask it by, where it answers to no other.
    timeout
        Seconds until there is a connection.
    """
    found = connect(endpoint.address, endpoint.port, timeout)
    if found == REFUSED:
        return found
    base = f"{endpoint.scheme}://{name}:{endpoint.port}" if name else endpoint.url
    try:
        plain_http.ask(f"{base}{endpoint.health or '/'}", at=endpoint.address, trust=plain_http.anyone())
    except OSError:
        return MUTE
    return ANSWERED


def ask(endpoint: Endpoint, zone: str, timeout: float) -> str:
    """Ask a name server for a zone by UDP, and say how it went as ``connect`` does; any answer is one.

    timeout
        Seconds until it has answered.
    """
    try:
        dns.query.udp(dns.message.make_query(zone, "SOA"), endpoint.address, timeout, endpoint.port)
    except (dns.exception.DNSException, OSError):
        return REFUSED
    return ANSWERED


def try_all(settings: Mapping[str, Any], host: str, ends: Iterable[Endpoint], timeout: float) -> dict[str, str]:
    """Try all services at once from ``host``, by URL: a port that is silent costs its ``timeout`` (seconds) only once.

    One that is open and speaks HTTP is asked too, the proxy by a public name; a name server by UDP for the site's zone.
    """
    found, rows = list(ends), expand(settings)
    if not found:
        return {}
    public = next(iter(sites.names(settings)), "")

    def attempt(end: Endpoint) -> str:
        if end.scheme == "udp":
            return ask(end, settings["platform"]["domain"], timeout)
        if end.scheme not in plain_http.PORTS or not allowed(settings, end, host):
            return connect(end.address, end.port, timeout)
        return speak(end, public if rows[end.service]["role"] == "nginx_proxy" else "", timeout)

    with ThreadPoolExecutor(max_workers=len(found)) as pool:
        return {end.url: answer for end, answer in zip(found, pool.map(attempt, found), strict=True)}


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
