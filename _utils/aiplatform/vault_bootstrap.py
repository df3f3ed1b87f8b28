"""From a running Vault to one that is initialised, unsealed and filled, safe against being killed at any point.

What must not be lost is written before what cannot be repeated: the key store is proven, a marker names the
storage that is about to be initialised, and the reply of the initialisation is stored before anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import hvac

from aiplatform import vault, vault_content, vault_master, vault_tls
from aiplatform.errors import PlatformError, WaitTimeoutError
from aiplatform.states import Changes
from aiplatform.vault_keys import KEYS, MARKER, ROOT_TOKEN, KeyStore
from aiplatform.vault_policy import MASTER_MOUNT, Wanted
from aiplatform.wait import until

START_SECONDS = 60
UNSEAL_SECONDS = 10
LOST = {
    "old": "initialised by a run that was killed before it stored the keys",
    "new": "set aside, started on an empty one",
}


class Host(Protocol):
    """What the master asks of the host that Vault runs on."""

    def facts(self) -> Mapping[str, Any]:
        """Return ``storage_id``, ``csr``, ``certificate`` and ``restart_reason``; {} before the state was applied."""

    def install_certificate(self, certificate: str) -> None:
        """Put the certificate in place and have Vault read it."""

    def restart(self) -> None:
        """Restart Vault, which seals it."""

    def set_storage_aside(self, storage_id: str) -> str:
        """Move the storage of that identity away, start on an empty one, and return the new identity."""


@dataclass
class Bootstrap:
    """One run of the bootstrap.

    url
        Where the master reaches Vault.
    names
        What Vault's certificate is valid for.
    login
        ``role_id`` and ``secret_id`` of the master's configuration.
    settings
        Pillar ``vault``.
    """

    url: str
    names: list[str]
    store: KeyStore
    login: Mapping[str, str]
    settings: Mapping[str, Any]
    wanted: Wanted
    host: Host
    test: bool = False
    changes: Changes = field(default_factory=dict)

    def run(self) -> Changes:
        """Do all of it and return the changes. Raises ``PlatformError``; a new run carries on from there."""
        if not self.login.get("secret_id"):
            raise PlatformError(
                "The master has no login for Vault",
                where="option `vault` of the master",
                expected="what vault_server.setup_master writes",
                hint="`salt-run vault_server.setup_master`, restart salt-master, then run again",
            )
        facts = self.host.facts()
        if not facts:
            return self._before_the_state()
        if mode := self.store.open_to():
            self.changes["key store"] = {"old": f"mode {mode}", "new": "mode 0700"}
        if self.test:
            self._predict(facts)
            return self.changes
        with self.store.lock():
            self._certificate(facts)
            self._restart(facts)
            self._unseal(self._initialise(facts["storage_id"]))
            self._fill()
        return self.changes

    @property
    def trust(self) -> str:
        """The path of the authority's certificate."""
        return str(self.store.path / vault_master.AUTHORITY)

    def anonymous(self) -> hvac.Client:
        """Return a client without a login."""
        return vault.connect(self.url, self.trust)

    # What a dry run says ---------------------------------------------------------------------------------------

    def _before_the_state(self) -> Changes:
        if not self.test:
            raise PlatformError(
                "Vault's host is not prepared",
                where=self.url,
                expected="key and storage made by the state `vault`",
                hint="apply the state `vault` on that host first",
            )
        return {"vault": {"old": None, "new": "initialised, unsealed and filled"}}

    def _predict(self, facts: Mapping[str, Any]) -> None:
        _, certificate = vault_master.stored_authority(self.store)
        reason = self._certificate_reason(facts, certificate) if certificate else "there is no authority yet"
        if reason:
            self.changes["certificate"] = {"old": reason, "new": "signed"}
        if facts["restart_reason"]:
            self.changes["restart"] = {"old": facts["restart_reason"], "new": "restarted and unsealed"}
        # Without a trusted connection nothing can be asked; what a dry run may not touch it cannot compare either.
        if not certificate or reason in ("no certificate is in place", "it is not signed by the platform's authority"):
            self.changes["vault"] = {"old": None, "new": "initialised, unsealed and filled"}
            return
        state, keys = vault.seal(self.anonymous()), self.store.read(KEYS)
        if state.initialized and keys is None:
            self._check_recoverable(facts["storage_id"], state)
            self.changes["storage"] = LOST
        if not state.initialized or keys is None:
            self._check_unborn(keys)
            self.changes["vault"] = {"old": None, "new": "initialised, unsealed and filled"}
            return
        self._keys_for(facts["storage_id"])
        if any(stored_roots(self.store)):
            self.changes["root token"] = {"old": "valid", "new": "revoked"}
        if state.sealed:
            self.changes["seal"] = {"old": "sealed", "new": "unsealed"}
        else:
            self._compare()

    def _compare(self) -> None:
        client = self._master_login()
        if client is None:
            self.changes["login of the master"] = {"old": None, "new": "registered"}
            return
        try:
            self.changes |= vault_content.settings(client, self.wanted, test=True)
            self.changes |= vault_content.secrets(client, self.wanted, test=True)
        except vault.VaultRefusedError as err:
            self.changes["policies"] = {"old": f"not readable with the master's login: {err.actual}", "new": "set"}
        finally:
            vault.revoke(client)

    # Certificate and restart -------------------------------------------------------------------------------------

    def _certificate_reason(self, facts: Mapping[str, Any], authority: str) -> str:
        return vault_tls.renewal_reason(
            facts["certificate"], facts["csr"], authority, self.names, self.settings["renew_days"]
        )

    def _certificate(self, facts: Mapping[str, Any]) -> None:
        key, authority = vault_master.authority(self.store)
        reason = self._certificate_reason(facts, authority)
        if reason:
            signed = vault_tls.sign(facts["csr"], key, authority, self.names, self.settings["certificate_days"])
            self.host.install_certificate(signed)
            self.changes["certificate"] = {"old": reason, "new": f"signed until {vault_tls.ends(signed)}"}
        self._await()

    def _await(self) -> None:
        client = self.anonymous()
        try:
            until(lambda: vault.answers(client), START_SECONDS, 0.3, f"Vault at {self.url}")
        except PlatformError:
            # Ask once more for the reason: refused, not trusted, no route.
            vault.seal(client)

    def _restart(self, facts: Mapping[str, Any]) -> None:
        """Have a new version or configuration used. It seals Vault, so only here, where it is unsealed again."""
        if facts["restart_reason"]:
            self.host.restart()
            self._await()
            self.changes["restart"] = {"old": facts["restart_reason"], "new": "restarted and unsealed"}

    # Initialisation ------------------------------------------------------------------------------------------------

    def _initialise(self, storage_id: str) -> str:
        """Have Vault initialised and its keys stored; returns the identity of the storage in use."""
        self.store.probe()
        keys = self.store.read(KEYS)
        state = vault.seal(self.anonymous())
        if state.initialized and keys is None:
            storage_id = self._recover(storage_id, state)
            state = vault.seal(self.anonymous())
        if state.initialized:
            # Left over where a run was killed between the storing of the keys and here.
            self.store.remove(MARKER)
            return storage_id
        self._check_unborn(keys)
        self.store.write(MARKER, {"storage_id": storage_id, "url": self.url})
        shares, threshold = self.settings["key_shares"], self.settings["key_threshold"]
        reply = vault.initialize(self.anonymous(), shares, threshold, list(self.settings["pgp_keys"]))
        self._store_keys(reply, storage_id)
        self.store.remove(MARKER)
        self.changes["vault"] = {"old": None, "new": f"initialised with {shares} key share(s), {threshold} needed"}
        return storage_id

    def _store_keys(self, reply: Mapping[str, Any], storage_id: str) -> None:
        self.store.write(
            KEYS,
            {
                "storage_id": storage_id,
                "url": self.url,
                "encrypted": bool(self.settings["pgp_keys"]),
                "keys": reply["keys_base64"],
                "root_token": reply["root_token"],
            },
        )

    def _check_unborn(self, keys: Mapping[str, Any] | None) -> None:
        if keys is not None:
            raise PlatformError(
                "Vault is empty, but the key store holds the keys of an earlier one",
                where=f"{self.store.path / KEYS} and {self.url}",
                expected=f"the storage {keys['storage_id']} that those keys belong to",
                actual="a Vault that was never initialised",
                hint="mount or restore Vault's storage; or, if that Vault is given up, move the key file away "
                "(`salt-run vault_server.reset confirm=<address of Vault>`) and run again",
            )

    def _recover(self, storage_id: str, state: vault.Seal) -> str:
        """Start over where an own initialisation was killed before its keys were stored."""
        self._check_recoverable(storage_id, state)
        fresh = self.host.set_storage_aside(storage_id)
        self._await()
        self.changes["storage"] = LOST
        return fresh

    def _check_recoverable(self, storage_id: str, state: vault.Seal) -> None:
        """Make sure that the Vault whose keys are lost is ours and was never unsealed, so that it holds nothing.

        The marker proves it: it was written, with the identity of this very storage, while Vault said that it was
        not initialised.
        """
        marker = self.store.read(MARKER)
        if marker is None or marker["storage_id"] != storage_id or not state.sealed:
            raise PlatformError(
                "Vault is initialised, but the key store holds no keys of it",
                where=f"{self.url} and {self.store.path / KEYS}",
                expected="the keys that its initialisation returned",
                actual="none, and no mark of an own interrupted initialisation",
                hint="restore the key store from its backup; or, if that Vault is given up, "
                "`salt-run vault_server.reset confirm=<address of Vault>` sets its storage aside, then run again",
            )

    # Unsealing -----------------------------------------------------------------------------------------------------

    def _keys_for(self, storage_id: str) -> dict[str, Any]:
        keys = self.store.read(KEYS)
        if keys is None:
            raise PlatformError(
                "The key store holds no keys to unseal Vault with",
                where=str(self.store.path / KEYS),
                hint="run vault_server.bootstrap",
            )
        if keys["storage_id"] != storage_id:
            raise PlatformError(
                "The keys in the key store belong to another Vault",
                where=str(self.store.path / KEYS),
                expected=f"storage {storage_id}",
                actual=f"storage {keys['storage_id']}",
                hint="bring back the storage or the key store that belong together",
            )
        return keys

    def _unseal(self, storage_id: str) -> None:
        keys = self._keys_for(storage_id)
        # After a start or an initialisation it is sealed of course: that is part of that change.
        if unseal(self.anonymous(), keys, self.store) and not {"restart", "vault"} & self.changes.keys():
            self.changes["seal"] = {"old": "sealed", "new": "unsealed"}

    # Content ---------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Compare with the master's narrow login; take root rights only for what that login may not write."""
        client = self._master_login()
        if client is None or self._differs(client):
            with root_rights(self.url, self.trust, self.store) as root:
                self.changes |= vault_content.settings(root, self.wanted, test=False)
                self._register(root)
        client = client or self._master_login()
        if client is None:
            raise PlatformError("Vault does not take the login it was just given", where=self.url, hint="run again")
        self.changes |= vault_content.secrets(client, self.wanted, test=False)
        vault.revoke(client)
        self._forget_root()

    def _differs(self, client: hvac.Client) -> bool:
        try:
            return bool(vault_content.settings(client, self.wanted, test=True))
        except vault.VaultRefusedError:
            # The master's policy is older than what has to be compared.
            return True

    def _master_login(self) -> hvac.Client | None:
        return vault.log_in(self.url, self.trust, self.login["role_id"], self.login["secret_id"], MASTER_MOUNT)

    def _register(self, root: hvac.Client) -> None:
        present = self._master_login()
        if present is not None:
            vault.revoke(present)
            return
        vault_content.register_login(root, self.login["secret_id"])
        self.changes["login of the master"] = {"old": None, "new": "registered"}

    def _forget_root(self) -> None:
        if forget_root(self.url, self.trust, self.store):
            self.changes["root token"] = {"old": "valid", "new": "revoked"}


