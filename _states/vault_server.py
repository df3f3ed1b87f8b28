"""The Vault server's host: release, key, storage, and the watch over its seal."""

from __future__ import annotations

from typing import Any

from aiplatform import watch
from aiplatform.states import converge


def release_installed(name: str, version: str, source: str, source_hash: str | dict[str, str]) -> dict[str, Any]:
    """Have a pinned version unpacked in its own folder below ``name``.

    .. code-block:: yaml

        vault-release:
          vault_server.release_installed:
            - name: /opt/vault
            - version: 1.21.0
            - source: https://releases.hashicorp.com/vault/{version}/vault_{version}_linux_{arch}.zip
            - source_hash: {amd64: sha256=5a91…}
    """
    return converge(
        name,
        plan=lambda: (
            {}
            if __salt__["vault_server.release_present"](name, version)
            else {"release": {"old": None, "new": version}}
        ),
        apply=lambda: __salt__["vault_server.install_release"](name, version, source, source_hash),
        test=__opts__["test"],
    )


def key_present(name: str) -> dict[str, Any]:
    """Have a private key that never leaves the host, and a certificate to start with.

    .. code-block:: yaml

        vault-key:
          vault_server.key_present: []
    """
    return converge(
        name,
        plan=lambda: {} if __salt__["vault_server.key_present"]() else {"key": {"old": None, "new": "made"}},
        apply=__salt__["vault_server.make_key"],
        test=__opts__["test"],
    )


def storage_marked(name: str) -> dict[str, Any]:
    """Have the storage carry an identity, by which the master knows it again.

    .. code-block:: yaml

        vault-storage-identity:
          vault_server.storage_marked: []
    """
    return converge(
        name,
        plan=lambda: {} if __salt__["vault_server.storage_id"]() else {"identity": {"old": None, "new": "given"}},
        apply=__salt__["vault_server.mark_storage"],
        test=__opts__["test"],
    )


def watched(name: str, port: int = 8202, interval: int = 5, enabled: bool = True) -> dict[str, Any]:
    """Have the minion tell the master whenever Vault is sealed, now and after each start.

    name
        The beacon, ``vault_sealed``.
    port
        Where Vault listens on loopback.
    interval
        Seconds between two looks.
    enabled
        False takes the watch away.

    Without a master there is nobody to tell: nothing is done.

    .. code-block:: yaml

        vault_sealed:
          vault_server.watched:
            - interval: 5
    """
    return watch.watched(name, [{"interval": interval}, {"port": port}] if enabled else None, __opts__, __salt__)
