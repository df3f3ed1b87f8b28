"""Whether people get in: two check people sign on as with a browser, and one of them asks a model in the chat.

Both are made with Keycloak (``keycloak.check_person``). One has the role of a user: it gets into the chat, and not into
Vault. The other has no role, and gets in nowhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests

from aiplatform import completions, keycloak, vault_policy
from aiplatform.checks import FAULTS, Aside, Check, Finding, Host, aside, run
from aiplatform.errors import PlatformError, WaitTimeoutError
from aiplatform.sign_on import Browser, Person, shown
from aiplatform.wait import until

KEYCLOAK_REFUSES = "Keycloak refuses the name or the password"
CHAT_REFUSES = "the chat refuses"
VAULT_REFUSES = "Vault refuses, for the role"
# What the chat and Vault say to somebody without the role; they say other things where the sign-on itself is broken.
NO_PERMISSION, WRONG_ROLE = "do not have permission", "does not match any associated bound claim"
ANSWER_SECONDS = 120
# Keycloak takes no password of a person whose last failure is still being counted, beside the answer (its
# DefaultBlockingBruteForceProtector): 0.2 s later it still was on a server that had just started. Two failures within
# a second would lock the person out.
COUNTED_SECONDS, AGAIN_SECONDS = 10, 2.5
HINT = "docs/keycloak.md, 'The check people'; salt-call state.apply keycloak,openwebui"


def checks(host: Host) -> dict[str, Check]:
    """Return the checks of the host that runs Keycloak and the chat; they are made beside the others."""
    if not host.holds_vault or not {"keycloak", "openwebui"} <= host.pillar["services"].keys():
        return {}
    member: Steps = {"sign_on_chat": _chat, "chat_answer": _answer, "sign_on_vault": _vault}
    # In this order: the right password makes Keycloak forget the wrong one.
    stranger: Steps = {"sign_on_wrong_password": _wrong_password, "sign_on_without_role": _roleless}
    return _beside(host, "member", member) | _beside(host, "stranger", stranger)


@dataclass(frozen=True)
class Visitor:
    """A check person on the way: what they are, and the addresses they go to."""

    person: Person
    chat: str
    vault: str
    redirect: str
    model: str
    tokens: int


Steps = dict[str, Callable[[Visitor], Finding]]
Findings = dict[str, Finding]


def _beside(host: Host, who: str, steps: Steps) -> dict[str, Check]:
    """Return the checks that are the steps of one visit."""

    def begin() -> Future[Findings]:
        return host.once(f"verify.{who}", lambda: aside(partial(_visit, _visitor(host, who), steps)))

    def made(name: str) -> Finding:
        return begin().result()[name]

    return {name: Aside(begin, partial(made, name)) for name in steps}


def _visit(visitor: Visitor, steps: Steps) -> Findings:
    found = {name: run(name, partial(step, visitor)) for name, step in steps.items()}
    with suppress(*FAULTS):
        _leave(visitor)
    return found


def _visitor(host: Host, who: str) -> Visitor:
    pillar = host.pillar
    realm = f"{keycloak.public_url(pillar, 'keycloak')}/realms/{keycloak.realm_name(pillar)}"
    password = host.salt["platform_secret.read"](*keycloak.CHECK_PASSWORD.split(":"))
    browser = Browser(host.salt["platform_ca.bundle"]())
    vault = keycloak.clients(pillar).get("vault")
    return Visitor(
        Person(keycloak.check_people(pillar)[who]["name"], password, realm, browser),
        chat=keycloak.public_url(pillar, "openwebui"),
        vault=keycloak.public_url(pillar, "vault") if vault else "",
        redirect=vault["settings"]["redirectUris"][0] if vault else "",
        model=f"{pillar['openwebui']['default_model']}:latest",
        tokens=pillar["verify"]["answer_tokens"],
    )


def _chat(visitor: Visitor) -> Finding:
    actual = _got(visitor, visitor.person)
    expected = "in the chat as user"
    return Finding(f"sign-on of {visitor.person.name} to the chat", actual == expected, expected, actual, HINT)


def _wrong_password(visitor: Visitor) -> Finding:
    one = visitor.person
    wrong = Person(one.name, secrets.token_hex(16), one.realm, one.browser)
    actual = _got(visitor, wrong)
    what = f"sign-on of {one.name} with a wrong password"
    return Finding(what, actual == KEYCLOAK_REFUSES, KEYCLOAK_REFUSES, actual, HINT)


def _roleless(visitor: Visitor) -> Finding:
    actual = _got_in_the_end(visitor)
    what, refused = f"sign-on of {visitor.person.name}, who has no role, to the chat", NO_PERMISSION in actual
    return Finding(what, refused and actual.startswith(CHAT_REFUSES), CHAT_REFUSES, actual, HINT)


def _got_in_the_end(visitor: Visitor) -> str:
    """Sign the person on whose wrong password was refused just before; where they got."""
    tries: list[str] = []

    def taken() -> bool:
        tries.append(_got(visitor, visitor.person))
        return tries[-1] != KEYCLOAK_REFUSES

    with suppress(WaitTimeoutError):
        until(taken, COUNTED_SECONDS, AGAIN_SECONDS)
    return tries[-1]


def _got(visitor: Visitor, person: Person) -> str:
    """Sign somebody on to the chat by the button of its page, and say in words where they got."""
    page = person.sign_on(f"{visitor.chat}/oauth/oidc/login")
    if headers := _bearer(visitor):
        role = person.browser.get(f"{visitor.chat}/api/v1/auths/", headers=headers).json().get("role")
        return f"in the chat as {role}"
    if person.refused(page):
        return KEYCLOAK_REFUSES
    error = parse_qs(urlsplit(page.url).query).get("error")
    return f"{CHAT_REFUSES}: {error[0]}" if error else f"HTTP {page.status_code} at {shown(page.url)}"


def _bearer(visitor: Visitor) -> dict[str, str]:
    """Return the chat's session as its page sends it; empty where there is none."""
    token = next((cookie.value for cookie in visitor.person.browser.cookies if cookie.name == "token"), "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _answer(visitor: Visitor) -> Finding:
    """The model with which a new chat begins answers a person who has signed on."""
    what, expected = f"question to {visitor.model} in the chat", "an answer"
    headers = _bearer(visitor)
    if not headers:
        return Finding(what, ok=False, expected=expected, actual="nobody is signed on", hint=HINT)
    url, body = f"{visitor.chat}/api/chat/completions", completions.question(visitor.model, visitor.tokens)
    reply = visitor.person.browser.post(url, json=body, headers=headers, timeout=ANSWER_SECONDS)
    said = completions.words(reply.status_code, reply.text)
    return Finding(what, bool(said), expected, completions.told(reply.status_code, reply.text), "docker logs openwebui")


def _leave(visitor: Visitor) -> None:
    """Sign out of the chat and of Keycloak, as the chat's page does it."""
    if headers := _bearer(visitor):
        browser = visitor.person.browser
        further = browser.post(f"{visitor.chat}/api/v1/auths/signout", headers=headers).json().get("redirect_url")
        if further:
            browser.get(further)


def _vault(visitor: Visitor) -> Finding:
    """Vault changes Keycloak's code for a token, reads the roles in it, and refuses."""
    nonce = secrets.token_hex(8)
    base, browser = f"{visitor.vault}/v1/auth/{vault_policy.OIDC_MOUNT}/oidc", visitor.person.browser
    order = {"role": vault_policy.OIDC_ROLE, "redirect_uri": visitor.redirect, "client_nonce": nonce}
    page = visitor.person.sign_on(_address(browser.post(f"{base}/auth_url", json=order)), visitor.redirect)
    what, hint = f"sign-on of {visitor.person.name} to Vault", "salt-run vault_oidc.configure"
    query = {key: value[0] for key, value in parse_qs(urlsplit(page.headers.get("Location", "")).query).items()}
    if "code" not in query:
        actual = KEYCLOAK_REFUSES if visitor.person.refused(page) else query.get("error", f"HTTP {page.status_code}")
        return Finding(what, ok=False, expected=VAULT_REFUSES, actual=actual, hint=hint)
    sent = {key: query[key] for key in ("state", "code")} | {"client_nonce": nonce}
    reply = browser.get(f"{base}/callback", params=sent)
    if reply.ok:
        return Finding(what, ok=False, expected=VAULT_REFUSES, actual="Vault lets this person in", hint=hint)
    refused = WRONG_ROLE in reply.text
    return Finding(what, refused, VAULT_REFUSES, VAULT_REFUSES if refused else _errors(reply), hint)


def _address(reply: requests.Response) -> str:
    """Return where Vault sends people to sign on."""
    data: dict[str, Any] = (reply.json() if reply.ok else {}).get("data") or {}
    if not data.get("auth_url"):
        raise PlatformError(
            "Vault does not begin a sign-on", actual=_errors(reply), hint="salt-run vault_oidc.configure"
        )
    return str(data["auth_url"])


def _errors(reply: requests.Response) -> str:
    return f"HTTP {reply.status_code}: {' '.join(reply.text.split())[:200]}"