@contextmanager
def root_rights(url: str, trust: str, store: KeyStore) -> Iterator[hvac.Client]:
    """Give root rights: the initial token, one that the operator left, or one made from the key shares.

    A token that lies in the key store is revoked by ``forget_root``, after everything that needs it has been done.

    Raises ``PlatformError`` where the key shares are encrypted to people and they left no token.
    """
    keys = store.read(KEYS) or {}
    token = next(filter(None, stored_roots(store)), "")
    if token and vault.token_works(url, trust, token):
        yield vault.connect(url, trust, token)
    elif keys.get("encrypted"):
        raise PlatformError(
            "Vault's settings differ from pillar, and the key shares are encrypted to people",
            where=url,
            expected="a root token for this run",
            hint=f"make one with `vault operator generate-root`, put it into {store.path / ROOT_TOKEN} "
            "(mode 0600) and run again; it is revoked and deleted afterwards",
        )
    else:
        with vault.root_for_a_moment(url, trust, keys["keys"]) as client:
            vault.revoke_endless_roots(client)
            yield client


def stored_roots(store: KeyStore) -> tuple[str, str]:
    """Return the root token of the initialisation and the one that an operator left; empty where there is none."""
    return (store.read(KEYS) or {}).get("root_token") or "", (store.read_text(ROOT_TOKEN) or "").strip()


