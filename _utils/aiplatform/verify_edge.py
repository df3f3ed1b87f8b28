"""Whether the proxy lets in whom it should: configuration, certificate, every site, the API with and without a key."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from aiplatform import sites, vault_pki, vault_tls
from aiplatform.checks import Check, Finding, Host

BAD_GATEWAY = 502


def checks(host: Host) -> dict[str, Check]:
    """Return the checks of a host with the proxy; each asks it by its public names, as a client does."""
    if vault_pki.PROXY not in host.roles:
        return {}
    public = sites.context(host.pillar, host.grains["os_family"])["api"]["public"]
    return {
        "proxy_configuration": partial(_configuration, host),
        "proxy_certificate": partial(_certificate, host),
        **{f"site_{site['upstream']}": partial(_site, host, site) for site in sites.sites(host.pillar)},
        "api_without_key": partial(_answer, host, public, "/api/tags", 401, "GET"),
        "api_closed_path": partial(_answer, host, public, "/api/pull", 403, "POST", with_key=True),
        "api_models": partial(_models, host, public),
    }


def _configuration(host: Host) -> Finding:
    """NGINX takes its configuration, and serves by it."""
    host.salt["nginx.check"]()
    current = host.salt["nginx.loaded"]() == host.salt["nginx.wanted"]()
    expected = "nginx -t passes, and it is loaded"
    return Finding("the proxy's configuration", current, expected, expected if current else "another one is loaded")


def _certificate(host: Host) -> Finding:
    """What the listener presents is for every public name, and does not end soon."""
    presented = host.salt["nginx.presented"](sites.names(host.pillar)[0])
    left, least = vault_tls.days_left(presented), host.pillar["verify"]["certificate_days"]
    reason = host.salt["nginx.certificate_reason"]()
    actual = reason or f"valid for {left:.0f} more days"
    hint = "systemctl start ai-platform-certificate; journalctl -u ai-platform-certificate"
    expected = f"valid for every public name, {least} more days at least"
    return Finding("the proxy's certificate", not reason and left >= least, expected, actual, hint)


def _site(host: Host, site: dict[str, Any]) -> Finding:
    """The service behind a name answers through the proxy."""
    row = next(row for name, row in host.pillar["services"].items() if name.replace("-", "_") == site["upstream"])
    reply = host.salt["nginx.ask"](site["public"], row.get("health") or "/")
    return Finding(
        f"https://{site['public']}",
        reply["status"] < BAD_GATEWAY,
        "an answer of its service",
        f"HTTP {reply['status']}",
        f"salt-run ai_platform.status; the firewall of its host; {sites.LOGS}/error.log",
    )


def _answer(host: Host, public: str, path: str, status: int, method: str, *, with_key: bool = False) -> Finding:
    """The API refuses what it should."""
    reply = host.salt["nginx.ask"](public, path, method=method, with_key=with_key)
    whose = "with" if with_key else "without"
    return Finding(
        f"{method} https://{public}{path} {whose} a key",
        reply["status"] == status,
        f"HTTP {status}",
        f"HTTP {reply['status']}",
    )


def _models(host: Host, public: str) -> Finding:
    """With a key the API lists models, and no name besides those of slots and aliases."""
    reply = host.salt["nginx.ask"](public, "/api/tags", with_key=True)
    rows = json.loads(reply["body"])["models"] if reply["status"] == 200 else []
    found = {row["name"].removesuffix(":latest") for row in rows}
    strange = found - sites.routes(host.pillar)["models"].keys()
    listed = ", ".join(sorted(strange or found)) or f"HTTP {reply['status']}, no model"
    return Finding("models of the API", bool(found) and not strange, "names of slots and aliases", listed)
