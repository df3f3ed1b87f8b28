"""The slot table: which model stays loaded on which instance, with which options, under which names. Pure.

Ollama knows a loaded model by its weights and its load options (num_ctx, num_thread): another value in a request
makes it load again. So whatever stays resident has one set of options, and every name of it carries that set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aiplatform.errors import PlatformError
from aiplatform.ollama import normalise
from aiplatform.selection import slot_key

LOAD_OPTIONS = ("num_ctx", "num_thread")
_PARAMETER = re.compile(r"^(\S+)\s+(.*\S)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Alias:
    """A further name of a resident; ``system`` is its system prompt, None for the model's own."""

    name: str
    system: str | None = None


@dataclass(frozen=True)
class Resident:
    """A model that stays loaded on an instance.

    ``name`` is what the warm-up loads: ``slot-<number>``, or the name of an alias that has a model of its own.
    """

    name: str
    key: str
    instance: str
    model: str
    num_ctx: int
    num_thread: int | None
    slot: int | None = None
    kind: str | None = None
    system: str | None = None
    aliases: tuple[Alias, ...] = ()

    @property
    def options(self) -> dict[str, int]:
        """The load options, as Ollama's API takes them."""
        options = {"num_ctx": self.num_ctx, "num_thread": self.num_thread}
        return {key: value for key, value in options.items() if value is not None}

    @property
    def names(self) -> tuple[Alias, ...]:
        """Every name of the resident, the one that the warm-up loads first."""
        return (Alias(self.name, self.system), *self.aliases)


