"""Releases of a program side by side: each archive checked by its hash, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from aiplatform.errors import PlatformError

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
STAMP = ".sha256"
PROGRAM = "bin/ollama"


class ReleaseError(PlatformError):
    """An archive is not what was pinned, or cannot be unpacked."""


@dataclass(frozen=True)
class Release:
    """One version of a program and where its archive is."""

    version: str
    url: str
    sha256: str | None
    checksums: str | None

    @property
    def archive(self) -> str:
        """The archive's file name."""
        return PurePosixPath(urlsplit(self.url).path).name


def pinned(
    version: str,
    machine: str,
    source: str,
    hashes: Mapping[str, Mapping[str, str]],
    checksums: str | None = None,
) -> Release:
    """Return the release of a version for a machine.

    machine
        The processor as the kernel names it: x86_64 or aarch64.
    source, checksums
        URLs with ``{version}`` and ``{arch}``.
    hashes
        ``{version: {arch: sha256}}``.

    Raises ``ReleaseError`` for another processor, and for a version that nothing vouches for.
    """
    if machine not in ARCHITECTURES:
        raise ReleaseError(
            "There is no release for this processor", expected=" or ".join(ARCHITECTURES), actual=machine
        )
    arch = ARCHITECTURES[machine]
    sha256 = hashes.get(version, {}).get(arch)
    if sha256 is None and checksums is None:
        raise ReleaseError(
            f"No hash is known for version {version}",
            where=f"ollama:hashes:{version}:{arch}",
            hint="take it from the release's sha256sum.txt, or set ollama:checksums",
        )
    listing = None if sha256 or checksums is None else checksums.format(version=version, arch=arch)
    return Release(version, source.format(version=version, arch=arch), sha256, listing)


def listed_hash(listing: str, archive: str) -> str:
    """Return the hash of an archive out of a list in the format of sha256sum (``<hash>  ./<file>``).

    Raises ``ReleaseError`` where the list does not have it.
    """
    for line in listing.splitlines():
        digest, _, name = line.strip().partition(" ")
        if name.strip().lstrip("*").removeprefix("./") == archive and len(digest) == hashlib.sha256().digest_size * 2:
            return digest.lower()
    raise ReleaseError("The release's list of hashes does not name the archive", expected=archive)


def installed_hash(folder: Path) -> str | None:
    """Return the hash of the archive that a version's folder was unpacked from; None where it is not there whole."""
    try:
        return (folder / STAMP).read_text(encoding="ascii").strip()
    except OSError:
        return None


def is_installed(folder: Path, sha256: str | None) -> bool:
    """Return whether a version is there with its program, from the pinned archive where one is pinned."""
    found = installed_hash(folder)
    return found is not None and sha256 in (None, found) and (folder / PROGRAM).is_file()


def check(archive: Path, sha256: str, origin: str) -> None:
    """Raise ``ReleaseError`` where a file has not the hash."""
    with archive.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != sha256:
        raise ReleaseError(
            "The archive has the wrong hash; nothing was installed",
            where=origin,
            expected=sha256,
            actual=actual,
            hint="correct ollama:hashes, or find out who changed the file",
        )


def unpack(archive: Path, folder: Path, sha256: str, program: str = PROGRAM) -> None:
    """Unpack a checked archive into the folder of its version; an interruption leaves that folder as it was.

    program
        The file that the archive must bring.

    Raises ``ReleaseError`` where tar fails (a full disk, say) or the program is not in it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        partial.chmod(0o755)
        _extract(archive, partial)
        if not (partial / program).is_file():
            raise ReleaseError("The archive has not got the program", where=archive.name, expected=program)
        (partial / STAMP).write_text(sha256 + "\n", encoding="ascii")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as err:
        raise ReleaseError("The archive cannot be unpacked", where=str(folder), actual=str(err)) from err
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    # GNU tar finds out the compression by itself and never leaves its folder.
    words = ["tar", "--extract", "--no-same-owner", "--file", str(archive), "--directory", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(
            "The archive cannot be unpacked",
            where=str(archive),
            actual="; ".join(done.stderr.strip().splitlines()[:3]),
            hint=f"{shutil.disk_usage(folder).free >> 20} MiB are free in {folder.parent}",
        )
