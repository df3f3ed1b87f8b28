"""States of a host that is the whole platform: its own master, its own minion."""

from __future__ import annotations

from typing import Any

from aiplatform.states import converge, holds


def whole(name: str) -> dict[str, Any]:
    """Pillar gives this host every role and names no other. Changes nothing.

    name
        The minion id.

    .. code-block:: yaml

        platform-single-roles:
          platform_single.whole:
            - name: ai_server
    """
    return holds(name, lambda: __salt__["platform_single.refuse_unless_whole"](name), __opts__["test"])


def master_running(name: str) -> dict[str, Any]:
    """The master of this checkout is configured and runs on this host.

    name
        Any text.

    .. code-block:: yaml

        platform-single-master:
          platform_single.master_running: []
    """
    return converge(
        name,
        plan=lambda: __salt__["platform_single.master_differences"](),
        apply=lambda: __salt__["platform_single.start_master"](),
        test=__opts__["test"],
    )


def enrolled(name: str) -> dict[str, Any]:
    """This host is a minion of its own master, which has accepted its key and no other under its name.

    name
        The minion id.

    .. code-block:: yaml

        platform-single-minion:
          platform_single.enrolled:
            - name: ai_server
    """
    return converge(
        name,
        plan=lambda: __salt__["platform_single.differences"](name),
        apply=lambda: __salt__["platform_single.enrol"](name),
        test=__opts__["test"],
    )
