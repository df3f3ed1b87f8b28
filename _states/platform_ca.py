"""Trust in the platform's own authority."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

from aiplatform.states import converge


def trusted(name: str) -> dict[str, Any]:
    """The host trusts the authority of the public names.

    name
        What it is for; nothing depends on it.

    .. code-block:: yaml

        trust-authority:
          platform_ca.trusted: []
    """
    return converge(name, plan=_plan, apply=__salt__["platform_ca.trust"], test=__opts__["test"])


def _plan() -> dict[str, Any]:
    try:
        known = __salt__["platform_ca.trusted"]()
    except CommandExecutionError:
        # Before the first deploy there is no Vault to ask.
        if not __opts__["test"]:
            raise
        known = False
    return {} if known else {"authority": {"old": None, "new": "trusted"}}
