"""What a slot table must not be: every seeded mistake is refused with key and line, no good table is."""

from __future__ import annotations

import re

import pytest
import yaml

from aiplatform import origins, slot_rules, slots
from aiplatform.errors import PlatformError
from aiplatform.slot_rules import Model, Node
from tests.unit import slot_tables

TABLES = 66


@pytest.mark.parametrize("seed", range(TABLES))
def test_a_good_table_is_no_alarm(seed, tmp_path):
    world, _ = slot_tables.good(seed)
    assert world.refused(tmp_path) == []


@pytest.mark.parametrize("seed", range(TABLES))
def test_a_mistake_is_refused_with_its_key(seed, tmp_path):
    name, world, keys = slot_tables.mistaken(seed)
    found = world.refused(tmp_path)
    named = [re.fullmatch(r"(\S+?)(?: \(\S+slots\.sls:(\d+)\))?: is .*", line, re.DOTALL) for line in found]
    hits = [match for match in named if match and match.group(1) in keys]
    assert hits, (name, keys, found)
    written = yaml.safe_dump(world.written, sort_keys=False).splitlines()
    for match in hits:
        key, line = match.groups()
        if line is None:
            assert name == "tiny_context" or key.startswith("aliases.coder"), (key, "written, and no line")
        else:
            # That of the key, or of the nearest one above it that is written there.
            assert written[int(line) - 1].strip().split(":")[0].strip("'\"") in key.split("."), (key, line)


def test_there_are_sixty_of_them_and_each_rule_is_broken():
    broken = {slot_tables.mistaken(seed)[0] for seed in range(TABLES)}
    assert TABLES >= 60
    assert len(broken) == len(slot_tables.MISTAKES)


@pytest.fixture
def world():
    return slot_tables.good(0)[0]


def test_force_takes_a_model_of_the_other_kind(tmp_path):
    name, wrong, (key,) = slot_tables.mistaken(slot_tables.MISTAKES.index(slot_tables.wrong_kind))
    (line,) = wrong.refused(tmp_path)
    assert line.startswith(key), name
    assert "force: true in the slot takes it all the same" in line
    wrong.written["slots"][int(key.split(".")[1])]["force"] = True
    wrong.nodes = []
    assert wrong.refused(tmp_path) == []


def test_what_is_replaced_counts_until_the_new_one_answers(world):
    merged = world.effective()
    table = slots.resolve(merged, slot_tables.THREADS)
    need = sum(slot_rules.needs(merged, one, world.models.get(one.model, Model())) for one in table.on("node1"))
    node = [Node("NUMA node 1", need, ("node1",))]
    assert slot_rules.misfits(merged, table, world.models, node) == []
    (problem,) = slot_rules.misfits(merged, table, world.models, node, {"node1": 3 * 2**30, "node0": 2**40})
    assert "3.0 GiB of what is replaced" in str(problem)


def test_two_instances_on_one_node_share_its_memory(world):
    merged = world.effective()
    table = slots.resolve(merged, slot_tables.THREADS)
    need = sum(slot_rules.needs(merged, one, world.models.get(one.model, Model())) for one in table.residents)
    assert slot_rules.misfits(merged, table, world.models, [Node("node 0", need, ("node0", "node1"))]) == []
    assert slot_rules.misfits(merged, table, world.models, [Node("node 0", need - 1, ("node0", "node1"))])


def test_instances_on_one_node_replace_one_after_the_other_beside_what_stays(world):
    merged = world.effective()
    table = slots.resolve(merged, slot_tables.THREADS)
    need = sum(slot_rules.needs(merged, one, world.models.get(one.model, Model())) for one in table.residents)
    node = [Node("node 0", need + 6 * 2**30, ("node0", "node1"))]
    replaced, staying = {"node1": 3 * 2**30, "node0": 2 * 2**30}, {"node1": 2 * 2**30, "node0": 2**30}
    assert slot_rules.misfits(merged, table, world.models, node, replaced, staying) == []
    staying["node0"] += 1
    (problem,) = slot_rules.misfits(merged, table, world.models, node, replaced, staying)
    assert "3.0 GiB of what is replaced" in str(problem)
    assert "3.0 GiB that clients loaded by other names" in str(problem)


