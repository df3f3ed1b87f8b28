"""Bringing Vault's content to what is wanted: compare each thing, and write it where it differs.

The same code plans (``test``: reads only, with the master's narrow login) and applies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import hvac
from hvac.exceptions import InvalidPath, InvalidRequest

from aiplatform import vault_pki
from aiplatform.errors import PlatformError
from aiplatform.states import Changes, diff
from aiplatform.vault import reported
from aiplatform.vault_policy import (
    MASTER_MOUNT,
    MASTER_ROLE,
    MINION_MOUNT,
    POLICY_PREFIX,
    Wanted,
    generate,
    missing_keys,
)
from aiplatform.wait import until

ATTEMPTS = 5


def settings(client: hvac.Client, wanted: Wanted, test: bool) -> Changes:
    """Bring audit devices, mounts, policies and roles in place. Returns the changes.

    client
        With root rights, or under ``test`` the master's login.
    """
    with reported("comparing its settings", client.url):
        changes: Changes = {}
        # Audit first: whatever comes after is on record.
        changes |= _audit(client, wanted, test)
        changes |= _mounts(client, wanted, test)
        changes |= _policies(client, wanted, test)
        changes |= _approles(client, wanted, test)
        changes |= _minion_roles(client, wanted, test)
        if wanted.authority:
            changes |= vault_pki.converge(client, wanted.authority, test)
        return changes


def secrets(client: hvac.Client, wanted: Wanted, test: bool) -> Changes:
    """Generate each secret whose key is absent; one that is there is never touched.

    Returns the names of the new keys a path, never a value.
    """
    changes: Changes = {}
    for path, keys in wanted.secrets.items():
        with reported(f"generating what is absent at {wanted.mount}/{path}", client.url):
            new = _fill(client, wanted.mount, path, keys, test)
        if new:
            changes[f"secret {wanted.mount}/{path}"] = {"old": None, "new": f"generated {', '.join(new)}"}
    return changes


def register_login(client: hvac.Client, secret_id: str) -> None:
    """Make ``secret_id`` the only login of the master's role; whoever holds an older one is out."""
    with reported("registering the master's login", client.url):
        approle = client.auth.approle
        made = approle.create_custom_secret_id(MASTER_ROLE, secret_id, mount_point=MASTER_MOUNT)
        accessors = approle.list_secret_id_accessors(MASTER_ROLE, mount_point=MASTER_MOUNT)["data"]["keys"]
        for accessor in set(accessors) - {made["data"]["secret_id_accessor"]}:
            approle.destroy_secret_id_accessor(MASTER_ROLE, accessor, mount_point=MASTER_MOUNT)


def _fill(client: hvac.Client, mount: str, path: str, keys: Mapping[str, str], test: bool) -> list[str]:
    """Write the absent keys; returns their names."""
    made: list[str] = []

    def generated(present: Mapping[str, Any]) -> dict[str, str]:
        made[:] = missing_keys(present, keys)
        return generate([] if test else made, keys)

    _write(client, mount, path, generated)
    return made


def read(client: hvac.Client, mount: str, path: str) -> dict[str, Any]:
    """Return the keys of a path with their values; {} where nothing was written yet."""
    with reported(f"reading {mount}/{path}", client.url):
        return _read(client, mount, path)[0]


def put(client: hvac.Client, mount: str, path: str, values: Mapping[str, str], test: bool = False) -> Changes:
    """Give keys of a path these values, which are no secrets; the path's other keys stay as they are.

    Returns what differs, ``{key: {old, new}}``, and writes nothing under ``test``.
    """
    with reported(f"writing {mount}/{path}", client.url):
        changes = diff(_read(client, mount, path)[0], values)
        if changes and not test:
            _write(client, mount, path, lambda _: dict(values))
    return changes


def _write(client: hvac.Client, mount: str, path: str, more: Callable[[Mapping[str, Any]], dict[str, str]]) -> None:
    """Add keys to a path with check-and-set, so that a value written meanwhile by another is kept.

    more
        Returns what is to be added to what is there.
    """
    for _ in range(ATTEMPTS):
        present, version = _read(client, mount, path)
        added = more(present)
        if not added:
            return
        try:
            client.secrets.kv.v2.create_or_update_secret(path, present | added, cas=version, mount_point=mount)
        except InvalidRequest as err:
            if "check-and-set" not in str(err):
                raise
            continue
        return
    raise PlatformError(
        "A secret kept being changed by others while keys were added to it", where=f"{mount}/{path}", hint="run again"
    )


