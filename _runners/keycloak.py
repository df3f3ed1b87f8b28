"""Keycloak from the master's side: what others learn of it by Vault, and how the first person gets in."""

from __future__ import annotations

import os
from typing import Any

from aiplatform import keycloak, settings, shown_once, tables, vault_content, vault_master
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


def first_password(file: str = "", console: bool = False) -> dict[str, Any]:
    """Give the password of the first sign-in, out of Vault by the master's own login: it is in no answer or job cache.

    file
        A new file on the master for it, readable by its owner only; on the terminal where it is left out.

    console
        That of Keycloak's own administrator instead, for its console.

    The first user has to change it at once; from then on the one in Vault is of no use.

    CLI Example:

    .. code-block:: bash

        salt-run keycloak.first_password
        salt-run keycloak.first_password file=first.password
        salt-run keycloak.first_password console=True
    """
    return tables.answered(__opts__, __context__, lambda: _first_password(file, console))


def _first_password(file: str, console: bool) -> tuple[dict[str, Any], str]:
    pillar = settings.load(__opts__)
    user, secret = keycloak.first_sign_in(pillar, console)
    path, key = secret.split(":")
    mount, whole = pillar["vault"]["mount"], f"{pillar['platform']['slug']}/{path}"
    password = vault_content.read(vault_master.client(__opts__, pillar), mount, whole).get(key)
    if not password:
        raise PlatformError(
            f"Vault has no password of {user}",
            where=f"{mount}/{whole}, key {key}",
            hint="salt-run vault_server.bootstrap makes it, the state keycloak gives it to the user",
        )
    with os.fdopen(shown_once.opened(file, "There is no place to show the password"), "w") as stream:
        stream.write(f"{password}\n")
    return {"retcode": 0, "user": user, "file": file or None}, f"Password of {user}, in {shown_once.place(file)}.\n"