def test_a_control_group_limits_the_models_of_all_nodes_together(world):
    merged = world.effective()
    table = slots.resolve(merged, slot_tables.THREADS)
    need = sum(slot_rules.needs(merged, one, world.models.get(one.model, Model())) for one in table.residents)
    bindings = {name: {"node": number, "memory": need} for number, name in enumerate(["node0", "node1"])}
    reserve = 2**30
    assert slot_rules.nodes(bindings, reserve, None) == [
        Node("NUMA node 0", need - reserve, ("node0",)), Node("NUMA node 1", need - reserve, ("node1",))
    ]  # fmt: skip
    whole = slot_rules.nodes(bindings, reserve, need + reserve)
    assert slot_rules.misfits(merged, table, world.models, whole) == []
    (problem,) = slot_rules.misfits(merged, table, world.models, slot_rules.nodes(bindings, reserve, need))
    assert "models that fit the control group of all services, which has" in str(problem)


def test_unknown_models_are_no_alarm(world):
    merged = world.effective()
    table = slots.resolve(merged, slot_tables.THREADS)
    assert slot_rules.misfits(merged, table, {}, [Node("node 1", 0, ("node1", "node0"))]) == []
    assert slot_rules.needs(merged, table.residents[0], Model()) == 0


def test_a_refusal_is_one_error_with_every_line(world):
    merged = world.effective() | {"origins": {"slots.5": "/srv/pillar/slots.sls:7"}}
    merged["slots"][5]["model"], merged["slots"][6]["model"] = "x:1", "X:1"
    merged["aliases"]["lost"] = {"slot": 9}
    with pytest.raises(PlatformError) as caught:
        slot_rules.compiled(merged, {})
    assert "aliases.lost.slot: is 9, expected one of 1, 2, 3, 4, 5, 6" in str(caught.value)
    del merged["aliases"]["lost"]
    with pytest.raises(PlatformError, match=r"slots\.6\.model: is 'X:1', expected a model of its own: slot-5"):
        slot_rules.compiled(merged, {})
    merged["slots"][5]["model"] = "slot-1:latest"
    with pytest.raises(PlatformError, match=r"slots\.5\.model \(/srv/pillar/slots\.sls:7\): is 'slot-1:latest'"):
        slot_rules.compiled(merged, {})


def test_yaml_with_jinja_has_no_lines_and_no_error(tmp_path):
    (tmp_path / "top.sls").write_text(yaml.safe_dump({"base": {"*": ["slots"]}}))
    (tmp_path / "slots.sls").write_text("{% set m = 'x:1' %}\nslots:\n  5: {model: {{ m }} }\n")
    assert origins.lines([str(tmp_path)], {"slots": {5: {"model": "x:1"}}}) == {}


def test_the_line_of_a_key_that_several_files_or_the_command_line_set_is_not_guessed(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for root, name, model in ((first, "slots", "a:1"), (second, "slots", "hidden:1"), (second, "more", "b:1")):
        root.mkdir(exist_ok=True)
        (root / f"{name}.sls").write_text(f"# who\nslots:\n  5: {{model: 'a:1'}}\n  6: {{model: '{model}'}}\n")
    roots = [str(first), str(second)]
    assert "slots.6.model" not in origins.lines(roots, {"slots": {6: {"model": "a:1"}}})
    (second / "more.sls").unlink()
    assert origins.lines(roots, {"slots": {6: {"model": "a:1"}}})["slots.6.model"] == f"{first}/slots.sls:4"
    assert "slots.6.model" not in origins.lines(roots, {"slots": {6: {"model": "by hand:1"}}})
