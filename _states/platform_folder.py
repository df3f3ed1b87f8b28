"""Folders of the host that hold the data of containers."""

from __future__ import annotations

from typing import Any

from aiplatform.states import converge, diff


def owned(name: str, uid: int, container: str, folders: list[str] | None = None) -> dict[str, Any]:
    """A folder is there, closed to all but the user that a container runs as, and all that lies in it is theirs.

    What lies in it is looked at only where the folder, or one of those named, is somebody else's: after a change of
    the user, or a backup that was put back. The container is stopped before, so that it writes nothing meanwhile.

    name
        The folder.

    uid
        The user and group.

    container
        Whose data it is.

    folders
        Names of folders in it, which are made too.

    .. code-block:: yaml

        web-data:
          platform_folder.owned:
            - name: /mnt/ai_data/web
            - uid: 21009
            - container: web
            - folders: [storage]
    """

    def plan() -> dict[str, Any]:
        current = __salt__["platform_folder.owners"](name, folders)
        return diff(current, dict.fromkeys(current, f"{uid}:{uid} 0700"))

    def apply() -> None:
        if __salt__["platform_container.inspect"](container):
            __salt__["platform_container.stop"](container)
        __salt__["platform_folder.own"](name, uid, folders)

    return converge(name, plan, apply, __opts__["test"])
