"""What Vault should hold, computed from pillar: policies, logins, secrets. Pure: talks to no server."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiplatform import vault_pki
from aiplatform.errors import PlatformError
from aiplatform.vault_pki import Authority

MASTER_MOUNT = "approle"
MASTER_ROLE = "salt-master"
MINION_MOUNT = "salt-minions"
# People's login by Keycloak, and its one role.
OIDC_MOUNT = "oidc"
OIDC_ROLE = "default"
# Every minion's policy is named POLICY_PREFIX/<minion id>; the master may hand out no others.
POLICY_PREFIX = "ai-platform"
AUTOMATION_POLICY = "salt-automation"
ADMIN_POLICY = "vault-admin"
# A reader in the secret map beside the hosts' roles: the AppRole that containers use.
SERVICES_READER = "ai_services"

GENERATORS: dict[str, Callable[[], str] | None] = {
    "hex32": lambda: secrets.token_hex(32),
    "base64_16": lambda: base64.b64encode(secrets.token_bytes(16)).decode(),
    "none": None,
}


@dataclass(frozen=True)
class Wanted:
    """The content of Vault that pillar asks for."""

    mount: str
    audit: Mapping[str, str]
    policies: Mapping[str, str]
    approles: Mapping[str, Mapping[str, Any]]
    minions: frozenset[str]
    # KV path below the mount -> key -> name of its generator
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    authority: Authority | None = None


def wanted(platform: Mapping[str, Any], vault: Mapping[str, Any], authority: Authority | None = None) -> Wanted:
    """Return what Vault should hold.

    platform
        Pillar ``platform``: slug, data_root and hosts.
    vault
        Pillar ``vault``.
    authority
        The authority for the public names; None where the operator brings certificates of their own.
    """
    return Wanted(
        mount=vault["mount"],
        audit={
            "log": f"{vault['log_dir']}/audit.log",
            "data": f"{platform['data_root']}/vault/audit/audit.log",
        },
        policies=policies(platform, vault, authority),
        approles=approles(vault),
        minions=frozenset(platform["hosts"]),
        secrets={f"{platform['slug']}/{path}": dict(row["keys"]) for path, row in vault["secrets"].items()},
        authority=authority,
    )


def vault_host(platform: Mapping[str, Any], vault: Mapping[str, Any]) -> str:
    """Return the id of the minion that Vault runs on: ``vault:host``, or else the first ``ai_server``."""
    if vault.get("host"):
        return str(vault["host"])
    for minion, host in platform["hosts"].items():
        if "ai_server" in host["roles"]:
            return str(minion)
    raise PlatformError(
        "No host can hold Vault",
        where="pillar platform:hosts",
        expected="a host with role ai_server, or vault:host",
        actual=", ".join(platform["hosts"]) or "no hosts",
    )


def is_vault_host(settings: Mapping[str, Any], minion: str) -> bool:
    """Return whether a minion is the host of Vault, and so of all else that there is once."""
    return vault_host(settings["platform"], settings["vault"]) == minion


def end(address: str, port: int) -> str:
    """Return ``address:port``, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def url(address: str, port: int) -> str:
    """Return where Vault is reached."""
    return f"https://{end(address, port)}"


def certificate_names(settings: Mapping[str, Any], minion: str) -> list[str]:
    """Return the names that Vault's certificate is valid for: public name, minion id, address, loopback."""
    platform, label = settings["platform"], settings["services"]["vault"].get("name")
    public = [f"{label}.{platform['domain']}"] if label else []
    # An underscore in a host name is refused by some resolvers, but clients only compare the text.
    return [*public, minion, str(platform["hosts"][minion]["address"]), "127.0.0.1"]


def policies(
    platform: Mapping[str, Any], vault: Mapping[str, Any], authority: Authority | None = None
) -> dict[str, str]:
    """Return name and text of every policy that the platform owns."""
    mount, slug = vault["mount"], platform["slug"]
    texts = {
        ADMIN_POLICY: _rule(f"{mount}/*", "create", "read", "update", "delete", "list"),
        AUTOMATION_POLICY: automation(mount, slug),
        MASTER_ROLE: master(vault["approle_name"], authority),
        vault["approle_name"]: _readable(mount, slug, vault["secrets"], {SERVICES_READER}),
    }
    for minion, host in platform["hosts"].items():
        name = f"{POLICY_PREFIX}/{minion}".lower()  # Vault keeps names of policies in lower case
        texts[name] = _readable(mount, slug, vault["secrets"], set(host["roles"]))
        if authority and vault_pki.PROXY in host["roles"]:
            texts[name] += "\n" + _rules(vault_pki.rules(master=False))
    return texts


