"""The runner of the API's keys: who gets to see a key, and when a proxy has not heard."""

from __future__ import annotations

import json
import stat

import pytest

from _runners import api_key
from aiplatform import api_keys

PILLAR = {
    "platform": {"hosts": {"nginx_proxy": {"address": "192.0.2.30", "roles": ["nginx_proxy"]}}},
}


class Kept:
    def __init__(self):
        self.kept = {}

    def rows(self):
        return self.kept

    def add(self, name, row):
        if name in self.kept:
            raise api_key.PlatformError("There is a key of this name already")
        self.kept[name] = row

    def remove(self, name):
        del self.kept[name]


@pytest.fixture
def kept(monkeypatch):
    found = Kept()
    told = {"nginx_proxy": True}
    dunders = {"__opts__": {}, "__context__": {}, "__salt__": {"salt.execute": lambda *_args, **_kwargs: told}}
    for name, value in dunders.items():
        monkeypatch.setattr(api_key, name, value, raising=False)
    monkeypatch.setattr(api_key.settings, "load", lambda _opts: PILLAR)
    monkeypatch.setattr(api_key.sites, "routes", lambda _pillar: {"models": {"slot-3": {"slot": 3}, "embedding": {}}})
    monkeypatch.setattr(api_key, "_store", lambda _pillar: found)
    found.told = told
    return found


def test_the_key_is_in_the_file_and_in_no_answer(kept, tmp_path):
    file = tmp_path / "key"
    answer = api_key.create("ci", slots="3, embedding", file=str(file))
    key = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kept.kept["ci"]["sha256"] == api_keys.fingerprint(key)
    assert kept.kept["ci"]["slots"] == [3, "embedding"]
    assert key not in json.dumps(answer)
    assert key not in json.dumps(kept.kept)
    assert answer["retcode"] == 0
    assert "sha256" not in json.dumps(api_key.list_())


def test_without_a_place_to_show_it_no_key_is_made(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(api_key.shown_once, "TERMINAL", tmp_path / "none")
    assert "terminal" in api_key.create("ci")["error"]
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert "new file" in api_key.create("ci", file=str(taken))["error"]
    assert taken.read_text() == "mine"
    assert kept.kept == {}


def test_a_refused_key_leaves_no_file(kept, tmp_path):
    kept.kept["ci"] = {}
    assert api_key.create("ci", file=str(tmp_path / "key"))["retcode"] == 1
    assert not (tmp_path / "key").exists()


def test_a_proxy_that_did_not_hear_is_named(kept):
    kept.kept["ci"] = {}
    kept.told["nginx_proxy"] = "Minion did not return"
    answer = api_key.revoke("ci")
    assert answer["retcode"] == api_key.__context__["retcode"] == 1
    assert answer["proxies"] == {"nginx_proxy": "Minion did not return"}
    assert kept.kept == {}


@pytest.mark.parametrize(
    ("given", "expected"), [(None, None), ("", [""]), (3, [3]), ("3,4", [3, 4]), ([1, "embedding"], [1, "embedding"])]
)
def test_slots_as_people_write_them(given, expected):
    assert api_key._slots(given) == expected


@pytest.mark.parametrize("slots", [[], "", ","])
def test_a_key_for_no_slot_is_none_for_all(kept, tmp_path, slots):
    answer = api_key.create("ci", slots=slots, file=str(tmp_path / "key"))
    assert "some of 3, embedding (left out: all)" in answer["error"]
    assert kept.kept == {}
