"""Docker's volumes on this host, by Docker's own Python library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import docker.errors

from aiplatform import containers, docker_engine
from aiplatform.errors import NotFoundError, PlatformError


def inspect(name: str) -> dict[str, Any] | None:
    """Return a volume as Docker shows it, or None where there is none.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_volume.inspect ollama
    """
    try:
        return dict(_engine().inspect_volume(name))
    except docker.errors.NotFound:
        return None


def folder(name: str) -> str:
    """Return the folder of the host that a volume is kept in.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_volume.folder ollama
    """
    found = inspect(name)
    if found is None:
        raise NotFoundError("There is no such volume", where=name, hint="docker volume ls")
    # Docker mounts a folder of the host when a container starts; until then its own place for it is empty.
    place = (found.get("Options") or {}).get("device") or found["Mountpoint"]
    if not Path(place).is_dir():
        raise PlatformError(
            "The volume's folder is not on this host",
            where=place,
            hint="a volume of driver local, and an engine of this host's own, are needed",
        )
    return str(place)


def owner(name: str) -> tuple[int, int]:
    """Return user and group that a volume's folder belongs to.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_volume.owner ollama
    """
    shown = Path(folder(name)).stat()
    return shown.st_uid, shown.st_gid


def create(name: str, uid: int, gid: int, device: str | None = None) -> bool:
    """Make a volume where there is none, and give it and what lies in it to a user.

    name, uid, gid
        The volume's name, and whose it is.
    device
        A folder of the host that it is kept in; None: among Docker's own.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_volume.create ollama 21003 21004
    """
    if device:
        Path(device).mkdir(parents=True, exist_ok=True)
    options = {"type": "none", "o": "bind", "device": device} if device else {}
    try:
        _engine().create_volume(name, driver="local", driver_opts=options, labels={containers.NAME_LABEL: name})
    except docker.errors.APIError as err:
        raise PlatformError("Docker refuses the volume", where=name, actual=err.explanation) from err
    place = Path(folder(name))
    for path in [place, *place.rglob("*")]:
        os.chown(path, uid, gid, follow_symlinks=False)
    return True


def _engine() -> Any:
    return docker_engine.client(__context__)
