"""Client of one Ollama instance: its HTTP API, with named errors and explicit time limits."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, cast

import requests
import urllib3.exceptions

from aiplatform import wait
from aiplatform.errors import PlatformError, WaitTimeoutError

DEFAULT_REGISTRY = "registry.ollama.ai"
POLL_SECONDS = 0.2
_FAILURES = (HTTPStatus.OK, HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR)
_FROM_LINE = re.compile(r"^FROM\s+(?:\S*[/\\])?sha256[-:]([0-9a-f]{64})\s*$", re.MULTILINE)
_NOT_FOUND = re.compile(r"model .*not found|file does not exist|manifest unknown", re.IGNORECASE)
_NO_MEMORY = re.compile(r"requires more system memory|signal: killed|cannot allocate memory", re.IGNORECASE)


class OllamaError(PlatformError):
    """Ollama refused or failed; ``status`` is the HTTP status, None where there was none."""

    def __init__(self, what: str, *, status: int | None = None, **details: Any) -> None:
        self.status = status
        super().__init__(what, **details)


class InstanceDown(OllamaError):
    """Nothing listens there, or it closed the connection in the middle of a reply."""


class ModelNotFound(OllamaError):
    """The instance, or the registry it pulls from, has no such model."""


class OutOfMemory(OllamaError):
    """The model does not fit into the memory that is free."""


class BadReply(OllamaError):
    """The reply is not what this version of the API promises."""


class Timeout(OllamaError):
    """A time limit passed before the reply was complete."""


@dataclass(frozen=True)
class Limits:
    """Time limits of one request, in seconds.

    ``read`` is the longest silence between two pieces of a reply. ``total`` bounds the whole request; it is checked
    as pieces arrive, so a silent instance is given up after the smaller of the two. None for ``total``: no bound.
    """

    connect: float = 3.0
    read: float = 30.0
    total: float | None = None

    def pair(self) -> tuple[float, float]:
        """Connect and read limits in the form that requests takes."""
        return self.connect, self.read if self.total is None else min(self.read, self.total)


QUICK = Limits(connect=3.0, read=15.0, total=20.0)
LOADING = Limits(connect=3.0, read=900.0, total=900.0)
PULLING = Limits(connect=3.0, read=300.0)
ANSWERING = Limits(connect=3.0, read=300.0, total=900.0)


class Chunk(NamedTuple):
    """One piece of a stream: ``at`` seconds after the request was sent, and its data."""

    at: float
    data: dict[str, Any]


def normalise(name: str) -> str:
    """Return the one spelling of a model name: lower case, an explicit tag, no default registry.

    ``Llama3`` and ``registry.ollama.ai/library/llama3`` are both ``llama3:latest``; the colon of a registry's port
    is no tag: ``10.0.0.1:5000/library/m`` is ``10.0.0.1:5000/library/m:latest``.
    """
    text = name.strip().lower()
    text = text.split("://", 1)[-1]
    head, slash, last = text.rpartition("/")
    if not last or not last.split(":", 1)[0]:
        raise ValueError(f"model name: expected [host[:port]/][namespace/]model[:tag], got {name!r}")
    if ":" not in last:
        last += ":latest"
    text = f"{head}{slash}{last}"
    text = text.removeprefix(f"{DEFAULT_REGISTRY}/")
    return text.removeprefix("library/")


def weights_digest(show: Mapping[str, Any]) -> str:
    """Return the identity of a model: 64 hex digits of its weights layer, out of a reply of ``Client.show``.

    Names and manifest digests differ for the same weights; the first FROM line that is no comment does not.
    """
    found = _FROM_LINE.search(str(show.get("modelfile", "")))
    if found is None:
        raise BadReply(
            "The model has no weights to identify it by",
            where="/api/show, modelfile",
            expected="a line 'FROM .../sha256-<64 hex digits>'",
            actual="none",
        )
    return found.group(1)


class Client:
    """One instance of Ollama, by the base URL of its API.

    Not safe for several threads at once: give each thread a client of its own.
    """

    def __init__(
        self, base_url: str = "http://127.0.0.1:11434", *, token: str | None = None, verify: bool | str = True
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._session = requests.Session()
        # A proxy for the outside world must not come between a host and its own service.
        self._session.trust_env = False
        self._session.verify = verify
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Drop the kept-alive connections."""
        self._session.close()

    # -- what the instance is and has -------------------------------------------------------------------------

    def version(self, limits: Limits = QUICK) -> str:
        """Return the version that the instance reports, such as ``0.17.4``."""
        return str(self._member(self._ask("GET", "/api/version", None, limits), "version", str))

    def health(self, limits: Limits = QUICK) -> bool:
        """Return whether the instance answers; only an unreachable or silent one is False."""
        try:
            self.version(limits)
        except (InstanceDown, Timeout):
            return False
        return True

    def tags(self) -> list[dict[str, Any]]:
        """Return the models of the store: name, digest of the manifest, size in bytes, details."""
        return self._models("/api/tags")

    def ps(self) -> list[dict[str, Any]]:
        """Return the loaded models, under the names that loaded them."""
        return self._models("/api/ps")

    def show(self, model: str) -> dict[str, Any]:
        """Return modelfile, parameters, template, details and capabilities of a model."""
        return self._ask("POST", "/api/show", {"model": model})

    def has(self, model: str) -> bool:
        """Return whether the store holds this name."""
        return normalise(model) in {normalise(row["name"]) for row in self.tags()}

    def digest(self, model: str) -> str:
        """Return the weights digest of a model: 64 hex digits."""
        return weights_digest(self.show(model))

    # -- the store --------------------------------------------------------------------------------------------

    def pull(self, model: str, *, insecure: bool = False, limits: Limits = PULLING) -> Iterator[dict[str, Any]]:
        """Fetch a model; yields its progress and is done when exhausted.

        :param insecure: the registry speaks plain HTTP.
        :returns: events ``{"status", "digest", "total", "completed"}`` (bytes), the last three while a layer moves.
        :raises ModelNotFound: the registry has no such model. A pull that broke off carries on when called again.
        """
        body = {"model": model, "insecure": insecure, "stream": True}
        return self._progress("/api/pull", body, limits)

    def create(self, model: str, *, limits: Limits = PULLING, **fields: Any) -> Iterator[dict[str, Any]]:
        """Make a model of ``from`` (another model) or ``files`` ({file name: "sha256:<hex>"} of uploaded blobs).

        ``from`` is a word of Python, so pass it as ``create("m", **{"from": "base", "parameters": {...}})``. Yields
        progress like ``pull``. Mind that Ollama pulls a missing ``from`` by itself.
        """
        return self._progress("/api/create", {"model": model, "stream": True, **fields}, limits)

    def has_blob(self, digest: str) -> bool:
        """Return whether the store holds the blob of these 64 hex digits."""
        return self._send("HEAD", f"/api/blobs/sha256:{digest}", None, QUICK, accept=(200, 404)).status_code == 200

    def upload_blob(self, path: str, digest: str, limits: Limits = LOADING) -> None:
        """Send a file to the store as a blob, for ``create``; Ollama checks its digest (64 hex digits)."""
        with Path(path).open("rb") as stream:
            self._send("POST", f"/api/blobs/sha256:{digest}", stream, limits, accept=(200, 201))

    def copy(self, source: str, destination: str) -> None:
        """Give the model ``source`` a second name."""
        self._send("POST", "/api/copy", {"source": source, "destination": destination}, QUICK)

    def delete(self, model: str) -> None:
        """Delete a name; weights that another name uses stay. A loaded runner is not stopped: unload it first."""
        self._send("DELETE", "/api/delete", {"model": model}, QUICK)

    # -- runners ----------------------------------------------------------------------------------------------

    def load(
        self,
        model: str,
        *,
        options: Mapping[str, Any] | None = None,
        keep_alive: float = -1,
        limits: Limits = LOADING,
    ) -> None:
        """Load a model and keep it ``keep_alive`` seconds after its last use; -1: for ever.

        The load is part of the request: a limit that ends earlier throws the load away. ``options`` must be those that
        requests will carry (none, where an alias carries them), or the first request loads again.
        """
        # A number on purpose: Ollama refuses the string "-1".
        body: dict[str, Any] = {"model": model, "keep_alive": keep_alive, "stream": False}
        if options:
            body["options"] = dict(options)
        try:
            self._ask("POST", "/api/generate", body, limits)
        except OllamaError as err:
            if "does not support generate" not in str(err):
                raise
            del body["stream"]
            self._ask("POST", "/api/embed", body, limits)

    def unload(self, model: str, *, limits: Limits = QUICK) -> None:
        """Unload a model, whatever name it was loaded under, and wait until the instance no longer lists it.

        :raises Timeout: it is still loaded after ``limits.total`` seconds (a request may be running on it).
        """
        weights = self.digest(model)
        loaded = {row["name"] for row in self.ps() if self._same_weights(row["name"], weights)}
        self._ask("POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False}, limits)
        patience = limits.total or QUICK.read
        try:
            wait.until(lambda: self._gone(loaded), patience, POLL_SECONDS, f"{model} to be unloaded")
        except WaitTimeoutError as err:
            raise Timeout(
                f"{model} is still loaded {patience:g} s after its unloading was asked for",
                where=self.base_url,
                hint="a request may still be running on it",
            ) from err

    def loaded(self, model: str) -> bool:
        """Return whether the weights of this model are loaded, under whatever name."""
        weights = self.digest(model)
        return any(self._same_weights(row["name"], weights) for row in self.ps())

    # -- answers ----------------------------------------------------------------------------------------------

    def generate(self, model: str, prompt: str, *, limits: Limits = ANSWERING, **fields: Any) -> Iterator[Chunk]:
        """Complete a prompt; yields the pieces as they come, the last one with ``done`` and the counts.

        :param fields: ``options``, ``system``, ``think``, ``format``, ``keep_alive``, ``raw`` ... of the API.
        """
        body = {"model": model, "prompt": prompt, "stream": True, **fields}
        return self._answer("/api/generate", body, limits)

    def chat(
        self, model: str, messages: list[dict[str, Any]], *, limits: Limits = ANSWERING, **fields: Any
    ) -> Iterator[Chunk]:
        """Continue a conversation of ``{"role", "content"}``; yields like ``generate``."""
        body = {"model": model, "messages": messages, "stream": True, **fields}
        return self._answer("/api/chat", body, limits)

    def embed(self, model: str, texts: list[str], *, limits: Limits = ANSWERING, **fields: Any) -> list[list[float]]:
        """Return one vector a text."""
        reply = self._ask("POST", "/api/embed", {"model": model, "input": texts, **fields}, limits)
        vectors = cast("list[list[float]]", self._member(reply, "embeddings", list))
        if len(vectors) != len(texts):
            raise self._bad_reply("/api/embed", f"{len(texts)} vectors", len(vectors))
        return vectors

    # -- the wire ---------------------------------------------------------------------------------------------

    def _models(self, path: str) -> list[dict[str, Any]]:
        # An empty list is written as null by some versions.
        reply = self._ask("GET", path)
        if "models" in reply and reply["models"] is None:
            return []
        return cast("list[dict[str, Any]]", self._member(reply, "models", list))

    def _gone(self, names: set[str]) -> bool:
        try:
            return not names & {row["name"] for row in self.ps()}
        except OllamaError as err:
            # Listing while a runner goes away can fail inside Ollama; asking again is the remedy.
            if err.status != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            return False

    def _same_weights(self, name: str, weights: str) -> bool:
        try:
            return self.digest(name) == weights
        except ModelNotFound:  # its name was deleted while it stayed loaded
            return False

    def _member(self, reply: dict[str, Any], key: str, kind: type) -> Any:
        if not isinstance(reply.get(key), kind):
            raise self._bad_reply("", f"{key!r} of type {kind.__name__}", reply.get(key))
        return reply[key]

    def _bad_reply(self, path: str, expected: str, actual: object) -> BadReply:
        return BadReply(
            "Unexpected reply",
            where=self.base_url + path,
            expected=expected,
            actual=repr(actual)[:120],
            hint="is this an Ollama of the pinned version?",
        )

    def _answer(self, path: str, body: dict[str, Any], limits: Limits) -> Iterator[Chunk]:
        for chunk in self._stream(path, body, limits):
            yield chunk
            if chunk.data.get("done"):
                return
        raise self._bad_reply(path, f"'done' at the end of the answer of {body['model']}", "the end of the stream")

    def _progress(self, path: str, body: dict[str, Any], limits: Limits) -> Iterator[dict[str, Any]]:
        for chunk in self._stream(path, body, limits):
            yield chunk.data
            if chunk.data.get("status") == "success":
                return
        raise self._bad_reply(path, f"'success' at the end, for {body['model']}", "the end of the stream")

    def _stream(self, path: str, body: dict[str, Any], limits: Limits) -> Iterator[Chunk]:
        started = time.monotonic()
        reply = self._send("POST", path, body, limits, stream=True)
        try:
            for line in reply.iter_lines():
                at = time.monotonic() - started
                if limits.total is not None and at > limits.total:
                    raise Timeout(f"Not complete after {limits.total:g} s", where=self.base_url + path)
                if line:
                    yield Chunk(at, self._piece(path, line))
        except requests.RequestException as err:
            raise self._transport(path, err, limits) from err
        finally:
            reply.close()

    def _piece(self, path: str, line: bytes) -> dict[str, Any]:
        data = self._decode(path, line)
        if "error" in data:  # Ollama's way to fail after it has said 200
            raise self._refusal(path, HTTPStatus.OK, str(data["error"]))
        return data

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, limits: Limits = QUICK
    ) -> dict[str, Any]:
        return self._decode(path, self._send(method, path, body, limits).content)

    def _send(
        self,
        method: str,
        path: str,
        body: Any,
        limits: Limits,
        *,
        stream: bool = False,
        accept: tuple[int, ...] = (200,),
    ) -> requests.Response:
        payload = {"json": body} if isinstance(body, Mapping) else {"data": body}
        try:
            reply = self._session.request(
                method, self.base_url + path, timeout=limits.pair(), stream=stream, allow_redirects=False, **payload
            )
            if reply.status_code in accept:
                return reply
            text = reply.text
        except requests.RequestException as err:
            raise self._transport(path, err, limits) from err
        raise self._refusal(path, reply.status_code, _error_text(text))

    def _decode(self, path: str, text: bytes) -> dict[str, Any]:
        try:
            data = json.loads(text)
        except ValueError as err:
            raise self._bad_reply(path, "JSON", text[:80]) from err
        if not isinstance(data, dict):
            raise self._bad_reply(path, "a JSON object", data)
        return data

    def _refusal(self, path: str, status: int, text: str) -> OllamaError:
        what = f"Ollama refused: {text or 'no reason given'} (HTTP {status:d})"
        kind = OllamaError
        if _NO_MEMORY.search(text):
            kind = OutOfMemory
        elif status == HTTPStatus.NOT_FOUND and not text:
            kind = BadReply
        elif status == HTTPStatus.NOT_FOUND or (status in _FAILURES and _NOT_FOUND.search(text)):
            kind = ModelNotFound
        return kind(what, where=self.base_url + path, status=int(status))

    def _transport(self, path: str, err: requests.RequestException, limits: Limits) -> OllamaError:
        where = self.base_url + path
        connect, read = limits.pair()
        # While a body is read, requests wraps a read time-out into its ConnectionError.
        wrapped = err.args[0] if err.args else None
        if isinstance(err, requests.ConnectTimeout):
            return InstanceDown(f"No connection within {connect:g} s", where=where)
        if isinstance(err, requests.Timeout) or isinstance(wrapped, urllib3.exceptions.ReadTimeoutError):
            return Timeout(f"Silent for {read:g} s", where=where)
        if isinstance(err, requests.exceptions.ChunkedEncodingError):
            return InstanceDown("The connection closed in the middle of the reply", where=where)
        if isinstance(err, requests.ConnectionError):
            return InstanceDown("Nothing answers", where=where, actual=wrapped, hint="is its service running?")
        return OllamaError(str(err), where=where)


def _error_text(text: str) -> str:
    try:
        data = json.loads(text)
    except ValueError:
        return text.strip()[:200]
    return str(data.get("error", text)) if isinstance(data, dict) else text[:200]
