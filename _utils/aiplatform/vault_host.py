"""Vault on its own host: binary, configuration, key and storage. Touches files only; services are the module's."""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiplatform import vault_tls
from aiplatform.errors import PlatformError
from aiplatform.files import sync_directory, text_of, write_durably
from aiplatform.release import ARCHITECTURES
from aiplatform.vault_policy import end, url

CONFIG_DIR = Path("/etc/vault.d")
CONFIG = CONFIG_DIR / "vault.json"
TLS_DIR = CONFIG_DIR / "tls"
KEY = "vault.key"
CERTIFICATE = "vault.crt"
# What the running process was started with; the unit's ExecStartPre copies it there.
STARTED_WITH = Path("/run/vault")
STORAGE_ID = ".storage-id"
BINARY = "vault"


def configuration(platform: Mapping[str, Any], port: int, minion: str) -> dict[str, Any]:
    """Return Vault's configuration.

    platform
        Pillar ``platform``.
    port
        The port that clients reach; the next one serves the (single) member's raft traffic on loopback.
    minion
        The id of the host.
    """
    address = platform["hosts"][minion]["address"]
    shared = {
        "tls_cert_file": str(TLS_DIR / CERTIFICATE),
        "tls_key_file": str(TLS_DIR / KEY),
        "tls_min_version": "tls12",
        "cluster_address": f"127.0.0.1:{port + 1}",
    }
    raft = {
        "path": f"{platform['data_root']}/vault/data",
        "node_id": minion,
        # The only member need not wait long for others before it leads: serving 1 s after a start, not 10.
        "performance_multiplier": 1,
    }
    return {
        "ui": True,
        # Raft's memory map does not go with mlock; the unit keeps the process out of swap instead.
        "disable_mlock": True,
        "storage": {"raft": raft},
        "listener": [
            {"tcp": shared | {"address": end(address, port)}},
            {"tcp": shared | {"address": f"127.0.0.1:{port}"}},
        ],
        "api_addr": url(address, port),
        "cluster_addr": f"https://127.0.0.1:{port + 1}",
    }


def release_present(install_dir: Path, version: str) -> bool:
    """Whether the binary of ``version`` is unpacked, completely."""
    # The folder appears by a rename, so it is complete where it is there.
    return os.access(install_dir / version / BINARY, os.X_OK)


def release_archive(version: str, source: str, hashes: str | Mapping[str, str], machine: str) -> tuple[str, str]:
    """Return URL and hash of the release's archive for a processor.

    source
        The URL with ``{version}`` and ``{arch}``.
    hashes
        The hash, or one by architecture.
    machine
        The processor as the kernel names it.

    Raises ``PlatformError`` for a processor that none is known for.
    """
    arch = ARCHITECTURES.get(machine, machine)
    wanted = hashes if isinstance(hashes, str) else hashes.get(arch, "")
    if not wanted:
        raise PlatformError(
            "No hash is known of Vault's release for this processor",
            where=f"pillar vault:source_hash:{arch}",
            expected=" or ".join(hashes),
            actual=machine,
            hint="take it from upstream's list of checksums",
        )
    return source.format(version=version, arch=arch), wanted


def unpack(archive: Path, install_dir: Path, version: str) -> None:
    """Unpack the zip ``archive`` into ``install_dir/version``, completely or not at all."""
    draft = install_dir / f".{version}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True, mode=0o755)
        with zipfile.ZipFile(archive) as content:
            content.extract(BINARY, draft)
        (draft / BINARY).chmod(0o755)
        shutil.rmtree(install_dir / version, ignore_errors=True)
        draft.rename(install_dir / version)
    except (OSError, KeyError, zipfile.BadZipFile) as err:
        shutil.rmtree(draft, ignore_errors=True)
        raise PlatformError(
            "Vault's release cannot be unpacked",
            where=str(install_dir / version),
            expected=f"a zip archive with the file {BINARY}, and room for it",
            actual=str(err),
            hint="look at pillar vault:source, and at the free space there",
        ) from err


