"""Slots that are not loaded: noticed on the host, told to the master, loaded again."""

from __future__ import annotations

import json

import pytest
from salt.exceptions import CommandExecutionError

from _beacons import slots_cold
from _modules import model_slots
from _states import model_slots as states
from aiplatform import tending
from aiplatform.errors import PlatformError

MODELS = [
    {"name": "slot-1", "holds": "a:1", "num_ctx": 2048, "aliases": ["llama-family"]},
    {"name": "slot-5", "holds": "b:1", "num_ctx": 2048, "aliases": []},
]
TAGS = {"slot-1:latest": "d1", "llama-family:latest": "d2", "slot-5:latest": "d5"}


@pytest.fixture
def instance(httpserver, monkeypatch):
    """An instance that has loaded slot 1 by its alias, and slot 5."""
    loaded = {"d2": 2048, "d5": 2048}
    tags = {"models": [{"name": name, "digest": digest} for name, digest in TAGS.items()]}
    httpserver.expect_request("/api/tags").respond_with_json(tags)
    rows = [{"name": "x", "digest": digest, "context_length": size} for digest, size in loaded.items()]
    httpserver.expect_request("/api/ps").respond_with_handler(lambda _: reply(rows))
    httpserver.rows = rows
    httpserver.living = {httpserver.port: 2}
    monkeypatch.setattr(tending.numa, "living_runners", httpserver.living.get)
    return httpserver


def reply(rows):
    from werkzeug import Response

    return Response(json.dumps({"models": rows}), content_type="application/json")


def wanted(instance, **more):
    return {"node1": {"url": instance.url_for("").rstrip("/"), "models": MODELS} | more}


def test_nothing_is_wrong_where_all_is_loaded_under_whatever_name(instance):
    assert tending.neglected(wanted(instance)) == {}


def test_a_slot_that_is_not_loaded_or_with_another_context_is_named(instance):
    instance.rows[1]["context_length"] = 4096
    assert tending.neglected(wanted(instance)) == {"node1": "not loaded: slot-5 (b:1)"}
    instance.rows.clear()
    assert tending.neglected(wanted(instance)) == {"node1": "not loaded: slot-1 (a:1), slot-5 (b:1)"}


def test_a_runner_that_has_ended_is_noticed_though_ollama_still_lists_it(instance):
    instance.living[instance.port] = 1
    assert tending.neglected(wanted(instance)) == {"node1": "ended: 1 of 2 runners"}


def test_an_instance_that_does_not_answer_is_named(instance):
    assert tending.neglected(wanted(instance, url="http://127.0.0.1:1")) == {"node1": tending.SILENT}


def test_an_error_inside_ollama_is_no_alarm(httpserver):
    httpserver.expect_request("/api/tags").respond_with_data("", status=500)
    assert tending.neglected(wanted(httpserver)) == {}


def test_what_was_last_served_is_read(tmp_path):
    (tmp_path / "warmup-node1.json").write_text(json.dumps({"url": "u", "models": []}))
    (tmp_path / "warmup-node0.json").write_text(json.dumps({"refused": "why"}))
    (tmp_path / "warmup-broken.json").write_text("{")
    assert tending.settings(tmp_path) == {"node1": {"url": "u", "models": []}}


@pytest.fixture
def beacon(monkeypatch):
    found: dict[str, str] = {}
    monkeypatch.setattr(slots_cold, "__salt__", {"model_slots.neglected": lambda: dict(found)}, raising=False)
    clock = [1000.0]
    monkeypatch.setattr(slots_cold.time, "monotonic", lambda: clock[0])
    slots_cold._seen.clear()
    slots_cold._told.clear()
    slots_cold.found, slots_cold.clock = found, clock
    return slots_cold


def test_the_second_look_tells_and_then_not_for_a_while(beacon):
    config = [{"interval": 5}, {"again": 60}]
    beacon.found["node1"] = "not loaded: slot-5 (b:1)"
    assert beacon.beacon(config) == []
    event = {"tag": "node1", "instance": "node1", "about": "not loaded: slot-5 (b:1)"}
    assert beacon.beacon(config) == [event]
    assert beacon.beacon(config) == []
    beacon.clock[0] += 61
    assert beacon.beacon(config) == [event]


def test_what_is_well_again_is_forgotten(beacon):
    beacon.found["node1"] = "x"
    beacon.beacon([])
    beacon.found.clear()
    assert beacon.beacon([]) == []
    beacon.found["node1"] = "x"
    assert beacon.beacon([]) == []


@pytest.mark.parametrize(("again", "good"), [(60, True), (0.5, True), (0, False), ("soon", False)])
def test_the_beacons_configuration(again, good):
    assert slots_cold.validate([{"interval": 5}, {"again": again}])[0] is good


