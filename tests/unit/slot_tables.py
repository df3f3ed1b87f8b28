"""Slot tables made by chance from a seed: good ones, and good ones with one mistake in them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

from aiplatform import footprint, origins, schema, settings, slot_rules, slots
from aiplatform.ollama import normalise
from aiplatform.slot_rules import Model, Node
from tests.conftest import CHECKOUT

TREE = CHECKOUT / "salt"
GIB = 2**30
THREADS = {"node1": 14, "node0": 12}
PLATFORM = yaml.safe_load((CHECKOUT / "pillar/platform.sls").read_text())
LOCKED = {"slot1_general": "general", "slot2_general": "general", "slot3_coding": "coding", "slot4_coding": "coding"}
ROTATING = {5: ("general", "slot5_general_rotate"), 6: ("coding", "slot6_coding_rotate")}


@dataclass
class World:
    """What an operator writes, what the benchmark chose, what the models are, and the memory that there is."""

    written: dict
    selection: dict
    models: dict[str, Model]
    nodes: list[Node] = field(default_factory=list)

    def effective(self) -> dict:
        return settings.effective(PLATFORM | self.written, TREE) | {"selection": self.selection}

    def refused(self, tmp_path) -> list[str]:
        """Every problem, as an operator reads it; the pillar lies in a file."""
        (tmp_path / "slots.sls").write_text(yaml.safe_dump(self.written, sort_keys=False))
        merged = self.effective()
        found = schema.problems(merged, TREE, PLATFORM | self.written) or slot_rules.problems(merged)
        if not found:
            found = slot_rules.misfits(merged, slots.resolve(merged, THREADS), self.models, self.nodes)
        lines = origins.lines([str(tmp_path)], merged)
        return [str(origins.located(problem, lines)) for problem in found]


def good(seed: int) -> tuple[World, random.Random]:
    """A table that nothing is wrong with, and the chance that made it."""
    chance = random.Random(seed)
    animals = ["lion", "bear", "wolf", "crow"]
    names = [f"{chance.choice(animals)}{number}:{chance.randint(1, 70)}b" for number in range(20)]
    models = {name: model(chance) for name in names}
    kinds = {name: chance.choice(["general", "coding"]) for name in names}
    take = {kind: [name for name in names if kinds[name] == kind] for kind in ("general", "coding")}
    for kind in take:  # enough of each
        take[kind] += [add(models, f"{kind}{number}:7b", chance) for number in range(8)]
    chosen = {key: take[kind].pop() if chance.random() < 0.9 else None for key, kind in LOCKED.items()}
    chosen |= {key: take[kind].pop() for kind, key in ROTATING.values()}
    kinds |= {name: kind for kind in take for name in models if name.startswith(kind)}
    measured = {
        name: {"measured": {"weights_digest": one.weights}, "category": kinds[name]} for name, one in models.items()
    }
    models["nomic-embed-text:v1.5"] = model(random.Random(0), answers=False)  # the default's embedding model
    written = {"slots": {}, "aliases": {}, "ollama": {}}
    for number, (kind, _) in ROTATING.items():
        held = chance.choice([None, take[kind].pop(), add(models, f"fresh{number}:9b", chance)])
        written["slots"][number] = {"model": held}
    for number in range(chance.randint(0, 4)):
        size = chance.choice([None, 4096, 8192])
        slot = chance.choice([5, 1])
        if slot == 1:
            size = None  # llama-family has one of its own
        row = {"slot": slot} if chance.random() < 0.6 else own_model(models, f"own{number}:3b", size, chance)
        written["aliases"][f"name{number}"] = row
    if chance.random() < 0.5:
        written["ollama"]["max_loaded_models"] = chance.randint(12, 20)
    world = World(written, chosen | {"all_metrics": measured}, models)
    world.nodes = nodes(world, chance)
    return world, chance


def model(chance: random.Random, **more) -> Model:
    digest = "".join(chance.choice("0123456789abcdef") for _ in range(64))
    layers, heads = chance.randint(16, 48), chance.choice([4, 8])
    shape = footprint.Shape("llama", layers, (heads,) * layers, 256, 4096, 128256, 131072, 0)
    return Model(**{"weights": digest, "size": chance.randint(1, 12) * GIB, "shape": shape, "answers": True} | more)


def add(models: dict, name: str, chance: random.Random, **more) -> str:
    models[name] = model(chance, **more)
    return name


def own_model(models: dict, name: str, size: int | None, chance: random.Random) -> dict:
    place = chance.choice(["node1", "node0"])
    return {"model": add(models, name, chance), "instance": place} | ({"num_ctx": size} if size else {})


def nodes(world: World, chance: random.Random) -> list[Node]:
    """As much memory as is needed, and by chance more."""
    merged = world.effective()
    table = slots.resolve(merged, THREADS)
    found = []
    for name in ("node1", "node0"):
        need = sum(
            slot_rules.needs(merged, one, world.models.get(normalise(one.model), Model())) for one in table.on(name)
        )
        found.append(Node(f"NUMA {name}", int(need * chance.uniform(1, 2)), (name,)))
    return found


# -- mistakes: each changes a good table and returns the keys, one of which must be refused -----------------------


def unknown_instance(world: World, chance: random.Random):
    number = chance.randint(1, 6)
    world.written["slots"].setdefault(number, {})["instance"] = chance.choice(["node2", "Node1", "gpu"])
    return [f"slots.{number}.instance"]


def locked_slot(world: World, chance: random.Random):
    number = chance.randint(1, 4)
    world.written["slots"][number] = {"model": add(world.models, "mine:7b", chance)}
    return [f"slots.{number}.model"]


def untagged(world: World, chance: random.Random):
    number = chance.choice([5, 6])
    world.written["slots"][number]["model"] = chance.choice(["llama3.1", "10.0.0.1:5000/library/llama3.1", "x:"])
    return [f"slots.{number}.model"]


def one_name_twice(world: World, chance: random.Random):
    name = add(world.models, "twice:7b", chance)
    other = chance.choice([name, name.upper(), f"registry.ollama.ai/library/{name}", f"library/{name}"])
    world.written["slots"] = {5: {"model": name, "force": True}, 6: {"model": other, "force": True}}
    return ["slots.5.model", "slots.6.model"]


def one_model_under_two_names(world: World, chance: random.Random):
    first = add(world.models, "first:7b", chance)
    world.models["second:7b"] = world.models[first]
    world.written["slots"] = {5: {"model": first}, 6: {"model": "second:7b"}}
    return ["slots.5.model", "slots.6.model"]


def weights_of_a_locked_slot(world: World, chance: random.Random):
    held = add(world.models, "held:7b", chance)
    world.selection["slot1_general"] = held
    world.models["copy:7b"] = world.models[held]
    number = chance.choice([5, 6])
    world.written["slots"][number] = {"model": chance.choice(["copy:7b", "held:7b", "HELD:7B"])}
    return [f"slots.{number}.model"]


def platform_name(world: World, chance: random.Random):
    number = chance.choice([5, 6])
    names = ["slot-3:latest", "coder-32k:latest", "llama-family:latest", "slot-5:next"]
    world.written["slots"][number]["model"] = chance.choice(names)
    return [f"slots.{number}.model"]


def alias_of_nothing(world: World, chance: random.Random):
    world.written["aliases"]["lost"] = chance.choice([{}, {"num_ctx": 8192}, {"system": "Be brief."}])
    return ["aliases.lost"]


def alias_of_two_things(world: World, chance: random.Random):
    world.written["aliases"]["both"] = {"slot": chance.randint(1, 6), "model": "mine:7b", "instance": "node1"}
    return ["aliases.both"]


def alias_without_a_slot(world: World, chance: random.Random):
    world.written["aliases"]["lost"] = {"slot": chance.choice([0, 7, 9, -1])}
    return ["aliases.lost.slot"]


def alias_without_a_place(world: World, chance: random.Random):
    row = {"model": add(world.models, "placeless:3b", chance)}
    world.written["aliases"]["lost"] = row | chance.choice([{}, {"instance": "node7"}, {"instance": "Node1"}])
    return ["aliases.lost.instance"]


def alias_elsewhere(world: World, chance: random.Random):
    number = chance.randint(1, 6)
    place = "node0" if number in (1, 2, 5) else "node1"
    world.written["aliases"]["lost"] = {"slot": number, "instance": place}
    return ["aliases.lost.instance"]


def two_sizes_of_a_slot(world: World, chance: random.Random):
    world.written["aliases"]["fast"] = {"slot": 3, "num_ctx": chance.choice([2048, 4096, 32767])}
    return ["aliases.fast.num_ctx", "aliases.coder-128k.num_ctx"]


def two_sizes_of_one_blob(world: World, chance: random.Random):
    held = add(world.models, "held:7b", chance)
    if chance.random() < 0.5:
        world.selection["slot3_coding"] = held
        world.models["copy:7b"] = world.models[held]
        world.written["aliases"]["fast"] = {"model": "copy:7b", "instance": "node0", "num_ctx": 4096}
        return ["aliases.fast.num_ctx"]
    for name, size in (("fast", 4096), ("long", 8192)):
        world.written["aliases"][name] = {"model": held, "instance": "node1", "num_ctx": size}
    return ["aliases.fast.num_ctx", "aliases.long.num_ctx"]


def few_places(world: World, chance: random.Random):
    world.written["ollama"]["max_loaded_models"] = chance.randint(1, 4)
    return ["ollama.max_loaded_models"]


def wrong_kind(world: World, chance: random.Random):
    number, kind = chance.choice([(5, "coding"), (6, "general")])
    name = add(world.models, "other-coder:7b" if kind == "coding" else "chatty:7b", chance)
    if kind == "general" or chance.random() < 0.5:
        world.selection["all_metrics"][name] = {"measured": {}, "category": kind}
    world.written["slots"][number] = {"model": name}
    return [f"slots.{number}.model"]


def longer_than_trained(world: World, chance: random.Random):
    shape = footprint.Shape("llama", 16, (8,) * 16, 256, 4096, 128256, 2048, 0)
    name = add(world.models, "short:7b", chance, shape=shape, size=1)
    world.written["slots"][6] = {"model": name}
    return ["aliases.coder-rotate.num_ctx"]


def embeddings_in_a_slot(world: World, chance: random.Random):
    number = chance.choice([5, 6])
    world.written["slots"][number] = {"model": add(world.models, "embedder:1", chance, answers=False, size=1)}
    return [f"slots.{number}.model"]


def weights_beyond_the_node(world: World, chance: random.Random):
    number = chance.choice([5, 6])
    name = add(world.models, "huge:400b", chance, size=chance.randint(500, 900) * GIB)
    world.written["slots"][number] = {"model": name}
    return [f"slots.{number}.model"]


def cache_beyond_the_node(world: World, chance: random.Random):
    shape = footprint.Shape("llama", 126, (64,) * 126, 256, 16384, 128256, 2**22, 0)
    name = add(world.models, "deep:9b", chance, size=GIB, shape=shape)
    world.written["slots"][6] = {"model": name}
    world.written["aliases"]["coder-rotate"] = {"num_ctx": 2**20}
    return ["slots.6.model"]


def name_of_a_slot(world: World, chance: random.Random):
    world.written["aliases"][f"slot-{chance.randint(1, 9)}"] = {"slot": 1}
    return ["aliases"]


def tiny_context(world: World, chance: random.Random):
    world.written["models"] = {"num_ctx": chance.choice([0, 3, -1])}
    return ["models.num_ctx"]


MISTAKES: list[Callable[[World, random.Random], list[str]]] = [
    unknown_instance, locked_slot, untagged, one_name_twice, one_model_under_two_names, weights_of_a_locked_slot,
    platform_name, alias_of_nothing, alias_of_two_things, alias_without_a_slot, alias_without_a_place, alias_elsewhere,
    two_sizes_of_a_slot, two_sizes_of_one_blob, few_places, wrong_kind, longer_than_trained, embeddings_in_a_slot,
    weights_beyond_the_node, cache_beyond_the_node, name_of_a_slot, tiny_context,
]  # fmt: skip


def mistaken(seed: int) -> tuple[str, World, list[str]]:
    """A table with one mistake: its name, the table, and the keys one of which must be refused."""
    world, chance = good(seed)
    world = copy.deepcopy(world)
    mistake = MISTAKES[seed % len(MISTAKES)]
    return mistake.__name__, world, mistake(world, chance)
