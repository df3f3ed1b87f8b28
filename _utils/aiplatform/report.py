"""The benchmark's report: what was chosen, why, and from which figures. Pure: data in, tables and text out.

All of it comes from one ``document``, which is kept as JSON beside the pages that are made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiplatform import history, scoring
from aiplatform.selection import SLOT_KEYS, slot_key

Document = dict[str, Any]
FORMAT = 1
# What of pillar benchmark has no influence on the figures or the choice.
_NO_INFLUENCE = frozenset({"models", "fresh", "state_dir", "report_dir", "candidate_models", "baseline_models"})
_CONDITIONS = {
    "Hardware": "hardware",
    "Ollama": "ollama_version",
    "Suite": "suite",
    "Context": "num_ctx",
    "Threads": "num_thread",
    "Instance": "instance",
    "Measured at": "measured_at",
}
EMPTY = "-"


@dataclass(frozen=True)
class Section:
    """A part of the report: a table, or lines, or both; ``figure`` names the plot that goes with it."""

    title: str
    intro: str = ""
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    lines: Sequence[str] = ()
    figures: Sequence[str] = field(default=())


def stem(when: datetime) -> str:
    """Return the name of a run of this time, such as ``benchmark_20260102T030405``."""
    return f"benchmark_{when.astimezone(UTC):%Y%m%dT%H%M%S}"


def document(
    selection: Mapping[str, Any],
    pillar: Mapping[str, Any],
    when: datetime,
    before: Mapping[str, Any] | None = None,
    earlier: Iterable[Mapping[str, Any]] = (),
) -> Document:
    """Return the data of a report.

    selection
        What the benchmark chose.
    pillar
        The effective pillar: ``benchmark``, ``slots``, ``ollama:instances`` and, where it is there, ``platform:name``.
    when
        The time of the report.
    before
        The selection before this one.
    earlier
        The documents of earlier runs, oldest first.
    """
    made: Document = {
        "format": FORMAT,
        "time": when.astimezone(UTC).isoformat(timespec="seconds"),
        "platform": pillar.get("platform", {}).get("name", ""),
        "slots": [_slot(number, slot, selection, pillar) for number, slot in _numbered(pillar["slots"])],
        "selection": dict(selection),
        "settings": {key: value for key, value in pillar["benchmark"].items() if key not in _NO_INFLUENCE},
        "before": {key: (before or {}).get(key) for keys in SLOT_KEYS.values() for key in keys},
    }
    lines = history.points([*earlier, made])
    made["history"] = {name: lines[name] for name in selection["all_metrics"]}
    return made


def _numbered(slots: Mapping[Any, Any]) -> list[tuple[int, Any]]:
    return sorted((int(number), slot) for number, slot in slots.items())


def _slot(number: int, slot: Mapping[str, Any], selection: Mapping[str, Any], pillar: Mapping[str, Any]) -> Document:
    key, instance = slot_key(number), pillar["ollama"]["instances"][slot["instance"]]
    model = selection.get(key)
    return {
        "number": number,
        "key": key,
        "instance": slot["instance"],
        "numa_node": instance["numa_node"],
        "port": instance["port"],
        "kind": slot["kind"],
        "rotates": key.endswith("_rotate"),
        "model": model,
        # What an operator has named in pillar is served instead.
        "served": slot.get("model"),
        "composite": selection["all_metrics"].get(model, {}).get(f"{slot['kind']}_composite"),
    }


# -- its parts ------------------------------------------------------------------------------------------------------


def slot_rows(selection: Mapping[str, Any], pillar: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Return the six rows of the slot table: number, socket, role, model and composite."""
    return [_slot_row(_slot(number, slot, selection, pillar)) for number, slot in _numbered(pillar["slots"])]


def _slot_row(slot: Mapping[str, Any]) -> tuple[object, ...]:
    socket = f"{slot['instance']} (NUMA node {slot['numa_node']}, port {slot['port']})"
    role = f"{slot['kind']}, {'rotates' if slot['rotates'] else 'locked'}"
    return (slot["number"], socket, role, model_text(slot), _three(slot["composite"]))


def model_text(slot: Mapping[str, Any]) -> str:
    """Return the model that the benchmark chose for a slot, and what pillar has put in its place."""
    chosen = slot["model"] or EMPTY
    return f"{chosen} (pillar: {slot['served']})" if slot["served"] else chosen


def _three(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.3f}"


