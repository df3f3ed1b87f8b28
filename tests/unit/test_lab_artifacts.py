"""Artifacts: upstream first, sums checked, half a file never counts."""

from __future__ import annotations

import hashlib
import json
import zipfile

import pytest

from lab import artifacts
from lab.artifacts import Artifact
from lab.settings import LabError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def packed(path, text: str = "#!/bin/true\n"):
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("tool")
        info.external_attr = 0o100755 << 16
        archive.writestr(info, text)
    return path


@pytest.fixture
def artifact(httpserver, tmp_path):
    return Artifact(
        name="tool",
        version="1",
        file="tool.zip",
        upstream=httpserver.url_for("/release").rstrip("/"),
        sums="SHA256SUMS",
        build=lambda _version, work: packed(work / "tool.zip", "built\n"),
        recipe=lambda: "recipe 1",
    )


def serve(httpserver, content: bytes, sum_: str | None = None) -> None:
    value = sum_ or hashlib.sha256(content).hexdigest()
    httpserver.expect_request("/release/SHA256SUMS").respond_with_data(f"{value}  tool.zip\n")
    httpserver.expect_request("/release/tool.zip").respond_with_data(content)


def test_upstreams_release_is_preferred_and_named(httpserver, artifact, tmp_path):
    serve(httpserver, packed(tmp_path / "x.zip").read_bytes())
    assert artifacts.obtain(artifact) == "upstream's release"
    assert artifact.manifest()["origin"] == "upstream"
    assert (artifact.unpacked / "tool").stat().st_mode & 0o111


def test_without_upstream_it_is_built_and_the_reason_is_told(httpserver, artifact):
    httpserver.expect_request("/release/SHA256SUMS").respond_with_data("no", status=404)
    told = artifacts.obtain(artifact)
    assert told.startswith("built from its published module (upstream:")
    assert (artifact.unpacked / "tool").read_text() == "built\n"


def test_a_release_with_another_hash_is_refused_and_not_built_instead(httpserver, artifact, tmp_path):
    serve(httpserver, packed(tmp_path / "x.zip").read_bytes(), sum_="0" * 64)
    with pytest.raises(LabError, match="sha256 is"):
        artifacts.obtain(artifact)
    assert artifacts.artifact_fresh(artifact) is None


def test_a_published_artifact_is_up_to_date(artifact):
    artifacts.obtain(artifact)
    assert "built" in (artifacts.artifact_fresh(artifact) or "")


@pytest.mark.parametrize("damage", ["content", "manifest", "unpacked", "recipe"])
def test_a_damaged_artifact_is_made_again(artifact, damage):
    artifacts.obtain(artifact)
    manifest = artifact.folder / "manifest.json"
    if damage == "content":
        artifact.path.write_bytes(b"half")
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "unpacked":
        (artifact.unpacked / "tool").unlink()
        artifact.unpacked.rmdir()
    else:
        manifest.write_text(json.dumps(artifact.manifest() | {"recipe": "recipe 0"}))
    assert artifacts.artifact_fresh(artifact) is None
    artifacts.obtain(artifact)
    assert artifacts.artifact_fresh(artifact)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("AA  ./tool.zip\n", "aa"),
        ("bb *tool.zip", "bb"),
        ("cc  other.zip\n", None),
        ("dd  not-tool.zip\n", None),
        ("", None),
    ],
)
def test_listed_sum(text, found):
    assert artifacts.listed_sum(text, "tool.zip") == found