def check_hash(archive: Path, expected: str, source: str) -> None:
    """Compare the SHA-256 of ``archive``; ``expected`` is ``sha256=<hex>`` or the bare hex digits.

    Raises ``PlatformError`` naming both.
    """
    wanted = expected.removeprefix("sha256=").lower()
    with archive.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != wanted:
        raise PlatformError(
            "The downloaded release is not the pinned one; nothing was installed",
            where=source,
            expected=f"sha256={wanted}",
            actual=f"sha256={actual}",
            hint="check pillar vault:source and vault:source_hash against upstream's list of checksums",
        )


def key_present(tls_dir: Path) -> bool:
    """Whether the host has a key and a certificate that fits it."""
    key, certificate = tls_dir / KEY, tls_dir / CERTIFICATE
    return key.is_file() and certificate.is_file() and vault_tls.matches(certificate.read_text(), key.read_text())


def make_key(tls_dir: Path, names: Sequence[str], group: int) -> None:
    """Make the host's key where absent, and a certificate of its own that serves until the master signs one.

    names
        What that certificate is valid for, the common name first.
    group
        The id of the group that may read the key.
    """
    key = tls_dir / KEY
    if not key.is_file():
        write_durably(key, vault_tls.new_key().encode(), 0o640)
    os.chown(key, 0, group)
    own = vault_tls.self_signed(key.read_text(), names[0], names)
    write_durably(tls_dir / CERTIFICATE, own.encode(), 0o644)


def request(tls_dir: Path, minion: str) -> dict[str, str]:
    """Return ``csr`` and ``certificate`` (PEM) of this host; empty where it has no key yet."""
    if not key_present(tls_dir):
        return {}
    return {
        "csr": vault_tls.request((tls_dir / KEY).read_text(), minion),
        "certificate": (tls_dir / CERTIFICATE).read_text(),
    }


def install_certificate(tls_dir: Path, certificate: str) -> None:
    """Put ``certificate`` (PEM) in place. Raises ``PlatformError`` where it is not for this host's key."""
    if not vault_tls.matches(certificate, (tls_dir / KEY).read_text()):
        raise PlatformError("The certificate is for another key than this host's", where=str(tls_dir / KEY))
    write_durably(tls_dir / CERTIFICATE, certificate.encode(), 0o644)


def storage_id(data_dir: Path) -> str:
    """Return the identity of a storage; empty where it has none yet."""
    return text_of(data_dir / STORAGE_ID).strip()


def mark_storage(data_dir: Path) -> str:
    """Give a storage an identity where it has none. It tells an own, interrupted start from an earlier life."""
    identity = storage_id(data_dir) or str(uuid.uuid4())
    write_durably(data_dir / STORAGE_ID, f"{identity}\n".encode(), 0o644)
    return identity


def set_aside(data_dir: Path, identity: str) -> Path:
    """Rename the storage of that identity and make an empty one like it, with a new identity.

    Returns the path that the old one has now. Raises ``PlatformError`` where another storage is in place.
    """
    if storage_id(data_dir) != identity:
        raise PlatformError(
            "Another storage is in place than the one to set aside",
            where=str(data_dir),
            expected=identity,
            actual=storage_id(data_dir) or "none",
        )
    present = data_dir.stat()
    stamp = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}"
    aside = data_dir.with_name(f"{data_dir.name}.aside-{stamp}")
    fresh = data_dir.with_name(f".{data_dir.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o750)
    os.chown(fresh, present.st_uid, present.st_gid)
    mark_storage(fresh)
    data_dir.rename(aside)
    fresh.rename(data_dir)
    sync_directory(data_dir.parent)
    return aside


def restart_reason(pairs: Mapping[Path, Path], running: Path | None, installed: Path) -> str:
    """Say what the running Vault does not use yet; empty where it is up to date.

    pairs
        File in place -> the copy of it that Vault was started with.
    running
        The binary that runs, or None where none does.
    installed
        The binary that should run.
    """
    if running is None:
        return ""
    if running != installed.resolve():
        return f"it runs {running}"
    for wanted, started in pairs.items():
        if not started.is_file() or started.read_bytes() != wanted.read_bytes():
            return f"{wanted} changed since it started"
    return ""
