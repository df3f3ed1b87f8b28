"""Texts with secrets in them, which only the state that writes them fills in."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

# What a dry run shows where Vault cannot be asked yet; it is never written anywhere.
UNKNOWN = "unknown until Vault answers"
_PLACE = re.compile(r"\{([\w-]+):([\w-]+)(\|urlencode)?\}")


def filled(template: str, read: Callable[[str, str], str]) -> str:
    """Return a text with each ``{path:key}`` replaced by that secret; ``{path:key|urlencode}`` for use in a URL.

    read
        Returns a secret by path and key of pillar ``vault:secrets``.
    """

    def secret(found: re.Match[str]) -> str:
        value = read(found[1], found[2])
        return quote(value, safe="") if found[3] else value

    return _PLACE.sub(secret, template)
