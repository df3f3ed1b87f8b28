"""Somebody who signs on by Keycloak's page as with a browser: cookies, redirects, the form."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests

from aiplatform.errors import PlatformError

SECONDS = 30
# Whatever a theme makes of the page, its form goes there.
FORM = re.compile(r'action="([^"]*/login-actions/authenticate[^"]*)"')


class Browser(requests.Session):
    """Cookies and redirects of one person; a redirect to an address that begins as ``stop`` is not followed.

    bundle
        The file with the authorities to trust.
    """

    def __init__(self, bundle: str) -> None:
        super().__init__()
        # A proxy for the outside world must not come between.
        self.trust_env = False
        self.verify = bundle
        self.stop = ""

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **more: Any) -> requests.Response:
        """Ask for an address. Raises ``PlatformError`` without the codes of a sign-on where nobody answers."""
        try:
            return super().request(method, url, *args, **{"timeout": SECONDS, **more})
        except requests.RequestException as err:
            raise PlatformError("Nobody answers", where=shown(str(url)), actual=type(err).__name__) from None

    def get_redirect_target(self, resp: requests.Response) -> Any:
        """Return where an answer leads to, or None."""
        target = super().get_redirect_target(resp)
        return None if self.stop and str(target).startswith(self.stop) else target


@dataclass
class Person:
    """A person of the realm at ``realm`` (its URL)."""

    name: str
    password: str
    realm: str
    browser: Browser

    def __repr__(self) -> str:
        """Return the name alone."""
        return f"<{self.name}>"

    def sign_on(self, url: str, stop: str = "") -> requests.Response:
        """Go where an application sends people to, fill Keycloak's form in, and return the page after it.

        url
            The application's address for signing on.
        stop
            Where Keycloak sends the person back to, if that is to be answered by the caller.

        Whom Keycloak knows from before sees no form. Raises ``PlatformError`` where the way leads to no such page.
        """
        self.browser.stop = stop
        page = self.browser.get(url)
        if stop and page.headers.get("Location", "").startswith(stop):
            return page
        form = FORM.search(page.text)
        if not form or not page.url.startswith(f"{self.realm}/"):
            raise PlatformError(
                "The way to sign on leads elsewhere",
                where=shown(url),
                expected=f"Keycloak's page at {self.realm}",
                actual=f"HTTP {page.status_code} at {shown(page.url)}, {'its' if form else 'no'} form",
            )
        filled = {"username": self.name, "password": self.password, "credentialId": ""}
        return self.browser.post(html.unescape(form[1]), data=filled)

    def refused(self, page: requests.Response) -> bool:
        """Whether the page after the form is the form again: Keycloak does not take the name or the password."""
        return page.url.startswith(f"{self.realm}/") and FORM.search(page.text) is not None


def shown(url: str) -> str:
    """Return a URL without its query, which may hold the codes of a sign-on."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
