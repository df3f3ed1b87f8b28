"""Vault from the master's side: certify, initialise, unseal, fill, watch.

The functions return what a state returns (``result``, ``changes``, ``comment``); no value of a secret is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiplatform import settings as platform_settings
from aiplatform import vault, vault_bootstrap, vault_master, vault_pki, vault_policy, vault_tls
from aiplatform.errors import PlatformError
from aiplatform.states import converge
from aiplatform.vault_keys import KEYS, MARKER, KeyStore


class Minion:
    """The host that Vault runs on, reached as a minion."""

    def __init__(self, minion: str) -> None:
        self.minion = minion

    def facts(self) -> Mapping[str, Any]:
        """Return what the host says of its Vault; {} where the state was not applied yet."""
        return dict(self._ask("facts", absent={}))

    def install_certificate(self, certificate: str) -> None:
        """Put the certificate in place."""
        self._ask("install_certificate", certificate)

    def restart(self) -> None:
        """Restart Vault."""
        self._ask("restart")

    def set_storage_aside(self, storage_id: str) -> str:
        """Start Vault on an empty storage; the one of that identity is kept beside it."""
        return str(self._ask("set_storage_aside", storage_id))

    def _ask(self, function: str, *args: Any, absent: Any = None) -> Any:
        name = f"vault_server.{function}"
        replies = __salt__["salt.execute"](self.minion, name, arg=args, full_return=True)
        reply = (replies or {}).get(self.minion) or {}
        if reply.get("retcode") == 0 and "ret" in reply:
            return reply["ret"]
        text = str(reply.get("ret", "no answer"))
        if absent is not None and "is not available" in text:
            return absent
        raise PlatformError(
            f"{name} failed on the host of Vault", where=self.minion, actual=text, hint="mend that and run again"
        )


def bootstrap(test: bool = False) -> dict[str, Any]:
    """Bring Vault from running to initialised, unsealed and filled; a run with nothing to do changes nothing.

    test
        Touch nothing and say what would change.

    Killed at any point, a new run carries on. It never initialises over the storage or the keys of an earlier
    life: it stops, and says how to recover.

    CLI Example:

    .. code-block:: bash

        salt-run vault_server.bootstrap
        salt-run vault_server.bootstrap test=True
    """
    # Comparing and writing are one pass: most of it can only be compared after the step before it was made.
    result = converge("vault", plan=lambda: _bootstrap(test).run(), apply=dict, test=test)
    if "vault" in result["changes"] and not test:
        _forget_logins()
    return _reported(result)


def _forget_logins() -> None:
    """Have master and minions drop what they keep of an earlier Vault: a new one knows none of its tokens and roles."""
    __salt__["vault.clear_cache"]()
    __salt__["salt.execute"]("*", "vault.clear_cache")


def unseal(automatic: bool = False) -> dict[str, Any]:
    """Unseal Vault with the stored key shares.

    automatic
        Set by the reactor: leave Vault sealed where pillar ``vault:auto_unseal`` is false.

    CLI Example:

    .. code-block:: bash

        salt-run vault_server.unseal
    """
    return _reported(converge("vault", plan=lambda: _unseal(automatic), apply=dict, test=False))


def _unseal(automatic: bool) -> dict[str, Any]:
    pillar = _settings()
    if automatic and not pillar["vault"]["auto_unseal"]:
        return {}
    store = KeyStore(pillar["vault"]["key_store"])
    keys = store.read(KEYS)
    if keys is None:
        raise PlatformError("There are no keys to unseal Vault with", where=str(store.path / KEYS))
    client = vault.connect(_url(pillar), str(store.path / vault_master.AUTHORITY))
    sealed = vault_bootstrap.unseal(client, keys, store)
    return {"seal": {"old": "sealed", "new": "unsealed"}} if sealed else {}


def status() -> dict[str, Any]:
    """Return where Vault is, whether it is initialised and sealed, and what the key store holds.

    CLI Example:

    .. code-block:: bash

        salt-run vault_server.status
    """
    pillar = _settings()
    store = KeyStore(pillar["vault"]["key_store"])
    found: dict[str, Any] = {
        "host": vault_policy.vault_host(pillar["platform"], pillar["vault"]),
        "url": _url(pillar),
        "key_store": str(store.path),
        "keys_stored": store.read(KEYS) is not None,
        "initialisation_interrupted": store.read(MARKER) is not None,
        "auto_unseal": pillar["vault"]["auto_unseal"],
    }
    authority = store.read_text(vault_master.AUTHORITY)
    if authority:
        found["authority_ends"] = vault_tls.ends(authority)
    try:
        state = vault.seal(vault.connect(found["url"], str(store.path / vault_master.AUTHORITY)))
    except PlatformError as err:
        return _failed(found | {"reachable": False, "error": str(err)})
    found |= {"reachable": True, "initialized": state.initialized, "sealed": state.sealed, "version": state.version}
    return found if state.initialized and not state.sealed else _failed(found)


def setup_master(config: str = vault_master.DEFAULT_CONFIG, test: bool = False) -> dict[str, Any]:
    """Write the master's configuration for Vault, with a new login where there is none.

    config
        The file to write.
    test
        Touch nothing.

    A running master reads it at its next start only.

    CLI Example:

    .. code-block:: bash

        salt-run vault_server.setup_master
    """

    def run(dry: bool) -> dict[str, Any]:
        pillar = _settings()
        address, port = _address(pillar)
        return dict(vault_master.set_up(address, port, pillar["vault"]["key_store"], config, test=dry))

    return _reported(converge(config, plan=lambda: run(True), apply=lambda: run(False), test=test))


def reset(confirm: str = "", test: bool = False) -> dict[str, Any]:
    """Give the present Vault up: set its storage and its keys aside, so that a new bootstrap starts an empty one.

    confirm
        The address of Vault's host, to show that it is meant.
    test
        Touch nothing.

    Nothing is deleted: the storage stays on its host as ``data.aside-<time>``, the keys in the key store as
    ``init.json.aside-<storage>``.

    CLI Example:

    .. code-block:: bash

        salt-run vault_server.reset confirm=192.0.2.29
    """

    def plan() -> dict[str, Any]:
        pillar = _settings()
        address = _address(pillar)[0]
        if confirm != address:
            raise PlatformError("Not confirmed", expected=f"confirm={address}", actual=f"confirm={confirm}")
        return {"vault": {"old": address, "new": "set aside"}}

    return _reported(converge("vault", plan=plan, apply=_set_aside, test=test))


def _set_aside() -> None:
    pillar = _settings()
    store = KeyStore(pillar["vault"]["key_store"])
    host = Minion(vault_policy.vault_host(pillar["platform"], pillar["vault"]))
    with store.lock():
        facts = host.facts()
        keys = store.read(KEYS)
        if facts and (keys is None or keys["storage_id"] == facts["storage_id"]):
            host.set_storage_aside(facts["storage_id"])
        if keys is not None:
            store.write(f"{KEYS}.aside-{keys['storage_id']}", keys)
            store.remove(KEYS)
        store.remove(MARKER)
    _forget_logins()


def _bootstrap(test: bool) -> vault_bootstrap.Bootstrap:
    pillar = _settings()
    minion = vault_policy.vault_host(pillar["platform"], pillar["vault"])
    return vault_bootstrap.Bootstrap(
        url=_url(pillar),
        names=vault_policy.certificate_names(pillar, minion),
        store=KeyStore(pillar["vault"]["key_store"]),
        login=(__opts__.get("vault") or {}).get("auth") or {},
        settings=pillar["vault"],
        wanted=vault_policy.wanted(pillar["platform"], pillar["vault"], vault_pki.authority(pillar)),
        host=Minion(minion),
        test=test,
    )


def _settings() -> dict[str, Any]:
    return platform_settings.load(__opts__)


def _address(pillar: Mapping[str, Any]) -> tuple[str, int]:
    minion = vault_policy.vault_host(pillar["platform"], pillar["vault"])
    return pillar["platform"]["hosts"][minion]["address"], pillar["services"]["vault"]["port"]


def _url(pillar: Mapping[str, Any]) -> str:
    return vault_policy.url(*_address(pillar))


def _reported(result: dict[str, Any]) -> dict[str, Any]:
    """Tell the verdict to an orchestration (its context) and to the shell (retcode)."""
    return result if result["result"] is not False else _failed(result)


def _failed(result: dict[str, Any]) -> dict[str, Any]:
    __context__["retcode"] = 1
    return result | {"retcode": 1}
