"""What a slot table must not be: every mistake is found before anything is pulled or loaded. Pure.

Two looks: ``problems`` goes by pillar and the benchmark's selection, ``misfits`` by what the models are and what the
host has. Why each rule is one: ``docs/rotation.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiplatform import footprint, instances, origins, scoring, slots
from aiplatform.errors import PlatformError
from aiplatform.footprint import Shape
from aiplatform.ollama import normalise
from aiplatform.schema import Problem, is_tagged, one_of

ROTATING_SLOTS = (5, 6)
GIB = 2**30
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """What is known of a model; None where it is not.

    ``weights`` is the digest of its weights, ``size`` their bytes, ``answers`` whether it completes prompts.
    """

    weights: str | None = None
    size: int | None = None
    shape: Shape | None = None
    answers: bool | None = None


@dataclass(frozen=True)
class Node:
    """The memory, in bytes, that the models of the instances on one node may use together; ``name`` is for people."""

    name: str
    room: int
    instances: tuple[str, ...]


# -- by pillar and selection --------------------------------------------------------------------------------------


def problems(pillar: Settings) -> list[Problem]:
    """Return what is wrong with a slot table, by pillar and selection alone.

    pillar
        The effective pillar, each key of it as its schema wants it; an empty ``selection`` leaves the benchmark's
        choice out of account.
    """
    found = [problem for rule in (_places, _names, _alias_targets, _limits) for problem in rule(pillar)]
    # Which models stand beside each other can only be said of a table whose entries are right.
    return found or [problem for rule in (_twins, _kinds, _options) for problem in rule(pillar)]


def _places(pillar: Settings) -> Iterator[Problem]:
    known = pillar["ollama"]["instances"]
    for number, slot in pillar["slots"].items():
        if slot["instance"] not in known:
            yield Problem(f"slots.{number}.instance", slot["instance"], one_of(slot["instance"], known))
        if slot.get("model") and int(number) not in ROTATING_SLOTS:
            wanted = "null: only slots 5 and 6 rotate, the others are the benchmark's"
            yield Problem(f"slots.{number}.model", slot["model"], wanted)


def _names(pillar: Settings) -> Iterator[Problem]:
    """A model is named with its tag, and not by one of the names that the platform gives."""
    rows = [(f"slots.{number}.model", slot.get("model")) for number, slot in pillar["slots"].items()]
    rows += [(f"aliases.{name}.model", row.get("model")) for name, row in pillar["aliases"].items()]
    for key, model in rows:
        if model and not is_tagged(model):
            yield Problem(key, model, f"a model name with its tag, such as {model}:latest")
        elif model and slots.is_own_name(model, pillar["aliases"]):
            yield Problem(key, model, "a model: this is the name of a slot or an alias")


def _alias_targets(pillar: Settings) -> Iterator[Problem]:
    """An alias names a slot that exists, or a model and the instance where that is kept; not both."""
    known, places = {int(number): slot for number, slot in pillar["slots"].items()}, pillar["ollama"]["instances"]
    for name, row in pillar["aliases"].items():
        slot, model, place = row.get("slot"), row.get("model"), row.get("instance")
        if (slot is None) == (model is None):
            yield Problem(f"aliases.{name}", dict(row), "either slot: <number> or model: <name:tag>")
        elif model is not None and place not in places:
            wanted = f"{one_of(place, sorted(places))}: a model of its own needs a place"
            yield Problem(f"aliases.{name}.instance", place, wanted)
        elif slot is not None and slot not in known:
            yield Problem(f"aliases.{name}.slot", slot, one_of(slot, sorted(known)))
        elif slot is not None and place not in (None, known[slot]["instance"]):
            wanted = f"null: the alias is where slot {slot} is, on {known[slot]['instance']}"
            yield Problem(f"aliases.{name}.instance", place, wanted)


def _limits(pillar: Settings) -> Iterator[Problem]:
    """Ollama's own limit has a place for all that stays loaded, or Ollama evicts a slot."""
    given = pillar["ollama"].get("max_loaded_models")
    for instance in pillar["ollama"]["instances"]:
        least = instances.places(pillar, instance)
        if least == instances.SPARE_PLACES:
            continue  # nothing stays loaded there
        if given is not None and given < least:
            wanted = f"at least {least}, as instance {instance} keeps that many, an embedding and a new model included"
            yield Problem("ollama.max_loaded_models", given, wanted)


