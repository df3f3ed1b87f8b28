"""People's sign-on to Vault by Keycloak, set up from the master."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiplatform import settings, vault_bootstrap, vault_master, vault_oidc
from aiplatform.errors import PlatformError
from aiplatform.states import converge
from aiplatform.vault_keys import KeyStore


def configure(test: bool = False) -> dict[str, Any]:
    """Let those who have role ``ai-admin`` in Keycloak sign in to Vault; where all is as wanted, nothing is touched.

    Returns what a state returns; no secret is in it.

    test
        Write nothing and say what would change.

    Root rights are made from the key shares for the moment of writing, as ``vault_server.bootstrap`` does.

    CLI Example:

    .. code-block:: bash

        salt-run vault_oidc.configure
        salt-run vault_oidc.configure test=True
    """
    result = converge("vault sign-on", plan=lambda: _plan(test), apply=_write, test=test)
    __context__["retcode"] = int(result["result"] is False)
    return result


def _plan(test: bool) -> dict[str, Any]:
    try:
        pillar = settings.load(__opts__)
        client = vault_master.client(__opts__, pillar)
        return vault_oidc.differences(client, vault_oidc.wanted(pillar, vault_oidc.authority(client, pillar)))
    except PlatformError:
        # A dry run of a first deploy comes before there is a Vault.
        if not test:
            raise
        return {"sign-on": {"old": None, "new": "set up"}}


def _write() -> None:
    pillar = settings.load(__opts__)
    client = vault_master.client(__opts__, pillar)
    store = KeyStore(pillar["vault"]["key_store"])
    trust = str(Path(pillar["vault"]["key_store"]) / vault_master.AUTHORITY)
    with store.lock():
        with vault_bootstrap.root_rights(client.url, trust, store) as root:
            vault_oidc.write(root, client, vault_oidc.wanted(pillar, vault_oidc.authority(client, pillar)))
        vault_bootstrap.forget_root(client.url, trust, store)
