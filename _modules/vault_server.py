"""The Vault server on this host: what the master needs from it, and what the states compare.

Talking to Vault's API is the runner's work; reading secrets is saltext-vault's.
"""

from __future__ import annotations

import grp
from pathlib import Path
from typing import Any

from aiplatform import files, known_names, vault_host, vault_policy
from aiplatform.errors import PlatformError

SERVICE = "vault"
UNIT = Path("/etc/systemd/system/vault.service")


def is_host() -> bool:
    """Whether Vault, and all else that there is once, belongs on this minion, by pillar.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.is_host
    """
    return vault_policy.is_vault_host(__pillar__, __opts__["id"])


def hosts_file() -> str:
    """Return what ``/etc/hosts`` of this host should say: the platform's public names besides what it says.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.hosts_file
    """
    return known_names.text(files.text_of("/etc/hosts"), __pillar__)


def configuration() -> dict[str, Any]:
    """Return the configuration that Vault should have on this host.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.configuration
    """
    return vault_host.configuration(__pillar__["platform"], __pillar__["services"]["vault"]["port"], __opts__["id"])


def data_dir() -> str:
    """Return the path of Vault's storage on this host.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.data_dir
    """
    return f"{__pillar__['platform']['data_root']}/vault/data"


def facts() -> dict[str, Any]:
    """Return what the master needs to bring Vault up.

    ``storage_id`` (the storage's identity), ``csr`` and ``certificate`` (PEM, both public), and
    ``restart_reason`` (why the running Vault is not up to date, or empty). Empty before the state ``vault``
    was applied.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.facts
    """
    identity = vault_host.storage_id(Path(data_dir()))
    request = vault_host.request(vault_host.TLS_DIR, __opts__["id"])
    if not identity or not request:
        return {}
    return request | {"storage_id": identity, "restart_reason": restart_reason()}


def restart_reason() -> str:
    """Say why the running Vault is not up to date; empty where it is.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.restart_reason
    """
    pairs = {path: vault_host.STARTED_WITH / path.name for path in (vault_host.CONFIG, UNIT)}
    installed = Path(__pillar__["vault"]["install_dir"]) / "current" / vault_host.BINARY
    return vault_host.restart_reason(pairs, _running(), installed)


def install_certificate(certificate: str) -> bool:
    """Put a signed certificate in place and have Vault read it, without a restart.

    certificate
        PEM, the server's first. Refused where it is not for this host's key.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.install_certificate "$(cat vault.crt)"
    """
    vault_host.install_certificate(vault_host.TLS_DIR, certificate)
    if __salt__["service.status"](SERVICE) and not __salt__["service.reload"](SERVICE):
        raise PlatformError("Vault did not take the signal to read its certificate", where=SERVICE)
    return True


def restart() -> bool:
    """Restart Vault. It is sealed afterwards: the master's bootstrap calls this, and unseals.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.restart
    """
    __salt__["service.systemctl_reload"]()
    return _service("restart")


def set_storage_aside(storage_id: str) -> str:
    """Move Vault's storage away, start Vault on an empty one, and return the new identity.

    storage_id
        The identity of the storage in place, as a proof that it is the one meant.

    Nothing is deleted: the old storage stays beside the new one as ``data.aside-<time>``.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.set_storage_aside 0b2c…
    """
    path = Path(data_dir())
    if vault_host.storage_id(path) != storage_id:
        raise PlatformError("Another storage is in place", where=str(path), expected=storage_id)
    _service("stop")
    vault_host.set_aside(path, storage_id)
    _service("start")
    return vault_host.storage_id(path)


def release_present(install_dir: str, version: str) -> bool:
    """Whether that version's binary is in place.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.release_present /opt/vault 1.21.0
    """
    return vault_host.release_present(Path(install_dir), version)


def install_release(install_dir: str, version: str, source: str, source_hash: str | dict[str, str]) -> bool:
    """Fetch a release, check its hash and unpack it beside the others.

    install_dir
        The folder that holds the versions.
    source
        URL of the zip archive; ``{version}`` and ``{arch}`` (amd64, arm64) in it are filled in.
    source_hash
        ``sha256=<hex>``, or ``{<arch>: sha256=<hex>}``.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.install_release /opt/vault 1.21.0 http://files/vault.zip sha256=5a91…
    """
    url, wanted = vault_host.release_archive(version, source, source_hash, __grains__["cpuarch"])
    cached = __salt__["cp.cache_file"](url, source_hash=wanted)
    if not cached:
        raise PlatformError("Vault's release cannot be fetched", where=url, hint="look at pillar vault:source")
    try:
        vault_host.check_hash(Path(cached), wanted, url)
        vault_host.unpack(Path(cached), Path(install_dir), version)
    finally:
        # Unpacked or wrong: either way the archive has served.
        Path(cached).unlink(missing_ok=True)
    return True


def key_present() -> bool:
    """Whether this host has a key and a certificate for Vault.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.key_present
    """
    return vault_host.key_present(vault_host.TLS_DIR)


def make_key() -> bool:
    """Make this host's key where absent, with a certificate that serves until the master signs one.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.make_key
    """
    group = grp.getgrnam(SERVICE).gr_gid
    vault_host.make_key(vault_host.TLS_DIR, vault_policy.certificate_names(__pillar__, __opts__["id"]), group)
    return True


def storage_id() -> str:
    """Return the identity of Vault's storage; empty where it has none yet.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.storage_id
    """
    return vault_host.storage_id(Path(data_dir()))


def mark_storage() -> str:
    """Give Vault's storage an identity where it has none, and return it.

    CLI Example:

    .. code-block:: bash

        salt ai_server vault_server.mark_storage
    """
    return vault_host.mark_storage(Path(data_dir()))


def _running() -> Path | None:
    pid = __salt__["service.show"](SERVICE).get("MainPID", "0")
    try:
        return Path(f"/proc/{pid}/exe").readlink()
    except FileNotFoundError:
        return None


def _service(action: str) -> bool:
    if not __salt__[f"service.{action}"](SERVICE):
        raise PlatformError(
            f"Vault's service did not {action}", where="vault.service", hint="look at `journalctl -u vault` there"
        )
    return True