def headline(made: Mapping[str, Any]) -> str:
    """Return in one sentence what came of a run."""
    measured, held = made["selection"]["all_metrics"], [slot["model"] for slot in made["slots"] if slot["model"]]
    moved = [
        f"slot {slot['number']}: {made['before'][slot['key']] or 'empty'} → {slot['model'] or 'empty'}"
        for slot in made["slots"]
        if made["before"][slot["key"]] != slot["model"]
    ]
    changed = f"Changed: {', '.join(moved)}." if moved else "No slot has changed."
    return f"{len(measured)} models measured, {len(held)} of {len(made['slots'])} slots filled. {changed}"


def sections(made: Mapping[str, Any]) -> list[Section]:
    """Return the parts of the report in their order."""
    selection = made["selection"]
    warnings = [f"{name}: {why}" for name, why in selection.get("warnings", {}).items()] + _disturbed(selection)
    conditions = [
        (name, *(row["measured"].get(key, EMPTY) for key in _CONDITIONS.values()))
        for name, row in selection["all_metrics"].items()
    ]
    return [
        Section(
            "Slots",
            headers=("Slot", "Socket", "Role", "Model", "Composite"),
            rows=[_slot_row(slot) for slot in made["slots"]],
            figures=("choice",),
        ),
        Section("Why each model is in or out", headers=("Model", "Holds", "Why"), rows=_reasons(made)),
        _by_model("Models", _FIGURES, selection, "parts"),
        _by_model("Speed", _SPEEDS, selection, "speed"),
        Section("History", _history_intro(made), _HISTORY_HEADERS, _history_rows(made), figures=("history",)),
        Section("Warnings", lines=warnings or ["None."]),
        Section("Method", lines=method(made["settings"])),
        Section("Conditions", headers=("Model", *_CONDITIONS), rows=conditions),
    ]


def _reasons(made: Mapping[str, Any]) -> list[tuple[object, ...]]:
    selection = made["selection"]
    rows: list[tuple[object, ...]] = []
    for slot in made["slots"]:
        if slot["model"]:
            kept = selection.get("kept", {}).get(slot["key"])
            why = "; ".join(filter(None, [_rank(slot["model"], slot["kind"], selection), kept]))
            rows.append((slot["model"], f"slot {slot['number']}", why))
    return rows + [(name, "no slot", why) for name, why in selection["excluded"].items()]


def _rank(model: str, kind: str, selection: Mapping[str, Any]) -> str:
    ranking = [one["name"] for one in selection[f"{kind}_ranking"]]
    if model not in ranking:
        return f"not among the {kind} models that were ranked: named by hand in the selection"
    return f"rank {ranking.index(model) + 1} of {len(ranking)} {kind} models"


def _disturbed(selection: Mapping[str, Any]) -> list[str]:
    found = {name: row["measured"].get("disturbed") for name, row in selection["all_metrics"].items()}
    return [
        f"{name}: still disturbed after repetition: {', '.join(f'{test} ({why})' for test, why in tests.items())}"
        for name, tests in found.items()
        if tests
    ]


def method(settings: Mapping[str, Any]) -> list[str]:
    """Return the formula and the rules, as they were for these settings (pillar ``benchmark``)."""
    floors, noise = settings["thresholds"], settings["noise"]
    speed, quality, composite = (
        f"{floors[key]:g}" for key in ("min_tokens_per_sec", "min_quality_score", "min_composite_score")
    )
    kind = (
        f"coding where the coding composite leads by {settings['coding_threshold']:g} or more; else coding by its name"
    )
    stays = f"is better with a probability of {settings['choice']['confidence']:g}"
    sampling = f"temperature {settings['temperature']:g}, seed {settings['seed']}"
    lines = {
        "Composite": f"{formula(settings)}, once with the coding quality and once with the general one.",
        "Kind": f"what the pillar says; else {kind}; else general.",
        "Floors": f"{speed} tokens per second, and {quality} in the quality of the kind served.",
        "Warning": f"a composite under {composite}; it costs no slot.",
        "Slots": f"the best three of each kind; but who holds one stays unless another {stays}.",
        "Noise": f"the repeats of both models, in pairs; and {noise['composite']:g} of composite from run to run.",
        "Prompts": f"{settings['num_predict']} output tokens, {sampling}. One that fails scores 0.",
    }
    return [f"{name}: {text}" for name, text in lines.items()]


def formula(settings: Mapping[str, Any]) -> str:
    """Return the formula of the composite with its numbers."""
    return (
        f"quality x {scoring.WEIGHT_QUALITY:.2f}"
        f" + min(tokens per second / {settings['toks_norm_ceiling']:g}, 1) x {scoring.WEIGHT_SPEED:.2f}"
        f" + max(0, 1 - first token ms / {scoring.LATENCY_CEILING_MS:g}) x {scoring.WEIGHT_LATENCY:.2f}"
    )


