"""What the runs of the benchmark say at a terminal: the history of each model, and two runs side by side. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiplatform.history import BANDS
from aiplatform.report import drift_text
from aiplatform.tables import table

_FIGURES = {
    "tokens_per_second": ".1f",
    "ttft_ms": ".0f",
    "coding_quality": ".3f",
    "general_quality": ".3f",
    "composite": ".3f",
}
_HEADERS = ("tokens/s", "first token ms", "coding", "general", "composite")


def history(lines: Mapping[str, Sequence[Mapping[str, Any]]], noise: Mapping[str, float]) -> str:
    """Return a table of all points.

    lines
        ``{model: points}`` of ``aiplatform.history.with_drift``.
    noise
        Pillar ``benchmark:noise``.
    """
    if not lines:
        return "No run is kept yet; salt-run benchmark.run makes one."
    rows = [
        (name if place == 0 else "", _when(point), *_cells(point), drift_text(point["drift"]))
        for name, line in lines.items()
        for place, point in enumerate(line)
    ]
    bands = ", ".join(f"{key.replace('_', ' ')} {noise[band]:g}" for key, band in BANDS.items())
    return f"{table(('model', 'measured', *_HEADERS, 'beyond the noise'), rows)}\n\nNoise: {bands}."


def compared(found: Mapping[str, Any]) -> str:
    """Return what ``aiplatform.history.compare`` found."""
    old, new = found["runs"]
    rows = [
        (name, *(f"{a} → {b}" if a != b else a for a, b in zip(*_both(change), strict=True)), _verdict(change))
        for name, change in found["models"].items()
    ]
    parts = [
        f"{old} against {new}",
        table(("model", *_HEADERS, "beyond the noise"), rows) or "No model was measured again.",
        _listed("Identity", found["identity"]),
        _listed("Slots", _changes(found["slots"])),
        _listed("Settings", _changes(found["settings"])),
        _listed("Not measured again", [", ".join(found["kept"])] * bool(found["kept"])),
        _listed("New", [", ".join(found["new"])] * bool(found["new"])),
        _listed("Gone", [", ".join(found["gone"])] * bool(found["gone"])),
    ]
    verdict = f"More than noise: {', '.join(found['drift'])}." if found["drift"] else "All differences are noise."
    return "\n\n".join(part for part in [*parts, verdict] if part)


def _when(point: Mapping[str, Any]) -> str:
    return str(point["measured_at"] or point["run"])[:16].replace("T", " ")


def _cells(point: Mapping[str, Any]) -> list[str]:
    return ["-" if point.get(key) is None else format(point[key], form) for key, form in _FIGURES.items()]


def _both(change: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    return _cells(change["old"]), _cells(change["new"])


def _verdict(change: Mapping[str, Any]) -> str:
    """Return what has moved, and under which other conditions: these explain it, or are to be looked at."""
    other = ", ".join(_changes(change["conditions"]))
    moved = drift_text(change["drift"])
    return f"{moved} (other conditions: {other})" if moved and other else moved


def _changes(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{key}: {change['old']} → {change['new']}" for key, change in found.items()]


def _listed(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines)]) if lines else ""
