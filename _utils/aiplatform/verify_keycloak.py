"""Whether Keycloak signs people in: its administrator, the realm's endpoints, clients' secrets, the way to its page."""

from __future__ import annotations

import http.client
import ssl
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from aiplatform import keycloak, vault_policy
from aiplatform.checks import Check, Finding, Host

SECONDS = 15
PAGE = "Keycloak's page to sign in"
# Whatever a theme makes of the page, its form goes there.
FORM = "login-actions/authenticate"


def checks(host: Host) -> dict[str, Check]:
    """Return the checks of the host that runs Keycloak."""
    if "ai_server" not in host.roles or "keycloak" not in host.pillar["services"]:
        return {}
    clients = {f"keycloak_client_{name}": partial(_client, host, name) for name in keycloak.clients(host.pillar)}
    return {
        "keycloak_admin": partial(_administrator, host),
        "keycloak_realm": partial(_realm, host),
        **clients,
        "sign_on_chat": partial(_chat, host),
        **_vault(host),
    }


def _vault(host: Host) -> dict[str, Check]:
    """Return the check of Vault's sign-on, which is made on Vault's own host."""
    own = vault_policy.vault_host(host.pillar["platform"], host.pillar["vault"]) == host.id
    return {"sign_on_vault": partial(_vault_sign_on, host)} if own else {}


def _vault_sign_on(host: Host) -> Finding:
    """Whoever signs in to Vault with its method OIDC is led to a page of Keycloak that takes a name."""
    redirect = keycloak.clients(host.pillar)["vault"]["settings"]["redirectUris"][0]
    order = {"role": vault_policy.OIDC_ROLE, "redirect_uri": redirect}
    reply = host.salt["vault.query"]("POST", f"auth/{vault_policy.OIDC_MOUNT}/oidc/auth_url", payload=order)
    return _led(host, "the way to sign in to Vault", reply["data"]["auth_url"], "salt-run vault_oidc.configure")


def _chat(host: Host) -> Finding:
    """Whoever presses the chat's button is led there, too."""
    address = host.pillar["platform"]["hosts"][host.id]["address"]
    chat = http.client.HTTPConnection(address, host.pillar["services"]["openwebui"]["port"], timeout=SECONDS)
    reply = _get(chat, "/oauth/oidc/login")
    url = reply.headers["Location"] or f"HTTP {reply.status}"
    return _led(host, "the way to sign in to the chat", url, "salt-call state.apply openwebui")


def _led(host: Host, what: str, url: str, hint: str) -> Finding:
    """Follow the way: to the realm by its public name, over TLS that this host trusts, to a page with its form."""
    public = keycloak.public_url(host.pillar, "keycloak")
    if not url.startswith(f"{public}/realms/{keycloak.realm_name(host.pillar)}/"):
        return Finding(what, ok=False, expected=f"{PAGE} at {public}", actual=url, hint=hint)
    parts = urlsplit(url)
    idm = http.client.HTTPSConnection(parts.netloc, timeout=SECONDS, context=ssl.create_default_context())
    reply = _get(idm, f"{parts.path}?{parts.query}")
    shown = reply.status == http.HTTPStatus.OK and FORM in reply.body
    return Finding(what, shown, PAGE, PAGE if shown else f"HTTP {reply.status}, no form", hint)


@dataclass(frozen=True)
class Reply:
    """An answer; redirects are not followed."""

    status: int
    headers: http.client.HTTPMessage
    body: str


def _get(connection: http.client.HTTPConnection, path: str) -> Reply:
    with closing(connection):
        connection.request("GET", path)
        reply = connection.getresponse()
        return Reply(reply.status, reply.headers, reply.read().decode(errors="replace"))


def _administrator(host: Host) -> Finding:
    """The administrator gets a token with the password in Vault."""
    fits = host.salt["keycloak_admin.administrator_signs_in"]()
    return Finding(
        "sign-in of Keycloak's administrator with the password in Vault",
        fits,
        "a token",
        "a token" if fits else "the password is refused",
        "docs/keycloak.md, 'When the administrator cannot sign in'",
    )


def _realm(host: Host) -> Finding:
    """The realm's endpoints carry the public name: what is signed under another one is refused everywhere."""
    expected = f"issuer {keycloak.public_url(host.pillar, 'keycloak')}/realms/{keycloak.realm_name(host.pillar)}"
    actual = f"issuer {host.salt['keycloak_admin.issuer']()}"
    return Finding("endpoints of the realm", actual == expected, expected, actual, "salt-call state.apply keycloak")


def _client(host: Host, name: str) -> Finding:
    """The client has the secret that its service gets out of Vault."""
    actual = host.salt["keycloak_admin.client_state"](name)
    return Finding(
        f"client {name} in Keycloak", actual == "its secret fits", "its secret fits", actual, "state.apply keycloak"
    )
