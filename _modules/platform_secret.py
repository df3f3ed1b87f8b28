"""The platform's secrets in Vault, as a state reads them: one key of one path of the map ``vault.secrets``."""

from __future__ import annotations

from pathlib import Path

from salt.exceptions import CommandExecutionError
from saltext.vault.utils import vault
from saltext.vault.utils.vault.exceptions import VaultException, VaultNotFoundError

from aiplatform.errors import NotFoundError, PlatformError
from aiplatform.secret_text import UNKNOWN

UNANSWERED = (VaultException, CommandExecutionError, OSError)


def read(path: str, key: str) -> str:
    """Return one secret that this host's roles may read. For states: a call by hand leaves it in the job cache.

    In a dry run without a Vault that answers, a placeholder is returned, so that a first deploy can be tried.

    path
        A path of pillar ``vault.secrets``.

    key
        One of its keys.

    CLI Example:

    .. code-block:: bash

        salt-call --local platform_secret.read keycloak admin_password
    """
    rows = __pillar__["vault"]["secrets"]
    if key not in rows.get(path, {}).get("keys", {}):
        raise NotFoundError("The secret is not in the map", where=f"pillar vault:secrets:{path}:keys:{key}")
    full = _full(path)
    try:
        found = __salt__["vault.read_secret"](full, key)
    except CommandExecutionError as err:
        if __opts__["test"]:
            return UNKNOWN
        raise PlatformError(
            "The secret cannot be read",
            where=f"{full} {key}",
            actual=str(err),
            hint="salt-run vault_server.status; salt-run vault_server.bootstrap makes what is missing",
        ) from err
    if found is None and not __opts__["test"]:
        raise PlatformError(
            "The secret was taken out", where=f"{full} {key}", hint="salt-run vault_server.bootstrap makes a new one"
        )
    return UNKNOWN if found is None else str(found)


def optional(path: str, key: str) -> str:
    """Return a secret that a person may have put into Vault, or an empty text where it is not there.

    That Vault cannot be asked is an error, not an absence; in a dry run it counts as absent, see ``kept``.

    path, key
        A path of pillar ``vault.secrets``, and one of its keys.

    CLI Example:

    .. code-block:: bash

        salt-call --local platform_secret.optional openclaw telegram_token
    """
    try:
        return _entered(path, key)
    except UNANSWERED as err:
        if __opts__["test"]:
            return ""
        raise PlatformError(
            "Vault cannot be asked for a secret",
            where=f"{_full(path)} {key}",
            actual=str(err),
            hint="salt-run vault_server.status",
        ) from err


def kept(path: str, key: str, file: str) -> bool:
    """Whether a dry run must not foresee the end of a secret: Vault cannot be asked, and the secret's file is here.

    Never in a real run, which is refused where Vault cannot be asked.

    path, key
        As of ``optional``.

    file
        Where an earlier run has written the secret.

    CLI Example:

    .. code-block:: bash

        salt-call --local platform_secret.kept openclaw telegram_token /etc/openclaw/token test=True
    """
    if not (__opts__["test"] and Path(file).exists()):
        return False
    try:
        _entered(path, key)
    except UNANSWERED:
        return True
    return False


def _full(path: str) -> str:
    return f"{__pillar__['vault']['mount']}/{__pillar__['platform']['slug']}/{path}"


def _entered(path: str, key: str) -> str:
    """What Vault says; raises one of ``UNANSWERED`` where it cannot be asked."""
    try:
        return str(vault.read_kv(_full(path), __opts__, __context__).get(key) or "")
    except VaultNotFoundError:
        return ""
