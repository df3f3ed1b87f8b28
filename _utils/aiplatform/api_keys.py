"""Keys of the Ollama API: made, listed and revoked by name; what is kept of one is its hash."""

from __future__ import annotations

import datetime
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import hvac
from hvac.exceptions import InvalidPath, InvalidRequest

from aiplatform.errors import NotFoundError, PlatformError
from aiplatform.vault import reported

PATH = "api-keys"
# The key that the platform's own services have, in Vault's path `ollama`. It may use every slot.
OWN = "platform"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
ATTEMPTS = 5

Rows = dict[str, dict[str, Any]]


def fingerprint(key: str) -> str:
    """Return what is kept of a key: a key is 256 bits by chance, so its plain hash gives nothing away."""
    return hashlib.sha256(key.encode()).hexdigest()


def new(name: str, slots: Iterable[int | str] | None, offered: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a new key, and the row that is kept of it.

    name
        Whose it is: small letters, digits, dots, dashes.
    slots
        Numbers of slots, and names of aliases that have a model of their own, one at least; None for all.
    offered
        The API's models by name, each with its ``slot``.

    Raises ``PlatformError`` where the name or a slot is none.
    """
    if not NAME.fullmatch(name) or name == OWN:
        raise PlatformError("This is no name for a key", expected=f"a name such as ci-tests, not {OWN}", actual=name)
    known = {row["slot"] for row in offered.values() if "slot" in row}
    known |= {model for model, row in offered.items() if "slot" not in row}
    own = None if slots is None else list(slots)
    strange = [slot for slot in own or [] if slot not in known]
    if strange or own == []:
        listed = ", ".join(sorted(map(str, known)))
        raise PlatformError("The API has no such slot", expected=f"some of {listed} (left out: all)", actual=strange)
    key = secrets.token_hex(32)
    row: dict[str, Any] = {
        "sha256": fingerprint(key),
        "created": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    return key, row | ({} if own is None else {"slots": own})


def for_proxy(rows: Mapping[str, Mapping[str, Any]], own: str) -> dict[str, dict[str, Any]]:
    """Return the proxy's file: ``{hash: {name, slots}}``; a key without ``slots`` may use all of them.

    rows
        What Vault keeps, by name.
    own
        The key of the platform's own services; empty where there is none.
    """
    found = {
        row["sha256"]: {"name": name} | ({"slots": row["slots"]} if "slots" in row else {})
        for name, row in sorted(rows.items())
    }
    return found | ({fingerprint(own): {"name": OWN}} if own else {})


class Store:
    """The keys in Vault."""

    def __init__(self, client: hvac.Client, mount: str, slug: str) -> None:
        self._client, self._mount, self._path = client, mount, f"{slug}/{PATH}"

    def rows(self) -> Rows:
        """Return what is kept, by name."""
        return self._read()[0]

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Keep a new key. Raises ``PlatformError`` where there is one of that name."""

        def change(rows: Rows) -> Rows:
            if name in rows:
                raise PlatformError(
                    "There is a key of this name already", actual=name, hint="revoke it, or take another name"
                )
            return rows | {name: dict(row)}

        self._change(change)

    def remove(self, name: str) -> None:
        """Forget a key. Raises ``NotFoundError`` where there is none of that name."""

        def change(rows: Rows) -> Rows:
            if name not in rows:
                raise NotFoundError(
                    "There is no key of this name", expected=", ".join(rows) or "none is there", actual=name
                )
            return {other: row for other, row in rows.items() if other != name}

        self._change(change)

    def _read(self) -> tuple[Rows, int]:
        kv = self._client.secrets.kv.v2
        with reported("reading the API's keys", self._client.url):
            try:
                reply = kv.read_secret_version(self._path, mount_point=self._mount, raise_on_deleted_version=False)
            except InvalidPath:
                return {}, 0
        return dict(reply["data"]["data"] or {}), int(reply["data"]["metadata"]["version"])

    def _change(self, change: Any) -> None:
        """Write with check-and-set, so that a change made meanwhile by another is kept."""
        for _ in range(ATTEMPTS):
            rows, version = self._read()
            wanted = change(rows)
            with reported("writing the API's keys", self._client.url):
                try:
                    self._client.secrets.kv.v2.create_or_update_secret(
                        self._path, wanted, cas=version, mount_point=self._mount
                    )
                except InvalidRequest as err:
                    if "check-and-set" not in str(err):
                        raise
                    continue
            return
        raise PlatformError("The keys kept being changed by others", where=self._path, hint="run again")
