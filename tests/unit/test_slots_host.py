"""The slots of one host: two instances over one store, and what its module and states make of them."""

from __future__ import annotations

import types

import pytest
import yaml

from _modules import model_slots
from _states import model_slots as states
from aiplatform import footprint, registry, rotation, settings
from aiplatform.errors import PlatformError
from aiplatform.ollama import InstanceDown, ServerFailed
from tests.conftest import CHECKOUT
from tests.unit.test_slots_serving import Ollama

GIB = 2**30
RESERVE = 2 * GIB
SIZES = {"locked:1": ("a", 4), "held:1": ("b", 6), "new:1": ("c", 8), "other:1": ("d", 5), "guest:1": ("f", 3)}


class Host:
    """Slots 1 (``locked:1``) and 5 (``held:1``) on node1, slot 3 (``other:1``) on node0: two nodes with much memory."""

    def __init__(self) -> None:
        self.node1 = Ollama()
        self.node0 = Ollama(self.node1.models)
        for name, (weights, size) in SIZES.items():
            self.node1.add(name, weights, size=size * GIB)
        self.rooms = {"node1": 64 * GIB, "node0": 64 * GIB}
        self.blobs = types.SimpleNamespace(
            blob=self.node1.blob, take_places=self.node1.take_places, damaged=lambda model: {}
        )
        written = yaml.safe_load((CHECKOUT / "pillar/platform.sls").read_text())
        self.pillar = settings.effective(written, CHECKOUT / "salt")
        self.pillar["slots"] = {number: self.pillar["slots"][number] for number in (1, 3, 5)}
        self.pillar["aliases"] = {}
        selection = {"slot1_general": "locked:1", "slot3_coding": "other:1", "slot5_general_rotate": "held:1"}
        self.pillar |= {"selection": selection, "origins": {}}

    def plan(self):
        return {
            name: {"node": number, "memory": self.rooms[name] + RESERVE, "num_thread": 8}
            for number, name in enumerate(("node0", "node1"))
        }

    def hold(self, model: str) -> None:
        self.pillar["slots"][5]["model"] = model


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The host in service, with its module and its states bound to it."""
    found = Host()
    called = {
        "numa.plan": found.plan,
        "numa.topology": lambda: {"limits": {"memory": None}},
        "pillar.items": lambda unmask: found.pillar,
        "service.show": lambda unit: {},
        "service.status": lambda unit: True,
    }
    functions = {key: one for key, one in vars(model_slots).items() if isinstance(one, types.FunctionType)}
    called |= {f"model_slots.{key}": one for key, one in functions.items() if not key.startswith("_")}
    opts = {"cachedir": str(tmp_path), "file_client": "local", "test": False}
    for module in (model_slots, states):
        for name, value in (("__pillar__", found.pillar), ("__salt__", called), ("__opts__", opts)):
            monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(model_slots, "client", lambda instance: getattr(found, instance))
    monkeypatch.setattr(model_slots, "_blobs", lambda: found.blobs)
    monkeypatch.setattr(footprint, "available", lambda: 64 * GIB)
    for name in ("node1", "node0"):
        model_slots.converge(name)
    return found


def fails(*answers):
    """What a client is told, one answer a call: an error, or what the function returns."""
    left = list(answers)

    def call():
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer()

    return call


# -- how each slot is ---------------------------------------------------------------------------------------------


def loaded():
    return {row["name"]: row["loaded"] for row in model_slots.status()}


def test_an_error_of_ollama_while_a_runner_goes_away_is_asked_away(host):
    host.node1.ps = fails(ServerFailed("Ollama refused: no reason given (HTTP 500)"), host.node1.ps)
    assert loaded() == {"slot-1": True, "slot-3": True, "slot-5": True}
    assert model_slots.foreign("node1") == []


@pytest.mark.parametrize("error", [ServerFailed, InstanceDown])
def test_an_instance_that_fails_hides_no_slot_of_the_other(host, error):
    host.node1.ps = fails(error("no"))
    assert loaded() == {"slot-1": False, "slot-3": True, "slot-5": False}


# -- what a node has no memory for --------------------------------------------------------------------------------


def test_what_is_replaced_stays_beside_the_new_one(host):
    host.rooms["node1"] = 18 * GIB
    assert model_slots.misfits(5, "new:1") == []
    host.rooms["node1"] -= 1
    (why,) = model_slots.misfits(5, "new:1")
    assert "8.0 GiB needed beside 4.0 GiB of 1 others and 6.0 GiB of what is replaced" in why


def test_what_clients_loaded_by_other_names_stays_beside_the_new_one(host):
    host.node1.load("guest:1")
    host.rooms["node1"] = 21 * GIB
    assert model_slots.misfits(5, "new:1") == []
    host.rooms["node1"] -= 1
    (why,) = model_slots.misfits(5, "new:1")
    assert "3.0 GiB that clients loaded by other names" in why
    # What is loaded beside them has found its room.
    host.rooms["node1"] = 10 * GIB
    assert model_slots.refuse()


def test_an_edit_of_pillar_that_does_not_fit_is_refused_before_any_pull(host, monkeypatch):
    pulled = []
    monkeypatch.setitem(states.__salt__, "model_slots.pull_all", pulled.extend)
    monkeypatch.setattr(registry, "ask", lambda *_: registry.Remote("e" * 64, 8 * GIB))
    host.hold("incoming:1")
    host.rooms["node1"] = 18 * GIB - 1
    state = states.pulled("models-pulled")
    assert (state["result"], pulled) == (False, [])
    assert "6.0 GiB of what is replaced" in state["comment"]
    # An instance that does not answer has nothing loaded.
    host.node1.ps = fails(InstanceDown("no"))
    assert states.pulled("models-pulled")["result"] is True
    assert pulled == ["incoming:1"]


def test_the_hosts_memory_is_looked_at_before_a_load(host, monkeypatch):
    """Ollama would make room with what is locked."""
    monkeypatch.setattr(footprint, "available", lambda: 8 * GIB - 1)
    host.hold("new:1")
    host.node1.log.clear()
    with pytest.raises(PlatformError, match=r"no memory to load new:1.*slot-5 still serves held:1"):
        model_slots.converge("node1")
    assert "load slot-5:next" not in host.node1.log
    monkeypatch.setattr(footprint, "available", lambda: 8 * GIB)
    model_slots.converge("node1")
    assert loaded() == {"slot-1": True, "slot-3": True, "slot-5": True}


# -- a state that fails half-way ----------------------------------------------------------------------------------


def test_a_failure_half_way_tells_what_was_done_before(host, monkeypatch):
    host.pillar["selection"]["slot1_general"] = "guest:1"
    host.hold("new:1")
    load = host.node1.load

    def fail(name, **more):
        if name == "slot-5:next" and more.get("keep_alive") != 0:
            raise ServerFailed("The load failed")
        load(name, **more)

    monkeypatch.setattr(host.node1, "load", fail)
    state = states.served("node1")
    assert state["result"] is False
    assert "slot-5 still serves held:1" in state["comment"]
    assert [row["phase"] for row in rotation.phases({"a": state | {"result": True}})] == [
        "stage", "load", "answer", "move", "unload", "stage",
    ]  # fmt: skip
    (unloaded,) = (key for key in state["changes"] if key.startswith("slot-1:next"))
    assert state["changes"] == {
        "slot-1": {"model": {"old": "locked:1", "new": "guest:1"}},
        "slot-1 loaded": {"old": None, "new": "guest:1"},
        unloaded: {"old": "loaded", "new": None},
    }
    # The same again, with its cause mended, does and tells the rest.
    monkeypatch.setattr(host.node1, "load", load)
    state = states.served("node1")
    assert (state["result"], "slot-5" in state["changes"], "slot-1" in state["changes"]) == (True, True, False)


@pytest.mark.parametrize("loads", [True, False])
def test_a_first_question_that_fails_tells_whether_the_model_was_loaded(host, monkeypatch, loads):
    host.hold("new:1")

    def fail(name, *_, **__):
        if loads:
            host.node1.load(name)
        raise ServerFailed("The template is wrong")

    monkeypatch.setattr(host.node1, "chat", fail)
    comment = states.served("node1")["comment"]
    assert "slot-5 stage" in comment
    assert ("slot-5 load" in comment) is loads
    assert "slot-5 answer" not in comment


def test_a_failure_tells_no_changes_where_the_instance_cannot_say_what_it_has(host, monkeypatch):
    host.hold("new:1")

    def die(name, **_):
        host.node1.ps = host.node1.tags = fails(InstanceDown("Nothing answers"))
        raise InstanceDown("Nothing answers")

    monkeypatch.setattr(host.node1, "load", die)
    state = states.served("node1")
    assert (state["result"], state["changes"]) == (False, {})
    assert "slot-5 still serves held:1" in state["comment"]
