"""The slot table: what it compiles to, and what it refuses."""

from __future__ import annotations

import pytest
import yaml

from aiplatform import slots
from aiplatform.slots import Alias

THREADS = {"node1": 14, "node0": 12}


@pytest.fixture
def pillar(checkout):
    defaults = yaml.safe_load((checkout / "salt/models/defaults.yaml").read_text())
    # A resident beside the slots; these tests are about those.
    defaults["aliases"].pop("embedding", None)
    selection = {
        "slot1_general": "a:1", "slot2_general": "b:1", "slot5_general_rotate": "c:1",
        "slot3_coding": "d:1", "slot4_coding": "e:1", "slot6_coding_rotate": None,
        "all_metrics": {name: {"measured": {"weights_digest": name[0] * 64}} for name in ("a:1", "b:1", "d:1")},
    }  # fmt: skip
    return defaults | {"selection": selection, "ollama": {"instances": {"node1": {}, "node0": {}}}}


def by_name(table: slots.Table) -> dict[str, slots.Resident]:
    return {resident.name: resident for resident in table.residents}


def test_slots_follow_the_selection(pillar):
    found = by_name(slots.resolve(pillar, THREADS))
    assert {name: (one.model, one.instance) for name, one in found.items()} == {
        "slot-1": ("a:1", "node1"), "slot-2": ("b:1", "node1"), "slot-3": ("d:1", "node0"),
        "slot-4": ("e:1", "node0"), "slot-5": ("c:1", "node1"),
    }  # fmt: skip


def test_every_name_of_a_slot_carries_its_load_options(pillar):
    found = by_name(slots.resolve(pillar, THREADS))
    assert found["slot-3"].options == {"num_ctx": 32768, "num_thread": 12}
    assert found["slot-1"].options == {"num_ctx": 8192, "num_thread": 14}
    assert found["slot-5"].options == {"num_ctx": 8192, "num_thread": 14}
    assert [alias.name for alias in found["slot-3"].names] == ["slot-3", "coder-128k"]
    assert found["slot-3"].aliases[0].system.startswith("You are a careful senior programmer")


def test_threads_are_left_to_ollama_where_nothing_is_bound(pillar):
    assert by_name(slots.resolve(pillar, {}))["slot-1"].options == {"num_ctx": 8192}


def test_names_of_empty_slots_are_absent(pillar):
    table = slots.resolve(pillar, THREADS)
    assert table.absent == {"slot-6": "node0", "coder-rotate": "node0"}
    assert table.absent_on("node1") == ()


def test_no_selection_is_an_empty_table(pillar):
    table = slots.resolve(pillar | {"selection": {}}, THREADS)
    assert table.residents == ()
    assert len(table.absent) == 6 + 5


def test_pillar_rotates_a_slot(pillar):
    pillar["slots"][6]["model"] = "mine:7b"
    assert by_name(slots.resolve(pillar, THREADS))["slot-6"].model == "mine:7b"
    pillar["slots"][5]["model"] = "other:7b"
    assert by_name(slots.resolve(pillar, THREADS))["slot-5"].model == "other:7b"


def test_slot_numbers_may_be_text(pillar):
    pillar["slots"] = {str(number): slot for number, slot in pillar["slots"].items()}
    assert by_name(slots.resolve(pillar, THREADS))["slot-3"].aliases


def test_an_alias_with_a_model_of_its_own_is_resident(pillar):
    pillar["aliases"]["writer"] = {"model": "z:1", "instance": "node0", "system": "Write."}
    found = by_name(slots.resolve(pillar, THREADS))["writer"]
    assert (found.model, found.instance, found.num_ctx) == ("z:1", "node0", 8192)
    assert found.names == (Alias("writer", "Write."),)


def test_an_alias_of_a_slots_weights_and_options_shares_its_runner(pillar):
    pillar["aliases"]["writer"] = {"model": "d:1", "instance": "node0", "num_ctx": 32768}
    found = by_name(slots.resolve(pillar, THREADS))
    assert "writer" not in found
    assert [alias.name for alias in found["slot-3"].aliases] == ["coder-128k", "writer"]


def test_parameters_compare_whatever_their_order():
    one = 'stop                           "<b>"\nnum_ctx                        8192\nstop    "<a>"'
    other = 'num_ctx 8192\nstop "<a>"\nstop "<b>"\n'
    assert slots.parameters(one) == slots.parameters(other) == {"num_ctx": ["8192"], "stop": ['"<a>"', '"<b>"']}
    assert slots.parameters("") == {}


def test_wanted_alias_overrides_and_keeps(pillar):
    base = slots.described({"parameters": "num_ctx 4096\ntemperature 1", "system": "Base.", "template": "T"})
    assert slots.wanted_about(base, {"num_ctx": 8192, "num_thread": 4}, None) == {
        "parameters": {"num_ctx": ["8192"], "num_thread": ["4"], "temperature": ["1"]},
        "system": "Base.",
        "template": "T",
    }
    assert slots.wanted_about(base, {}, "Own.")["system"] == "Own."


def test_warmup_units():
    assert slots.warmup_unit("ollama.service") == "ollama-warmup.service"
    assert slots.warmup_unit("ollama-node0.service") == "ollama-warmup-node0.service"


def test_own_names():
    assert slots.is_own_name("slot-5", ["coder-32k"])
    assert slots.is_own_name("Coder-32k:latest", ["coder-32k"])
    assert not slots.is_own_name("coder-32k:7b", ["coder-32k"])
    assert slots.is_own_name(slots.staged("slot-5"), [])
    assert slots.is_own_name("coder-32k:next", ["coder-32k"])
    assert not slots.is_own_name("slot-x", [])
