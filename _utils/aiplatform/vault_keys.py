"""The directory on the master that holds what Vault's initialisation yields.

Losing these files loses Vault, so every write is proven durable: a temporary file with mode 0600, fsync, rename,
fsync of the directory.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiplatform.errors import PlatformError
from aiplatform.files import sync_directory, write_durably

DEFAULT_PATH = "/etc/salt/vault-keys"
KEYS = "init.json"
MARKER = "init-started.json"
ROOT_TOKEN = "root-token"  # noqa: S105 - a file's name
SPACE_NEEDED = 1024 * 1024


class KeyStore:
    """Files that only their owner reads, written so that a crash leaves the old or the new content."""

    def __init__(self, path: str | Path = DEFAULT_PATH) -> None:
        self.path = Path(path)

    def ensure(self) -> None:
        """Make the directory, and close it to everybody but its owner."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as err:
            raise self._refused("cannot be made private", err) from err

    def open_to(self) -> str:
        """Return the mode of the directory where others than its owner may enter it, such as ``0755``; else empty."""
        mode = self.path.stat().st_mode & 0o777 if self.path.is_dir() else 0o700
        return "" if mode == 0o700 else f"{mode:04o}"

    def probe(self) -> None:
        """Prove that a file can be stored here for good, before anything is done that cannot be undone.

        Raises ``PlatformError`` where the directory is not writable or its file system is full.
        """
        self.ensure()
        free = shutil.disk_usage(self.path).free
        if free < SPACE_NEEDED:
            raise PlatformError(
                "The key store's file system is full",
                where=str(self.path),
                expected=f"{SPACE_NEEDED} bytes free",
                actual=f"{free} bytes free",
                hint="free space there and run again; Vault was not initialised",
            )
        content = {"probe": secrets.token_hex(16)}
        self.write("probe.json", content)
        if self.read("probe.json") != content:
            raise PlatformError("The key store returned other content than was written", where=str(self.path))
        self.remove("probe.json")

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Store ``content`` as JSON under ``name``, completely or not at all."""
        self.write_bytes(name, (json.dumps(content, indent=2) + "\n").encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Store ``content`` under ``name``, completely or not at all."""
        target = self.path / name
        try:
            write_durably(target, content, 0o600)
        except OSError as err:
            raise self._refused(f"did not take {name}", err) from err

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object stored under ``name``, or None where there is none."""
        target = self.path / name
        try:
            content = json.loads(target.read_text())
        except FileNotFoundError:
            return None
        except OSError as err:
            raise self._refused(f"cannot be read ({name})", err) from err
        except ValueError as err:
            raise PlatformError(
                "A file of the key store is damaged",
                where=str(target),
                expected="a JSON object",
                actual=str(err),
                hint="restore it from the backup of the key store; nothing was changed",
            ) from err
        return dict(content)

    def read_text(self, name: str) -> str | None:
        """Return the text stored under ``name``, or None where there is none."""
        try:
            return (self.path / name).read_text()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise self._refused(f"cannot be read ({name})", err) from err

    def remove(self, name: str) -> None:
        """Delete ``name``, and have that survive a power cut."""
        (self.path / name).unlink(missing_ok=True)
        sync_directory(self.path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second bootstrap out. Raises ``PlatformError`` where one is under way."""
        self.ensure()
        with (self.path / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise PlatformError(
                    "Another bootstrap of Vault is under way",
                    where=str(self.path / ".lock"),
                    hint="wait for it to end and run again",
                ) from err
            yield

    def _refused(self, what: str, err: OSError) -> PlatformError:
        return PlatformError(
            f"The key store {what}",
            where=str(self.path),
            expected="a directory that this user can write, mode 0700",
            actual=f"{type(err).__name__}: {err.strerror}",
            hint="mend that or set pillar vault:key_store, then run again",
        )
