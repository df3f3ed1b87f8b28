"""The lab's stand-in for Qdrant, asked by Qdrant's own client in the way that Open WebUI does."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from aiplatform import wait
from tests.conftest import CHECKOUT
from tests.functional.local_server import free_port

PROGRAM = CHECKOUT / "lab/images/containers/qdrant/qdrant_stand_in.py"
KEY = "a-key"
TEXTS = ("cats purr", "dogs bark", "ships sail")


@contextmanager
def started(folder, key: str = KEY, end: str = "terminate") -> Iterator[str]:
    """A stand-in over this folder; gives its URL."""
    port = free_port()
    settings = {
        "QDRANT__SERVICE__API_KEY": key,
        "QDRANT__SERVICE__HOST": "127.0.0.1",
        "QDRANT__SERVICE__HTTP_PORT": str(port),
        "QDRANT__STORAGE__STORAGE_PATH": str(folder),
    }
    process = subprocess.Popen([sys.executable, str(PROGRAM)], env=os.environ | settings)
    try:
        wait.until(lambda: healthy(port), 20, 0.05, "the stand-in")
        yield f"http://127.0.0.1:{port}"
    finally:
        getattr(process, end)()
        process.wait(20)


def healthy(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/healthz", timeout=2).ok
    except requests.RequestException:
        return False


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with started(tmp_path_factory.mktemp("qdrant")) as address:
        yield address


@pytest.fixture
def client(url) -> QdrantClient:
    return QdrantClient(url=url, api_key=KEY)


def mine(tenant: str, *more: models.Condition) -> models.Filter:
    """The filter of Open WebUI's collections, which many tenants share."""
    own = models.FieldCondition(key="tenant_id", match=models.MatchValue(value=tenant))
    return models.Filter(must=[own, *more])


def fill(client: QdrantClient, name: str, tenant: str = "file-1") -> list[str]:
    """Make a collection as Open WebUI does, with three points; returns their ids."""
    if not client.collection_exists(name):
        client.create_collection(
            name,
            vectors_config=models.VectorParams(size=3, distance=models.Distance.COSINE),
            hnsw_config=models.HnswConfigDiff(payload_m=16, m=0),
        )
        index = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
        client.create_payload_index(name, field_name="tenant_id", field_schema=index)
    ids = [str(uuid.uuid4()) for _ in TEXTS]
    points = [
        models.PointStruct(
            id=key,
            vector=[1.0 if at == number else 0.1 for at in range(3)],
            payload={"text": text, "metadata": {"file_id": f"f{number}"}, "tenant_id": tenant},
        )
        for number, (key, text) in enumerate(zip(ids, TEXTS, strict=True))
    ]
    client.upload_points(name, points, wait=True)
    return ids


@pytest.fixture
def name() -> str:
    return f"open-webui_{uuid.uuid4().hex[:8]}"


def test_it_says_that_it_is_a_stand_in(url):
    about = requests.get(url, timeout=5).json()
    assert about["title"].startswith("Stand-in for Qdrant")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"api-key": "wrong"}, 401),
        ({"api-key": KEY[:-1]}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"api-key": KEY}, 200),
        ({"Authorization": f"Bearer {KEY}"}, 200),
    ],
)
def test_nothing_but_health_without_the_key(url, headers, status):
    assert requests.get(f"{url}/collections", headers=headers, timeout=5).status_code == status
    assert requests.get(f"{url}/healthz", timeout=5).text == "healthz check passed"


def test_the_nearest_comes_first_and_no_other_tenants(client, name):
    fill(client, name)
    fill(client, name, tenant="file-2")
    found = client.query_points(name, query=[0.1, 1.0, 0.1], limit=2, query_filter=mine("file-2")).points
    assert found[0].payload["text"] == "dogs bark"
    assert {point.payload["tenant_id"] for point in found} == {"file-2"}
    assert found[0].score == pytest.approx(1.0, abs=1e-3)
    assert found[0].score > found[1].score


