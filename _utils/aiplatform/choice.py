"""The selection file: made of what hosts have measured and of what it holds already, written only when it changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aiplatform import measure
from aiplatform import selection as rules
from aiplatform.errors import PlatformError
from aiplatform.ollama import normalise
from aiplatform.settings import SELECTION_FILE

Selection = dict[str, Any]


def path(pillar_roots: list[str]) -> Path:
    """Return where the selection is written: the first pillar root."""
    return Path(pillar_roots[0]) / SELECTION_FILE


def choose(stored: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> Selection:
    """Return the selection that follows from all that is known.

    stored
        The selection so far. What it knows of models that no host has measured now is kept, and who holds a slot in it
        stays where no other is better by more than noise.
    hosts
        For each host ``models``, its measured rows, and ``skipped``, {name: why it is not measured}.
    settings
        Pillar ``benchmark``.
    """
    rows = slowest(row for host in hosts.values() for row in host["models"])
    # Both scores of the code are in the rows: which of them counts may be another one than when they were measured.
    known_rows = [measure.row(row, settings) for row in rules.merge(rules.stored_rows(stored), rows)]
    chosen = rules.select(known_rows, settings, rules.incumbents(stored))
    known = {normalise(name) for name in chosen["all_metrics"]}
    skipped = {name: why for host in hosts.values() for name, why in host["skipped"].items()}
    left_out = {name: why for name, why in skipped.items() if normalise(name) not in known}
    chosen["excluded"] = dict(sorted({**chosen["excluded"], **left_out}.items()))
    return chosen


def slowest(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one row for each weights digest: where several hosts serve a model, the slowest of them counts."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        key = row.get("weights_digest") or normalise(row["model"])
        if key not in found or row["tokens_per_second"] < found[key]["tokens_per_second"]:
            found[key] = row
    return list(found.values())


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return how two selections differ: slots with the old and the new model, and the models measured anew."""
    found: dict[str, Any] = {
        key: {"old": old.get(key), "new": new[key]}
        for keys in rules.SLOT_KEYS.values()
        for key in keys
        if old.get(key) != new[key]
    }
    before, after = old.get("all_metrics", {}), new["all_metrics"]
    found |= {name: _figures(before.get(name), row) for name, row in after.items() if before.get(name) != row}
    found |= {name: {"old": "measured", "new": None} for name in before if name not in after}
    others = [key for key in new if key not in found and key != "all_metrics" and old.get(key) != new[key]]
    return found or ({"selection": {"old": None if not old else "kept", "new": ", ".join(others)}} if others else {})


def _figures(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    def short(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
        keys = ("avg_tok_per_sec", "latency_ms", "coding_composite", "general_composite", "category")
        return {key: row[key] for key in keys} if row else None

    return {"old": short(old), "new": short(new)}


def write(target: Path, selection: Mapping[str, Any]) -> None:
    """Write a selection in one step: whoever reads it gets the old one or the new one."""
    draft = target.with_name(f".{target.name}.new")
    try:
        draft.write_text(json.dumps(selection, indent=2) + "\n", encoding="utf-8")
        draft.chmod(0o644)
        draft.replace(target)
    except OSError as err:
        raise PlatformError(
            "The selection cannot be written", where=str(target), actual=str(err), hint="free space, or mend the rights"
        ) from err


def read_metrics(file: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a metrics file, ``{"models": [...]}``.

    Raises ``PlatformError`` where it is missing or of another shape.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise PlatformError("The metrics cannot be read", where=str(file), expected="JSON", actual=str(err)) from err
    rows = content.get("models") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PlatformError(
            "The metrics have another shape",
            where=str(file),
            expected='{"models": [{"model": ..., "tokens_per_second": ..., ...}]}',
            actual=type(content).__name__,
        )
    return rows
