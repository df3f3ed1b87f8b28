"""Keycloak from the master's side: what others learn of it by Vault."""

from __future__ import annotations

from typing import Any

from aiplatform import keycloak, settings, vault_content, vault_master
from aiplatform.errors import PlatformError
from aiplatform.states import converge


def publish(test: bool = False) -> dict[str, Any]:
    """Write where the realm's endpoints are to Vault (``keycloak``, key ``oidc_url``), for Open WebUI to read.

    Returns what a state returns. The other keys of that path are left alone.

    test
        Write nothing and say what would change.

    CLI Example:

    .. code-block:: bash

        salt-run keycloak.publish
    """
    pillar = settings.load(__opts__)
    mount, path = pillar["vault"]["mount"], f"{pillar['platform']['slug']}/keycloak"
    wanted = {"oidc_url": keycloak.discovery_url(pillar)}

    def write(dry: bool) -> dict[str, Any]:
        return vault_content.put(vault_master.client(__opts__, pillar), mount, path, wanted, dry)

    def plan() -> dict[str, Any]:
        try:
            return write(dry=True)
        except PlatformError:
            # A dry run of a first deploy comes before there is a Vault.
            if not test:
                raise
            return {key: {"old": None, "new": value} for key, value in wanted.items()}

    result = converge("keycloak oidc_url", plan=plan, apply=lambda: write(dry=False), test=test)
    __context__["retcode"] = int(result["result"] is False)
    return result