def test_filters_narrow(client, name):
    ids = fill(client, name)
    several = models.FieldCondition(key="metadata.file_id", match=models.MatchAny(any=["f0", "f2"]))
    assert client.count(name, count_filter=mine("file-1", several)).count == 2
    assert client.count(name, count_filter=mine("file-1", models.HasIdCondition(has_id=ids[:1]))).count == 1
    either = models.Filter(
        should=[
            models.FieldCondition(key="metadata.file_id", match=models.MatchValue(value=value))
            for value in ("f0", "f1")
        ]
    )
    assert client.count(name, count_filter=either).count == 2
    assert client.count(name, count_filter=models.Filter(must_not=[several])).count == 1
    assert client.count(name, count_filter=mine("file-9")).count == 0


def test_pages_hold_every_point_once(client, name):
    ids = fill(client, name)
    seen, offset = [], None
    while True:
        page, offset = client.scroll(name, scroll_filter=mine("file-1"), limit=2, offset=offset)
        seen += [point.id for point in page]
        if offset is None:
            break
    assert sorted(seen) == sorted(ids)


def test_points_are_written_again_and_deleted(client, name):
    ids = fill(client, name)
    client.upsert(name, [models.PointStruct(id=ids[0], vector=[1, 0, 0], payload={"text": "new"})])
    assert client.retrieve(name, [ids[0]])[0].payload == {"text": "new"}
    client.delete(name, points_selector=models.FilterSelector(filter=mine("file-1")))
    assert [point.id for point in client.scroll(name)[0]] == [ids[0]]
    client.delete(name, points_selector=models.PointIdsList(points=[ids[0]]))
    assert client.count(name).count == 0


def test_collections_come_and_go(client, name):
    fill(client, name)
    info = client.get_collection(name)
    assert info.points_count == 3
    assert info.config.params.vectors.size == 3
    assert info.payload_schema["tenant_id"].data_type == models.PayloadSchemaType.KEYWORD
    assert name in [row.name for row in client.get_collections().collections]
    assert client.delete_collection(name)
    assert not client.collection_exists(name)
    with pytest.raises(UnexpectedResponse, match="404"):
        client.count(name)


def test_a_vector_of_another_size_is_refused(client, name):
    fill(client, name)
    with pytest.raises(UnexpectedResponse, match="expected dim: 3, got 2"):
        client.upsert(name, [models.PointStruct(id=1, vector=[1, 0])])
    with pytest.raises(UnexpectedResponse, match="expected dim: 3, got 4"):
        client.query_points(name, query=[1, 0, 0, 0])


def test_a_collection_is_not_made_twice(client, name):
    fill(client, name)
    with pytest.raises(UnexpectedResponse, match="409"):
        client.create_collection(name, vectors_config=models.VectorParams(size=3, distance=models.Distance.COSINE))


def test_what_it_does_not_have_is_refused_not_ignored(client, url, name):
    fill(client, name)
    bodies = ({"filter": {"min_should": {"conditions": [], "min_count": 1}}}, {"filter": {"must": [{"geo": 1}]}})
    for body in bodies:
        reply = requests.post(f"{url}/collections/{name}/points/count", json=body, headers={"api-key": KEY}, timeout=5)
        assert reply.status_code == 501
    assert requests.get(f"{url}/cluster", headers={"api-key": KEY}, timeout=5).status_code == 501


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_points_outlive_the_process(tmp_path, name, end):
    with started(tmp_path, end=end) as address:
        ids = fill(QdrantClient(url=address, api_key=KEY), name)
    with started(tmp_path) as address:
        client = QdrantClient(url=address, api_key=KEY)
        assert sorted(point.id for point in client.scroll(name)[0]) == sorted(ids)
        assert client.query_points(name, query=[0.1, 0.1, 1.0], limit=1).points[0].payload["text"] == "ships sail"
