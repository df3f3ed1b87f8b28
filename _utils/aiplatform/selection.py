"""From measured models to slots: who is eligible, who ranks where, and why the others are left out. Pure."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiplatform import scoring
from aiplatform.errors import PlatformError
from aiplatform.ollama import normalise

# The keys of a selection for each kind, best model first: the locked slots, then the rotating one.
SLOT_KEYS = {
    scoring.GENERAL: ("slot1_general", "slot2_general", "slot5_general_rotate"),
    scoring.CODING: ("slot3_coding", "slot4_coding", "slot6_coding_rotate"),
}
_RATES = ("tokens_per_second", "ttft_ms")
_QUALITIES = ("coding_quality", "general_quality")


@dataclass(frozen=True)
class Candidate:
    """A measured model with what follows from its figures."""

    model: str
    figures: Mapping[str, float]
    scores: scoring.Composite
    kind: str
    row: Mapping[str, Any]

    @property
    def digest(self) -> str | None:
        """The weights' digest, where it is known."""
        digest = self.row.get("weights_digest")
        return str(digest).removeprefix("sha256:") if digest else None

    @property
    def composite(self) -> float:
        """The composite of the kind that the model serves."""
        return self.scores.of(self.kind)

    @property
    def quality(self) -> float:
        """The quality of the kind that the model serves."""
        return self.figures[f"{self.kind}_quality"]

    @property
    def rank_key(self) -> tuple[float, float, str]:
        """Sorts the best first: composite, then speed, then name."""
        return (-round(self.composite, 9), -self.figures["tokens_per_second"], normalise(self.model))


def slot_key(number: int) -> str:
    """Return the key that holds a slot's model in a selection, such as ``slot1_general``."""
    return next(key for keys in SLOT_KEYS.values() for key in keys if key.startswith(f"slot{number}_"))


