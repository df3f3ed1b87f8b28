"""The site's name server on this host: its zone's file, and what it answers."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from aiplatform import services, zone
from aiplatform.files import text_of, write_durably

ASK_SECONDS = 3


def zone_file() -> str:
    """Return the path of the zone's file.

    CLI Example:

    .. code-block:: bash

        salt coredns_host coredns.zone_file
    """
    return f"{__pillar__['coredns']['zone_dir']}/{__pillar__['platform']['domain']}.db"


def records() -> dict[str, list[str]]:
    """Return the names of the table of services with the addresses that they should have.

    CLI Example:

    .. code-block:: bash

        salt coredns_host coredns.records
    """
    return zone.wanted(__pillar__)


def zone_changes() -> dict[str, Any]:
    """Return how the zone's file differs from what it should be: names with addresses, and the serial.

    CLI Example:

    .. code-block:: bash

        salt coredns_host coredns.zone_changes
    """
    before = text_of(zone_file())
    return zone.changes(before, _edited(before), __pillar__["platform"]["domain"])


def write_zone() -> bool:
    """Bring the platform's records into the zone's file; everything else in it stays. CoreDNS reads it by itself.

    CLI Example:

    .. code-block:: bash

        salt coredns_host coredns.write_zone
    """
    write_durably(Path(zone_file()), _edited(text_of(zone_file())).encode(), 0o644)
    return True


def query(name: str, kind: str = "A", tcp: bool = False) -> dict[str, Any]:
    """Ask this host's name server: ``code`` (NOERROR, NXDOMAIN, …) and ``answers``; no code where it does not answer.

    CLI Example:

    .. code-block:: bash

        salt coredns_host coredns.query vault.example.com
        salt coredns_host coredns.query example.com SOA tcp=True
    """
    ask = dns.query.tcp if tcp else dns.query.udp
    port = __pillar__["coredns"]["port"]
    try:
        reply = ask(dns.message.make_query(name, kind), __pillar__["address"], port=port, timeout=ASK_SECONDS)
    except (dns.exception.DNSException, OSError) as err:
        return {"code": None, "answers": [], "error": str(err) or type(err).__name__}
    wanted = dns.rdatatype.from_text(kind)
    found = [str(item) for data in reply.answer if data.rdtype == wanted for item in data]
    return {"code": dns.rcode.to_text(reply.rcode()), "answers": sorted(found)}


def wrong() -> dict[str, Any]:
    """Return what the name server answers otherwise than its zone's file says, by UDP and by TCP; empty where nothing.

    CLI Example:

    .. code-block:: bash

        salt coredns_host coredns.wrong
    """
    domain = __pillar__["platform"]["domain"]
    serial = zone.serial(text_of(zone_file()), domain)
    found: dict[str, Any] = {}
    for tcp, protocol in ((False, "udp"), (True, "tcp")):
        soa = query(domain, "SOA", tcp)
        served = int(soa["answers"][0].split()[2]) if soa["answers"] else None
        if served != serial:
            found[f"serial by {protocol}"] = {"old": served or soa.get("error") or soa["code"], "new": serial}
        for label, addresses in records().items():
            told = [address for kind in ("A", "AAAA") for address in query(f"{label}.{domain}", kind, tcp)["answers"]]
            if sorted(told) != sorted(addresses):
                found[f"{label}.{domain} by {protocol}"] = {"old": told, "new": addresses}
    return found


def _edited(text: str) -> str:
    servers = sorted(services.hosts_of(__pillar__, "coredns_host").values())
    now = datetime.datetime.now(datetime.UTC)
    return zone.edit(text, __pillar__["platform"]["domain"], records(), servers, now)
