"""States of the TLS proxy: its certificate, the API's keys, and that it runs by its files."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

from aiplatform.states import converge, foreseen


def certificate_valid(name: str) -> dict[str, Any]:
    """The proxy has a certificate for every public name that is not about to end; Vault signs a new one where not.

    With certificates of the operator's own, this fails where they cannot be used, before anything is changed.

    name
        The certificate's path, for the reader.

    .. code-block:: yaml

        nginx-certificate:
          nginx.certificate_valid: []
    """
    return converge(
        name,
        plan=_certificate,
        apply=__salt__["nginx.obtain_certificate"],
        test=__opts__["test"],
    )


def api_keys(name: str) -> dict[str, Any]:
    """The proxy knows the API's keys that are in Vault, and no other.

    name
        The file's path, for the reader.

    .. code-block:: yaml

        nginx-api-keys:
          nginx.api_keys: []
    """
    return converge(
        name,
        plan=lambda: _said("keys", _keys_reason, "as in Vault"),
        apply=__salt__["nginx.refresh_api_keys"],
        test=__opts__["test"],
    )


def loaded(name: str) -> dict[str, Any]:
    """NGINX serves by the files that are in place. They are tested before; refused ones leave it as it runs.

    name
        The configuration's path, for the reader.

    .. code-block:: yaml

        nginx-loaded:
          nginx.loaded: []
    """
    return converge(name, plan=_unloaded, apply=__salt__["nginx.reload"], test=__opts__["test"])


def _certificate() -> dict[str, Any]:
    changes = _said("certificate", __salt__["nginx.certificate_reason"], "valid")
    if changes and __pillar__["nginx"]["certificate"]["mode"] == "files":
        # Nobody but the operator can make it valid: a dry run says so, too.
        __salt__["nginx.obtain_certificate"]()
    return changes


def _unloaded() -> dict[str, Any]:
    has, wants = __salt__["nginx.loaded"](), __salt__["nginx.wanted"]()
    if _foreseen():
        wants = "other files"
    return {} if has == wants else {"configuration": {"old": has[:12] or None, "new": wants[:12]}}


def _foreseen() -> bool:
    """Whether this dry run has found that a file which NGINX loads would be another one."""
    if not __opts__["test"]:
        return False
    rows, context = globals().get("__running__", {}), __salt__["nginx.context"]()
    own = (f"{context['folder']}/{name}" for name in ("lua", "upstream-authority.pem"))
    return foreseen(rows, context["config"], context["certificate"], *own)


def _keys_reason() -> str:
    return "" if __salt__["nginx.api_keys_current"]() else "others"


def _said(what: str, ask: Any, new: str) -> dict[str, Any]:
    try:
        reason = ask()
    except CommandExecutionError:
        # Before the first deploy there is no Vault to ask.
        if not __opts__["test"]:
            raise
        reason = "not known without Vault"
    return {what: {"old": reason, "new": new}} if reason else {}
