"""Builds: for which processor; of Keycloak's package half a file never counts, and a wrong one does not stay."""

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


@pytest.mark.parametrize(
    ("able", "level"),
    [
        ("fpu avx avx2 bmi1 bmi2 f16c fma abm movbe avx512f", "x86-64-v3"),
        ("fpu avx f16c abm movbe", "native"),
        (None, "native"),
    ],
)
def test_a_build_asks_for_no_more_than_other_servers_and_qemu_have(monkeypatch, able, level):
    told = "model name : one" if able is None else f"model name : one\nflags\t\t: {able}\n"
    monkeypatch.setattr(builds.Path, "read_text", lambda _: told)
    assert builds.ggml_flags() == f"-O3 -march={level}"
