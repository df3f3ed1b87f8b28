"""Releases of Ollama on this host: each in a folder of its own below pillar ``ollama:root``, checked by its hash."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NoReturn

from salt.exceptions import SaltException

from aiplatform import gate, release
from aiplatform import instances as described
from aiplatform.errors import PlatformError, WaitTimeoutError
from aiplatform.release_switch import Switch
from aiplatform.wait import until

# What a process of a unit is before it is Ollama: systemd, until it executes the unit's command, then that command.
STARTING = frozenset({"systemd", "systemd-executor", "numactl"})
START_SECONDS = 5


def pinned() -> dict[str, Any]:
    """Return version, URL and hash of the release that the pillar names for this host's processor.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama_release.pinned
    """
    return vars(_release())


def is_installed() -> bool:
    """Return whether the release that the pillar names is unpacked on this host, and one is in use.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama_release.is_installed
    """
    wanted = _release()
    return _switch().current() is not None and release.is_installed(_folder(wanted), wanted.sha256)


def install() -> str:
    """Fetch, check and unpack the release that the pillar names; returns its folder. What runs is not touched.

    It is put into use where none is.

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
    if _switch().current() is None:
        _switch().to(wanted.version)
    return str(_folder(wanted))


def in_use() -> dict[str, str | None]:
    """Return the version in use, and the one to go back to while a switch is not proved (``previous``).

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama_release.in_use
    """
    return {"current": _switch().current(), "previous": _switch().previous()}


def running(unit: str) -> str | None:
    """Return the version that a unit runs, another program's path; None where it does not run.

    A unit that has just started is systemd and then numactl for a moment, before it becomes Ollama: that is awaited.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama_release.running ollama.service
    """
    seen: list[str | None] = []

    def settled() -> bool:
        seen.append(_switch().running(int(__salt__["service.show"](unit).get("MainPID", 0))))
        return Path(seen[-1] or "").name not in STARTING

    with contextlib.suppress(WaitTimeoutError):
        until(settled, START_SECONDS, 0.05, f"{unit} to become Ollama")
    return seen[-1]


def doors() -> dict[str, dict[str, str]]:
    """Return unit and URL of each instance of this host.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama_release.doors
    """
    rows = __pillar__["ollama"]["instances"].items()
    return {name: {"unit": row["unit"], "url": described.base_url(__pillar__, name)} for name, row in rows}


def differences(version: str, units: list[str]) -> dict[str, dict[str, str | None]]:
    """Return what keeps a version from being the one in use, and from being what these units run.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama_release.differences 0.17.4 '[ollama.service]'
    """
    now = in_use()
    found: dict[str, dict[str, str | None]] = {}
    if now["previous"] or now["current"] not in (None, version):
        found["current"] = {"old": now["previous" if now["current"] == version else "current"], "new": version}
    whole = is_installed()
    for unit, runs in {unit: running(unit) for unit in units}.items():
        # Where files of the very version in use are about to be exchanged, it has to start again too.
        was = runs if whole or runs != version else f"{version}, replaced"
        if was not in (None, version):
            found[unit] = {"old": was, "new": version}
    return found


def use(version: str, instances: dict[str, dict[str, str]], timeout: float = 120) -> str | None:
    """Put an unpacked version into use and restart the instances with it, one after the other.

    version
        The version.

    instances
        ``unit`` and ``url`` of each, by name; one whose unit is not installed is passed over.

    timeout
        Seconds that each may take to answer with that version. Where one does not, the version before is put into use
        again, the instances are restarted with it, and an error says both.

    Returns the version that was in use before.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama_release.use 0.17.4 '{node1: {unit: ollama.service, url: "http://127.0.0.1:11434"}}'
    """
    there = {name: row for name, row in instances.items() if (described.UNITS / row["unit"]).is_file()}
    before = _switch().to(version)
    try:
        for name, row in there.items():
            _start(name, row, version, timeout)
    except PlatformError as err:
        _go_back(there, version, timeout, err)
    _switch().keep()
    return before


def _start(name: str, row: dict[str, str], version: str, timeout: float) -> None:
    """Restart an instance that does not run this version, and wait until it answers with it."""
    unit = row["unit"]
    if running(unit) != version:
        __salt__["service.restart"](unit)
    # It has counted the ends of another version: systemd may have started this one by itself after the last of them.
    before = _restarts(unit)
    gate.passed(name, row["url"], version, timeout, lambda: _restarts(unit) - before, unit=unit)


def _restarts(unit: str) -> int:
    return int(__salt__["service.show"](unit).get("NRestarts") or 0)


def _go_back(there: dict[str, dict[str, str]], version: str, timeout: float, err: PlatformError) -> NoReturn:
    before = _switch().back()
    if before is None:
        raise PlatformError(f"Version {version} does not serve, and there is none to go back to", actual=err) from err
    try:
        for name, row in there.items():
            _start(name, row, before, timeout)
    except PlatformError as worse:
        raise PlatformError(
            f"Version {version} does not serve, and after the return {before} does not either",
            actual=f"{err} | {worse}",
        ) from err
    raise PlatformError(
        f"Version {version} does not serve; the host is back on {before}, which answers",
        where="ollama:version",
        actual=err,
        hint=f"set ollama:version to {before}, or to one that works",
    ) from err


def _switch() -> Switch:
    return Switch(Path(__pillar__["ollama"]["root"]))


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
