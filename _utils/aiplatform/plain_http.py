"""One HTTP request whose address, headers and body no log shows; redirects are not followed."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

SECONDS = 15
# Of an answer's body; the rest is not read.
CHARACTERS = 100_000
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Reply:
    """An answer: ``status``, ``headers``, and ``body`` as text."""

    status: int
    headers: http.client.HTTPMessage
    body: str


def ask(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: str | None = None,
    at: str = "",
    trust: ssl.SSLContext | None = None,
    seconds: float = SECONDS,
) -> Reply:
    """Ask a URL and return its answer, whatever its status.

    url
        ``http://`` or ``https://``; no proxy for the outside world comes between.
    at
        The address to ask, in place of the one that the URL's name resolves to.
    trust
        Whose certificates count; the host's own authorities where it is left out.
    seconds
        How long each step may take.

    Raises ``OSError`` where nothing answers, or no HTTP; it never holds the URL.
    """
    parts = urlsplit(url)
    name, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    connection = http.client.HTTPConnection(name, port)
    try:
        with socket.create_connection((at or name, port), seconds) as plain, closing(connection):
            connection.sock = plain
            if parts.scheme == "https":
                context = trust or ssl.create_default_context()
                connection.sock = context.wrap_socket(plain, server_hostname=name)
            connection.request(method, target, body, {"Host": parts.netloc, **(headers or {})})
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read(CHARACTERS).decode(errors="replace"))
    except http.client.HTTPException as err:
        # Its words may hold the URL, and a URL a token.
        raise OSError(f"no HTTP: {type(err).__name__}") from None


def anyone() -> ssl.SSLContext:
    """Return a context that takes any certificate: for asking whether something answers, and nothing secret."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
