"""Keys of the API: what is kept of them, and who may use what."""

from __future__ import annotations

import json

import pytest
from hvac.exceptions import InvalidPath, InvalidRequest

from aiplatform import api_keys
from aiplatform.errors import NotFoundError, PlatformError

OFFERED = {
    "slot-1": {"instance": "node1", "slot": 1},
    "llama-family": {"instance": "node1", "slot": 1},
    "embedding": {"instance": "node1"},
}


class Vault:
    """A KV path with check-and-set."""

    url = "https://vault"

    def __init__(self, rows=None, rivals=0):
        self.rows, self.version, self.rivals = rows, int(rows is not None), rivals
        self.secrets = type("Secrets", (), {"kv": type("Kv", (), {"v2": self})})

    def read_secret_version(self, path, mount_point, raise_on_deleted_version):
        assert (path, mount_point, raise_on_deleted_version) == ("acme/api-keys", "secret", False)
        if self.rows is None:
            raise InvalidPath
        return {"data": {"data": dict(self.rows), "metadata": {"version": self.version}}}

    def create_or_update_secret(self, path, rows, cas, mount_point):
        if self.rivals:
            self.rivals -= 1
            self.rows, self.version = (self.rows or {}) | {f"rival{self.rivals}": {}}, self.version + 1
        if cas != self.version:
            raise InvalidRequest("check-and-set parameter did not match the current version")
        self.rows, self.version = rows, self.version + 1


def store(vault):
    return api_keys.Store(vault, "secret", "acme")


def test_a_key_is_kept_as_its_hash_only():
    key, row = api_keys.new("ci", [1, "embedding"], OFFERED)
    other, _ = api_keys.new("ci", None, OFFERED)
    assert len(key) == 64
    assert key != other
    assert key not in json.dumps(row)
    assert row["sha256"] == api_keys.fingerprint(key)
    assert row["slots"] == [1, "embedding"]


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "../x", "platform", "-x", "x" * 64, 'a"b'])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(PlatformError, match="no name"):
        api_keys.new(name, None, OFFERED)


@pytest.mark.parametrize("slots", [[2], ["llama-family"], ["1"], [1, 9], []])
def test_a_slot_that_the_api_has_not_is_refused(slots):
    with pytest.raises(PlatformError, match="some of 1, embedding"):
        api_keys.new("ci", slots, OFFERED)


def test_the_proxy_gets_hashes_names_and_slots():
    rows = {"ci": {"sha256": "aa", "created": "x", "slots": [1]}, "all": {"sha256": "bb", "created": "x"}}
    found = api_keys.for_proxy(rows, "own key")
    assert found == {
        "aa": {"name": "ci", "slots": [1]},
        "bb": {"name": "all"},
        api_keys.fingerprint("own key"): {"name": "platform"},
    }
    assert api_keys.for_proxy({}, "") == {}
    assert api_keys.for_proxy({"none": {"sha256": "cc", "slots": []}}, "") == {"cc": {"name": "none", "slots": []}}


def test_keys_come_and_go_one_by_one():
    vault = Vault()
    keys = store(vault)
    assert keys.rows() == {}
    keys.add("a", {"sha256": "1"})
    keys.add("b", {"sha256": "2"})
    with pytest.raises(PlatformError, match="already"):
        keys.add("a", {"sha256": "3"})
    keys.remove("a")
    assert keys.rows() == {"b": {"sha256": "2"}}
    with pytest.raises(NotFoundError, match="b"):
        keys.remove("a")


def test_what_others_write_meanwhile_is_kept():
    vault = Vault({}, rivals=2)
    store(vault).add("a", {"sha256": "1"})
    assert set(vault.rows) == {"a", "rival0", "rival1"}
    with pytest.raises(PlatformError, match="by others"):
        store(Vault({}, rivals=9)).add("a", {"sha256": "1"})
