"""The master's own way into Vault: its configuration for saltext-vault and the platform's authority.

Made before the master daemon starts, so that the daemon needs no restart when Vault comes up.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hvac
import yaml

from aiplatform import vault, vault_tls
from aiplatform.errors import PlatformError
from aiplatform.files import write_durably
from aiplatform.vault_keys import DEFAULT_PATH, KeyStore
from aiplatform.vault_policy import MASTER_MOUNT, MASTER_ROLE, MINION_MOUNT, POLICY_PREFIX, url, vault_host

DEFAULT_CONFIG = "/etc/salt/master.d/vault.conf"
AUTHORITY = "ca.pem"
AUTHORITY_KEY = "ca.key"
HEAD = "# The master's way into Vault, made by the platform. Readable by root only: it holds a login.\n"


def stored_authority(store: KeyStore) -> tuple[str | None, str | None]:
    """Return the authority's key and certificate (PEM), None for what is absent.

    Raises ``PlatformError`` where the certificate is there without its key.
    """
    key, certificate = store.read_text(AUTHORITY_KEY), store.read_text(AUTHORITY)
    if certificate and not key:
        raise PlatformError(
            "The authority's certificate is there, its key is not",
            where=str(store.path / AUTHORITY_KEY),
            hint=f"restore the key, or delete {store.path / AUTHORITY} to have a new authority made",
        )
    return key, certificate


def authority(store: KeyStore) -> tuple[str, str]:
    """Return the authority's key and certificate (PEM), made where absent."""
    store.ensure()
    key, certificate = stored_authority(store)
    if key and certificate:
        return key, certificate
    # The key is stored first: a crash in between leaves a key without a certificate, which is completed here.
    key = key or vault_tls.new_key()
    store.write_bytes(AUTHORITY_KEY, key.encode())
    certificate = vault_tls.authority(key, "AI Platform Vault authority")
    store.write_bytes(AUTHORITY, certificate.encode())
    return key, certificate


def secret_id(config: Path) -> str:
    """Return the master's secret id from its configuration file; empty where there is none."""
    auth = (_load(config).get("vault") or {}).get("auth") or {}
    return str(auth.get("secret_id") or "")


def client(opts: Mapping[str, Any], pillar: Mapping[str, Any]) -> hvac.Client:
    """Return a client of Vault that is logged in as the master.

    opts
        The master's options, which hold its login.
    pillar
        The effective pillar.

    Raises ``PlatformError`` where Vault does not take that login.
    """
    host = vault_host(pillar["platform"], pillar["vault"])
    where = url(pillar["platform"]["hosts"][host]["address"], pillar["services"]["vault"]["port"])
    trust = str(Path(pillar["vault"]["key_store"]) / AUTHORITY)
    login = (opts.get("vault") or {}).get("auth") or {}
    found = vault.log_in(where, trust, str(login.get("role_id")), str(login.get("secret_id")), MASTER_MOUNT)
    if found is None:
        raise PlatformError("Vault does not know the master", where=where, hint="salt-run vault_server.bootstrap")
    return found


def configuration(where: str, trust: str, login: str) -> dict[str, Any]:
    """Return the master's options for saltext-vault.

    where
        The URL at which master and minions reach Vault.
    trust
        The authority's certificate (PEM); it reaches the minions with the rest of this configuration.
    login
        The secret id that the master logs in with.
    """
    return {
        "vault": {
            "auth": {
                "method": "approle",
                "approle_mount": MASTER_MOUNT,
                "approle_name": MASTER_ROLE,
                "role_id": MASTER_ROLE,
                "secret_id": login,
            },
            # A token serves for many calls, so that a state run logs in once an hour and not once a secret. It lives
            # through a refusal, too: what a minion may read is in the policy of its name, which counts as it is now.
            "cache": {"backend": "disk", "clear_on_unauthorized": False},
            # A sealed Vault is reported within seconds.
            "client": {"connect_timeout": 5, "max_retries": 2},
            "issue": {
                "type": "approle",
                "approle": {
                    "mount": MINION_MOUNT,
                    "params": {
                        "bind_secret_id": True,
                        "secret_id_num_uses": 1,
                        "secret_id_ttl": 120,
                        "token_explicit_max_ttl": 3600,
                        "token_num_uses": 0,
                    },
                },
                "wrap": "60s",
            },
            "policies": {"assign": [f"{POLICY_PREFIX}/{{minion}}"]},
            "server": {"url": where, "verify": trust},
        }
    }


def set_up(
    address: str,
    port: int = 8202,
    key_store: str | Path = DEFAULT_PATH,
    config: str | Path = DEFAULT_CONFIG,
    test: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write the master's configuration for Vault, with a new login where there is none.

    address, port
        Where Vault listens.
    key_store
        Directory of the authority and of Vault's keys.
    config
        The file to write, mode 0600.
    test
        Touch nothing.

    Returns the changes, without the login; empty where all is as wanted. A running master reads the file at its
    next start only.
    """
    target = Path(config)
    store = KeyStore(key_store)
    present = secret_id(target)
    if test and store.read_text(AUTHORITY) is None:
        return {str(target): {"old": None, "new": "configured"}}
    trust = authority(store)[1]
    wanted = configuration(url(address, port), trust, present or secrets.token_hex(32))
    if _load(target) == wanted and target.stat().st_mode & 0o777 == 0o600:
        return {}
    if not test:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, (HEAD + yaml.safe_dump(wanted)).encode(), 0o600)
    return {str(target): {"old": "configured" if present else None, "new": "configured"}}


def _load(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text()) or {})
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, ValueError) as err:
        raise PlatformError(
            "The master's Vault configuration is damaged",
            where=str(path),
            expected="a YAML mapping",
            hint="delete it and set the master up again; the next bootstrap then registers the new login",
        ) from err