def forget_root(url: str, trust: str, store: KeyStore) -> bool:
    """Revoke root tokens that lie in the key store, then forget them. Returns whether there was one."""
    keys = store.read(KEYS)
    initial, left = stored_roots(store)
    for token in filter(None, (initial, left)):
        if vault.token_works(url, trust, token):
            vault.revoke(vault.connect(url, trust, token))
    if keys and initial:
        store.write(KEYS, keys | {"root_token": None})
    if left:
        store.remove(ROOT_TOKEN)
    return bool(initial or left)


def unseal(client: hvac.Client, keys: Mapping[str, Any], store: KeyStore) -> bool:
    """Unseal Vault with the stored keys, and wait until it serves. Returns whether it had been sealed.

    Raises ``PlatformError`` where the shares are encrypted to people or are not this Vault's.
    """
    sealed = vault.seal(client).sealed
    if sealed:
        _submit(client, keys, store)
    # Unsealed by us or by another a moment ago: a raft node needs a moment to lead, and refuses requests until then.
    until(lambda: _active(client), START_SECONDS, 0.2, "Vault to become active")
    return sealed


def _submit(client: hvac.Client, keys: Mapping[str, Any], store: KeyStore) -> None:
    if keys.get("encrypted"):
        raise PlatformError(
            "Vault is sealed, and its key shares are encrypted to people",
            where=client.url,
            expected="unsealed by their owners",
            hint=f"the encrypted shares are in {store.path / KEYS}: each owner decrypts one and runs "
            "`vault operator unseal`; then run again",
        )
    try:
        # The reactor and a bootstrap may unseal at once: each begins anew, and takes away what the other has submitted.
        until(lambda: not vault.unseal(client, keys["keys"]).sealed, UNSEAL_SECONDS, 0.2, "Vault to be unsealed")
    except vault.VaultRefusedError as err:
        raise PlatformError(
            "Vault does not take the stored key shares: they are another Vault's",
            where=f"{client.url} and {store.path / KEYS}",
            actual=err.actual,
            hint="bring back the storage or the key store that belong together",
        ) from err
    except WaitTimeoutError as err:
        raise PlatformError("Vault stays sealed after the stored key shares", where=client.url) from err


def _active(client: hvac.Client) -> bool:
    with vault.reported("asking for its health", client.url):
        reply = client.sys.read_health_status(method="GET")
    return bool(getattr(reply, "status_code", 200) == 200)