# -- figures of each model ------------------------------------------------------------------------------------------

Cell = Callable[[Mapping[str, Any]], object]


def _spread(key: str) -> Cell:
    def cell(row: Mapping[str, Any]) -> object:
        ends = (row["measured"].get("spread") or {}).get(key)
        return f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else None

    return cell


def _measured(key: str, shown: Callable[[Any], object]) -> Cell:
    def cell(row: Mapping[str, Any]) -> object:
        value = row["measured"].get(key)
        return None if value is None else shown(value)

    return cell


_FIGURES: dict[str, Cell] = {
    "Kind": lambda row: row["category"],
    "Tokens/s": lambda row: row["avg_tok_per_sec"],
    "First token ms": lambda row: row["latency_ms"],
    "Coding quality": lambda row: _three(row["coding_quality"]),
    "by markers": _measured("coding_quality_markers", _three),
    "pass@1": _measured("coding_quality_execution", _three),
    "General quality": lambda row: _three(row["general_quality"]),
    "Coding composite": lambda row: _three(row["coding_composite"]),
    "General composite": lambda row: _three(row["general_composite"]),
}
_SPEEDS: dict[str, Cell] = {
    "Tokens/s": lambda row: row["avg_tok_per_sec"],
    "Lowest to highest": _spread("tokens_per_second"),
    "Of what memory allows": _measured("roofline_share", lambda value: f"{100 * value:.3g} %"),
    "Token p95 ms": _measured("token_ms", lambda value: value.get("p95") and round(value["p95"], 1)),
    "First token ms": lambda row: row["latency_ms"],
    "Lowest to highest ms": _spread("ttft_ms"),
    "Ollama's own ms": _measured("ollama_ttft_ms", lambda value: round(value, 1)),
    "Prompt tokens/s": _measured("prompt_tokens_per_second", lambda value: round(value, 1)),
}


def _by_model(title: str, columns: Mapping[str, Cell], selection: Mapping[str, Any], *figures: str) -> Section:
    """Return a section with a row for each model, without the columns that no model has a value for."""
    models = selection["all_metrics"].items()
    cells = {name: [cell(row) for _, row in models] for name, cell in columns.items()}
    filled = {name: column for name, column in cells.items() if any(value is not None for value in column)}
    rows = [
        (name, *(EMPTY if column[place] is None else column[place] for column in filled.values()))
        for place, (name, _) in enumerate(models)
    ]
    return Section(title, headers=("Model", *filled), rows=rows, figures=figures)


# -- history --------------------------------------------------------------------------------------------------------

_HISTORY_HEADERS = ("Model", "Measurements", "Composite now", "Before", "Largest step", "Beyond the band")


def _history_intro(made: Mapping[str, Any]) -> str:
    noise = made["settings"]["noise"]
    return (
        "Noise from one measurement to the next is up to "
        f"{noise['tokens_per_second']:g} tokens per second, {noise['ttft_ms']:g} ms to the first token, "
        f"{noise['composite']:g} of composite, and {noise['quality']:g} of quality."
    )


def _history_rows(made: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, line in made["history"].items():
        last, previous = line[-1], line[-2] if len(line) > 1 else None
        step = history.largest_steps(line).get("composite")
        moved = history.drift(previous, last, made["settings"]["noise"]) if previous else {}
        rows.append(
            (
                name,
                len(line),
                _three(last["composite"]),
                _three(previous["composite"] if previous else None),
                _three(step),
                drift_text(moved) or ("no" if previous else EMPTY),
            )
        )
    return rows


def drift_text(moved: Mapping[str, float]) -> str:
    """Return in words what ``history.drift`` found."""
    return ", ".join(f"{key.replace('_', ' ')} {value:+.3g}" for key, value in moved.items())


# -- Markdown -------------------------------------------------------------------------------------------------------


def markdown(made: Mapping[str, Any]) -> str:
    """Return a document as Markdown."""
    parts = [f"# {title(made)}", headline(made)]
    for section in sections(made):
        parts += [f"## {section.title}", section.intro, "\n".join(f"- {line}" for line in section.lines)]
        parts.append(table(section.headers, section.rows) if section.rows else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def title(made: Mapping[str, Any]) -> str:
    """Return the title of a document."""
    return f"Benchmark of {time_of(made):%Y-%m-%d %H:%M:%S} UTC"


def time_of(made: Mapping[str, Any]) -> datetime:
    """Return when a document was made."""
    return datetime.fromisoformat(made["time"])


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
