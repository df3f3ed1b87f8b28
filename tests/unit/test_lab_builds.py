"""Keycloak's package from Maven: half a file never counts, and a wrong one does not stay."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lab import builds
from lab.settings import LabError

WHOLE = b"the whole package"


@pytest.fixture
def maven(monkeypatch, tmp_path):
    """What Maven's next copies are; the last one it makes is whole, and of an exception it leaves half a file."""
    copies: list[bytes | Exception] = [WHOLE]

    def run(argv, **_kwargs):
        folder = Path(argv[-1].partition("=")[2])
        folder.mkdir(parents=True, exist_ok=True)
        copy = copies.pop(0)
        path = folder / "keycloak-quarkus-dist-1.zip"
        if not path.exists():  # what is there Maven takes for released, and leaves
            path.write_bytes(b"half" if isinstance(copy, Exception) else copy)
        if isinstance(copy, Exception):
            raise copy

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(builds, "run", run)
    monkeypatch.setattr(builds, "ensure_packages", lambda *_args: None)
    monkeypatch.setattr(builds, "KEYCLOAK_SHA256", hashlib.sha256(WHOLE).hexdigest())
    return copies


def test_after_an_interrupted_copy_the_package_is_copied_again(maven, tmp_path):
    maven.insert(0, LabError("interrupted"))
    with pytest.raises(LabError, match="interrupted"):
        builds.keycloak("1", tmp_path / "keycloak.zip")
    builds.keycloak("1", tmp_path / "keycloak.zip")
    assert (tmp_path / "keycloak.zip").read_bytes() == WHOLE


def test_a_package_with_another_hash_is_refused_and_not_kept(maven, tmp_path):
    maven.insert(0, b"another")
    with pytest.raises(LabError, match=f"expected {builds.KEYCLOAK_SHA256}. It is removed"):
        builds.keycloak("1", tmp_path / "keycloak.zip")
    assert not (tmp_path / "keycloak.zip").exists()
    builds.keycloak("1", tmp_path / "keycloak.zip")


def test_a_package_that_is_kept_is_not_fetched_again(maven, tmp_path):
    for _ in range(2):
        builds.keycloak("1", tmp_path / "keycloak.zip")
    assert maven == []
