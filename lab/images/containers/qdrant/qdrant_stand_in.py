"""A stand-in for Qdrant: the part of its REST API that Open WebUI and the platform's checks use.

It keeps the data in qdrant-edge-py, Qdrant's own storage engine as a library, where upstream's image cannot be
pulled. It is configured by upstream's environment variables, names itself a stand-in in ``GET /``, and refuses with
status 501 what it does not have, gRPC, named vectors and clusters among it.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import qdrant_edge as edge
from filters import Refused, filter_of

# The release whose API is answered; clients compare it with their own.
API_VERSION = "1.19.0"
TITLE = f"Stand-in for Qdrant (its REST API, in part, over qdrant-edge-py {version('qdrant-edge-py')})"
OPEN_PATHS = {"/", "/healthz", "/livez", "/readyz"}
NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")
LARGEST_BODY = 64 << 20

Answer = tuple[int, Any]
Body = dict[str, Any]


class Collection:
    """One collection: its settings and its shard, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Open what the folder holds."""
        self.folder = folder
        self.settings: Body = json.loads((folder / "settings.json").read_text())
        self.lock = threading.RLock()
        self.shard = edge.EdgeShard.load(str(folder / "shard"))

    @classmethod
    def create(cls, folder: Path, settings: Body) -> Collection:
        """Make a new one; the settings are written last, and what lacks them does not count."""
        vectors = settings["vectors"]
        distance = getattr(edge.Distance, str(vectors["distance"]), None)
        if distance is None or not isinstance(vectors.get("size"), int) or vectors["size"] < 1:
            raise Refused(422, "vectors: a size and one of Cosine, Euclid, Dot, Manhattan are needed")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        params = edge.EdgeVectorParams(size=vectors["size"], distance=distance)
        (folder / "shard").mkdir()
        edge.EdgeShard.create(str(folder / "shard"), edge.EdgeConfig(vectors=params)).close()
        (folder / "settings.json").write_text(json.dumps(settings))
        return cls(folder)

    def update(self, operation: Any) -> Body:
        """Change points; they are on disk when this returns."""
        with self.lock:
            self.shard.update(operation)
            self.shard.flush()
        return {"operation_id": 0, "status": "completed"}

    def info(self) -> Body:
        """Return what ``GET /collections/<name>`` shows."""
        found = self.shard.info()
        params = {"vectors": self.settings["vectors"], "shard_number": 1, "replication_factor": 1}
        hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000} | (self.settings.get("hnsw_config") or {})
        optimizer = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0}
        kinds = {name: str(index.data_type).split(".")[-1].lower() for name, index in found.payload_schema.items()}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": found.indexed_vectors_count,
            "points_count": found.points_count,
            "segments_count": found.segments_count,
            "config": {
                "params": params | {"write_consistency_factor": 1, "on_disk_payload": True},
                "hnsw_config": hnsw,
                "optimizer_config": optimizer | {"flush_interval_sec": 5},
                "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
            },
            "payload_schema": {
                name: {"data_type": kinds[name], "points": index.points} for name, index in found.payload_schema.items()
            },
        }


class Store:
    """All collections, below one folder."""

    def __init__(self, folder: Path) -> None:
        """Open what is there."""
        self.folder = folder / "collections"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.collections = {path.parent.name: Collection(path.parent) for path in self.folder.glob("*/settings.json")}

    def get(self, name: str) -> Collection:
        """Return a collection; raises ``Refused`` (404) where there is none."""
        if name not in self.collections:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return self.collections[name]

    def create(self, name: str, body: Body) -> bool:
        """Make a collection."""
        vectors = body.get("vectors")
        if not NAME.fullmatch(name) or name.startswith("."):
            raise Refused(422, f"collection name {name!r} is not valid")
        if not isinstance(vectors, dict) or "size" not in vectors or body.get("sparse_vectors"):
            raise Refused(501, "the stand-in has collections of one unnamed dense vector only")
        with self.lock:
            if name in self.collections:
                raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
            self.collections[name] = Collection.create(self.folder / name, body)
        return True

    def delete(self, name: str) -> bool:
        """Remove a collection; False where there is none."""
        with self.lock:
            found = self.collections.pop(name, None)
            if found is None:
                return False
            with found.lock:
                found.shard.close()
            # What lacks its settings does not come back, even if this ends half way.
            (found.folder / "settings.json").unlink()
            shutil.rmtree(found.folder)
        return True

    def close(self) -> None:
        """Write all that is pending, and close."""
        with self.lock:
            for collection in self.collections.values():
                with collection.lock:
                    collection.shard.close()


# -- points -----------------------------------------------------------------------------------------------------------


def upsert(collection: Collection, body: Body) -> Body:
    """Write points, given one by one or as a batch."""
    if batch := body.get("batch"):
        payloads = batch.get("payloads") or [None] * len(batch["ids"])
        rows = [
            {"id": key, "vector": vector, "payload": payload}
            for key, vector, payload in zip(batch["ids"], batch["vectors"], payloads, strict=True)
        ]
    else:
        rows = body["points"]
    size = collection.settings["vectors"]["size"]
    for row in rows:
        if not isinstance(row["vector"], list):
            raise Refused(501, "the stand-in has unnamed dense vectors only")
        if len(row["vector"]) != size:
            raise Refused(400, f"Wrong input: Vector dimension error: expected dim: {size}, got {len(row['vector'])}")
    points = [edge.Point(id=row["id"], vector=row["vector"], payload=row.get("payload") or {}) for row in rows]
    return collection.update(edge.UpdateOperation.upsert_points(points))


def remove(collection: Collection, body: Body) -> Body:
    """Delete points by their ids or by a filter."""
    if "points" in body:
        return collection.update(edge.UpdateOperation.delete_points(body["points"]))
    return collection.update(edge.UpdateOperation.delete_points_by_filter(filter_of(body["filter"])))


def index(collection: Collection, body: Body) -> Body:
    """Index a field of the payload, in the kind that ``field_schema`` names."""
    wanted = body.get("field_schema") or "keyword"
    kind = wanted if isinstance(wanted, str) else wanted["type"]
    schema = getattr(edge.PayloadSchemaType, str(kind).capitalize(), None)
    if schema is None:
        raise Refused(501, f"the stand-in has no index of kind {kind!r}")
    return collection.update(edge.UpdateOperation.create_field_index(body["field_name"], schema))


def payload_wish(body: Body, default: bool) -> Any:
    """Return ``with_payload`` as the engine takes it."""
    wish = body.get("with_payload", default)
    if isinstance(wish, dict):
        kind = "Include" if "include" in wish else "Exclude"
        return getattr(edge.PayloadSelector, kind)(wish[kind.lower()])
    return default if wish is None else wish


def record(point: Any) -> Body:
    """Return a point as JSON has it."""
    row = {"id": point.id if isinstance(point.id, int) else str(point.id), "payload": point.payload}
    return row | ({"vector": point.vector} if point.vector is not None else {})


def scored(point: Any) -> Body:
    """Return a point that was found, with its score."""
    return record(point) | {"score": point.score, "version": point.version}


def query(collection: Collection, body: Body) -> list[Body]:
    """Return the nearest points; the plain list that ``points/search`` answers with."""
    vector = body.get("query", body.get("vector"))
    vector = vector.get("nearest") if isinstance(vector, dict) else vector
    if not isinstance(vector, list) or any(body.get(key) for key in ("prefetch", "using", "lookup_from")):
        raise Refused(501, "the stand-in finds the nearest neighbours of one vector only")
    size = collection.settings["vectors"]["size"]
    if len(vector) != size:
        raise Refused(400, f"Wrong input: Vector dimension error: expected dim: {size}, got {len(vector)}")
    request = edge.QueryRequest(
        limit=body.get("limit") or 10,
        offset=body.get("offset") or 0,
        query=edge.Query.Nearest(vector),
        filter=filter_of(body.get("filter")),
        with_payload=payload_wish(body, default=False),
        with_vector=body.get("with_vector") or False,
        score_threshold=body.get("score_threshold"),
    )
    return [scored(point) for point in collection.shard.query(request)]


def scroll(collection: Collection, body: Body) -> Body:
    """Return a page of points, and where the next one starts."""
    if body.get("order_by"):
        raise Refused(501, "the stand-in scrolls by id only")
    request = edge.ScrollRequest(
        offset=body.get("offset"),
        limit=body.get("limit") or 10,
        filter=filter_of(body.get("filter")),
        with_payload=payload_wish(body, default=True),
        with_vector=body.get("with_vector") or False,
    )
    points, after = collection.shard.scroll(request)
    following = after if after is None or isinstance(after, int) else str(after)
    return {"points": [record(point) for point in points], "next_page_offset": following}


def count(collection: Collection, body: Body) -> Body:
    """Count points."""
    return {"count": collection.shard.count(edge.CountRequest(exact=True, filter=filter_of(body.get("filter"))))}


def retrieve(collection: Collection, body: Body) -> list[Body]:
    """Return the points of these ids."""
    found = collection.shard.retrieve(body["ids"], payload_wish(body, default=True), body.get("with_vector") or False)
    return [record(point) for point in found]


POINTS: dict[tuple[str, str], Callable[[Collection, Body], Any]] = {
    ("PUT", "points"): upsert,
    ("POST", "points"): retrieve,
    ("POST", "points/delete"): remove,
    ("POST", "points/query"): lambda collection, body: {"points": query(collection, body)},
    ("POST", "points/search"): query,
    ("POST", "points/scroll"): scroll,
    ("POST", "points/count"): count,
    ("PUT", "index"): index,
}


# -- the wire ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Service:
    """The store behind the API, and the key that opens it."""

    store: Store
    key: str

    def answer(self, method: str, path: str, keys: tuple[str, str], body: Body) -> Answer:
        """Return status and result of a request.

        keys
            What the headers ``api-key`` and ``Authorization`` say.
        """
        if path not in OPEN_PATHS and self.key:
            self._demand(keys[0] or keys[1].removeprefix("Bearer "))
        if method == "GET" and path == "/":
            return 200, {"title": TITLE, "version": API_VERSION}
        if method == "GET" and path in OPEN_PATHS:
            return 200, f"{path[1:]} check passed"
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] != "collections" or len(parts) > 4:
            raise Refused(501, f"the stand-in does not serve {method} {path}")
        return 200, self._collections(method, parts[1:], body)

    def _demand(self, given: str) -> None:
        if not given:
            raise Refused(401, "Must provide an API key or an Authorization bearer token")
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            raise Refused(401, "Invalid API key or JWT")

    def _collections(self, method: str, parts: list[str], body: Body) -> Any:
        if not parts:
            return {"collections": [{"name": name} for name in sorted(self.store.collections)]}
        name, what = parts[0], "/".join(parts[1:])
        if (method, what) == ("GET", "exists"):
            return {"exists": name in self.store.collections}
        if (method, what) == ("PUT", ""):
            return self.store.create(name, body)
        if (method, what) == ("DELETE", ""):
            return self.store.delete(name)
        collection = self.store.get(name)
        if (method, what) == ("GET", ""):
            return collection.info()
        if (method, what) not in POINTS:
            raise Refused(501, f"the stand-in does not serve {method} /collections/<name>/{what}")
        with collection.lock:
            return POINTS[method, what](collection, body)


class Handler(BaseHTTPRequestHandler):
    """One request after the other of one client."""

    service: Service
    protocol_version = "HTTP/1.1"
    server_version = "qdrant-stand-in"

    def _serve(self) -> None:
        try:
            keys = (self.headers.get("api-key", ""), self.headers.get("Authorization", ""))
            status, result = self.service.answer(self.command, self.path.partition("?")[0], keys, self._body())
        except Refused as err:
            status, result = err.status, err
        except (KeyError, TypeError, ValueError) as err:
            status, result = 400, Refused(400, f"Wrong input: {type(err).__name__}: {err}")
        except Exception as err:  # noqa: BLE001 (the engine's own errors have one class only)
            status, result = 500, Refused(500, f"Service internal error: {err}")
        self._reply(status, result)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815 (the names that http.server calls)

    def _body(self) -> Body:
        length = int(self.headers.get("Content-Length") or 0)
        if length > LARGEST_BODY:
            raise Refused(413, "Payload too large")
        return dict(json.loads(self.rfile.read(length))) if length else {}

    def _reply(self, status: int, result: Any) -> None:
        kind = "application/json"
        if isinstance(result, Refused):
            text = json.dumps({"status": {"error": str(result)}, "time": 0.0})
            if status in (401, 403):  # Qdrant's own are plain text
                text, kind = str(result), "text/plain"
        elif isinstance(result, str):
            text, kind = result, "text/plain"
        elif "title" in (result if isinstance(result, dict) else {}):
            text = json.dumps(result)
        else:
            text = json.dumps({"result": result, "status": "ok", "time": 0.0})
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def main() -> None:
    """Serve until told to stop."""
    store = Store(Path(os.environ.get("QDRANT__STORAGE__STORAGE_PATH", "/qdrant/storage")))
    service = Service(store, os.environ.get("QDRANT__SERVICE__API_KEY", ""))
    address = os.environ.get("QDRANT__SERVICE__HOST", "0.0.0.0")  # noqa: S104 (inside a container)
    port = int(os.environ.get("QDRANT__SERVICE__HTTP_PORT", "6333"))
    handler = type("Bound", (Handler,), {"service": service})
    server = ThreadingHTTPServer((address, port), handler)

    def stop(_number: int, _frame: object) -> NoReturn:
        store.close()
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"{TITLE}: {len(store.collections)} collections, port {port}", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