def _twins(pillar: Settings) -> Iterator[Problem]:
    """No weights are in two slots, whatever their names."""
    weights = slots.known_weights(pillar["selection"])
    table = slots.resolve(pillar, {})
    yield from _same_weights(table, lambda model: slots.identity(model, weights))


def _same_weights(table: slots.Table, identity: Callable[[str], str]) -> Iterator[Problem]:
    seen: dict[str, slots.Resident] = {}
    # What pillar says is what is wrong, where it meets the benchmark's choice.
    for resident in sorted(table.residents, key=lambda one: one.key.startswith("slots.")):
        if resident.slot:
            other = seen.setdefault(identity(resident.model), resident)
            if other is not resident:
                wanted = f"a model of its own: {other.name} holds these weights as {other.model}"
                yield Problem(resident.key, resident.model, wanted)


def _kinds(pillar: Settings) -> Iterator[Problem]:
    """A rotating slot gets a model of its kind, as far as the kind is known."""
    for number, slot in pillar["slots"].items():
        model = slot.get("model")
        kind = known_kind(model, pillar) if model else None
        if kind and kind != slot["kind"] and not slot.get("force"):
            forced = "(force: true in the slot takes it all the same)"
            wanted = f"a {slot['kind']} model: this one is of kind {kind} {forced}"
            yield Problem(f"slots.{number}.model", model, wanted)


def known_kind(model: str, pillar: Settings) -> str | None:
    """Return the kind of a model, by override, by the benchmark's figures or by its name; None where none says it."""
    measured = {normalise(name): row for name, row in pillar["selection"].get("all_metrics", {}).items()}
    kind = measured.get(normalise(model), {}).get("category")
    settings = pillar["benchmark"]
    return scoring.override(model, settings) or (str(kind) if kind else scoring.kind_by_name(model, settings))


def _options(pillar: Settings) -> Iterator[Problem]:
    """Ollama loads a model again whose options differ between two calls: all names of one agree on them."""
    for number in pillar["slots"]:
        rows = {name: row for name, row in sorted(pillar["aliases"].items()) if row.get("slot") == int(number)}
        sizes = {name: row["num_ctx"] for name, row in rows.items() if row.get("num_ctx") is not None}
        first, wanted = next(iter(sizes.items()), ("", None))
        for name, size in sizes.items():
            if size != wanted:
                text = f"{wanted}, as alias {first} of slot {number} has it: one model has one context size"
                yield Problem(f"aliases.{name}.num_ctx", size, text)
    weights = slots.known_weights(pillar["selection"])
    yield from _other_options(slots.resolve(pillar, {}), lambda model: slots.identity(model, weights))


def _other_options(table: slots.Table, identity: Callable[[str], str]) -> Iterator[Problem]:
    seen: dict[tuple[str, str], slots.Resident] = {}
    for resident in table.residents:
        other = seen.setdefault((resident.instance, identity(resident.model)), resident)
        if other.options != resident.options and not resident.slot:
            same = f"as {other.name} has it: they are the same weights on {resident.instance}"
            yield Problem(f"aliases.{resident.name}.num_ctx", resident.num_ctx, f"{other.num_ctx}, {same}")


# -- by the models and the host -----------------------------------------------------------------------------------


def nodes(bindings: Mapping[str, Mapping[str, Any]], reserve: int, limit: int | None) -> list[Node]:
    """Return the memory that the models on each node may use together, and under a limit all models.

    bindings
        What each instance gets, as ``numa.plan`` of the execution modules returns it.
    reserve
        Bytes of each node, and of what is limited, that are not for models.
    limit
        Bytes that the control groups of all services allow; None: no limit.
    """
    places: dict[int | None, list[str]] = {}
    for name, binding in bindings.items():
        places.setdefault(binding["node"], []).append(name)
    called = {node: "this host" if node is None else f"NUMA node {node}" for node in places}
    found = [(called[node], bindings[names[0]]["memory"], names) for node, names in places.items()]
    if limit is not None:
        found.append(("the control group of all services", limit, list(bindings)))
    return [Node(name, max(0, memory - reserve), tuple(instances)) for name, memory, instances in found]


