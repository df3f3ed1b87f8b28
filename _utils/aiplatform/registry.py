"""What a registry says of a model before anything of it is fetched: is there one, which weights, how large."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

import requests
import urllib3

from aiplatform.ollama import DEFAULT_REGISTRY, ModelNotFound, OllamaError

WEIGHTS = "application/vnd.ollama.image.model"
ACCEPTED = "application/vnd.docker.distribution.manifest.v2+json"
TIMEOUT = (5.0, 20.0)


@dataclass(frozen=True)
class Remote:
    """A model in its registry: the digest of its weights (64 hex digits) and their bytes, projectors included."""

    weights: str
    size: int


class RegistryDown(OllamaError):
    """The registry does not answer, or not as one."""

    advice = "is it running, and may this host reach it?"


def is_plain(model: str, insecure: Iterable[str]) -> bool:
    """Return whether a model's registry is one of those (``host:port``) that speak plain HTTP."""
    return model.split("/", 1)[0] in insecure


def ask(model: str, insecure: Iterable[str] = ()) -> Remote:
    """Return what a model's registry says of it.

    :param model: its name with its tag.
    :param insecure: registries (``host:port``) that speak plain HTTP.
    :raises ModelNotFound: the registry has no such model.
    :raises RegistryDown: it cannot be asked.
    """
    host, namespace, name, tag = _parts(model)
    plain = is_plain(model, insecure)
    url = f"{'http' if plain else 'https'}://{host}/v2/{namespace}/{name}/manifests/{tag}"
    with requests.Session() as session:
        # A site's own registry is never behind the proxy for the outside world.
        session.trust_env = not plain
        try:
            reply = session.get(url, headers={"Accept": ACCEPTED}, timeout=TIMEOUT)
        except requests.RequestException as err:
            raise RegistryDown("The registry does not answer", where=url, actual=type(err).__name__) from err
    if reply.status_code == HTTPStatus.NOT_FOUND:
        hint = "look for a slip in its name or tag; nothing was changed"
        raise ModelNotFound(f"There is no model {model}", where=url, expected="a model of the registry", hint=hint)
    if reply.status_code != HTTPStatus.OK:
        raise RegistryDown("The registry refuses", where=url, actual=f"HTTP {reply.status_code}")
    return _read(reply, url)


def rate(model: str, weights: str, insecure: Iterable[str] = (), most: int = 4 << 20, seconds: float = 5.0) -> float:
    """Return the bytes a second at which a piece of a model's weights comes from its registry.

    :param weights: their digest, as ``ask`` says it.
    :param most: bytes to fetch at most; ``seconds`` is how long that may go on, and how long a silence may be.
    :raises RegistryDown: it does not give them.
    """
    host, namespace, name, _ = _parts(model)
    plain = is_plain(model, insecure)
    url = f"{'http' if plain else 'https'}://{host}/v2/{namespace}/{name}/blobs/sha256:{weights}"
    began, got = time.monotonic(), 0
    with requests.Session() as session:
        session.trust_env = not plain
        try:
            headers = {"Range": f"bytes=0-{most - 1}"}
            with session.get(url, headers=headers, stream=True, timeout=(TIMEOUT[0], seconds)) as reply:
                reply.raise_for_status()
                # What has come, be it a byte: a whole piece would take a slow line longer than it is given.
                while got < most and time.monotonic() - began < seconds and (piece := reply.raw.read1(64 << 10)):
                    got += len(piece)
        except (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError):
            pass  # then this is all that came
        except (requests.RequestException, urllib3.exceptions.HTTPError) as err:
            raise RegistryDown("The registry gives no weights", where=url, actual=type(err).__name__) from err
    return got / max(time.monotonic() - began, 1e-6)


def _parts(name: str) -> tuple[str, str, str, str]:
    """Return host, namespace, model and tag of a name, as Ollama completes it; a tag keeps its capitals."""
    head, _, last = name.split("://", 1)[-1].rpartition("/")
    model, _, tag = last.partition(":")
    host, _, namespace = head.rpartition("/")
    return host or DEFAULT_REGISTRY, namespace or "library", model, tag or "latest"


def _read(reply: requests.Response, url: str) -> Remote:
    try:
        layers = reply.json()["layers"]
        weights = next(row["digest"] for row in layers if row["mediaType"] == WEIGHTS)
        return Remote(str(weights).removeprefix("sha256:"), sum(int(row["size"]) for row in layers))
    except (ValueError, KeyError, TypeError, StopIteration) as err:
        raise RegistryDown(
            "The registry's manifest is of no model", where=url, expected=f"a layer of type {WEIGHTS}"
        ) from err
