"""The key store: durable, private, and honest when it cannot store."""

import errno
import os
import stat

import pytest

from aiplatform import files, vault_keys
from aiplatform.errors import PlatformError
from aiplatform.vault_keys import KeyStore


@pytest.fixture
def store(tmp_path):
    return KeyStore(tmp_path / "keys")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_directory_and_files_are_private_whatever_the_umask(store):
    before = os.umask(0)
    try:
        store.ensure()
        store.write("init.json", {"keys": ["k"]})
    finally:
        os.umask(before)
    assert mode(store.path) == 0o700
    assert mode(store.path / "init.json") == 0o600


def test_an_open_directory_is_closed(store):
    store.path.mkdir(mode=0o755)
    store.probe()
    assert mode(store.path) == 0o700


def test_the_probe_leaves_nothing(store):
    store.probe()
    assert list(store.path.iterdir()) == []


def test_the_probe_refuses_a_full_file_system(store, monkeypatch):
    monkeypatch.setattr(vault_keys, "SPACE_NEEDED", 1 << 62)
    with pytest.raises(PlatformError, match=r"full.*Vault was not initialised"):
        store.probe()


def test_the_probe_refuses_what_does_not_take_files(store, monkeypatch):
    def no_space(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(PlatformError, match="No space left"):
        store.probe()
    assert list(store.path.iterdir()) == []


def test_a_write_that_fails_keeps_the_old_content(store, monkeypatch):
    store.ensure()
    store.write("init.json", {"keys": ["old"]})

    def broken(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(PlatformError):
        store.write("init.json", {"keys": ["new"]})
    monkeypatch.undo()
    assert store.read("init.json") == {"keys": ["old"]}
    assert [path.name for path in store.path.iterdir()] == ["init.json"]


def test_content_is_on_disk_before_it_takes_its_name(store, monkeypatch):
    store.ensure()
    order = []
    real_sync, real_rename = os.fsync, type(store.path).replace

    monkeypatch.setattr(files.os, "fsync", lambda handle: (order.append("sync"), real_sync(handle))[1])
    monkeypatch.setattr(
        type(store.path), "replace", lambda self, target: (order.append("rename"), real_rename(self, target))[1]
    )
    store.write("init.json", {})
    assert order == ["sync", "rename", "sync"]


def test_a_damaged_file_is_named(store):
    store.ensure()
    (store.path / "init.json").write_text("{")
    with pytest.raises(PlatformError, match=r"damaged.*init\.json.*backup"):
        store.read("init.json")


def test_what_is_not_there_reads_as_nothing(store):
    store.ensure()
    assert store.read("init.json") is None
    assert store.read_text("root-token") is None
    store.remove("init.json")


def test_a_second_bootstrap_is_refused_while_one_runs(store):
    with store.lock(), pytest.raises(PlatformError, match="under way"), KeyStore(store.path).lock():
        pass
    with store.lock():
        pass
