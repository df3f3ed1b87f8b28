"""Vault's authority for the public names: an engine with a root of its own, and the role that the proxy may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hvac
from hvac.exceptions import InvalidPath, VaultError

from aiplatform import sites
from aiplatform.states import Changes, diff

MOUNT = "pki"
ROLE = "proxy"
PROXY = "nginx_proxy"
AUTHORITY_YEARS = 10
DAY = 86400


@dataclass(frozen=True)
class Authority:
    """What the authority may sign.

    ``name`` is its common name, ``names`` are the public names, ``days`` is how long a certificate is valid.
    """

    name: str
    names: tuple[str, ...]
    days: int

    def role(self) -> dict[str, Any]:
        """Return the role, as Vault gives it back."""
        return {
            "allowed_domains": list(self.names),
            "allow_bare_domains": True,
            "allow_subdomains": False,
            "allow_glob_domains": False,
            "allow_wildcard_certificates": False,
            "allow_any_name": False,
            "allow_localhost": False,
            "allow_ip_sans": False,
            "enforce_hostnames": True,
            "server_flag": True,
            "client_flag": False,
            "key_type": "ec",
            "key_bits": 256,
            "use_csr_common_name": False,
            "use_csr_sans": False,
            "ttl": self.days * DAY,
            "max_ttl": self.days * DAY,
        }


def authority(settings: Mapping[str, Any]) -> Authority | None:
    """Return the authority that pillar asks for; None where the operator brings certificates of their own.

    settings
        The effective pillar.
    """
    certificate = settings["nginx"]["certificate"]
    if certificate["mode"] != "vault":
        return None
    names = tuple(sites.names(settings))
    return Authority(f"{settings['platform']['name']} authority", names, certificate["days"])


def converge(client: hvac.Client, wanted: Authority, test: bool) -> Changes:
    """Bring the engine, its root and the role in place. Returns the changes.

    client
        With root rights, or under ``test`` the master's login.
    """
    changes: Changes = {}
    mounted = f"{MOUNT}/" in client.sys.list_mounted_secrets_engines()["data"]
    if not mounted:
        changes[f"mount {MOUNT}"] = {"old": None, "new": "pki"}
        if not test:
            most = f"{AUTHORITY_YEARS * 365 * 24}h"
            client.sys.enable_secrets_engine("pki", path=MOUNT, config={"max_lease_ttl": most})
    if not certificate(client):
        changes[f"authority {MOUNT}"] = {"old": None, "new": wanted.name}
        if not test:
            _make_root(client, wanted)
    different = diff(_role(client), wanted.role())
    if different:
        changes[f"role {MOUNT}/{ROLE}"] = different
        if not test:
            client.write_data(f"{MOUNT}/roles/{ROLE}", data=wanted.role())
    return changes


def certificate(client: hvac.Client) -> str:
    """Return the authority's certificate (PEM); empty where there is none yet."""
    try:
        reply = client.read(f"{MOUNT}/cert/ca")
    except InvalidPath:
        return ""
    except VaultError as err:
        if "no default issuer" in str(err):
            return ""
        raise
    return str(((reply or {}).get("data") or {}).get("certificate") or "")


def rules(master: bool) -> dict[str, tuple[str, ...]]:
    """Return ``{path: capabilities}``: what the master reads to compare, or what the proxy may have signed."""
    return {f"{MOUNT}/roles/{ROLE}": ("read",)} if master else {f"{MOUNT}/sign/{ROLE}": ("create", "update")}


def _make_root(client: hvac.Client, wanted: Authority) -> None:
    # The key is made in Vault and never leaves it.
    kind = {"ttl": f"{AUTHORITY_YEARS * 365 * 24}h", "key_type": "ec", "key_bits": 256}
    client.secrets.pki.generate_root("internal", wanted.name[:64], extra_params=kind, mount_point=MOUNT)


def _role(client: hvac.Client) -> dict[str, Any] | None:
    try:
        reply = client.read(f"{MOUNT}/roles/{ROLE}")
    except InvalidPath:
        return None
    return dict(reply["data"]) if reply else None
