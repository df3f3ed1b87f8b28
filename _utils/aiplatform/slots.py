"""The slot table: which model stays loaded on which instance, with which options, under which names. Pure.

Ollama knows a loaded model by its weights and its load options (num_ctx, num_thread): another value in a request
makes it load again. So whatever stays resident has one set of options, and every name of it carries that set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aiplatform.ollama import normalise
from aiplatform.selection import slot_key

LOAD_OPTIONS = ("num_ctx", "num_thread")
NEXT = "next"
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
    name, _, tag = normalise(model).rpartition(":")
    own = bool(re.fullmatch(r"slot-\d+", name)) or name in {alias.lower() for alias in aliases}
    return own and tag in ("latest", NEXT)


def staged(name: str) -> str:
    """Return the name under which the next model of an alias is made and tried, before it takes its place."""
    return f"{name}:{NEXT}"


def chosen_model(number: int | str, slot: Mapping[str, Any], selection: Mapping[str, Any]) -> str | None:
    """Return a slot's model: the one that pillar names, else the benchmark's choice, else None."""
    model = slot.get("model") or selection.get(slot_key(int(number)))
    return str(model) if model else None


def model_key(number: int | str, slot: Mapping[str, Any]) -> str:
    """Return the key that says which model a slot has: pillar's, or the one of the benchmark's choice."""
    return f"slots.{number}.model" if slot.get("model") else f"selection.{slot_key(int(number))}"


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
    """Compile the table of a pillar that ``slot_rules.problems`` finds nothing wrong with.

    pillar
        The effective pillar: ``slots``, ``aliases``, ``models``, ``selection`` and ``ollama:instances``.
    threads
        The number of threads of each instance, from its NUMA plan; an instance without one leaves it to Ollama.
    """
    residents = _filled(pillar, threads)
    with_model = {name: row for name, row in sorted(pillar["aliases"].items()) if row.get("model")}
    own = [_own_resident(name, row, pillar, threads) for name, row in with_model.items()]
    joined = tuple(_joined(residents + own, known_weights(pillar["selection"])))
    return Table(joined, _absent(pillar), frozenset(pillar["aliases"]))


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
    return same_place and identity(one.model, weights) == identity(other.model, weights)


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
        sizes = [row["num_ctx"] for row in rows.values() if row.get("num_ctx") is not None]
        residents.append(
            Resident(
                name=technical_name(int(number)),
                key=model_key(number, slot),
                instance=slot["instance"],
                model=model,
                # The names of a slot that give one give the same one.
                num_ctx=next(iter(sizes), pillar["models"]["num_ctx"]),
                num_thread=threads.get(slot["instance"]),
                slot=int(number),
                kind=slot["kind"],
                aliases=tuple(Alias(name, row.get("system")) for name, row in rows.items()),
            )
        )
    return residents


def _own_resident(name: str, row: Mapping[str, Any], pillar: Mapping[str, Any], threads: Mapping[str, int]) -> Resident:
    instance = str(row.get("instance"))
    return Resident(
        name=name,
        key=f"aliases.{name}.model",
        instance=instance,
        model=row["model"],
        num_ctx=row.get("num_ctx") or pillar["models"]["num_ctx"],
        num_thread=threads.get(instance),
        system=row.get("system"),
    )


def known_weights(selection: Mapping[str, Any]) -> dict[str, str]:
    """Return ``{normalised name: weights digest}`` of the models that have been measured."""
    rows = {name: row.get("measured", {}) for name, row in selection.get("all_metrics", {}).items()}
    return {normalise(name): row["weights_digest"] for name, row in rows.items() if row.get("weights_digest")}


def identity(model: str, weights: Mapping[str, str]) -> str:
    """Return what makes a model itself: the digest of its weights as far as ``weights`` knows it, else its name."""
    name = normalise(model)
    return weights.get(name, name)


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