@pytest.fixture
def host(monkeypatch, tmp_path):
    calls: list[tuple] = []
    salt = {
        "saltutil.is_running": lambda fun: [],
        "service.restart": lambda unit: calls.append(("restart", unit)),
    }
    instances = {"node1": {"unit": "ollama.service"}, "node0": {"unit": "ollama-node0.service"}}
    monkeypatch.setattr(model_slots, "__salt__", salt, raising=False)
    monkeypatch.setattr(model_slots, "__opts__", {"cachedir": str(tmp_path)}, raising=False)
    monkeypatch.setattr(model_slots, "__pillar__", {"ollama": {"instances": instances}}, raising=False)
    monkeypatch.setattr(model_slots, "warm_up", lambda name: calls.append(("warm", name)))
    model_slots.calls, model_slots.salt = calls, salt
    return model_slots


def found(monkeypatch, **about):
    monkeypatch.setattr(tending, "settings", dict)
    monkeypatch.setattr(tending, "neglected", lambda _: about)


def test_what_is_cold_is_warmed_and_what_is_silent_restarted_first(host, monkeypatch):
    found(monkeypatch, node1="not loaded: slot-1 (a:1)", node0=tending.SILENT, gone="not loaded: slot-9 (z:1)")
    assert host.tend().keys() == {"node1", "node0", "gone"}
    assert host.calls == [("warm", "node1"), ("restart", "ollama-node0.service"), ("warm", "node0")]


@pytest.mark.parametrize("running", ["state.*", "benchmark.*", "ollama.wipe"])
def test_nothing_is_done_while_states_run_or_models_are_measured(host, monkeypatch, running):
    found(monkeypatch, node1=tending.SILENT)
    host.salt["saltutil.is_running"] = lambda fun: [{"fun": running}] if fun == running else []
    assert host.tend() == {"skipped": f"{running} is being run"}
    assert host.calls == []


def test_two_at_once_are_one(host, monkeypatch, tmp_path):
    found(monkeypatch, node1=tending.SILENT)
    with tending.alone(tmp_path) as first:
        assert first
        assert host.tend() == {"skipped": "another one is at it"}
    assert host.tend() == {"node1": tending.SILENT}


@pytest.mark.parametrize("dry", [True, False])
def test_the_watch_is_told_to_the_minion(monkeypatch, tmp_path, dry):
    told = []
    salt = {
        "beacons.delete": lambda name: told.append(("delete", name)),
        "beacons.add": lambda name, options: told.append(("add", name, options)) or {"result": True},
    }
    monkeypatch.setattr(states, "__salt__", salt, raising=False)
    monkeypatch.setattr(states, "__opts__", {"test": dry, "conf_file": str(tmp_path / "minion")}, raising=False)
    ret = states.watched("slots_cold", interval=7)
    assert ret["result"] is (None if dry else True)
    options = [{"interval": 7}, {"disable_during_state_run": True}]
    assert told == ([] if dry else [("delete", "slots_cold"), ("add", "slots_cold", options)])
    if not dry:
        assert states.watched("slots_cold", interval=7)["changes"] == {}
        salt["beacons.add"] = lambda *_: {"result": False, "comment": "not available"}
        assert "not available" in states.watched("slots_cold", interval=8)["comment"]


def test_a_warmup_that_fails_is_told(host, monkeypatch):
    def fail(name):
        raise PlatformError(f"{name} is cold")

    found(monkeypatch, node1="not loaded: slot-1 (a:1)")
    monkeypatch.setattr(model_slots, "warm_up", fail)
    with pytest.raises(PlatformError, match="node1 is cold"):
        host.tend()


def test_an_instance_that_stays_cold_does_not_keep_the_others_cold(host, monkeypatch):
    """Neither where its warm-up fails, nor where its unit cannot be restarted."""

    def restart(unit):
        raise CommandExecutionError(f"{unit} is masked")

    def warm(name):
        host.calls.append(("warm", name))
        if name == "node1":
            raise PlatformError("node1 is cold")

    host.salt["service.restart"] = restart
    monkeypatch.setattr(model_slots, "warm_up", warm)
    found(monkeypatch, node1="not loaded: slot-1 (a:1)", node0="not loaded: slot-3 (c:1)")
    with pytest.raises(PlatformError, match="node1 is cold"):
        host.tend()
    assert host.calls == [("warm", "node1"), ("warm", "node0")]
    found(monkeypatch, node1=tending.SILENT, node0="not loaded: slot-3 (c:1)")
    with pytest.raises(PlatformError, match=r"ollama\.service is masked"):
        host.tend()
    assert host.calls[2:] == [("warm", "node0")]