def misfits(
    pillar: Settings,
    table: slots.Table,
    models: Mapping[str, Model],
    nodes: Iterable[Node],
    loaded: Mapping[str, int] | None = None,
    staying: Mapping[str, int] | None = None,
) -> list[Problem]:
    """Return what is wrong with a table by what its models are and what the host has.

    models
        What is known of each, by normalised name.
    nodes
        The memory that there is.
    loaded
        Bytes that each instance has loaded and is to unload only when what is new is in place, by instance.
    staying
        Bytes that each instance has loaded for clients that called other names; nobody unloads them.
    """

    def known(resident: slots.Resident) -> Model:
        return models.get(normalise(resident.model), Model())

    def identity(model: str) -> str:
        return models.get(normalise(model), Model()).weights or normalise(model)

    found = [*_same_weights(table, identity), *_other_options(table, identity)]
    for resident in table.residents:
        found += _unfit(pillar, resident, known(resident))
    for node in nodes:
        residents = [one for one in table.residents if one.instance in node.instances]
        # One instance after the other gets what is new, so what is replaced goes before the next one's comes.
        outgoing = max(((loaded or {}).get(name, 0) for name in node.instances), default=0)
        others = sum((staying or {}).get(name, 0) for name in node.instances)
        found += _crowded(pillar, residents, known, node, outgoing, others)
    return found


def _unfit(pillar: Settings, resident: slots.Resident, model: Model) -> Iterator[Problem]:
    if model.answers is False and resident.slot:
        yield Problem(resident.key, resident.model, "a model that answers prompts: this one only makes embeddings")
    trained = model.shape.context if model.shape else None
    if trained and resident.num_ctx > trained:
        wanted = f"at most {trained}, the context that {resident.model} of {resident.name} was trained with"
        yield Problem(_size_key(pillar, resident), resident.num_ctx, wanted)


def _size_key(pillar: Settings, resident: slots.Resident) -> str:
    """Return the key that gives a resident its num_ctx."""
    names = [alias.name for alias in resident.names]
    given = [name for name in names if pillar["aliases"].get(name, {}).get("num_ctx") is not None]
    return f"aliases.{given[0]}.num_ctx" if given else "models.num_ctx"


def needs(pillar: Settings, resident: slots.Resident, model: Model) -> int:
    """Return the bytes that a resident needs when it is loaded, as far as its model is known."""
    cache = footprint.working(model.shape, resident.num_ctx, pillar["ollama"]) if model.shape else 0
    return (model.size or 0) + cache


def _crowded(
    pillar: Settings,
    residents: list[slots.Resident],
    known: Callable[[slots.Resident], Model],
    node: Node,
    outgoing: int,
    staying: int,
) -> Iterator[Problem]:
    sizes = {one: needs(pillar, one, known(one)) for one in residents}
    total = sum(sizes.values()) + outgoing + staying
    if total <= node.room or not residents:
        return
    # What an operator can change first: a rotating slot, an alias's own model, then the largest.
    blamed = max(residents, key=lambda one: (one.key.startswith("slots."), not one.slot, sizes[one]))
    beside = sum(sizes.values()) - sizes[blamed]
    text = f"{_gib(sizes[blamed])} needed beside {_gib(beside)} of {len(residents) - 1} others"
    text += f" and {_gib(outgoing)} of what is replaced, which stays until the new one answers" if outgoing else ""
    text += f" and {_gib(staying)} that clients loaded by other names (ollama.unload)" if staying else ""
    wanted = f"models that fit {node.name}, which has {_gib(node.room)} for them: {text}"
    yield Problem(blamed.key, blamed.model, wanted)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


# -- how they are told --------------------------------------------------------------------------------------------


def refuse(found: Iterable[Problem], lines: Mapping[str, str] | None = None) -> None:
    """Raise ``PlatformError`` with every problem; nothing where there is none.

    lines
        The pillar file and line of each key, as ``origins.lines`` gives them.
    """
    texts = [str(origins.located(problem, lines or {})) for problem in found]
    if texts:
        raise PlatformError("The slot table is refused:\n  " + "\n  ".join(texts))


def compiled(pillar: Settings, threads: Mapping[str, int]) -> slots.Table:
    """Compile the table.

    pillar
        The effective pillar.
    threads
        The number of threads of each instance, as ``slots.resolve`` takes them.

    Raises ``PlatformError`` listing every entry that cannot be, with its key and line, its value and what was expected.
    """
    refuse(problems(pillar), pillar.get("origins"))
    return slots.resolve(pillar, threads)
