"""Recommended models: fetched where the slots of a kind are not filled well, kept where they earn one. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from aiplatform import measure, scoring
from aiplatform.ollama import normalise
from aiplatform.selection import SLOT_KEYS


def low(selection: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the kinds whose slots are not filled well, each with why.

    selection
        What would be chosen now.
    settings
        Pillar ``benchmark``: a composite under ``thresholds:min_composite_score`` is low.
    """
    floor, found = settings["thresholds"]["min_composite_score"], {}
    for kind, keys in SLOT_KEYS.items():
        holders = [selection[key] for key in keys if selection[key]]
        scores = {row["name"]: row["composite"] for row in selection[f"{kind}_ranking"]}
        weak = [name for name in holders if not scoring.at_least(scores.get(name, 0.0), floor)]
        if len(holders) < len(keys):
            found[kind] = f"{len(holders)} of {len(keys)} {kind} slots are filled"
        elif weak:
            found[kind] = f"{weak[0]} has composite {scores.get(weak[0], 0.0):.3f}, floor {floor:g}"
    return found


def wanted(
    selection: Mapping[str, Any],
    installed: Collection[str],
    records: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    conditions: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """Return the recommended models to fetch and measure, each with why, in pillar's order.

    installed
        The names in the store: those are measured anyway.
    records
        What has been measured; one that was tried under these ``conditions`` is not fetched for nothing.
    """
    if not settings["pull_if_better"]:
        return {}
    here = {normalise(name) for name in installed}
    tried = {
        normalise(record["model"])
        for record in records.values()
        if record.get("instance") in conditions
        and measure.is_current(record, record["instance"], conditions[record["instance"]], settings)
    }
    reasons = low(selection, settings)
    return {
        row["name"]: reasons[row["category"]]
        for row in settings["recommended_models"]
        if row["category"] in reasons and normalise(row["name"]) not in here | tried
    }


def on_trial(
    noted: Mapping[str, Mapping[str, Any]], installed: Collection[str], pillar: Mapping[str, Any]
) -> dict[str, str]:
    """Return the models that were fetched on trial and not decided on, as the store calls them, each with why.

    noted
        What was noted before each was fetched: ``{model: {"why"}}``.
    installed
        The names in the store.
    pillar
        The effective pillar: what the operator wants measured or in a slot by now is on trial no more.
    """
    asked = {normalise(name) for name in measure.wanted(pillar["benchmark"])}
    asked |= {normalise(row["model"]) for row in pillar["slots"].values() if row.get("model")}
    whys = {normalise(name): str(row["why"]) for name, row in noted.items() if normalise(name) not in asked}
    return {name: whys[normalise(name)] for name in installed if normalise(name) in whys}


def earns(model: str, selection: Mapping[str, Any]) -> bool:
    """Return whether a selection gives a model a slot."""
    names = {selection[key] for keys in SLOT_KEYS.values() for key in keys if selection[key]}
    return normalise(model) in {normalise(name) for name in names}
