"""The benchmark's report: what was chosen, why, and from which figures. Pure: it makes text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiplatform import scoring
from aiplatform.selection import slot_key

_MEASURED = ("hardware", "ollama_version", "suite", "num_ctx", "num_thread", "instance", "measured_at")


def file_name(when: datetime) -> str:
    """Return the name of a report made at this time, such as ``benchmark_20260102T030405.md``."""
    return f"benchmark_{when.astimezone(UTC):%Y%m%dT%H%M%S}.md"


def latest(folder: Path) -> Path | None:
    """Return the latest report of a folder; None where it has none."""
    return max(folder.glob("benchmark_*.md"), default=None) if folder.is_dir() else None


def markdown(selection: Mapping[str, Any], pillar: Mapping[str, Any], when: datetime) -> str:
    """Return the report as Markdown.

    selection
        What the benchmark chose.
    pillar
        The effective pillar: ``benchmark``, ``slots`` and ``ollama:instances``.
    when
        The time of the report.
    """
    sections = [
        f"# Benchmark of {when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "## Slots\n\n" + _table(("Slot", "Socket", "Role", "Model", "Composite"), slot_rows(selection, pillar)),
        "## Models\n\n" + _table(_HEADERS, _metric_rows(selection)),
        "## Left out\n\n" + _list(selection["excluded"], "No model was left out."),
        "## Warnings\n\n" + _list(selection.get("warnings", {}), "None."),
        "## Method\n\n" + _method(pillar["benchmark"]),
        "## Conditions\n\n" + _table(("Model", *_MEASURED), _condition_rows(selection)),
    ]
    return "\n\n".join(sections) + "\n"


def slot_rows(selection: Mapping[str, Any], pillar: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Return the six rows of the slot table: number, socket, role, model and composite."""
    rows: list[tuple[object, ...]] = []
    for number, slot in sorted(pillar["slots"].items(), key=lambda item: int(item[0])):
        key = slot_key(int(number))
        model = selection.get(key)
        metrics = selection["all_metrics"].get(model, {})
        instance = pillar["ollama"]["instances"][slot["instance"]]
        socket = f"{slot['instance']} (NUMA node {instance['numa_node']}, port {instance['port']})"
        role = f"{slot['kind']}, {'rotates' if key.endswith('_rotate') else 'locked'}"
        rows.append((number, socket, role, model or "-", metrics.get(f"{slot['kind']}_composite", "-")))
    return rows


_HEADERS = (
    "Model",
    "Kind",
    "Tokens/s",
    "First token ms",
    "Coding quality",
    "General quality",
    "Coding composite",
    "General composite",
)


def _metric_rows(selection: Mapping[str, Any]) -> list[tuple[object, ...]]:
    keys = (
        "category",
        "avg_tok_per_sec",
        "latency_ms",
        "coding_quality",
        "general_quality",
        "coding_composite",
        "general_composite",
    )
    return [(name, *(row[key] for key in keys)) for name, row in selection["all_metrics"].items()]


def _condition_rows(selection: Mapping[str, Any]) -> list[tuple[object, ...]]:
    return [
        (name, *(row["measured"].get(key, "-") for key in _MEASURED)) for name, row in selection["all_metrics"].items()
    ]


def _method(settings: Mapping[str, Any]) -> str:
    floors = settings["thresholds"]
    formula = (
        f"quality x {scoring.WEIGHT_QUALITY:.2f}"
        f" + min(tokens per second / {settings['toks_norm_ceiling']:g}, 1) x {scoring.WEIGHT_SPEED:.2f}"
        f" + max(0, 1 - first token ms / {scoring.LATENCY_CEILING_MS:g}) x {scoring.WEIGHT_LATENCY:.2f}"
    )
    speed, quality, composite = (
        f"{floors[key]:g}" for key in ("min_tokens_per_sec", "min_quality_score", "min_composite_score")
    )
    lead, tokens = f"{settings['coding_threshold']:g}", settings["num_predict"]
    sampling = f"temperature {settings['temperature']:g}, seed {settings['seed']}"
    return f"""\
- Composite: `{formula}`, once with the coding quality and once with the general one.
- Kind: what the pillar says; else coding where the coding composite leads by {lead} or more; else coding by its name;
  else general.
- Floors: {speed} tokens per second, and {quality} in the quality of the kind served. A composite under {composite}
  only warns.
- {tokens} output tokens a prompt, {sampling}. A prompt that fails scores 0."""


def _list(reasons: Mapping[str, str], none: str) -> str:
    return "\n".join(f"- {name}: {why}" for name, why in reasons.items()) or none


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
