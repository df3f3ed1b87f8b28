"""Client of one Ollama instance: its HTTP API, with named errors and explicit time limits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from aiplatform import wait
from aiplatform.errors import WaitTimeoutError
from aiplatform.ollama_errors import (
    BadReply,
    Busy,
    CutOff,
    HtmlReply,
    InstanceDown,
    ModelNotFound,
    OllamaError,
    OutOfMemory,
    Redirected,
    RequestRefused,
    ServerFailed,
    Timeout,
    TlsFailed,
    TooLong,
    bad_reply,
)
from aiplatform.ollama_wire import QUICK, Chunk, Limits, Wire

__all__ = [
    "ANSWERING",
    "LOADING",
    "NANOSECONDS",
    "PULLING",
    "QUICK",
    "BadReply",
    "Busy",
    "Chunk",
    "Client",
    "CutOff",
    "HtmlReply",
    "InstanceDown",
    "Limits",
    "ModelNotFound",
    "OllamaError",
    "OutOfMemory",
    "Redirected",
    "RequestRefused",
    "ServerFailed",
    "Timeout",
    "TlsFailed",
    "TooLong",
    "from_environment",
    "normalise",
    "weights_digest",
]

# The API's durations in a second.
NANOSECONDS = 1e9
DEFAULT_REGISTRY = "registry.ollama.ai"
DEFAULT_URL = "http://127.0.0.1:11434"
# The first one names the service, as containers of its network resolve it, the second one the port on their host.
ENVIRONMENT = ("OLLAMA_BASE_URL", "OLLAMA_HOST_BASE_URL")
# What Docker and Podman put into each container.
CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
POLL_SECONDS = 0.2
_FROM_LINE = re.compile(r"^FROM\s+(?:\S*[/\\])?sha256[-:]([0-9a-f]{64})\s*$", re.MULTILINE)

LOADING = Limits(connect=3.0, read=900.0, total=900.0)
PULLING = Limits(connect=3.0, read=300.0)
ANSWERING = Limits(connect=3.0, read=300.0, total=900.0)


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

    def __init__(self, base_url: str = DEFAULT_URL, *, token: str | None = None, verify: bool | str = True) -> None:
        self._wire = Wire(base_url, token=token, verify=verify)
        self.base_url = self._wire.base_url
        self._ask = self._wire.ask

    @property
    def openai_url(self) -> str:
        """The base URL for clients that speak OpenAI's API."""
        return f"{self.base_url}/v1"

    def close(self) -> None:
        """Drop the kept-alive connections."""
        self._wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def ps(self, limits: Limits = QUICK) -> list[dict[str, Any]]:
        """Return the loaded models, under the names that loaded them."""
        return self._models("/api/ps", limits)

    def show(self, model: str, *, verbose: bool = False, limits: Limits = QUICK) -> dict[str, Any]:
        """Return modelfile, parameters, template, details and capabilities of a model.

        :param verbose: with all of ``model_info`` and the list of ``tensors``, which are some megabytes.
        """
        body: dict[str, Any] = {"model": model} | ({"verbose": True} if verbose else {})
        return self._ask("POST", "/api/show", body, limits)

    def has(self, model: str) -> bool:
        """Return whether the store holds this name."""
        return normalise(model) in {normalise(row["name"]) for row in self.tags()}

    def digest(self, model: str, limits: Limits = QUICK) -> str:
        """Return the weights digest of a model: 64 hex digits."""
        return weights_digest(self.show(model, limits=limits))

    # -- the store --------------------------------------------------------------------------------------------

    def pull(self, model: str, *, insecure: bool = False, limits: Limits = PULLING) -> Iterator[dict[str, Any]]:
        """Fetch a model; yields its progress and is done when exhausted.

        :param insecure: the registry speaks plain HTTP.
        :returns: events ``{"status", "digest", "total", "completed"}`` (bytes), the last three while a layer moves.
        :raises ModelNotFound: the registry has no such model. A pull that broke off carries on when called again.
        """
        body = {"model": model, "insecure": insecure, "stream": True}
        return self._progress("/api/pull", body, limits)

    def push(self, model: str, *, insecure: bool = False, limits: Limits = PULLING) -> Iterator[dict[str, Any]]:
        """Send a model to the registry that its name begins with; yields progress like ``pull``."""
        return self._progress("/api/push", {"model": model, "insecure": insecure, "stream": True}, limits)

    def create(self, model: str, *, limits: Limits = PULLING, **fields: Any) -> Iterator[dict[str, Any]]:
        """Make a model of ``from`` (another model) or ``files`` ({file name: "sha256:<hex>"} of uploaded blobs).

        ``from`` is a word of Python, so pass it as ``create("m", **{"from": "base", "parameters": {...}})``. Yields
        progress like ``pull``. Mind that Ollama pulls a missing ``from`` by itself.
        """
        return self._progress("/api/create", {"model": model, "stream": True, **fields}, limits)

    def has_blob(self, digest: str) -> bool:
        """Return whether the store holds the blob of these 64 hex digits."""
        return self._wire.exchange("HEAD", f"/api/blobs/sha256:{digest}", None, accept=(200, 404))[0] == HTTPStatus.OK

    def upload_blob(self, path: str, digest: str, limits: Limits = LOADING) -> None:
        """Send a file to the store as a blob, for ``create``; Ollama checks its digest (64 hex digits)."""
        with Path(path).open("rb") as stream:
            self._wire.send("POST", f"/api/blobs/sha256:{digest}", stream, limits, accept=(200, 201))

    def copy(self, source: str, destination: str) -> None:
        """Give the model ``source`` a second name."""
        self._wire.send("POST", "/api/copy", {"source": source, "destination": destination})

    def delete(self, model: str) -> None:
        """Delete a name; weights that another name uses stay. A loaded runner is not stopped: unload it first."""
        self._wire.send("DELETE", "/api/delete", {"model": model})

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
        self._keep(body, limits)

    def unload(self, model: str, *, limits: Limits = QUICK) -> None:
        """Unload a model, whatever name it was loaded under, and wait until the instance no longer lists it.

        :raises Timeout: it is still loaded after ``limits.total`` seconds (a request may be running on it).
        """
        weights = self.digest(model)
        loaded = {row["name"] for row in self.ps() if self._same_weights(row["name"], weights)}
        self._keep({"model": model, "keep_alive": 0, "stream": False}, limits)
        patience = limits.total or QUICK.read
        try:
            wait.until(lambda: self._gone(loaded), patience, POLL_SECONDS, f"{model} to be unloaded")
        except WaitTimeoutError as err:
            raise Timeout(
                f"{model} is still loaded {patience:g} s after its unloading was asked for",
                where=self.base_url,
                hint="a request may still be running on it",
            ) from err

    def _keep(self, body: dict[str, Any], limits: Limits) -> None:
        """Load or unload: a request without a prompt; an embedding model takes it at its own path only."""
        try:
            self._ask("POST", "/api/generate", body, limits)
        except OllamaError as err:
            if "does not support generate" not in str(err):
                raise
            self._ask("POST", "/api/embed", {key: value for key, value in body.items() if key != "stream"}, limits)

    def loaded(self, model: str, limits: Limits = QUICK) -> bool:
        """Return whether the weights of this model are loaded, under whatever name; ``limits`` are of each question."""
        weights = self.digest(model, limits)
        return any(self._same_weights(row["name"], weights, limits) for row in self.ps(limits))

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
        vectors = self._member(reply, "embeddings", list, "/api/embed")
        if len(vectors) != len(texts):
            raise self._bad_reply("/api/embed", f"{len(texts)} vectors", len(vectors))
        for vector in vectors:
            if not isinstance(vector, list) or not all(isinstance(part, (int, float)) for part in vector):
                raise self._bad_reply("/api/embed", "vectors of numbers", vector)
        return cast("list[list[float]]", vectors)

    # -- replies ----------------------------------------------------------------------------------------------

    def _models(self, path: str, limits: Limits = QUICK) -> list[dict[str, Any]]:
        # An empty list is written as null by some versions.
        reply = self._ask("GET", path, None, limits)
        if "models" in reply and reply["models"] is None:
            return []
        rows = self._member(reply, "models", list, path)
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("name"), str):
                raise self._bad_reply(path, "models, each with a name", row)
        return cast("list[dict[str, Any]]", rows)

    def _gone(self, names: set[str]) -> bool:
        try:
            return not names & {row["name"] for row in self.ps()}
        except OllamaError as err:
            # Listing while a runner goes away can fail inside Ollama; asking again is the remedy.
            if err.status != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            return False

    def _same_weights(self, name: str, weights: str, limits: Limits = QUICK) -> bool:
        try:
            return self.digest(name, limits) == weights
        except ModelNotFound:  # its name was deleted while it stayed loaded
            return False

    def _member(self, reply: dict[str, Any], key: str, kind: type, path: str = "") -> Any:
        if not isinstance(reply.get(key), kind):
            raise self._bad_reply(path, f"{key!r} of type {kind.__name__}", reply.get(key))
        return reply[key]

    def _bad_reply(self, path: str, expected: str, actual: object, kind: type[BadReply] = BadReply) -> BadReply:
        return bad_reply(self.base_url + path, expected, actual, kind)

    def _answer(self, path: str, body: dict[str, Any], limits: Limits) -> Iterator[Chunk]:
        pieces = self._wire.stream(path, body, limits)
        for chunk in pieces:
            self._check_answer(path, chunk.data)
            if chunk.data.get("done"):
                # Read to its end, a connection serves the next request too.
                for _ in pieces:
                    pass
                yield chunk
                return
            yield chunk
        expected = f"'done' at the end of the answer of {body['model']}"
        raise self._bad_reply(path, expected, "the end of the stream", CutOff)

    def _check_answer(self, path: str, data: dict[str, Any]) -> None:
        message = data.get("message", {})
        if not isinstance(message, dict):
            raise self._bad_reply(path, "'message' as an object", message)
        for text in (data.get("response", ""), message.get("content", "")):
            if not isinstance(text, str):
                raise self._bad_reply(path, "the answer as text", text)
        if not isinstance(data.get("done", False), bool):
            raise self._bad_reply(path, "'done' as true or false", data["done"])
        for key in ("eval_count", "eval_duration", "prompt_eval_count", "prompt_eval_duration", "load_duration"):
            number = data.get(key, 0)
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise self._bad_reply(path, f"{key!r} as a whole number", number)

    def _progress(self, path: str, body: dict[str, Any], limits: Limits) -> Iterator[dict[str, Any]]:
        for chunk in self._wire.stream(path, body, limits):
            yield chunk.data
            if chunk.data.get("status") == "success":
                return
        expected = f"'success' at the end, for {body['model']}"
        raise self._bad_reply(path, expected, "the end of the stream", CutOff)


def from_environment() -> Client:
    """Return a client of the instance that the environment names, or of the local one.

    An env file names it twice: in a container ``OLLAMA_BASE_URL`` counts first, else ``OLLAMA_HOST_BASE_URL``.
    """
    inside = any(mark.exists() for mark in CONTAINER_MARKS)
    named = (os.environ.get(name, "").strip() for name in (ENVIRONMENT if inside else reversed(ENVIRONMENT)))
    return Client(next((url for url in named if url), DEFAULT_URL))
