"""What a benchmark measures where, what it keeps of an earlier run, and what it leaves out and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aiplatform import scoring
from aiplatform.errors import PlatformError
from aiplatform.ollama import normalise
from aiplatform.slots import is_own_name

# What two measurements must have in common to be comparable.
CONDITIONS = ("suite", "ollama_version", "hardware", "num_ctx", "num_thread")
ALIAS = "an alias"
# What of a record is for this host alone: the answers, and what follows from the rest.
_PRIVATE = frozenset({"samples", "kind", "executed", "wall_s", "model_s"})


@dataclass(frozen=True)
class Installed:
    """A model of the store; ``size`` in bytes of its file. ``answers`` is False for embedding models."""

    name: str
    size: int
    weights_digest: str
    answers: bool = True


@dataclass(frozen=True)
class Task:
    """A model to measure on an instance."""

    model: str
    instance: str
    size: int
    weights_digest: str


@dataclass(frozen=True)
class Plan:
    """What a run measures, and why it measures nothing else."""

    tasks: tuple[Task, ...]
    kept: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


# -- what to measure ------------------------------------------------------------------------------------------------


def wanted(settings: Mapping[str, Any]) -> list[str]:
    """Return the models that the operator wants measured, each once: baseline, candidates, and those named.

    settings
        Pillar ``benchmark``.
    """
    candidates = [row["name"] for row in settings["candidate_models"]]
    names = [*settings["baseline_models"], *candidates, *settings["models"]]
    return list({normalise(name): name for name in names}.values())


def plan(
    installed: Iterable[Installed],
    records: Mapping[str, Mapping[str, Any]],
    pillar: Mapping[str, Any],
    conditions: Mapping[str, Mapping[str, Any]],
) -> Plan:
    """Return what is to be measured where.

    installed
        The store's models.
    records
        What has been measured, by weights digest.
    pillar
        The effective pillar: ``benchmark``, ``slots``, ``aliases``.
    conditions
        For each instance what a record must have in common with now: the ``CONDITIONS``.

    Raises ``PlatformError`` where ``benchmark:models`` names one that is not installed.
    """
    settings = pillar["benchmark"]
    models, skipped = distinct(installed, pillar)
    wanted = {normalise(name) for name in settings["models"]}
    _refuse_unknown(wanted, models, skipped)
    tasks, kept = [], []
    for model in models:
        record = records.get(model.weights_digest, {})
        instance = instance_of(kind_before(model.name, record, settings), pillar["slots"])
        if wanted and normalise(model.name) not in wanted:
            skipped[model.name] = "not among benchmark:models"
        elif not settings["fresh"] and is_current(record, instance, conditions[instance], settings):
            kept.append(model.name)
        else:
            tasks.append(Task(model.name, instance, model.size, model.weights_digest))
    return Plan(tuple(tasks), tuple(kept), skipped)


def distinct(installed: Iterable[Installed], pillar: Mapping[str, Any]) -> tuple[list[Installed], dict[str, str]]:
    """Leave out names that are not models to choose, and second names of the same weights."""
    unwanted = {normalise(name) for name in pillar["benchmark"]["skip_aliases"]}
    # An embedding model that an alias keeps comes with the slots: it would be news to a selection made before them.
    own = {normalise(row["model"]) for row in pillar["aliases"].values() if row.get("model")}
    kept: dict[str, Installed] = {}
    skipped: dict[str, str] = {}

    def preference(model: Installed) -> tuple[bool, str]:
        name = normalise(model.name)
        return (name.endswith(":latest"), name)

    for model in sorted(installed, key=preference):
        if normalise(model.name) in unwanted:
            skipped[model.name] = "named in benchmark:skip_aliases"
        elif is_own_name(model.name, pillar["aliases"]) or (not model.answers and normalise(model.name) in own):
            skipped[model.name] = ALIAS
        elif not model.answers:
            skipped[model.name] = "answers no prompts"
        elif (first := kept.setdefault(model.weights_digest, model)) is not model:
            skipped[model.name] = f"same weights as {first.name} (sha256:{model.weights_digest[:12]})"
    return list(kept.values()), skipped


def _refuse_unknown(wanted: set[str], models: Iterable[Installed], skipped: Mapping[str, str]) -> None:
    known = {normalise(model.name) for model in models}
    if unknown := sorted(wanted - known):
        why = {name: reason for name, reason in skipped.items() if normalise(name) in unknown}
        raise PlatformError(
            "These models cannot be measured",
            where="benchmark:models",
            expected=f"installed models: {', '.join(sorted(known)) or 'none'}",
            actual=why or ", ".join(unknown),
        )


def kind_before(model: str, record: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return the kind that a model is taken for before it is measured: by what is known of it, else by its name."""
    if override := scoring.override(model, settings):
        return override
    if "ttft_ms" in record and not record.get("failed"):
        return kind_of(row(record, settings), settings)
    return scoring.kind_by_name(model, settings) or scoring.GENERAL