def _read(client: hvac.Client, mount: str, path: str) -> tuple[dict[str, Any], int]:
    """Return the keys and the version at a path; version 0 where nothing was ever written."""
    try:
        reply = client.secrets.kv.v2.read_secret_version(path, mount_point=mount, raise_on_deleted_version=False)
    except InvalidPath:
        return {}, 0
    data = reply["data"]
    return dict(data["data"] or {}), int(data["metadata"]["version"])


def _audit(client: hvac.Client, wanted: Wanted, test: bool) -> Changes:
    present = client.sys.list_enabled_audit_devices()["data"]
    changes: Changes = {}
    for name, path in wanted.audit.items():
        old = present.get(f"{name}/", {}).get("options", {}).get("file_path")
        if old == path:
            continue
        changes[f"audit {name}"] = {"old": old, "new": path}
        if not test:
            if old:
                client.sys.disable_audit_device(name)
            client.sys.enable_audit_device("file", path=name, options={"file_path": path, "mode": "0600"})
    return changes


def _mounts(client: hvac.Client, wanted: Wanted, test: bool) -> Changes:
    changes: Changes = {}
    engine = client.sys.list_mounted_secrets_engines()["data"].get(f"{wanted.mount}/")
    if engine is None:
        changes[f"mount {wanted.mount}"] = {"old": None, "new": "kv version 2"}
        if not test:
            client.sys.enable_secrets_engine("kv", path=wanted.mount, options={"version": "2"})
            until(lambda: _versioned(client, wanted.mount), 30, 0.2, f"the new engine at {wanted.mount}/")
    elif engine["type"] != "kv" or (engine["options"] or {}).get("version") != "2":
        raise PlatformError(
            "Another engine is mounted where the secrets belong",
            where=f"{wanted.mount}/",
            expected="kv version 2",
            actual=f"{engine['type']} {engine['options'] or ''}",
            hint="set pillar vault:mount to a free path",
        )
    methods = client.sys.list_auth_methods()["data"]
    for mount in (MASTER_MOUNT, MINION_MOUNT):
        if f"{mount}/" not in methods:
            changes[f"login method {mount}"] = {"old": None, "new": "approle"}
            if not test:
                client.sys.enable_auth_method("approle", path=mount)
    return changes


def _versioned(client: hvac.Client, mount: str) -> bool:
    """Whether a new engine takes versions; for a moment after its mounting it refuses everything."""
    try:
        client.secrets.kv.v2.read_configuration(mount_point=mount)
    except InvalidRequest:
        return False
    return True


def _policies(client: hvac.Client, wanted: Wanted, test: bool) -> Changes:
    changes: Changes = {}
    names = set(client.sys.list_acl_policies()["data"]["keys"])
    for name, text in wanted.policies.items():
        old = client.sys.read_acl_policy(name)["data"]["policy"] if name in names else None
        if old != text:
            changes[f"policy {name}"] = {"old": old, "new": text}
            if not test:
                client.sys.create_or_update_acl_policy(name, text)
    for name in sorted(names - wanted.policies.keys()):
        if name.startswith(f"{POLICY_PREFIX}/"):
            changes[f"policy {name}"] = {"old": "present", "new": None}
            if not test:
                client.sys.delete_acl_policy(name)
    return changes


def _approles(client: hvac.Client, wanted: Wanted, test: bool) -> Changes:
    changes: Changes = {}
    for name, role in wanted.approles.items():
        present = _role(client, MASTER_MOUNT, name)
        different = diff(present, role)
        if different:
            changes[f"login {name}"] = different
            if not test:
                client.write_data(f"auth/{MASTER_MOUNT}/role/{name}", data=dict(role))
    if (
        not test
        and client.auth.approle.read_role_id(MASTER_ROLE, mount_point=MASTER_MOUNT)["data"]["role_id"] != MASTER_ROLE
    ):
        client.auth.approle.update_role_id(MASTER_ROLE, MASTER_ROLE, mount_point=MASTER_MOUNT)
    return changes


def _minion_roles(client: hvac.Client, wanted: Wanted, test: bool) -> Changes:
    """Take the logins of hosts away that are no longer in pillar."""
    try:
        present = set(client.list(f"auth/{MINION_MOUNT}/role")["data"]["keys"])
    except (InvalidPath, TypeError):
        return {}
    changes: Changes = {}
    for name in sorted(present - wanted.minions):
        changes[f"login {name}"] = {"old": "present", "new": None}
        if not test:
            client.auth.approle.delete_role(name, mount_point=MINION_MOUNT)
    return changes


def _role(client: hvac.Client, mount: str, name: str) -> dict[str, Any] | None:
    try:
        return dict(client.read(f"auth/{mount}/role/{name}")["data"])
    except (InvalidPath, TypeError):
        return None
