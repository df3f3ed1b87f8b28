"""Slots on a real Ollama on loopback: real models, a table of two slots, and a way to look at its runners."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiplatform import numa
from aiplatform.blobs import Blobs
from aiplatform.ollama import Client
from aiplatform.serving import Serving
from aiplatform.slots import Alias, Resident, Table
from aiplatform.store import Store
from lab import models
from tests.functional.local_ollama import PARAMETERS, TEMPLATE

LOAD_SECONDS = 60
OPTIONS = {"num_ctx": 512, "num_thread": 1}
# Small, distinct, real: name and file of the weights.
FILES = {"locked:1": "gemma3-270m-q5_0.gguf", "old:1": models.BASE, "new:1": "gemma3-270m-q5_1.gguf"}


class Site:
    """One instance with slot 1 (locked) and slot 5 (rotating, with the alias ``coder-rotate``)."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.phases: list[tuple[str, str, float]] = []

    def table(self, model: str) -> Table:
        def slot(number: int, held: str, *aliases: Alias) -> Resident:
            key = f"slots.{number}.model"
            return Resident(f"slot-{number}", key, "node1", held, 512, 1, number, "general", None, aliases)

        names = (Alias("coder-rotate", "You answer briefly."),)
        rows = (slot(1, "locked:1", Alias("llama-family")), slot(5, model, *names))
        return Table(rows, {}, frozenset({"coder-rotate", "llama-family"}))

    def serving(self, model: str, seconds: float = LOAD_SECONDS, client: Client | None = None) -> Serving:
        self.phases.clear()
        store = self.store()
        tell = lambda *told: self.phases.append(told)  # noqa: E731 (one line that keeps what is told)
        return Serving(client or self.client, store, self.blobs, self.table(model), "node1", seconds, tell)

    def store(self) -> Store:
        return Store(self.client, self.folder / "store.json")

    @property
    def blobs(self) -> Blobs:
        return Blobs(self.folder / "models", self.folder / "blobs.json")

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


@contextmanager
def registry(blobs: dict[str, Path | bytes], manifests: dict[str, dict]) -> Iterator[str]:
    """As much of a registry as a pull asks for; yields ``host:port``."""

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
            content = found.read_bytes() if isinstance(found, Path) else found
            first, end = 0, len(content) - 1
            if "Range" in self.headers:
                first, end = (int(part or end) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
            part = content[first : end + 1]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(part)))
            # Ollama asks for it even where nothing is redirected.
            self.send_header("Location", "?")
            self.end_headers()
            if body:
                self.wfile.write(part)

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