def automation(mount: str, slug: str) -> str:
    """Return the policy with which the master writes secrets below ``<mount>/<slug>/``."""
    return "\n".join(
        [
            _rule(f"{mount}/data/{slug}/*", "create", "read", "update", "delete", "list"),
            _rule(f"{mount}/metadata/{slug}/*", "list", "read", "delete"),
            _rule(f"{mount}/metadata/{slug}", "list"),
            _rule(f"{mount}/metadata/", "list"),
        ]
    )


def master(services_role: str, authority: Authority | None = None) -> str:
    """Return the policy with which the master issues the minions' logins and compares Vault with pillar.

    It can give a minion no policy but the minions' own, and reads no secret.
    """
    role = f"auth/{MINION_MOUNT}/role"
    issue = (
        f'path "{role}/+" {{\n'
        '  capabilities = ["create", "read", "update", "delete"]\n'
        "  allowed_parameters = {\n"
        f'    "token_policies" = ["{POLICY_PREFIX}/*"]\n'
        '    "*" = []\n'
        "  }\n"
        '  denied_parameters = {\n    "policies" = []\n  }\n'
        "}\n"
    )
    entity = (
        'path "identity/entity/name/salt_minion_*" {\n'
        '  capabilities = ["create", "read", "update", "delete"]\n'
        '  denied_parameters = {\n    "policies" = []\n  }\n'
        "}\n"
    )
    own = f"auth/{MASTER_MOUNT}/role"
    return "\n".join(
        [
            issue,
            _rule(role, "list"),
            _rule(f"{role}/+/role-id", "read"),
            _rule(f"{role}/+/secret-id", "create", "update"),
            entity,
            _rule("identity/entity-alias", "create", "update"),
            _rule("identity/lookup/entity", "create", "update"),
            _rule("sys/audit", "read", "sudo"),
            _rule("sys/auth", "read"),
            _rule(f"sys/auth/{MINION_MOUNT}", "read", "sudo"),
            _rule("sys/mounts", "read"),
            _rule("sys/policies/acl", "list"),
            _rule("sys/policies/acl/*", "read"),
            _rule(f"{own}/{MASTER_ROLE}", "read"),
            _rule(f"{own}/{MASTER_ROLE}/role-id", "read"),
            _rule(f"{own}/{services_role}", "read"),
            *(_rule(f"auth/{OIDC_MOUNT}/{path}", "read") for path in ("config", f"role/{OIDC_ROLE}")),
            *([_rules(vault_pki.rules(master=True))] if authority else []),
        ]
    )


def approles(vault: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the roles of the mount ``approle``, with the fields that the platform sets."""
    shared = {"bind_secret_id": True, "secret_id_num_uses": 0, "secret_id_ttl": 0, "token_num_uses": 0}
    hour = 3600
    return {
        MASTER_ROLE: shared
        | {"token_policies": [AUTOMATION_POLICY, MASTER_ROLE], "token_ttl": hour, "token_max_ttl": hour},
        vault["approle_name"]: shared
        | {"token_policies": [vault["approle_name"]], "token_ttl": hour, "token_max_ttl": 4 * hour},
    }


def missing_keys(present: Mapping[str, Any] | None, keys: Mapping[str, str]) -> list[str]:
    """Return the keys that are absent and that the platform generates.

    present
        What is at the path, or None where it is empty. A key whose value is null counts as absent: so the ``vault``
        command leaves one that it took out for somebody without the right to patch.
    keys
        Key -> name of its generator.
    """
    return [key for key, generator in keys.items() if GENERATORS[generator] and (present or {}).get(key) is None]


def generate(keys: Iterable[str], generators: Mapping[str, str]) -> dict[str, str]:
    """Return a new value for each of ``keys``."""
    values = {}
    for key in keys:
        make = GENERATORS[generators[key]]
        if make:
            values[key] = make()
    return values


def _readable(mount: str, slug: str, rows: Mapping[str, Any], readers: set[str]) -> str:
    rules = [
        _rule(f"{mount}/data/{slug}/{path}", "read")
        for path, row in sorted(rows.items())
        if readers & set(row["readers"])
    ]
    return "\n".join(rules) or "# This login reads no secret.\n"


def _rules(rows: Mapping[str, Iterable[str]]) -> str:
    return "\n".join(_rule(path, *capabilities) for path, capabilities in rows.items())


def _rule(path: str, *capabilities: str) -> str:
    listed = ", ".join(f'"{capability}"' for capability in capabilities)
    return f'path "{path}" {{\n  capabilities = [{listed}]\n}}\n'
