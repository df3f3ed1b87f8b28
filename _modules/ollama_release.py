"""Releases of Ollama on this host: each in a folder of its own below pillar ``ollama:root``, checked by its hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salt.exceptions import SaltException

from aiplatform import release


def pinned() -> dict[str, Any]:
    """Return version, URL and hash of the release that the pillar names for this host's processor.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama_release.pinned
    """
    return vars(_release())


def is_installed() -> bool:
    """Return whether the release that the pillar names is unpacked on this host.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama_release.is_installed
    """
    wanted = _release()
    return release.is_installed(_folder(wanted), wanted.sha256)


def install() -> str:
    """Fetch, check and unpack the release that the pillar names; returns its folder. What runs is not touched.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama_release.install
    """
    wanted = _release()
    sha256 = wanted.sha256
    if not sha256:
        listing = _fetch(str(wanted.checksums))
        sha256 = release.listed_hash(listing.read_text(encoding="utf-8"), wanted.archive)
    archive = _fetch(wanted.url, sha256)
    try:
        release.check(archive, sha256, wanted.url)
        release.unpack(archive, _folder(wanted), sha256)
    finally:
        _forget(archive)
    return str(_folder(wanted))


def _release() -> release.Release:
    ollama = __pillar__["ollama"]
    return release.pinned(
        ollama["version"], __grains__["cpuarch"], ollama["source"], ollama["hashes"], ollama["checksums"]
    )


def _folder(wanted: release.Release) -> Path:
    return Path(__pillar__["ollama"]["root"]) / wanted.version


def _fetch(url: str, sha256: str | None = None) -> Path:
    try:
        path = __salt__["cp.cache_file"](url, source_hash=sha256)
    except SaltException as err:
        raise release.ReleaseError("The file cannot be fetched", where=url, actual=str(err)) from err
    if not path or not Path(path).is_file():
        raise release.ReleaseError("The file cannot be fetched", where=url, hint="is ollama:source right?")
    return Path(path)


def _forget(fetched: Path) -> None:
    """Remove a copy that Salt made; what was read where it lay (file://) is somebody else's."""
    if fetched.is_relative_to(__opts__["cachedir"]):
        fetched.unlink(missing_ok=True)
