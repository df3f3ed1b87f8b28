"""The wire to one Ollama instance: connections that are kept, explicit time limits, replies of bounded size."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import requests
import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from aiplatform import ollama_errors as errors
from aiplatform import paced_http

# The longest line seen from Ollama is /api/show of a model with a large licence, below 1 MiB; embeddings of many
# texts come as one reply.
LINE_BYTES = 16 << 20
REPLY_BYTES = 256 << 20
_PIECE = 64 << 10
_TICK = 0.01


@dataclass(frozen=True)
class Limits:
    """Time limits of one request, in seconds.

    ``first`` is the longest wait for the first piece of a reply, which holds queueing, loading and reading the prompt;
    None: as ``read``. ``read`` is the longest silence between two pieces. ``total`` bounds the whole request; None: no
    bound.
    """

    connect: float = 3.0
    read: float = 30.0
    total: float | None = None
    first: float | None = None

    def __post_init__(self) -> None:
        for name, seconds in vars(self).items():
            if seconds is not None and seconds <= 0:
                expected = "more than 0 seconds"
                raise errors.RequestRefused("This is no time limit", where=name, expected=expected, actual=seconds)

    def until_connected(self) -> float:
        """The wait for the connection, seconds."""
        return self.connect if self.total is None else min(self.connect, self.total)

    def until_first(self) -> float:
        """The wait for the first piece, seconds."""
        first = self.read if self.first is None else self.first
        return first if self.total is None else min(first, self.total)

    def silence(self, passed: float) -> float:
        """The silence that is borne after ``passed`` seconds."""
        return self.read if self.total is None else max(min(self.read, self.total - passed), 0.001)


QUICK = Limits(connect=3.0, read=15.0, total=20.0)


class Chunk(NamedTuple):
    """One piece of a stream: ``at`` seconds after the request was sent, and its data."""

    at: float
    data: dict[str, Any]


class Wire:
    """One session with one base URL. Not safe for several threads at once."""

    def __init__(self, base_url: str, *, token: str | None = None, verify: bool | str = True) -> None:
        self.base_url = base_url.rstrip("/")
        self._session = requests.Session()
        # A proxy for the outside world must not come between a host and its own service.
        self._session.trust_env = False
        self._session.verify = verify
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, paced_http.Adapter())
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Drop the kept-alive connections."""
        self._session.close()

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, limits: Limits = QUICK
    ) -> dict[str, Any]:
        """Send a request and return the one JSON object of its reply."""
        return self._decode(path, self.send(method, path, body, limits))

    def send(
        self, method: str, path: str, body: Any, limits: Limits = QUICK, *, accept: tuple[int, ...] = (200,)
    ) -> bytes:
        """Send a request and return its reply's body, whole.

        :param body: a mapping for JSON, an open file, or None.
        """
        return self.exchange(method, path, body, limits, accept=accept)[1]

    def exchange(
        self, method: str, path: str, body: Any, limits: Limits = QUICK, *, accept: tuple[int, ...] = (200,)
    ) -> tuple[int, bytes]:
        """Send a request and return status and body."""
        started = time.monotonic()
        reply = self._open(method, path, body, limits, accept)
        try:
            return reply.status_code, self._whole(path, reply, limits, started)
        finally:
            reply.close()

    def stream(self, path: str, body: dict[str, Any], limits: Limits) -> Iterator[Chunk]:
        """Post a request and yield the JSON objects of its reply, line by line, as they come."""
        started = time.monotonic()
        reply = self._open("POST", path, body, limits, (200,))
        # What is measured counts from when the request left: preparing it is not the server's.
        sent = time.monotonic() - reply.elapsed.total_seconds()
        try:
            for line in self._lines(path, reply, limits, started):
                if line:
                    yield Chunk(time.monotonic() - sent, self._piece(path, line))
        finally:
            reply.close()

    def _open(self, method: str, path: str, body: Any, limits: Limits, accept: tuple[int, ...]) -> requests.Response:
        payload = {"json": body} if isinstance(body, Mapping) else {"data": body}
        started = time.monotonic()
        silence = limits.until_first()
        timeout: Any = urllib3.Timeout(connect=limits.connect, read=silence, total=limits.total)
        try:
            reply = self._session.request(
                method, self.base_url + path, timeout=timeout, stream=True, allow_redirects=False, **payload
            )
        except requests.RequestException as err:
            raise self._transport(path, err, limits, silence, started) from err
        if reply.status_code in accept:
            return reply
        try:
            text = self._whole(path, reply, limits, started)
        finally:
            reply.close()
        raise errors.refusal(self.base_url + path, reply.status_code, text, reply.headers.get("Location", ""))

    def _whole(self, path: str, reply: requests.Response, limits: Limits, started: float) -> bytes:
        parts = []
        size = 0
        for part in self._parts(path, reply, limits, started):
            size += len(part)
            if size > REPLY_BYTES:
                raise self._too_long(path, f"at most {REPLY_BYTES >> 20} MiB", "more")
            parts.append(part)
        return b"".join(parts)

    def _lines(self, path: str, reply: requests.Response, limits: Limits, started: float) -> Iterator[bytes]:
        rest: list[bytes] = []
        size = 0
        for part in self._parts(path, reply, limits, started):
            *lines, last = part.split(b"\n")
            for line in lines:
                yield b"".join([*rest, line]) if rest else line
                rest, size = [], 0
            if last:
                rest.append(last)
                size += len(last)
            if size > LINE_BYTES:
                raise self._too_long(path, f"lines of at most {LINE_BYTES >> 20} MiB", "a longer one")
        if rest:
            yield b"".join(rest)

    def _parts(self, path: str, reply: requests.Response, limits: Limits, started: float) -> Iterator[bytes]:
        """The body as it comes, each wait bounded by what is left of the limits."""
        while True:
            silence = limits.silence(time.monotonic() - started)
            try:
                part = paced_http.piece(reply, _PIECE, silence)
            except urllib3.exceptions.HTTPError as err:
                raise self._transport(path, err, limits, silence, started) from err
            if not part:
                return
            if limits.total is not None and time.monotonic() - started > limits.total:
                raise self._late(path, limits)
            yield part

    def _piece(self, path: str, line: bytes) -> dict[str, Any]:
        data = self._decode(path, line)
        if "error" in data:  # Ollama's way to fail after it has said 200
            raise errors.refusal(self.base_url + path, 200, line)
        return data

    def _decode(self, path: str, text: bytes) -> dict[str, Any]:
        where = self.base_url + path
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as err:
            if errors.is_html(text):
                raise errors.bad_reply(where, "JSON", text[:80], errors.HtmlReply) from err
            raise errors.bad_reply(where, "JSON", text[:80]) from err
        if not isinstance(data, dict):
            raise errors.bad_reply(where, "a JSON object", data)
        return data

    def _too_long(self, path: str, expected: str, actual: str) -> errors.BadReply:
        return errors.bad_reply(self.base_url + path, expected, actual, errors.TooLong)

    def _late(self, path: str, limits: Limits) -> errors.Timeout:
        return errors.Timeout(f"Not complete after {limits.total:g} s", where=self.base_url + path)

    def _transport(
        self, path: str, err: Exception, limits: Limits, silence: float, started: float
    ) -> errors.OllamaError:
        where = self.base_url + path
        if isinstance(err, requests.exceptions.SSLError):
            authorities = DEFAULT_CA_BUNDLE_PATH if self._session.verify is True else self._session.verify
            expected = f"TLS, with a certificate of an authority in {authorities}"
            return errors.TlsFailed("No TLS with the instance", where=where, expected=expected, actual=_reason(err))
        if isinstance(err, requests.ConnectTimeout):
            hint = "is its host up, and does a firewall let this port through?"
            return errors.InstanceDown(f"No connection within {limits.until_connected():g} s", where=where, hint=hint)
        if isinstance(err, (requests.Timeout, urllib3.exceptions.ReadTimeoutError)):
            if limits.total is not None and time.monotonic() - started >= limits.total - _TICK:
                return self._late(path, limits)
            return errors.Timeout(f"Silent for {silence:.3g} s", where=where)
        if isinstance(err, (urllib3.exceptions.ProtocolError, urllib3.exceptions.SSLError)):
            hint = "try again; ollama.logs shows why it ended"
            return errors.InstanceDown("The connection closed in the middle of the reply", where=where, hint=hint)
        if isinstance(err, requests.ConnectionError):
            return errors.InstanceDown("Nothing answers", where=where, actual=_reason(err))
        return errors.OllamaError(str(err), where=where, hint="is this the address of an Ollama?")


def _reason(err: Exception) -> object:
    """What lies behind an error of requests."""
    wrapped = err.args[0] if err.args else None
    return getattr(wrapped, "reason", wrapped)
