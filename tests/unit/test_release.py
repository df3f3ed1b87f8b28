"""Releases side by side: which one, from where, and never half of one."""

from __future__ import annotations

import hashlib
import subprocess

import pytest

from aiplatform import release

SOURCE = "https://example.com/v{version}/ollama-linux-{arch}.tar.zst"
HASH = "ab" * 32


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_the_pinned_release_of_a_processor(machine, arch):
    found = release.pinned("1.2.3", machine, SOURCE, {"1.2.3": {arch: HASH}})
    assert found.url == f"https://example.com/v1.2.3/ollama-linux-{arch}.tar.zst"
    assert found.archive == f"ollama-linux-{arch}.tar.zst"
    assert (found.sha256, found.checksums) == (HASH, None)


def test_another_processor_is_refused_by_name():
    with pytest.raises(release.ReleaseError, match=r"expected: x86_64 or aarch64; actual: riscv64"):
        release.pinned("1.2.3", "riscv64", SOURCE, {})


def test_a_version_that_nothing_vouches_for_is_refused():
    with pytest.raises(release.ReleaseError, match=r"version 1\.2\.3; where: ollama:hashes:1\.2\.3"):
        release.pinned("1.2.3", "x86_64", SOURCE, {"1.2.4": {"amd64": HASH}})


def test_the_list_of_hashes_is_asked_only_without_a_pin():
    listed = "https://example.com/v{version}/sha256sum.txt"
    assert release.pinned("1", "x86_64", SOURCE, {"1": {"amd64": HASH}}, listed).checksums is None
    assert release.pinned("2", "x86_64", SOURCE, {}, listed).checksums == "https://example.com/v2/sha256sum.txt"


@pytest.mark.parametrize("line", ["{0}  ./a.tar.zst", "{0}  a.tar.zst", "{0} *a.tar.zst"])
def test_a_hash_is_found_in_a_list(line):
    listing = f"{'cd' * 32}  ./b.tar.zst\n{line.format(HASH)}\n"
    assert release.listed_hash(listing, "a.tar.zst") == HASH


@pytest.mark.parametrize("listing", ["", f"{HASH}  ./xa.tar.zst", "abc  ./a.tar.zst", "<html>"])
def test_a_list_without_the_archive_is_refused(listing):
    with pytest.raises(release.ReleaseError, match=r"expected: a\.tar\.zst"):
        release.listed_hash(listing, "a.tar.zst")


@pytest.fixture
def archive(tmp_path):
    """An archive with ``bin/ollama`` in it, compressed as upstream does, and its hash."""
    (tmp_path / "tree/bin").mkdir(parents=True)
    (tmp_path / "tree/bin/ollama").write_text("#!/bin/sh\n")
    path = tmp_path / "a.tar.zst"
    subprocess.run(["tar", "--zstd", "-cf", path, "-C", tmp_path / "tree", "bin"], check=True)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_release_is_unpacked_and_known_by_its_hash(archive, tmp_path):
    path, sha256 = archive
    folder = tmp_path / "opt/1.0"
    assert not release.is_installed(folder, sha256)
    release.check(path, sha256, "there")
    release.unpack(path, folder, sha256)
    assert (folder / "bin/ollama").is_file()
    assert release.is_installed(folder, sha256)
    assert release.is_installed(folder, None)
    assert not release.is_installed(folder, HASH)
    assert [entry.name for entry in folder.parent.iterdir()] == ["1.0"]
    (folder / "bin/ollama").unlink()
    assert not release.is_installed(folder, sha256), "its hash is noted, its program is gone"


def test_unpacking_again_replaces_what_was_there(archive, tmp_path):
    path, sha256 = archive
    folder = tmp_path / "opt/1.0"
    folder.mkdir(parents=True)
    (folder / "old").touch()
    release.unpack(path, folder, sha256)
    assert not (folder / "old").exists()


def test_a_wrong_hash_names_both(archive):
    with pytest.raises(release.ReleaseError, match=f"where: there; expected: {HASH}; actual: {archive[1]}"):
        release.check(archive[0], HASH, "there")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "without the program"])
def test_a_bad_archive_leaves_the_old_version_alone(archive, tmp_path, damage):
    path, sha256 = archive
    folder = tmp_path / "opt/1.0"
    release.unpack(path, folder, sha256)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:40])
    elif damage == "foreign":
        path.write_text("<html>not found</html>")
    else:
        subprocess.run(["tar", "-cf", path, "-C", tmp_path, "tree"], check=True)
    with pytest.raises(release.ReleaseError):
        release.unpack(path, folder, HASH)
    assert release.is_installed(folder, sha256)
    assert [entry.name for entry in folder.parent.iterdir()] == ["1.0"]
