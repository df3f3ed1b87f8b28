"""What can go wrong with an Ollama instance, each with a name that callers can test and a word on what to do next."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

from aiplatform.errors import PlatformError

_FAILURES = (HTTPStatus.OK, HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR)
_NOT_FOUND = re.compile(r"model .*not found|file does not exist|manifest unknown", re.IGNORECASE)
_NO_MEMORY = re.compile(
    r"requires more system memory|signal: killed|cannot allocate memory|out of memory|to allocate \S+ buffer",
    re.IGNORECASE,
)
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, 502, 503, 504)
_HTML = re.compile(rb"\s*<(!doctype|html|head|body)\b", re.IGNORECASE)


class OllamaError(PlatformError):
    """Ollama refused or failed; ``status`` is the HTTP status, None where there was none."""

    # What to do next, where the one who raises it knows nothing better.
    advice = "ollama.logs shows what the instance says of it"

    def __init__(self, what: str, *, status: int | None = None, hint: str = "", **details: Any) -> None:
        self.status = status
        super().__init__(what, hint=hint or self.advice, **details)


class InstanceDown(OllamaError):
    """Nothing listens there, or it closed the connection in the middle of a reply."""

    advice = "is its service running? ollama.logs shows what it says"


class TlsFailed(OllamaError):
    """A certificate that is not trusted, or no TLS at all: trying again is no use."""

    advice = (
        "have this host trust the CA that signed its certificate: state trust for the platform's own, else the host's "
        "own means (in Python: verify=<file of the CA>); or give an http:// address if it has no TLS"
    )


class ModelNotFound(OllamaError):
    """The instance, or the registry it pulls from, has no such model."""

    advice = "list the models with ollama.list_models; pull the missing one with ollama.pull"


class OutOfMemory(OllamaError):
    """The model does not fit into the memory that is free."""

    advice = "unload another model, or take a smaller quantisation or context"


class RequestRefused(OllamaError):
    """The request itself is wrong, or not allowed (HTTP 4xx), or not sent at all: sending it again is no use."""

    advice = "mend what the reason names; HTTP 401 and 403: the key (pillar ollama.api_keys), or who may call"


class ServerFailed(OllamaError):
    """The instance, or a proxy before it, failed at a request that may be right (HTTP 5xx)."""


class Busy(ServerFailed):
    """The instance has no place for the request now (HTTP 502, 503, 504, 429)."""

    advice = "try again in a moment"


class BadReply(OllamaError):
    """The reply is not what this version of the API promises."""

    advice = "is this an Ollama of the pinned version?"


class Redirected(BadReply):
    """The address answers with another one; requests are not carried there, since they may hold a key."""

    advice = "set the base URL to the address that serves the API itself"


class HtmlReply(BadReply):
    """A web page came instead of an API's reply: a proxy or another server answers at this address."""

    advice = "is a proxy, or another server, at this address?"


class TooLong(BadReply):
    """One line, or one whole reply, is longer than any that Ollama writes."""


class CutOff(BadReply):
    """The stream ended before the answer did."""


class Timeout(OllamaError):
    """A time limit passed before the reply was complete."""

    advice = "it may be loading a model or busy (ollama.ps): try again, or allow more time"


def bad_reply(where: str, expected: str, actual: object, kind: type[BadReply] = BadReply) -> BadReply:
    """The error of a reply that is not as promised; what came is shown in its first 120 characters."""
    return kind("Unexpected reply", where=where, expected=expected, actual=repr(actual)[:120])


def refusal(where: str, status: int, body: bytes, location: str = "") -> OllamaError:
    """The error of a status that is no success, or of an ``error`` inside a stream that said 200.

    location
        The ``Location`` header of a redirect.
    """
    text = error_text(body)
    if 300 <= status < 400:
        what = f"Redirected (HTTP {status:d})"
        return Redirected(what, where=where, expected="200", actual=location, status=int(status))
    what = f"Ollama refused: {text or 'no reason given'} (HTTP {status:d})"
    if _HTML.match(body):
        kind = Busy if status in _BUSY else HtmlReply
        what = f"A web page came back (HTTP {status:d})"
        return kind(what, where=where, status=int(status), hint=HtmlReply.advice)
    if status == HTTPStatus.NOT_FOUND and not text:
        return BadReply(what, where=where, status=int(status), hint="does this path belong to the pinned version?")
    return _kind(status, text)(what, where=where, status=int(status))


def _kind(status: int, text: str) -> type[OllamaError]:
    if _NO_MEMORY.search(text):
        return OutOfMemory
    if status == HTTPStatus.NOT_FOUND or (status in _FAILURES and _NOT_FOUND.search(text)):
        return ModelNotFound
    if status in _BUSY:
        return Busy
    # Not implemented, says Ollama of what a model cannot do.
    if status >= 500 and status != HTTPStatus.NOT_IMPLEMENTED:
        return ServerFailed
    return RequestRefused if status >= 400 else OllamaError


def error_text(body: bytes) -> str:
    """The reason in an error's body: its ``error`` where it is JSON, OpenAI's shape too, or its first words."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace").strip()[:200]
    if not isinstance(data, dict):
        return body.decode(errors="replace")[:200]
    error = data.get("error", data)
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def is_html(body: bytes) -> bool:
    """Whether a body is a web page."""
    return bool(_HTML.match(body))
