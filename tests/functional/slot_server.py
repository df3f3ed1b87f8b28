"""Slots on a real Ollama on loopback: real models, a pillar with two slots, and a way to look at its runners."""

from __future__ import annotations

import http.server
import json
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from _modules import model_slots
from _states import model_slots as slots_state
from aiplatform import numa, settings, slot_rules
from aiplatform.blobs import Blobs
from aiplatform.ollama import Client
from aiplatform.serving import Serving
from aiplatform.slots import Table
from aiplatform.store import Store
from lab import models
from tests.conftest import CHECKOUT
from tests.functional.local_ollama import PARAMETERS, TEMPLATE

LOAD_SECONDS = 60
# Small, distinct, real: name and file of the weights.
FILES = {"locked:1": "gemma3-270m-q5_0.gguf", "old:1": models.BASE, "new:1": "gemma3-270m-q5_1.gguf"}


def pillar(client: Client, folder: Path) -> dict[str, Any]:
    """The effective pillar of a host with one instance: slot 1 is locked, slot 5 rotates."""
    hosts = {"one": {"address": "192.0.2.1", "roles": ["ai_server"]}}
    found = settings.effective({"platform": {"hosts": hosts}}, CHECKOUT / "salt")
    place = found["ollama"]["instances"]["node1"] | {"port": int(client.base_url.rpartition(":")[2])}
    found["ollama"] |= {"api_host": "127.0.0.1", "models_dir": str(folder / "models"), "instances": {"node1": place}}
    found["models"] |= {"num_ctx": 512, "load_timeout": LOAD_SECONDS, "warmup_wait": 10}
    found["slots"] = {number: found["slots"][number] for number in (1, 5)}
    found["aliases"] = {"llama-family": {"slot": 1}, "coder-rotate": {"slot": 5, "system": "You answer briefly."}}
    return found | {"selection": {"slot1_general": "locked:1"}, "origins": {}}


class Site:
    """One instance with slot 1 (locked, ``llama-family``) and slot 5 (rotating, ``coder-rotate``).

    ``heard`` is called with each event that the minion sends, tag and data.
    """

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.pillar = pillar(client, folder)
        self.opts = {"test": False, "file_client": "remote", "cachedir": str(folder), "id": "one"}
        self.heard: Callable[[str, dict[str, Any]], object] = lambda tag, data: None
        self.phases: list[tuple[str, str, float]] = []

    def hold(self, model: str) -> None:
        """Put a model into slot 5, in pillar."""
        self.pillar["slots"][5]["model"] = model

    def table(self, model: str) -> Table:
        self.hold(model)
        return slot_rules.compiled(self.pillar, {"node1": 1})

    def serving(self, model: str, seconds: float = LOAD_SECONDS, client: Client | None = None) -> Serving:
        self.phases.clear()
        store = self.store()
        tell = lambda *told: self.phases.append(told)  # noqa: E731 (one line that keeps what is told)
        return Serving(client or self.client, store, self.blobs, self.table(model), "node1", seconds, tell)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Bind the module and the states of the slots to this host."""
        called: dict[str, Callable[..., Any]] = {
            "numa.plan": lambda: {"node1": {"num_thread": 1, "node": None, "memory": 64 << 30}},
            "numa.topology": lambda: {"limits": {"memory": None}},
            "pillar.items": lambda unmask: self.pillar,
            "service.status": lambda unit: True,
            "event.send": lambda tag, data: self.heard(tag, data),
        }
        functions = {key: one for key, one in vars(model_slots).items() if isinstance(one, types.FunctionType)}
        called |= {f"model_slots.{key}": one for key, one in functions.items() if not key.startswith("_")}
        with pytest.MonkeyPatch.context() as patched:
            for module in (model_slots, slots_state):
                for name, value in (("__pillar__", self.pillar), ("__salt__", called), ("__opts__", self.opts)):
                    patched.setattr(module, name, value, raising=False)
            yield

    def pulled(self, model: str, test: bool = False) -> dict[str, Any]:
        """The first state of a rotation: slot 5 is to have this model, and it is in the store, and whole."""
        self.hold(model)
        self.opts["test"] = test
        return slots_state.pulled("models-pulled")

    def rotated(self, model: str) -> dict[str, Any]:
        """The states of a rotation: the return of the last one, which is the first that fails."""
        state = self.pulled(model)
        return slots_state.served("node1") if state["result"] else state

    def store(self) -> Store:
        return Store(self.client, self.folder / "ai-platform-store.json")

    @property
    def blobs(self) -> Blobs:
        return Blobs(self.folder / "models", self.folder / "ai-platform-blobs.json")

    def runners(self) -> dict[str, int]:
        """``{digest of the weights: pid}`` of what runs now."""
        found = {}
        for server in servers(self.client):
            found |= {Path(path).name.removeprefix("sha256-"): pid for pid, path in numa.runners(server).items()}
        return found

    def ask(self, name: str) -> str:
        """The answer of a name, as a client gets it."""
        body = [{"role": "user", "content": "Say hello."}]
        chunks = self.client.chat(name, body, options={"num_predict": 1})
        return "".join(chunk.data["message"]["content"] for chunk in chunks)

    def weights(self, name: str) -> str:
        return self.client.digest(name)


def make(client: Client, names: dict[str, str] = FILES) -> None:
    """Make real models of the cache's files."""
    for name, file in names.items():
        path = models.path(file)
        digest = models.BASE_SHA256 if file == models.BASE else models.artifacts.sha256(path)
        if not client.has_blob(digest):
            client.upload_blob(str(path), digest)
        files = {file: f"sha256:{digest}"}
        list(client.create(name, files=files, template=TEMPLATE, parameters=PARAMETERS))


def servers(client: Client) -> Iterator[int]:
    """The main process of an instance on loopback."""
    port = client.base_url.rpartition(":")[2]
    for folder in numa.PROC.glob("[0-9]*"):
        try:
            mine = f"OLLAMA_HOST=127.0.0.1:{port}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if mine and b"serve" in (folder / "cmdline").read_bytes().split(b"\0"):
                yield int(folder.name)
        except OSError:
            continue


def send(stream: BinaryIO, part: bytes, halfway: Callable[[], object]) -> None:
    """Write a part, and stop in the middle for ``halfway``; who asked for it may go away."""
    middle = len(part) // 2
    with suppress(ConnectionError):
        stream.write(part[:middle])
        halfway()
        stream.write(part[middle:])


@contextmanager
def registry(
    blobs: dict[str, bytes],
    manifests: dict[str, dict],
    halfway: Callable[[str, int], object] = lambda name, first: None,
) -> Iterator[str]:
    """As much of a registry as a pull asks for; yields ``host:port``.

    ``halfway`` is called when half of what was asked of a blob is sent: with the blob's name and the first byte asked.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            last = self.path.rpartition("/")[2].removesuffix("?")
            found = blobs.get(last)
            name = self.path.removeprefix("/v2/").replace("/manifests/", ":")
            if found is None and name in manifests:
                found = json.dumps(manifests[name]).encode()
            if found is None:
                self.send_error(404)
                return
            first, end = 0, len(found) - 1
            if "Range" in self.headers:
                first, end = (int(part or end) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
            part = found[first : end + 1]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(part)))
            # Ollama asks for it even where nothing is redirected.
            self.send_header("Location", "?")
            self.end_headers()
            if body:
                send(self.wfile, part, lambda: "Range" in self.headers and halfway(last, first))

        def log_message(self, *_):
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
