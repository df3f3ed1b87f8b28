"""Checks after a deploy, as states."""

from __future__ import annotations

from typing import Any

from aiplatform import checks


def passed(name: str) -> dict[str, Any]:
    """Fail where the check fails, with host, check, expected and actual. Nothing is changed.

    In a dry run the check is made too; what a first deploy has yet to bring is then reported, not failed.

    name
        One of the checks that ``verify.names`` lists.

    .. code-block:: yaml

        verify-vault_health:
          verify.passed:
            - name: vault_health
    """
    state = checks.state(name, __salt__["verify.check"](name))
    return state | {"result": None} if __opts__["test"] and not state["result"] else state
