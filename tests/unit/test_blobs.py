"""The files of the store: a damaged one is found, and names change hands in one step."""

from __future__ import annotations

import errno
import hashlib
import json
import os

import pytest

from aiplatform.blobs import Blobs
from aiplatform.errors import NotFoundError, PlatformError


def put(blobs: Blobs, name: str, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    blobs.blob(digest).parent.mkdir(parents=True, exist_ok=True)
    blobs.blob(digest).write_bytes(content)
    row = {"digest": f"sha256:{digest}", "size": len(content)}
    blobs.manifest(name).parent.mkdir(parents=True, exist_ok=True)
    blobs.manifest(name).write_text(json.dumps({"config": row, "layers": [row]}))
    return digest


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "models", tmp_path / "cache/blobs.json")


def test_a_whole_file_is_read_once(blobs, monkeypatch):
    put(blobs, "a:1", b"weights")
    assert blobs.damaged("a:1") == {}
    monkeypatch.setattr("aiplatform.blobs._sha256", lambda _: pytest.fail("read again"))
    assert blobs.damaged("a:1") == {}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: os.truncate(path, 3), "3 of 7 bytes"),
        (lambda path: path.write_bytes(b"weightZ"), "its content has the digest"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_damaged_file_is_named_also_where_it_was_whole_before(blobs, damage, said):
    digest = put(blobs, "a:1", b"weights")
    blobs.trust("a:1")
    damage(blobs.blob(digest))
    assert said in blobs.damaged("a:1")[digest]


def test_a_damaged_file_is_found_of_a_tag_with_capitals(blobs):
    """Ollama keeps the spelling that a model was pulled by."""
    digest = put(blobs, "coder:32b-q4_k_m", b"weights")
    manifest = blobs.manifest("coder:32b-q4_k_m")
    manifest.rename(manifest.with_name("32b-q4_K_M"))
    assert blobs.layers("coder:32b-q4_K_M") == {digest: 7}
    os.truncate(blobs.blob(digest), 3)
    assert blobs.damaged("coder:32b-q4_K_M") == {digest: "3 of 7 bytes"}


def test_a_discarded_file_may_be_fetched_again(blobs):
    digest = put(blobs, "a:1", b"weights")
    blobs.discard(digest)
    blobs.discard(digest)
    assert blobs.damaged("a:1")
    put(blobs, "a:1", b"weights")
    assert blobs.damaged("a:1") == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": 1}', '{"layers": []}'])
def test_a_manifest_that_cannot_be_read_has_no_layers(blobs, text):
    blobs.manifest("a:1").parent.mkdir(parents=True)
    blobs.manifest("a:1").write_text(text)
    assert blobs.layers("a:1") == blobs.damaged("a:1") == {}
    assert blobs.damaged("none:1") == {}


def test_a_broken_memory_is_no_memory(blobs, tmp_path):
    put(blobs, "a:1", b"weights")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/blobs.json").write_text("{")
    assert blobs.damaged("a:1") == {}


def test_a_name_takes_over_and_what_was_staged_is_a_file_of_its_own(blobs):
    put(blobs, "slot-5", b"old")
    put(blobs, "slot-5:next", b"new")
    blobs.take_places({"slot-5:next": "slot-5"})
    taken = blobs.layers("slot-5")
    assert taken == blobs.layers("slot-5:next")
    # Ollama writes the staged name again in place, at the next rotation.
    put(blobs, "slot-5:next", b"newer")
    assert blobs.layers("slot-5") == taken
    assert [path.name for path in blobs.manifest("slot-5").parent.iterdir()] != []


def test_no_name_changes_where_one_of_the_staged_is_gone(blobs):
    before = put(blobs, "slot-5", b"old")
    put(blobs, "slot-5:next", b"new")
    with pytest.raises(NotFoundError, match="coder-rotate cannot be given its model"):
        blobs.take_places({"slot-5:next": "slot-5", "coder-rotate:next": "coder-rotate"})
    assert before in blobs.layers("slot-5")


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS])
def test_no_name_changes_where_one_of_them_cannot_be_written(blobs, monkeypatch, tmp_path, fault):
    for name in ("slot-5", "coder-rotate"):
        put(blobs, name, b"old")
        put(blobs, f"{name}:next", b"new")
    before, copied = blobs.layers("slot-5"), []

    def copy2(source, target):
        copied.append(source)
        if len(copied) == 2:
            raise OSError(fault, os.strerror(fault), str(target))
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr("aiplatform.blobs.shutil.copy2", copy2)
    with pytest.raises(PlatformError, match=f"cannot be given their model.*{os.strerror(fault)}"):
        blobs.take_places({"slot-5:next": "slot-5", "coder-rotate:next": "coder-rotate"})
    assert blobs.layers("slot-5") == blobs.layers("coder-rotate") == before
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["blobs", "manifests"]
