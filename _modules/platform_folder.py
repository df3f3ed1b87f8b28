"""Folders of the host that hold the data of containers, and whose they are."""

from __future__ import annotations

import os
from pathlib import Path

MODE = 0o700


def owners(name: str, folders: list[str] | None = None) -> dict[str, str | None]:
    """Return user, group and mode of a folder and of some in it, by path; None for one that is not there.

    name
        The folder.
    folders
        Names of folders in it.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_folder.owners /mnt/ai_data/qdrant '[storage]'
    """
    return {str(path): _shown(path) for path in (Path(name), *(Path(name, inside) for inside in folders or []))}


def own(name: str, uid: int, folders: list[str] | None = None) -> bool:
    """Make a folder and some in it, closed to all but a user, and give all that lies in it to them.

    name, folders
        The folder, and names of folders in it.
    uid
        The user and group.

    The folder itself is last: where this was ended half-way, it is seen to be somebody else's, and done again.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_folder.own /mnt/ai_data/qdrant 21004 '[storage]'
    """
    top = Path(name)
    inside = [top / folder for folder in folders or []]
    for path in (top, *inside):
        path.mkdir(MODE, parents=True, exist_ok=True)
        path.chmod(MODE)
    for path in [*top.rglob("*"), top]:
        os.chown(path, uid, uid, follow_symlinks=False)
    return True


def _shown(path: Path) -> str | None:
    if not path.is_dir():
        return None
    stat = path.stat()
    return f"{stat.st_uid}:{stat.st_gid} {stat.st_mode & 0o7777:04o}"
