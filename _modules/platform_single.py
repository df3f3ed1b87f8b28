"""The whole platform on this one host: it is its own master and its own minion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiplatform import own_master

FOLDER = Path("/etc/salt")
SERVICE = "salt-master"


def refuse_unless_whole(host: str) -> bool:
    """Fail where pillar does not give this host every role, and no other host any.

    CLI Example:

    .. code-block:: bash

        salt-call --local --id=ai_server platform_single.refuse_unless_whole ai_server
    """
    own_master.refuse_unless_whole(__pillar__, host)
    return True


def master_differences() -> dict[str, Any]:
    """Return what keeps this checkout's master from running here, as the changes of a state.

    CLI Example:

    .. code-block:: bash

        salt-call --local platform_single.master_differences
    """
    found: dict[str, Any] = {}
    if not own_master.is_of(_checkout(), FOLDER):
        found["configuration"] = {"old": "another" if (FOLDER / "master").exists() else None, "new": str(_checkout())}
    if not (__salt__["service.available"](SERVICE) and __salt__["service.status"](SERVICE)):
        found[SERVICE] = {"old": "stopped", "new": "running"}
    return found


def start_master() -> bool:
    """Configure this checkout's master and start it.

    CLI Example:

    .. code-block:: bash

        salt-call --local platform_single.start_master
    """
    own_master.start_master(_checkout(), __opts__["pillar_roots"]["base"])
    return True


def differences(minion: str) -> dict[str, Any]:
    """Return what keeps this host from being its master's minion, as the changes of a state.

    CLI Example:

    .. code-block:: bash

        salt-call --local platform_single.differences ai_server
    """
    return own_master.Enrolment(FOLDER, minion).differences()


def enrol(minion: str) -> bool:
    """Make this host its own master's minion: its key accepted, its configuration written.

    CLI Example:

    .. code-block:: bash

        salt-call --local platform_single.enrol ai_server
    """
    own_master.Enrolment(FOLDER, minion).make()
    return True


def _checkout() -> Path:
    return Path(__opts__["file_roots"]["base"][0]).resolve().parent
