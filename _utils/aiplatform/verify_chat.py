"""Whether the chat, what it finds documents with, and the bot do what they are for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

import requests

from aiplatform import instances, ollama, plain_http, webui
from aiplatform.checks import Check, Finding, Host

SECONDS = 15
BOT = "openclaw.service"
# Telegram answers the bot every ten seconds at least; what goes wrong there it tries again within thirty.
BOT_SECONDS = 90
OK = 200


def checks(host: Host) -> dict[str, Check]:
    """Return the checks of the host that runs them."""
    if not host.holds_vault:
        return {}
    return {
        "embedding": partial(_embedding, host),
        "qdrant_health": partial(_qdrant_health, host),
        "qdrant_key": partial(_qdrant_key, host),
        "chat_ready": partial(_chat_ready, host),
        "chat_sign_on": partial(_chat_sign_on, host),
        "chat_closed": partial(_chat_closed, host),
        "bot": partial(_bot, host),
    }


def _ask(host: Host, service: str, path: str, headers: dict[str, str] | None = None) -> requests.Response:
    """Ask a service of this host at its published port; no proxy for the outside world comes between."""
    address = host.pillar["platform"]["hosts"][host.id]["address"]
    with requests.Session() as session:
        session.trust_env = False
        port = host.pillar["services"][service]["port"]
        return session.get(f"http://{address}:{port}{path}", headers=headers, timeout=SECONDS)


def _status(what: str, reply: requests.Response, expected: int, hint: str = "") -> Finding:
    return Finding(what, reply.status_code == expected, f"HTTP {expected}", f"HTTP {reply.status_code}", hint)


def _embedding(host: Host) -> Finding:
    """The embedding model makes a vector out of a text."""
    name, place = host.pillar["openwebui"]["embedding"], webui.embedding_instance(host.pillar)
    vectors = ollama.Client(instances.base_url(host.pillar, place)).embed(name, ["a text"])
    size = len(vectors[0])
    return Finding(
        f"embedding by {name} on {place}", size > 1, "a vector", f"{size} numbers", "salt-call state.apply models"
    )


def _qdrant_health(host: Host) -> Finding:
    return _status("Qdrant's health", _ask(host, "qdrant", "/healthz"), 200, "docker logs qdrant")


def _qdrant_key(host: Host) -> Finding:
    """Qdrant lists its collections to who has the key, and to nobody else."""
    key = host.salt["platform_secret.read"]("qdrant", "api_key")
    tried = {"no key": {}, "a wrong key": {"api-key": "wrong"}, "its key": {"api-key": key}}
    seen = {name: _ask(host, "qdrant", "/collections", headers).status_code for name, headers in tried.items()}
    expected, actual = (_listed(codes) for codes in (dict(zip(tried, (401, 401, 200), strict=True)), seen))
    return Finding("Qdrant's key", actual == expected, expected, actual, "salt-call state.apply qdrant")


def _listed(codes: dict[str, Any]) -> str:
    return ", ".join(f"{name}: HTTP {code}" for name, code in codes.items())


def _chat_ready(host: Host) -> Finding:
    """The chat has its database and is up."""
    return _status("the chat", _ask(host, "openwebui", "/ready"), 200, "docker logs openwebui")


def _chat_sign_on(host: Host) -> Finding:
    """The chat offers the platform's sign-on and nothing else."""
    shown = _ask(host, "openwebui", "/api/config").json()
    ways = [*shown["oauth"]["providers"]]
    ways += [name for name in ("enable_signup", "enable_login_form", "enable_ldap") if shown["features"].get(name)]
    expected = "oidc"
    return Finding("ways into the chat", ways == [expected], expected, ", ".join(ways) or "none")


def _chat_closed(host: Host) -> Finding:
    """Who has not signed on sees no model."""
    return _status("the chat's models without a sign-on", _ask(host, "openwebui", "/api/models"), 401)


def _bot(host: Host) -> Finding:
    """Telegram knows the bot by its token now, and the bot is at work under that name; or there is no token of one."""
    what, hint = "the Telegram bot", "journalctl -u openclaw; docs/openclaw.md"
    token = host.salt["platform_secret.optional"]("openclaw", "telegram_token")
    if not token:
        return Finding(what, ok=True, expected="no bot", actual="no token in Vault, so there is none")
    # Not by requests: the address holds the token, and would stand in its errors and logs.
    url = f"{host.pillar['openclaw']['telegram_url']}/bot{token}/getMe"
    reply = plain_http.ask(url)
    if reply.status != OK:
        return Finding(what, ok=False, expected="Telegram takes its token", actual=f"HTTP {reply.status}", hint=hint)
    wanted = f"active, answering as @{json.loads(reply.body)['result']['username']}"
    shown = host.salt["service.show"](BOT)
    actual = f"{shown.get('ActiveState', 'unknown')}, {shown.get('StatusText') or 'says nothing'}"
    said, _, at = actual.partition(", heard from Telegram at ")
    fresh = bool(at) and (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds() < BOT_SECONDS
    expected = f"{wanted}, heard from Telegram less than {BOT_SECONDS} s ago"
    return Finding(what, said == wanted and fresh, expected, actual, hint)
