"""Whether the proxy lets in whom it should: configuration, certificate, every site, the API with and without a key."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any

from aiplatform import completions, plain_http, sites, slots, vault_pki, vault_tls
from aiplatform.checks import Check, Finding, Host

OK, MOVED, FAULTY = 200, 301, 500
# A model may have to wait for its turn, and to read the question.
ANSWER_SECONDS = 120


def checks(host: Host) -> dict[str, Check]:
    """Return the checks of a host with the proxy; each asks it by its public names, as a client does."""
    if vault_pki.PROXY not in host.roles:
        return {}
    public = sites.context(host.pillar, host.grains["os_family"])["api"]["public"]
    return {
        "proxy_configuration": partial(_configuration, host),
        "proxy_certificate": partial(_certificate, host),
        **{f"site_{name}": partial(_site, host, site) for name, site in _sites(host).items()},
        **({"keycloak_console": partial(_console, host)} if "keycloak" in _sites(host) else {}),
        **(_api(host, public) if public else {}),
        "redirect": partial(_redirect, host),
    }


def _sites(host: Host) -> dict[str, dict[str, Any]]:
    return {site["upstream"]: site for site in sites.sites(host.pillar)}


def _api(host: Host, public: str) -> dict[str, Check]:
    return {
        "api_without_key": partial(_answer, host, public, "/api/tags", 401, "GET"),
        "api_closed_path": partial(_answer, host, public, "/api/pull", 403, "POST", with_key=True),
        "api_models": partial(_models, host, public),
        **{f"api_answer_{kind}": partial(_completion, host, public, kind) for kind in _kinds(host)},
    }


def _kinds(host: Host) -> list[str]:
    return sorted({slot["kind"] for slot in host.pillar["slots"].values()})


def _ask(
    host: Host, public: str, path: str, *, with_key: bool = False, scheme: str = "https", **more: Any
) -> plain_http.Reply:
    """Ask this proxy as a client does, by a public name. Its certificate must be one that the clients trust."""
    headers = {"Content-Type": "application/json"}
    if with_key:
        headers["Authorization"] = f"Bearer {host.salt['platform_secret.read']('ollama', 'api_key')}"
    authority = host.once("verify.authority", host.salt["platform_ca.certificate"])
    trust = ssl.create_default_context(cadata=authority or None)
    url, own = f"{scheme}://{public}{path}", host.pillar["address"]
    return plain_http.ask(url, at=own, headers=headers, trust=trust, **more)


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
    """The service behind a name is well, as it says itself through the proxy."""
    row = next(row for name, row in host.pillar["services"].items() if name.replace("-", "_") == site["upstream"])
    path = row.get("health")
    status = _ask(host, site["public"], path or "/").status
    return Finding(
        f"https://{site['public']}{path or '/'}",
        status == OK if path else status < FAULTY,
        f"HTTP {OK}" if path else f"less than HTTP {FAULTY}: the table has no path for its health",
        f"HTTP {status}",
        f"salt-run ai_platform.status; the firewall of its host; {sites.LOGS}/error.log",
    )


def _console(host: Host) -> Finding:
    """Keycloak's console, to which its administrator signs in, comes through the proxy."""
    public, path = _sites(host)["keycloak"]["public"], "/admin/master/console/"
    reply = _ask(host, public, path)
    actual = f"HTTP {reply.status}"
    return Finding(f"https://{public}{path}", reply.status == OK, f"HTTP {OK}", actual, f"{sites.LOGS}/error.log")


def _redirect(host: Host) -> Finding:
    """Whoever comes without TLS is sent to the same address with it."""
    public = sites.names(host.pillar)[0]
    reply = _ask(host, public, "/a/path", scheme="http")
    expected = f"HTTP {MOVED} to https://{public}/a/path"
    actual = f"HTTP {reply.status} to {reply.headers.get('Location', 'nowhere')}"
    return Finding(f"http://{public}", actual == expected, expected, actual, "salt-call state.apply nginx")


def _answer(host: Host, public: str, path: str, status: int, method: str, *, with_key: bool = False) -> Finding:
    """The API refuses what it should."""
    reply = _ask(host, public, path, method=method, with_key=with_key)
    whose = "with" if with_key else "without"
    return Finding(
        f"{method} https://{public}{path} {whose} a key",
        reply.status == status,
        f"HTTP {status}",
        f"HTTP {reply.status}",
    )


def _models(host: Host, public: str) -> Finding:
    """With a key the API lists models, and no name besides those of slots and aliases."""
    reply = _ask(host, public, "/api/tags", with_key=True)
    rows = json.loads(reply.body)["models"] if reply.status == OK else []
    found = {row["name"].removesuffix(":latest") for row in rows}
    strange = found - sites.routes(host.pillar)["models"].keys()
    listed = ", ".join(sorted(strange or found)) or f"HTTP {reply.status}, no model"
    return Finding("models of the API", bool(found) and not strange, "names of slots and aliases", listed)


def _completion(host: Host, public: str, kind: str) -> Finding:
    """With a key a model of this kind answers a question."""
    # A minion's own copy of the pillar may be older than the selection.
    pillar = host.once("verify.pillar", lambda: host.salt["pillar.items"](unmask=True))
    model, path = _called(pillar, kind), "/v1/chat/completions"
    what, expected, hint = f"question to a {kind} model through the API", "an answer", f"{sites.LOGS}/api.access.log"
    if not model:
        why = "salt-run benchmark.report says why"
        return Finding(what, ok=False, expected=expected, actual="no slot of this kind has a model", hint=why)
    body = json.dumps(completions.question(model, host.pillar["verify"]["answer_tokens"]))
    reply = _ask(host, public, path, method="POST", body=body, with_key=True, seconds=ANSWER_SECONDS)
    said = completions.words(reply.status, reply.body)
    actual = completions.told(reply.status, reply.body)
    return Finding(f"question to {model} ({kind}) at https://{public}{path}", bool(said), expected, actual, hint)


def _called(pillar: Mapping[str, Any], kind: str) -> str:
    """Return the name by which clients call the first slot of a kind that has a model; empty where none has."""
    offered = sites.routes(pillar)["models"]
    for number, slot in sorted(pillar["slots"].items(), key=lambda item: int(item[0])):
        if slot["kind"] == kind and slots.chosen_model(number, slot, pillar["selection"]):
            own = slots.technical_name(int(number))
            return next((name for name, row in offered.items() if row.get("slot") == int(number) and name != own), own)
    return ""