@dataclass(frozen=True)
class Table:
    """The compiled table.

    ``absent`` maps the names of slots that nothing fills to the instance they would be on; ``names`` are all names that
    the platform gives, those of absent ones included.
    """

    residents: tuple[Resident, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset()

    def on(self, instance: str) -> tuple[Resident, ...]:
        """Return the residents of one instance."""
        return tuple(resident for resident in self.residents if resident.instance == instance)

    def absent_on(self, instance: str) -> tuple[str, ...]:
        """Return the names that would be on this instance, had their slot a model."""
        return tuple(name for name, place in self.absent.items() if place == instance)


def technical_name(number: int) -> str:
    """Return the name that every slot answers to."""
    return f"slot-{number}"


def is_own_name(model: str, aliases: Iterable[str]) -> bool:
    """Return whether a model's name is one of the platform's own: an alias, or a slot's technical name."""
    name = normalise(model)
    return bool(re.fullmatch(r"slot-\d+:latest", name)) or name in {normalise(alias) for alias in aliases}


def chosen_model(number: int | str, slot: Mapping[str, Any], selection: Mapping[str, Any]) -> str | None:
    """Return a slot's model: the one that pillar names, else the benchmark's choice, else None."""
    model = slot.get("model") or selection.get(slot_key(int(number)))
    return str(model) if model else None


def filled(pillar: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return ``{instance: its slots that have a model}``, such as ``slot-1: llama3.1:8b``, by pillar alone.

    pillar
        The effective pillar: ``slots`` and ``selection``. Instances that no slot stands on are left out.
    """
    found: dict[str, list[str]] = {str(slot["instance"]): [] for slot in pillar["slots"].values()}
    for number, slot in sorted(pillar["slots"].items(), key=lambda item: int(item[0])):
        if model := chosen_model(number, slot, pillar["selection"]):
            found[slot["instance"]].append(f"{technical_name(int(number))}: {model}")
    return found


def resolve(pillar: Mapping[str, Any], threads: Mapping[str, int]) -> Table:
    """Compile the table.

    pillar
        The effective pillar: ``slots``, ``aliases``, ``models``, ``selection`` and ``ollama:instances``.
    threads
        The number of threads of each instance, from its NUMA plan; an instance without one leaves it to Ollama.

    Raises ``PlatformError`` listing every entry that cannot be, with its key, its value and what was expected.
    """
    residents = _filled(pillar, threads)
    with_model = {name: row for name, row in sorted(pillar["aliases"].items()) if row.get("model")}
    own = [_own_resident(name, row, pillar, threads) for name, row in with_model.items()]
    weights = known_weights(pillar["selection"])
    table = Table(tuple(_joined(residents + own, weights)), _absent(pillar), frozenset(pillar["aliases"]))
    refuse([*_misplaced(table, pillar), *problems(table, weights)])
    return table


def _joined(residents: Iterable[Resident], weights: Mapping[str, str]) -> list[Resident]:
    """Make an alias with a model of its own a further name of the resident that has the same weights and options."""
    joined: list[Resident] = []
    for resident in residents:
        place = next((at for at, other in enumerate(joined) if _same_runner(resident, other, weights)), None)
        if place is None or resident.slot:
            joined.append(resident)
        else:
            other = joined[place]
            joined[place] = replace(other, aliases=(*other.aliases, Alias(resident.name, resident.system)))
    return joined


def _same_runner(one: Resident, other: Resident, weights: Mapping[str, str]) -> bool:
    same_place = one.instance == other.instance and one.options == other.options
    return same_place and _identity(one, weights) == _identity(other, weights)


def _absent(pillar: Mapping[str, Any]) -> dict[str, str]:
    """Return ``{name: instance}`` of the names of slots without a model."""
    numbered = pillar["slots"].items()
    empty = {int(number): slot for number, slot in numbered if not chosen_model(number, slot, pillar["selection"])}
    found = {technical_name(number): str(slot["instance"]) for number, slot in sorted(empty.items())}
    for name, row in sorted(pillar["aliases"].items()):
        if not row.get("model") and row.get("slot") in empty:
            found[name] = str(empty[row.get("slot")]["instance"])
    return found


def _filled(pillar: Mapping[str, Any], threads: Mapping[str, int]) -> list[Resident]:
    residents = []
    for number, slot in sorted(pillar["slots"].items(), key=lambda item: int(item[0])):
        model = chosen_model(number, slot, pillar["selection"])
        if model is None:
            continue
        rows = {name: row for name, row in sorted(pillar["aliases"].items()) if row.get("slot") == int(number)}
        residents.append(
            Resident(
                name=technical_name(int(number)),
                key=f"slots.{number}.model",
                instance=slot["instance"],
                model=model,
                num_ctx=_sizes(f"slot {number}", rows) or pillar["models"]["num_ctx"],
                num_thread=threads.get(slot["instance"]),
                slot=int(number),
                kind=slot["kind"],
                aliases=tuple(Alias(name, row.get("system")) for name, row in rows.items()),
            )
        )
    return residents


def _sizes(target: str, rows: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Return the one num_ctx of the aliases of ``target``; None where none of them gives one."""
    given = {name: row["num_ctx"] for name, row in rows.items() if row.get("num_ctx") is not None}
    refuse(
        f"aliases.{name}.num_ctx: is {size}, expected {first}, as the other aliases of {target} have it"
        for name, size in given.items()
        if size != (first := next(iter(given.values())))
    )
    return next(iter(given.values()), None)


def _own_resident(name: str, row: Mapping[str, Any], pillar: Mapping[str, Any], threads: Mapping[str, int]) -> Resident:
    instance = row.get("instance")
    if instance not in pillar["ollama"]["instances"]:
        known = ", ".join(sorted(pillar["ollama"]["instances"]))
        refuse([f"aliases.{name}.instance: is {instance!r}, expected one of {known}: a model of its own needs a place"])
    return Resident(
        name=name,
        key=f"aliases.{name}.model",
        instance=str(instance),
        model=row["model"],
        num_ctx=row.get("num_ctx") or pillar["models"]["num_ctx"],
        num_thread=threads.get(str(instance)),
        system=row.get("system"),
    )


def _misplaced(table: Table, pillar: Mapping[str, Any]) -> Iterator[str]:
    instances = pillar["ollama"]["instances"]
    for resident in table.residents:
        if resident.instance not in instances:
            known = ", ".join(sorted(instances))
            yield f"slots.{resident.slot}.instance: is {resident.instance!r}, expected one of {known}"
        if ":" not in resident.model.rpartition("/")[2]:
            wanted = f"a name with its tag, such as {resident.model}:latest"
            yield f"{resident.key}: is {resident.model!r}, expected {wanted}"
        if is_own_name(resident.model, pillar["aliases"]):
            yield f"{resident.key}: is {resident.model!r}, expected a model: this is the name of a slot or an alias"


def known_weights(selection: Mapping[str, Any]) -> dict[str, str]:
    """Return ``{normalised name: weights digest}`` of the models that have been measured."""
    rows = {name: row.get("measured", {}) for name, row in selection.get("all_metrics", {}).items()}
    return {normalise(name): row["weights_digest"] for name, row in rows.items() if row.get("weights_digest")}


def problems(table: Table, weights: Mapping[str, str]) -> list[str]:
    """Return what is wrong between residents: one model in two slots, or with two sets of options on one instance.

    weights
        ``{normalised name: weights digest}`` as far as it is known; names that are not in it are compared as names.
    """
    found: list[str] = []
    seen: list[Resident] = []
    for resident in table.residents:
        for other in seen:
            if _identity(resident, weights) == _identity(other, weights):
                found += _conflict(resident, other)
        seen.append(resident)
    return found


def _identity(resident: Resident, weights: Mapping[str, str]) -> str:
    name = normalise(resident.model)
    return weights.get(name, name)


def _conflict(resident: Resident, other: Resident) -> Iterator[str]:
    if resident.slot and other.slot:
        same = f"{resident.key}: is {resident.model!r}, expected a model of its own"
        yield f"{same}: {other.name} holds these weights as {other.model}"
    elif resident.instance == other.instance and resident.options != other.options:
        wanted = f"{other.num_ctx}, as {other.name} has it: they are the same weights on {resident.instance}"
        yield f"aliases.{resident.name}.num_ctx: is {resident.num_ctx}, expected {wanted}"


def refuse(found: Iterable[str]) -> None:
    """Raise ``PlatformError`` with every problem; nothing where there is none."""
    lines = list(found)
    if lines:
        raise PlatformError("The slot table is refused:\n  " + "\n  ".join(lines))


def warmup_unit(unit: str) -> str:
    """Return the warm-up's unit: ``ollama-warmup-node0.service`` for the instance ``ollama-node0.service``."""
    return unit.replace("ollama", "ollama-warmup", 1)


def parameters(text: str) -> dict[str, list[str]]:
    """Return the parameters of ``/api/show`` in comparable form: {name: its values, sorted}.

    The order of the text is random, and a name may stand there several times (``stop``).
    """
    found: dict[str, list[str]] = {}
    for name, value in _PARAMETER.findall(text or ""):
        found.setdefault(name, []).append(value)
    return {name: sorted(values) for name, values in sorted(found.items())}


def described(show: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a reply of ``/api/show`` what makes one alias differ from another, its weights apart."""
    return {
        "parameters": parameters(str(show.get("parameters") or "")),
        "system": str(show.get("system") or ""),
        "template": str(show.get("template") or ""),
    }


def wanted_about(base: Mapping[str, Any], options: Mapping[str, int], system: str | None) -> dict[str, Any]:
    """Return what ``described`` of an alias must equal.

    base
        ``described`` of the model that it is made of.
    options
        Its load options; they take the place of the base's.
    system
        Its system prompt; None keeps the base's.
    """
    own = {key: [str(value)] for key, value in options.items()}
    return {
        "parameters": dict(sorted({**base["parameters"], **own}.items())),
        "system": base["system"] if system is None else system,
        "template": base["template"],
    }