def kind_of(row: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return the kind that a measured model's figures make it."""
    figures = {key: row[key] for key in scoring.FIGURES}
    scores = scoring.composite(ceiling=settings["toks_norm_ceiling"], **figures)
    return scoring.kind(row["model"], scores, settings)


def instance_of(kind: str, slots: Mapping[Any, Mapping[str, Any]]) -> str:
    """Return the instance that a kind's slots are on (that of the first of them)."""
    numbers = sorted((number for number, slot in slots.items() if slot["kind"] == kind), key=int)
    return str(slots[numbers[0]]["instance"])


def is_current(
    record: Mapping[str, Any], instance: str, conditions: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    """Return whether a record is complete and was made on this instance under these conditions.

    One that ran into a limit is not current any more where that is a larger one now.
    """
    if "ttft_ms" not in record or not same_conditions(record, instance, conditions) or had_less_time(record, settings):
        return False
    if record.get("failed"):
        return True
    unexecuted = settings["scoring"] == scoring.EXECUTION and record.get("coding_quality_execution") is None
    return len(record.get("repeats", ())) >= settings["repeats"] and not unexecuted


def same_conditions(record: Mapping[str, Any], instance: str, conditions: Mapping[str, Any]) -> bool:
    """Return whether a record was made on this instance under these conditions."""
    wanted = {"instance": instance, **conditions}
    return all(record.get(key) == value for key, value in wanted.items())


def had_less_time(record: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether the load, or a prompt, ran into a limit that is a larger one now."""
    if "timed_out_s" not in record:
        return False
    now = settings["load_timeout"] if record.get("failed") else scoring.timeout(record["size"], settings)
    return bool(record["timed_out_s"] < now)


def row(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a complete record what the selection keeps: the figures and the conditions, not the answers.

    Its ``coding_quality``, over all and of each repeat, is the one that ``benchmark:scoring`` asks for.
    """
    kept = {key: value for key, value in record.items() if key not in _PRIVATE}
    if kept.get("repeats"):
        kept["repeats"] = [_scored(one, settings) for one in kept["repeats"]]
    return _scored(kept, settings)


def _scored(figures: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    asked = figures.get(f"coding_quality_{settings['scoring']}")
    return {**figures} if asked is None else {**figures, "coding_quality": asked}


def figures(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a state's changes say of a complete record."""
    kept = row(record, settings)
    keys = ("tokens_per_second", "ttft_ms", "coding_quality", "general_quality", "roofline_share")
    more = {key: kept[key] for key in ("instance", "failed", "disturbed") if kept.get(key)}
    return {**{key: round(kept[key], 3) for key in keys if kept.get(key) is not None}, "kind": record["kind"], **more}


def complete(records: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of all complete records, by name."""
    done = [row(record, settings) for record in records.values() if "ttft_ms" in record]
    return sorted(done, key=lambda one: normalise(one["model"]))


def elsewhere(record: Mapping[str, Any], task: Task, slots: Mapping[Any, Mapping[str, Any]]) -> Task | None:
    """Return the task of measuring a model again where it turned out to serve; None where it was measured there."""
    instance = instance_of(record["kind"], slots)
    return None if instance == task.instance else replace(task, instance=instance)
