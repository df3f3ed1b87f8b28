"""Checks before a deploy, as states."""

from __future__ import annotations

from typing import Any

from aiplatform import checks


def passed(name: str) -> dict[str, Any]:
    """Fail where the check fails, with host, check, expected and actual. Nothing is changed.

    name
        One of the checks that ``preflight.names`` lists.

    .. code-block:: yaml

        preflight-root:
          preflight.passed:
            - name: root
    """
    return checks.state(name, __salt__["preflight.check"](name))
