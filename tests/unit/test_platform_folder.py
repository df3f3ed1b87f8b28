"""Data of containers on the host: whose it is, and that an earlier owner's is carried over."""

from __future__ import annotations

import os

import pytest
import yaml

from _modules import platform_folder as module
from _states import platform_folder as state
from tests.conftest import CHECKOUT

UID = 21004


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder with data of user 1000: files, folders, a link; and what was done to it and to its container."""
    data = tmp_path / "data"
    (data / "storage/one").mkdir(parents=True)
    (data / "storage/one/file").write_text("vectors")
    (data / "storage/link").symlink_to("/etc/passwd")
    owners = dict.fromkeys([data, *data.rglob("*")], 1000)
    done: list = []

    def chown(path, uid, gid, follow_symlinks):
        assert (uid, gid, follow_symlinks) == (UID, UID, False)
        done.append(path)
        owners[path] = uid

    def shown(path):
        return f"{owners[path]}:{owners[path]} {path.stat().st_mode & 0o7777:04o}" if path in owners else None

    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(module, "_shown", shown)
    salt = {f"platform_folder.{name}": getattr(module, name) for name in ("owners", "own")}
    salt["platform_container.stop"] = done.append
    salt["platform_container.inspect"] = lambda name: {"Name": name} if name == "web" else None
    monkeypatch.setattr(state, "__salt__", salt, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    return data, owners, done


def owned(data, container="web"):
    return state.owned(str(data), UID, container, ["storage", "snapshots"])


def test_an_earlier_owners_data_is_carried_over_while_nobody_writes(folder):
    data, owners, done = folder
    ret = owned(data)
    assert ret["result"] is True
    assert ret["changes"][str(data / "snapshots")] == {"old": None, "new": f"{UID}:{UID} 0700"}
    assert set(owners.values()) == {UID}
    assert data / "storage/one/file" in owners
    assert (done[0], done[-1]) == ("web", data)


def test_where_it_is_right_nothing_is_walked_or_stopped(folder, monkeypatch):
    data, _, done = folder
    owned(data)
    done.clear()
    monkeypatch.setattr(module.Path, "rglob", None)
    assert owned(data)["changes"] == {}
    assert done == []


def test_ended_half_way_it_is_done_again(folder, monkeypatch):
    data, owners, _ = folder
    good = os.chown

    def broken(path, *args, **kwargs):
        if path.name == "file":
            raise KeyboardInterrupt
        good(path, *args, **kwargs)

    monkeypatch.setattr(os, "chown", broken)
    with pytest.raises(KeyboardInterrupt):
        owned(data)
    monkeypatch.setattr(os, "chown", good)
    assert owned(data)["changes"]
    assert set(owners.values()) == {UID}


def test_a_backup_that_was_put_back_is_noticed(folder):
    data, owners, _ = folder
    owned(data)
    owners |= {data / "storage": 1000, data / "storage/one/file": 1000}
    assert owned(data)["changes"].keys() == {str(data / "storage")}
    assert set(owners.values()) == {UID}


def test_the_first_run_and_a_dry_one(folder, monkeypatch, tmp_path):
    _, _, done = folder
    new = tmp_path / "new"
    monkeypatch.setattr(state, "__opts__", {"test": True})
    predicted = owned(new, "none")
    assert predicted["result"] is None
    assert not new.exists()
    monkeypatch.setattr(state, "__opts__", {"test": False})
    assert owned(new, "none")["changes"] == predicted["changes"]
    assert done[-1] == new
    assert new.stat().st_mode & 0o777 == 0o700


def test_what_a_folder_shows(tmp_path):
    tmp_path.chmod(0o750)
    shown = module.owners(str(tmp_path), ["none"])
    assert shown == {str(tmp_path): f"{os.getuid()}:{tmp_path.stat().st_gid} 0750", str(tmp_path / "none"): None}


def test_every_container_has_a_user_that_no_person_and_no_other_container_has():
    formulas = {path.parent.name: yaml.safe_load(path.read_text()) for path in CHECKOUT.glob("salt/*/defaults.yaml")}
    users = {name: found for name, rows in formulas.items() if (found := uid_of(rows.get(name) or {}))}
    assert {"postgres", "keycloak", "ollama", "qdrant", "openwebui", "coredns"} <= users.keys()
    assert len(set(users.values())) == len(users)
    # Numbers that distributions give to nobody; CoreDNS has that of its own image.
    assert {uid for uid in users.values() if not 21000 < uid < 22000} == {65532}


def uid_of(settings: dict) -> int | None:
    return settings.get("uid") or (settings.get("container") or {}).get("uid")
