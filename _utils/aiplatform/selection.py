"""From measured models to slots: who is eligible, who ranks where, and why the others are left out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiplatform import scoring
from aiplatform.candidates import Candidate, candidate, metrics
from aiplatform.contest import Contest
from aiplatform.errors import PlatformError
from aiplatform.ollama import normalise

# The keys of a selection for each kind, best model first: the locked slots, then the rotating one.
SLOT_KEYS = {
    scoring.GENERAL: ("slot1_general", "slot2_general", "slot5_general_rotate"),
    scoring.CODING: ("slot3_coding", "slot4_coding", "slot6_coding_rotate"),
}


def slot_key(number: int) -> str:
    """Return the key that holds a slot's model in a selection, such as ``slot1_general``."""
    return next(key for keys in SLOT_KEYS.values() for key in keys if key.startswith(f"slot{number}_"))


def select(
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    incumbents: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Choose the slots' models.

    rows
        One mapping a model: ``model``, ``tokens_per_second``, ``coding_quality``, ``general_quality``, ``ttft_ms``,
        and where known ``weights_digest``, and ``repeats``, the same figures for each pass over the suite. Further keys
        are kept under ``measured``.
    settings
        Pillar ``benchmark``.
    incumbents
        Who holds the slots now, as ``incumbents`` returns it. One stays where no challenger is better by more than
        noise. Without any, the best models fill the slots in their order.

    Returns the six slots (a name or None), ``general_ranking`` and ``coding_ranking`` of the eligible models,
    ``all_metrics``, ``excluded`` ({model: why it holds no slot}), ``kept`` ({slot: why its model stays though another
    ranks higher}) and ``warnings`` ({model: why}).

    Raises ``PlatformError`` naming model, key and value where a figure is missing, negative, no number or too large.
    """
    candidates = [candidate(row, settings) for row in rows]
    _refuse_repeats(candidates)
    kept, excluded = _without_duplicates(candidates)
    eligible, ineligible = _eligible(kept, settings)
    excluded |= ineligible
    result: dict[str, Any] = {}
    contests = {kind: Contest(eligible[kind], SLOT_KEYS[kind], incumbents or {}, settings) for kind in scoring.KINDS}
    for kind in SLOT_KEYS:
        result |= contests[kind].slots()
        excluded |= contests[kind].left_out()
    result |= {f"{kind}_ranking": [_ranked(item) for item in eligible[kind]] for kind in SLOT_KEYS}
    result["all_metrics"] = {item.model: metrics(item) for item in sorted(candidates, key=lambda one: one.rank_key)}
    result["excluded"] = dict(sorted(excluded.items()))
    result["kept"] = {key: why for kind in SLOT_KEYS for key, why in contests[kind].kept().items()}
    result["warnings"] = _warnings(eligible, settings)
    return result


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


def _eligible(
    candidates: Iterable[Candidate], settings: Mapping[str, Any]
) -> tuple[dict[str, list[Candidate]], dict[str, str]]:
    """Return the models of each kind that may hold a slot, best first, and why the others may not."""
    skipped = {_bare(name) for name in settings["skip_aliases"]}
    eligible: dict[str, list[Candidate]] = {kind: [] for kind in scoring.KINDS}
    excluded = {}
    for item in sorted(candidates, key=lambda one: one.rank_key):
        reasons = _reasons_against(item, settings, skipped)
        if reasons:
            excluded[item.model] = "; ".join(reasons)
        else:
            eligible[item.kind].append(item)
    return eligible, excluded


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


def _ranked(item: Candidate) -> dict[str, Any]:
    return {"name": item.model, "composite": round(item.composite, 3), "metrics": metrics(item)}


def _warnings(eligible: Mapping[str, Iterable[Candidate]], settings: Mapping[str, Any]) -> dict[str, str]:
    floor = settings["thresholds"]["min_composite_score"]
    low = [item for items in eligible.values() for item in items if not scoring.at_least(item.composite, floor)]
    return {item.model: f"composite {item.composite:.3f} is under {floor:g}" for item in low}


def incumbents(selection: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return who holds the slots of a selection: for each slot that is filled ``model`` and ``weights_digest``."""
    rows = selection.get("all_metrics", {})
    held = {key: selection.get(key) for keys in SLOT_KEYS.values() for key in keys}
    return {
        key: {"model": model, "weights_digest": rows.get(model, {}).get("measured", {}).get("weights_digest")}
        for key, model in held.items()
        if model
    }


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