def select(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the slots' models.

    rows
        One mapping a model: ``model``, ``tokens_per_second``, ``coding_quality``, ``general_quality``, ``ttft_ms``,
        and where known ``weights_digest``. Further keys are kept under ``measured``.
    settings
        Pillar ``benchmark``.

    Returns the six slots (a name or None), ``general_ranking`` and ``coding_ranking`` of the eligible models,
    ``all_metrics``, ``excluded`` ({model: why it holds no slot}) and ``warnings`` ({model: why}).

    Raises ``PlatformError`` naming model, key and value where a figure is missing, negative, no number or too large.
    """
    candidates = [candidate(row, settings) for row in rows]
    _refuse_repeats(candidates)
    kept, excluded = _without_duplicates(candidates)
    skipped = {_bare(name) for name in settings["skip_aliases"]}
    eligible: dict[str, list[Candidate]] = {kind: [] for kind in scoring.KINDS}
    for item in sorted(kept, key=lambda one: one.rank_key):
        reasons = _reasons_against(item, settings, skipped)
        if reasons:
            excluded[item.model] = "; ".join(reasons)
        else:
            eligible[item.kind].append(item)
    result: dict[str, Any] = {}
    for kind, keys in SLOT_KEYS.items():
        names = [item.model for item in eligible[kind]]
        result |= {key: names[place] if place < len(names) else None for place, key in enumerate(keys)}
        for place, name in enumerate(names[len(keys) :], start=len(keys) + 1):
            excluded[name] = f"rank {place} of {len(names)} {kind} models, and {len(keys)} slots for them"
    result |= {f"{kind}_ranking": [_ranked(item) for item in eligible[kind]] for kind in SLOT_KEYS}
    result["all_metrics"] = {item.model: metrics(item) for item in sorted(candidates, key=lambda one: one.rank_key)}
    result["excluded"] = dict(sorted(excluded.items()))
    result["warnings"] = _warnings(eligible, settings)
    return result


def candidate(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Candidate:
    """Return a checked row with its composites and its kind.

    Raises ``PlatformError`` where a figure cannot be.
    """
    name = row.get("model")
    if not isinstance(name, str) or not name.strip():
        raise PlatformError("A measured model has no name", where="models", expected="model: <name:tag>", actual=name)
    figures = {key: _figure(row, key) for key in (*_RATES, *_QUALITIES)}
    scores = scoring.composite(ceiling=settings["toks_norm_ceiling"], **figures)
    return Candidate(name, figures, scores, scoring.kind(name, scores, settings), row)


def _figure(row: Mapping[str, Any], key: str) -> float:
    value: Any = row.get(key)
    highest = 1.0 if key in _QUALITIES else sys.float_info.max
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Not a number compares false with everything, so it fails here, too.
    if not number or not 0 <= value <= highest:
        raise PlatformError(
            f"The measured {key} of {row['model']} cannot be used",
            where=f"models, {key}",
            expected="a number from 0 to 1" if key in _QUALITIES else "a finite number, 0 or more",
            actual=value,
        )
    return float(value)


def _refuse_repeats(candidates: Sequence[Candidate]) -> None:
    names = Counter(normalise(item.model) for item in candidates)
    repeated = [name for name, times in names.items() if times > 1]
    if repeated:
        raise PlatformError("Models are measured twice", where="models", expected="each name once", actual=repeated)


def _without_duplicates(candidates: Sequence[Candidate]) -> tuple[list[Candidate], dict[str, str]]:
    """Keep one name for each weights digest: an explicit tag before ``latest``, then the better, then by name."""

    def preference(item: Candidate) -> tuple[bool, tuple[float, float, str]]:
        return (normalise(item.model).endswith(":latest"), item.rank_key)

    kept: dict[str, Candidate] = {}
    excluded: dict[str, str] = {}
    for item in sorted(candidates, key=preference):
        first = kept.setdefault(item.digest or f"name {normalise(item.model)}", item)
        if first is not item:
            excluded[item.model] = f"same weights as {first.model} (sha256:{str(item.digest)[:12]})"
    return list(kept.values()), excluded


def _reasons_against(item: Candidate, settings: Mapping[str, Any], skipped: set[str]) -> list[str]:
    floors = settings["thresholds"]
    if item.row.get("failed"):
        return [str(item.row["failed"])]
    reasons = []
    if _bare(item.model) in skipped or normalise(item.model) in skipped:
        reasons.append("named in benchmark:skip_aliases")
    if not scoring.at_least(item.figures["tokens_per_second"], floors["min_tokens_per_sec"]):
        speed = f"{item.figures['tokens_per_second']:.3g} tokens per second"
        reasons.append(f"{speed}, floor {floors['min_tokens_per_sec']:g}")
    if not scoring.at_least(item.quality, floors["min_quality_score"]):
        reasons.append(f"{item.kind} quality {item.quality:.3f}, floor {floors['min_quality_score']:g}")
    return reasons


def _bare(name: str) -> str:
    """Return a name in its one spelling; ``latest`` is dropped, so that it stands for no tag."""
    return normalise(name).removesuffix(":latest")


def metrics(item: Candidate) -> dict[str, Any]:
    """Return what is published of a model, rounded, and under ``measured`` what it was computed from."""
    return {
        "avg_tok_per_sec": round(item.figures["tokens_per_second"], 1),
        "toks_norm": round(item.scores.speed, 3),
        "latency_ms": round(item.figures["ttft_ms"], 1),
        "latency_score": round(item.scores.latency, 3),
        "coding_quality": round(item.figures["coding_quality"], 3),
        "general_quality": round(item.figures["general_quality"], 3),
        "coding_composite": round(item.scores.coding, 3),
        "general_composite": round(item.scores.general, 3),
        "category": item.kind,
        "measured": {key: value for key, value in item.row.items() if key != "model"},
    }


def _ranked(item: Candidate) -> dict[str, Any]:
    return {"name": item.model, "composite": round(item.composite, 3), "metrics": metrics(item)}


def _warnings(eligible: Mapping[str, Iterable[Candidate]], settings: Mapping[str, Any]) -> dict[str, str]:
    floor = settings["thresholds"]["min_composite_score"]
    low = [item for items in eligible.values() for item in items if not scoring.at_least(item.composite, floor)]
    return {item.model: f"composite {item.composite:.3f} is under {floor:g}" for item in low}


def stored_rows(selection: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that a selection was computed from."""
    return [{"model": name, **values["measured"]} for name, values in selection.get("all_metrics", {}).items()]


def merge(stored: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lay newly measured rows over stored ones, so that a partial run takes nothing away.

    Rows are the same model where the weights are the same, or where either has no digest and the names are the same. A
    name that now stands for other weights drops what was stored under it.
    """
    fresh = [dict(row) for row in new]
    names = {normalise(row["model"]) for row in fresh}
    digests = {row["weights_digest"] for row in fresh if row.get("weights_digest")}
    kept = [
        dict(row) for row in stored if row.get("weights_digest") not in digests and normalise(row["model"]) not in names
    ]
    return sorted(kept + fresh, key=lambda row: normalise(row["model"]))
