"""The runs of the benchmark that are kept: how each model did over time, and what differs between two runs. Pure.

A run is the data of one report, as ``aiplatform.report.document`` makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from aiplatform import scoring
from aiplatform.ollama import normalise
from aiplatform.selection import SLOT_KEYS

Run = Mapping[str, Any]
Point = dict[str, Any]

# Each figure that is compared from run to run, and the key of pillar benchmark:noise with its band.
BANDS = {
    "tokens_per_second": "tokens_per_second",
    "ttft_ms": "ttft_ms",
    "composite": "composite",
    "coding_quality": "quality",
    "general_quality": "quality",
}
CONDITIONS = ("suite", "ollama_version", "hardware", "num_ctx", "num_thread", "instance")


def points(runs: Iterable[Run]) -> dict[str, list[Point]]:
    """Return what each model measured, oldest first: ``{model: [{"run", "measured_at", figures …}]}``.

    runs
        Oldest first. What a run only kept from an earlier one is no point of its own. A model is its weights: under a
        new name it goes on, and other weights under its name begin anew, with the part of the digest in the name.
    """
    found: dict[str, list[Point]] = {}
    names: dict[str, str] = {}
    for run in runs:
        for name, row in run["selection"]["all_metrics"].items():
            line = found.setdefault(_identity(name, row), [])
            names[_identity(name, row)] = name
            point = _point(run, name, row)
            if not line or not _same_measurement(line[-1], point):
                line.append(point)
    return {_label(names, key): line for key, line in found.items()}


def drift(old: Mapping[str, Any], new: Mapping[str, Any], noise: Mapping[str, float]) -> dict[str, float]:
    """Return by how much each figure has moved beyond its band: ``{figure: difference}``; empty where all is noise.

    noise
        Pillar ``benchmark:noise``. A difference of just the band is noise.
    """
    moved = {key: round(new[key] - old[key], 6) for key in BANDS if _number(old.get(key)) and _number(new.get(key))}
    return {key: value for key, value in moved.items() if not scoring.at_least(noise[BANDS[key]], abs(value))}


def with_drift(line: Sequence[Point], noise: Mapping[str, float]) -> list[Point]:
    """Return a model's points, each with ``drift`` from the one before."""
    firsts = [{**point, "drift": {}} for point in line[:1]]
    return firsts + [{**new, "drift": drift(old, new, noise)} for old, new in pairwise(line)]


def largest_steps(line: Sequence[Point]) -> dict[str, float]:
    """Return the largest difference of each figure between two measurements in a row; empty of fewer than two."""
    steps = [{key: abs(new[key] - old[key]) for key in BANDS} for old, new in pairwise(line)]
    return {key: round(max(step[key] for step in steps), 6) for key in BANDS} if steps else {}


def compare(old: Run, new: Run) -> dict[str, Any]:
    """Return what differs between two runs.

    Returns ``runs`` (their times), ``models`` ({model: {"old", "new", "drift", "conditions"}}, where ``drift`` has what
    is beyond the band of the newer run's ``benchmark:noise``), ``drift`` (the models that have any), ``kept`` (not
    measured again), ``new`` and ``gone``, ``identity`` (a name over other weights, weights under another name, another
    kind), ``slots`` and ``settings`` ({key: {"old", "new"}}).
    """
    before, after = _by_identity(old), _by_identity(new)
    both = [key for key in after if key in before]
    kept = [key for key in both if _same_measurement(before[key], after[key])]
    noise = new["settings"]["noise"]
    models = {after[key]["model"]: _change(before[key], after[key], noise) for key in both if key not in kept}
    return {
        "runs": [old["time"], new["time"]],
        "models": models,
        "drift": [name for name, change in models.items() if change["drift"]],
        "kept": [after[key]["model"] for key in kept],
        "new": [point["model"] for key, point in after.items() if key not in before],
        "gone": [point["model"] for key, point in before.items() if key not in after],
        "identity": _anomalies(before, after),
        "slots": _differences(_slots(old), _slots(new)),
        "settings": _differences(old["settings"], new["settings"]),
    }


def _change(old: Point, new: Point, noise: Mapping[str, float]) -> dict[str, Any]:
    conditions = _differences(*({key: point[key] for key in CONDITIONS} for point in (old, new)))
    figures = [{key: point[key] for key in BANDS} for point in (old, new)]
    return {"old": figures[0], "new": figures[1], "drift": drift(old, new, noise), "conditions": conditions}


def _anomalies(before: Mapping[str, Point], after: Mapping[str, Point]) -> list[str]:
    found = []
    names = {normalise(point["model"]): key for key, point in before.items()}
    for key, point in after.items():
        name = point["model"]
        other = names.get(normalise(name))
        if other is not None and other != key:
            found.append(f"{name}: other weights than before (sha256:{other[:12]}, now sha256:{key[:12]})")
        if key in before and normalise(before[key]["model"]) != normalise(name):
            found.append(f"{name}: the weights that were {before[key]['model']}")
        if key in before and before[key]["kind"] != point["kind"]:
            found.append(f"{name}: was a {before[key]['kind']} model, is a {point['kind']} one")
    return found


def _by_identity(run: Run) -> dict[str, Point]:
    rows = run["selection"]["all_metrics"]
    return {_identity(name, row): _point(run, name, row) for name, row in rows.items()}


def _identity(name: str, row: Mapping[str, Any]) -> str:
    digest = row["measured"].get("weights_digest")
    return str(digest).removeprefix("sha256:") if digest else normalise(name)


def _label(names: Mapping[str, str], key: str) -> str:
    """Return the name that a model had last; older weights of the same name say which they are."""
    latest = {name: identity for identity, name in names.items()}
    name = names[key]
    return name if latest[name] == key else f"{name} (sha256:{key[:12]})"


def _point(run: Run, name: str, row: Mapping[str, Any]) -> Point:
    measured, kind = row["measured"], row["category"]
    figures = {key: measured.get(key) for key in ("tokens_per_second", "ttft_ms", "coding_quality", "general_quality")}
    return {
        "run": run["time"],
        "model": name,
        "kind": kind,
        "measured_at": measured.get("measured_at"),
        **figures,
        "composite": row[f"{kind}_composite"],
        **{key: measured.get(key) for key in CONDITIONS},
    }


def _same_measurement(old: Point, new: Point) -> bool:
    """Return whether a later run only kept what an earlier one had measured."""
    keys = ("measured_at", "tokens_per_second", "ttft_ms", "coding_quality", "general_quality")
    return all(old[key] == new[key] for key in keys)


def _slots(run: Run) -> dict[str, Any]:
    return {key: run["selection"].get(key) for keys in SLOT_KEYS.values() for key in keys}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    keys = sorted({*old, *new})
    return {key: {"old": old.get(key), "new": new.get(key)} for key in keys if old.get(key) != new.get(key)}


def _number(value: Any) -> bool:
    return isinstance(value, int | float)
