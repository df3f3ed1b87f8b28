"""People at the workstation sign on without a browser, and try every public name; runs there with Python alone.

Usage: sign_on.py DOMAIN AUTHORITY < {name: password}. Prints ``{name: {service: what they got}}`` as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import html
import http.cookiejar
import json
import re
import secrets
import ssl
import sys
import urllib.error
import urllib.request
from urllib.parse import parse_qs, urlencode, urlsplit

DOMAIN, AUTHORITY = sys.argv[1:3]
CHAT, IDM, VAULT, API = (f"https://{name}.{DOMAIN}" for name in ("ollama-ui", "idm", "vault", "ollama-api"))
REALM = f"{IDM}/realms/ai-platform"
CALLBACK = "http://localhost:8250/oidc/callback"
ACCOUNT = f"{REALM}/account/"


class Stop(urllib.request.HTTPRedirectHandler):
    """Redirects are followed, but not to where the command line or the account's page would take over."""

    def redirect_request(self, request, fp, code, msg, headers, newurl):
        if newurl.startswith((CALLBACK, ACCOUNT)):
            return None
        return super().redirect_request(request, fp, code, msg, headers, newurl)


class Person:
    """One person with a browser's cookies."""

    def __init__(self, name: str, password: str) -> None:
        self.form = {"username": name, "password": password, "credentialId": ""}
        self.jar = http.cookiejar.CookieJar()
        context = ssl.create_default_context(cafile=AUTHORITY)
        handlers = (urllib.request.HTTPSHandler(context=context), urllib.request.HTTPCookieProcessor(self.jar), Stop())
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)

    def ask(self, url: str, body: bytes | None = None, **headers: str):
        """Return the answer, an error's too: it has ``status``, ``url``, ``headers`` and ``read``."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        try:
            # Every address is made of the names above.
            return self.opener.open(urllib.request.Request(url, body, named), timeout=60)  # noqa: S310 (of the test's own making)
        except urllib.error.HTTPError as err:
            return err

    def identify(self, page):
        """Fill in Keycloak's page; returns what comes after it."""
        action = re.search(r'action="([^"]+)"', page.read().decode())
        if not action:
            raise SystemExit(f"no page to sign on at {urlsplit(page.url).path}: HTTP {page.status}")
        return self.ask(html.unescape(action[1]), urlencode(self.form).encode())


def said(reply) -> dict[str, str]:
    """What Keycloak sends along with a person."""
    if "Location" not in reply.headers:
        raise SystemExit(f"nobody is sent back from {urlsplit(reply.url).path}: HTTP {reply.status}")
    return {key: value[0] for key, value in parse_qs(urlsplit(reply.headers["Location"]).query).items()}


def chat_token(person: Person) -> str:
    """Sign on to the chat; returns the session's token, empty for whom it refuses."""
    person.identify(person.ask(f"{CHAT}/oauth/oidc/login"))
    return next((cookie.value or "" for cookie in person.jar if cookie.name == "token"), "")


def chat(person: Person) -> str:
    """``refused``, ``user`` or ``admin``, where the chat's pages for them answer accordingly."""
    token = chat_token(person)
    if not token:
        return "refused"
    bearer = {"Authorization": f"Bearer {token}"}
    role = json.load(person.ask(f"{CHAT}/api/v1/auths/", **bearer))["role"]
    pages = [person.ask(f"{CHAT}{path}", **bearer).status for path in ("/api/models", "/api/v1/users/")]
    expected = {"user": [200, 401], "admin": [200, 200]}
    return role if pages == expected.get(role) else f"{role} {pages}"


def vault_token(person: Person) -> str:
    """Sign on to Vault as its command line does; returns the token, empty for whom it refuses."""
    nonce = secrets.token_hex(8)
    order = json.dumps({"role": "default", "redirect_uri": CALLBACK, "client_nonce": nonce}).encode()
    url = json.load(person.ask(f"{VAULT}/v1/auth/oidc/oidc/auth_url", order))["data"]["auth_url"]
    code = said(person.identify(person.ask(url))) | {"client_nonce": nonce}
    query = urlencode({key: code[key] for key in ("state", "code", "client_nonce")})
    reply = person.ask(f"{VAULT}/v1/auth/oidc/oidc/callback?{query}")
    return "" if reply.status == 400 else json.load(reply)["auth"]["client_token"]


def vault(person: Person) -> str:
    """``refused``, or ``secrets`` where a secret can be read."""
    token = vault_token(person)
    if not token:
        return "refused"
    read = person.ask(f"{VAULT}/v1/secret/data/ai-platform/openwebui", X_Vault_Token=token)
    return "secrets" if read.status == 200 else str(read.status)


def access_token(person: Person) -> str:
    """The token that Keycloak's own page for accounts gets for them."""
    verifier = secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    client = {"client_id": "account-console", "redirect_uri": ACCOUNT}
    more = {"response_type": "code", "scope": "openid", "code_challenge": challenge, "code_challenge_method": "S256"}
    endpoint = f"{REALM}/protocol/openid-connect"
    code = said(person.identify(person.ask(f"{endpoint}/auth?{urlencode(client | more)}")))["code"]
    form = client | {"grant_type": "authorization_code", "code": code, "code_verifier": verifier}
    return json.load(person.ask(f"{endpoint}/token", urlencode(form).encode()))["access_token"]


def main() -> None:
    """Each person, with cookies of their own for each service."""
    found = {}
    for name, password in json.load(sys.stdin).items():
        person = Person(name, password)
        bearer = {"Authorization": f"Bearer {access_token(person)}"}
        found[name] = {
            "openwebui": chat(Person(name, password)),
            "vault": vault(Person(name, password)),
            "keycloak": str(person.ask(f"{IDM}/admin/realms/ai-platform/users", **bearer).status),
            "api": str(person.ask(f"{API}/api/tags", **bearer).status),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
