"""Whether the site's names are answered, by both protocols."""

from __future__ import annotations

from functools import partial

from aiplatform.checks import Check, Finding, Host


def checks(host: Host) -> dict[str, Check]:
    """Return the checks of a host with the name server."""
    if "coredns_host" not in host.roles:
        return {}
    return {"dns_names": partial(_names, host), "dns_unknown": partial(_unknown, host)}


def _names(host: Host) -> Finding:
    """Every name of the table of services leads to the proxy, by UDP and by TCP; the zone is the one in its file."""
    wrong = host.salt["coredns.wrong"]()
    known = ", ".join(host.salt["coredns.records"]())
    actual = "; ".join(f"{name}: {row['old']} instead of {row['new']}" for name, row in wrong.items())
    return Finding(f"the names {known}", not wrong, "as the table says", actual or "as the table says")


def _unknown(host: Host) -> Finding:
    """A name that is nobody's is said to be none."""
    name = f"no-such-service.{host.pillar['platform']['domain']}"
    code = host.salt["coredns.query"](name)["code"]
    return Finding(f"the name {name}", code == "NXDOMAIN", "NXDOMAIN", str(code), "docker logs coredns")
