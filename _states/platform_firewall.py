"""The firewall of this host's platform ports."""

from __future__ import annotations

from typing import Any

from aiplatform.states import converge


def loaded(name: str, digest: str) -> dict[str, Any]:
    """The kernel has these rules, whatever became of them since they were loaded.

    name
        The file with the rules.

    digest
        The digest that the rules carry.

    .. code-block:: yaml

        firewall-loaded:
          platform_firewall.loaded:
            - name: /etc/nftables.d/ai_platform.nft
            - digest: {{ salt["platform_firewall.digest"]() }}
    """
    return converge(
        name,
        plan=lambda: _difference(__salt__["platform_firewall.loaded_digest"](), digest),
        apply=lambda: __salt__["platform_firewall.load"](name),
        test=__opts__["test"],
    )


def _difference(current: str, wanted: str) -> dict[str, Any]:
    return {} if current == wanted else {"rules": {"old": current or "none", "new": wanted}}
