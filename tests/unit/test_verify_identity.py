"""The checks of PostgreSQL and Keycloak: all well, and each fault by its name."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from io import BytesIO
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import requests
from salt.exceptions import CommandExecutionError

from aiplatform import checks, settings, verify_keycloak, verify_postgres, verify_sign_on
from aiplatform.sign_on import Browser
from tests.conftest import CHECKOUT

PILLAR = {
    **settings.read_yaml(CHECKOUT / "salt/keycloak/defaults.yaml"),
    "postgres": {"databases": ["keycloak", "openwebui"]},
    "platform": {
        "slug": "acme",
        "name": "Acme",
        "domain": "acme.example",
        "hosts": {"box": {"address": "127.0.0.1", "roles": ["ai_server"]}},
    },
    "vault": {"host": None},
    "services": {
        "postgres": {"name": None},
        "keycloak": {"name": "idm"},
        "openwebui": {"name": "ollama-ui"},
        "vault": {"name": "vault"},
    },
    "roles": ["ai_server"],
}
PILLAR["openwebui"] = {"default_model": "family"}
PILLAR["verify"] = {"answer_tokens": 4}
IDM, CHAT, VAULT = (f"https://{name}.acme.example" for name in ("idm", "ollama-ui", "vault"))
REALM = f"{IDM}/realms/acme"
BACK = f"{VAULT}/ui/vault/auth/oidc/oidc/callback"
FORM = f'<form action="{REALM}/login-actions/authenticate?session_code=1&amp;tab=2">'
NOT_PERMITTED = "You do not have permission to access this resource."
WRONG_ROLE = 'error validating claims: claim "/realm_access/roles" does not match any associated bound claim values'
FINE = {
    "platform_secret.read": lambda path, key: {"keycloak:check_password": "right-password"}[f"{path}:{key}"],
    "platform_ca.bundle": lambda: "/bundle.crt",
    "platform_postgres.sign_in": lambda name: f"{name} in database {name}",
    "keycloak_admin.administrator_signs_in": lambda: True,
    "keycloak_admin.issuer": lambda: "https://idm.acme.example/realms/acme",
    "keycloak_admin.client_state": lambda name: "its secret fits",
}


@dataclass
class Site:
    """Keycloak, the chat and Vault behind their public names; what each says can be spoilt."""

    way: str = f"{REALM}/protocol/openid-connect/auth?client_id=open-webui"
    page: str = FORM
    password: str = "right-password"
    roles: dict = field(default_factory=lambda: {"acme-check": "user", "acme-check-no-role": ""})
    refusal: str = NOT_PERMITTED
    said: str = "Hello."
    vault_says: tuple = (400, WRONG_ROLE)
    down: str = ""
    signed_out: list = field(default_factory=list)
    # How often a person whose password was wrong is refused afterwards, whatever comes.
    counting: int = 0
    failed: set = field(default_factory=set)

    def answer(self, request) -> tuple[int, dict[str, str], str]:
        """Status, headers and body of an answer."""
        parts = urlsplit(request.url)
        here, query = f"{parts.scheme}://{parts.netloc}{parts.path}", dict(parse_qsl(parts.query))
        body = request.body.decode() if isinstance(request.body, bytes) else request.body or ""
        cookies = dict(part.split("=", 1) for part in request.headers.get("Cookie", "").split("; ") if part)
        if self.down and self.down in here:
            raise requests.ConnectionError(f"{request.url}?code=one-time-code {body}")
        if here == f"{REALM}/protocol/openid-connect/auth":
            return self._way(query, cookies)
        if here == f"{REALM}/login-actions/authenticate":
            return self._identified(dict(parse_qsl(body)), query, cookies)
        return self._application(here.removeprefix(CHAT), query, request.headers, here)

    def _way(self, query, cookies):
        known, back = cookies.get("identity"), query.get("redirect_uri")
        if known and back:
            return 302, {"Location": f"{back}?state=s&code=one-time-code"}, ""
        # The form remembers which application it is for.
        page = self.page.replace("tab=2", f"tab=2&amp;{urlencode({'back': back})}") if back else self.page
        return (200 if self.page else 400), {}, page

    def _identified(self, form, query, cookies):
        assert query.items() >= {"session_code": "1", "tab": "2"}.items()
        name = form["username"]
        if form["password"] != self.password:
            self.failed.add(name)
            return 200, {}, FORM
        if name in self.failed and self.counting:
            self.counting -= 1
            return 200, {}, FORM
        back = f"{query['back']}?state=s&code=1" if "back" in query else f"{CHAT}/back?code={name}"
        return 302, {"Location": back, "Set-Cookie": f"identity={name}; Path=/; Secure"}, ""

    def _application(self, path, query, headers, here):
        bearer = headers.get("Authorization", "").removeprefix("Bearer ")
        replies = {
            "/oauth/oidc/login": lambda: (302, {"Location": self.way}, ""),
            "/back": lambda: self._back(query["code"]),
            "/auth": lambda: (200, {}, "<html>"),
            "/api/v1/auths/": lambda: (200, {}, json.dumps({"role": self.roles[bearer]})),
            "/api/chat/completions": lambda: (
                200 if bearer else 401,
                {},
                json.dumps({"choices": [{"message": {"content": self.said}}]}),
            ),
            "/api/v1/auths/signout": lambda: (200, {}, json.dumps({"redirect_url": f"{IDM}/logout"})),
            f"{IDM}/logout": lambda: (self.signed_out.append(1), (200, {}, ""))[1],
            f"{VAULT}/v1/auth/oidc/oidc/auth_url": lambda: (200, {}, json.dumps(self._order())),
            f"{VAULT}/v1/auth/oidc/oidc/callback": lambda: (
                self.vault_says[0],
                {},
                json.dumps({"errors": [self.vault_says[1]]}),
            ),
        }
        return replies.get(path, lambda: (404, {}, here))()

    def _back(self, name):
        role = self.roles[name]
        if not role:
            return 302, {"Location": f"{CHAT}/auth?{urlencode({'error': self.refusal})}"}, ""
        return 302, {"Location": f"{CHAT}/auth", "Set-Cookie": f"token={name}; Path=/; Secure"}, ""

    def _order(self):
        query = urlencode({"client_id": "vault", "redirect_uri": BACK})
        return {"data": {"auth_url": f"{REALM}/protocol/openid-connect/auth?{query}"}}


class Adapter(requests.adapters.BaseAdapter):
    """Requests go to the site of the test; what it sets as cookies is kept."""

    def __init__(self, site) -> None:
        super().__init__()
        self.site = site

    def send(self, request, verify=None, **_more):
        assert verify == "/bundle.crt"
        status, headers, body = self.site.answer(request)
        reply = requests.Response()
        reply.status_code, reply.url, reply.request = status, request.url, request
        reply.headers.update(headers)
        reply.raw = BytesIO(body.encode())
        if "Set-Cookie" in headers:
            lines = http.client.parse_headers(BytesIO(f"Set-Cookie: {headers['Set-Cookie']}\r\n\r\n".encode()))
            reply.raw._original_response = SimpleNamespace(msg=lines)
        return reply

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(autouse=True)
def site(monkeypatch):
    found = Site()
    monkeypatch.setattr(Browser, "get_adapter", lambda _self, url: Adapter(found))
    monkeypatch.setattr(verify_sign_on, "COUNTED_SECONDS", 0.05)
    monkeypatch.setattr(verify_sign_on, "AGAIN_SECONDS", 0.01)
    return found


def findings(pillar=PILLAR, **answers):
    changed = {name.replace("__", "."): value for name, value in answers.items()}
    host = checks.Host("box", pillar, {}, FINE | changed, {})
    made = verify_postgres.checks(host) | verify_keycloak.checks(host) | verify_sign_on.checks(host)
    return {name: checks.run(name, check) for name, check in made.items()}


def test_all_is_well():
    assert {name: finding.ok for name, finding in findings().items()} == dict.fromkeys(
        [
            "postgres_keycloak",
            "postgres_openwebui",
            "keycloak_admin",
            "keycloak_realm",
            "keycloak_client_open-webui",
            "keycloak_client_vault",
            "sign_on_chat",
            "chat_answer",
            "sign_on_vault",
            "sign_on_wrong_password",
            "sign_on_without_role",
        ],
        True,
    )


@pytest.mark.parametrize(
    ("function", "answer", "check"),
    [
        ("platform_postgres__sign_in", lambda name: "postgres in database keycloak", "postgres_keycloak"),
        ("keycloak_admin__administrator_signs_in", lambda: False, "keycloak_admin"),
        ("keycloak_admin__issuer", lambda: "http://127.0.0.1:8180/realms/acme", "keycloak_realm"),
        ("keycloak_admin__client_state", lambda name: "it has another secret than Vault", "keycloak_client_vault"),
    ],
)
def test_a_fault_is_found(function, answer, check):
    assert not findings(**{function: answer})[check].ok


@pytest.mark.parametrize("changed", [{"roles": ["nginx_proxy"]}, {"services": {}}])
def test_other_hosts_and_sites_have_nothing_to_prove(changed):
    assert findings(PILLAR | changed) == {}


ALL = ["sign_on_chat", "chat_answer", "sign_on_wrong_password", "sign_on_without_role"]


@pytest.mark.parametrize(
    ("spoil", "value", "wrong", "actual"),
    [
        ("way", "http://127.0.0.1:8180/realms/acme/auth", ALL, "127.0.0.1:8180/realms/acme/auth"),
        ("way", f"{IDM}/realms/other/auth", ALL, "realms/other"),
        ("page", "", [*ALL, "sign_on_vault"], "HTTP 400"),
        ("page", "We are sorry", [*ALL, "sign_on_vault"], "no form"),
        ("down", "idm.acme.example", [*ALL, "sign_on_vault"], "ConnectionError"),
        ("password", "rotated", ["sign_on_chat", "chat_answer", "sign_on_vault", "sign_on_without_role"], "refuses"),
        ("roles", {"acme-check": "", "acme-check-no-role": ""}, ["sign_on_chat", "chat_answer"], "chat refuses"),
        ("roles", {"acme-check": "admin", "acme-check-no-role": ""}, ["sign_on_chat"], "in the chat as admin"),
        ("roles", {"acme-check": "user", "acme-check-no-role": "user"}, ["sign_on_without_role"], "as user"),
        ("refusal", "Error during OAuth process", ["sign_on_without_role"], "Error during OAuth process"),
        ("said", " ", ["chat_answer"], "an empty answer"),
        ("vault_says", (200, ""), ["sign_on_vault"], "lets this person in"),
        ("vault_says", (400, "Error exchanging oidc code"), ["sign_on_vault"], "exchanging"),
    ],
)
def test_a_way_that_goes_wrong_is_found(site, spoil, value, wrong, actual):
    setattr(site, spoil, value)
    found = {name: finding for name, finding in findings().items() if not finding.ok}
    assert set(found) == {*wrong}
    assert [finding for finding in found.values() if actual in finding.actual], found


@pytest.mark.parametrize(("counting", "fine"), [(2, True), (1000, False)])
def test_keycloak_may_take_its_time_to_count_a_failure(site, counting, fine):
    site.counting = counting
    found = findings()["sign_on_without_role"]
    assert (found.ok, "Keycloak refuses" in found.actual) == (fine, not fine)


def test_nothing_secret_is_shown(site):
    site.down = "login-actions"
    shown = str(findings())
    assert "right-password" not in shown
    assert "one-time-code" not in shown


def test_whoever_signed_on_signs_out(site):
    assert findings()["chat_answer"].ok
    assert site.signed_out == [1]


def test_a_password_that_is_not_in_vault_is_told():
    def absent(_path, _key):
        raise CommandExecutionError("The secret cannot be read")

    found = findings(platform_secret__read=absent)
    assert {name for name, one in found.items() if not one.ok} == {*ALL, "sign_on_vault"}
    assert found["sign_on_chat"].actual == "The secret cannot be read"


def test_a_vault_without_sign_on_is_found(site, monkeypatch):
    monkeypatch.setattr(Site, "_order", lambda _self: {"data": {"auth_url": ""}})
    assert "does not begin a sign-on" in findings()["sign_on_vault"].actual


def test_the_way_into_vault_is_looked_at_where_vault_is():
    assert "sign_on_vault" in findings()
    assert findings(PILLAR | {"vault": {"host": "another"}}) == {}
