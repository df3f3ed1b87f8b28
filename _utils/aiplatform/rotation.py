"""Another model in a rotating slot: what may go there, and how long each phase took."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiplatform import outcome, slot_rules, slots
from aiplatform.errors import PlatformError
from aiplatform.tables import table

STORE = "store"
_PHASE = re.compile(r"(\S+) (\w+) ([\d.]+) s at ([\d.]+)")


def parse(slot: int | str, model: str | None) -> tuple[int, str | None]:
    """Return the number of a rotating slot and the model for it, as they were typed; no model for ``null``.

    Raises ``PlatformError`` where that is no rotating slot.
    """
    known = [str(number) for number in slot_rules.ROTATING_SLOTS]
    number = str(slot).strip().removeprefix("slot-")
    if number not in known:
        wanted = f"{' or '.join(known)}: the others change with a new benchmark"
        raise PlatformError("This slot does not rotate", where="slot", expected=wanted, actual=slot)
    text = "" if model is None else str(model).strip()
    return int(number), None if text.lower() in ("", "null", "none", "~") else text


def wanted(pillar: Mapping[str, Any], number: int, model: str | None, force: bool) -> dict[str, Any]:
    """Return the pillar as it would be with this model in the slot.

    Raises ``PlatformError`` with every reason why it cannot be, by pillar and the benchmark's figures.
    """
    found = copy.deepcopy(dict(pillar))
    _row(found, number).update(model=model, force=force)
    slot_rules.refuse(slot_rules.problems(found))
    return found


def states(pillar: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the states of the phase ``models`` that bring a slot's model into service, as ``state.high`` takes them.

    They go first, by themselves: what else the phase has keeps nobody waiting, and a minion has these at work without
    fetching and rendering any file.
    """
    instance = _row(pillar, number)["instance"]
    return {
        "models-pulled": {"model_slots": ["pulled"]},
        f"models-{instance}": {
            "model_slots": ["served", {"name": instance}, {"require": [{"model_slots": "models-pulled"}]}]
        },
    }


def _row(pillar: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return what pillar says of a slot; its number may be text there."""
    row: dict[str, Any] = next(row for key, row in pillar["slots"].items() if int(key) == number)
    return row


# -- how it went --------------------------------------------------------------------------------------------------


def phase_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return phases as the comment of a state; ``phases`` reads it. ``at`` is their end, in seconds since 1970."""
    return ", ".join(f"{row['name']} {row['phase']} {row['seconds']} s at {row['at']}" for row in rows)


def phases(answer: Any) -> list[dict[str, Any]]:
    """Return the phases that the answer of ``state.apply models`` tells of, in their order, each with its seconds."""
    found: list[dict[str, Any]] = []
    for state in sorted(outcome.states_of(answer), key=lambda row: row.get("__run_num__", 0)):
        if state.get("__id__") == "models-pulled":
            seconds = round(float(state.get("duration") or 0) / 1000, 2)
            found.append({"name": STORE, "phase": "pull and check", "seconds": seconds})
        elif state.get("result") and state.get("changes"):
            rows = _PHASE.findall(str(state.get("comment", "")))
            found += [
                {"name": name, "phase": phase, "seconds": float(took), "at": float(at)}
                for name, phase, took, at in rows
            ]
    return found


def data(
    number: int,
    pillar: Mapping[str, Any],
    path: Path,
    answers: Sequence[Mapping[str, Any]],
    edited: float,
    ended: float,
    test: bool = False,
) -> dict[str, Any]:
    """Return the answer of a rotation.

    number, path
        The slot, and the file that names its model now.
    answers
        Of each job that applied states, ``{host: its answer}``.
    edited, ended
        When pillar was written, and when the last host had answered, in seconds since 1970.
    test
        It was only asked whether it could be.

    In it, ``first_token`` and ``in_place`` are the seconds from the edit to the first token of the new model and until
    clients reach it under the slot's names, by the host's clock; None where nothing was loaded.
    """
    row = _row(pillar, number)
    failures = [one for job in answers for host in job for one in outcome.failures_of("models", host, job[host])]
    found: dict[str, list[dict[str, Any]]] = {}
    for job in answers:
        for host, answer in job.items():
            rows = found.setdefault(host, [])
            # That all is in the store is looked at by each job, and told once.
            rows += [one for one in phases(answer) if not rows or one["name"] != STORE]
    name = slots.technical_name(number)

    def until(phase: str) -> float | None:
        ends = [row["at"] for rows in found.values() for row in rows if (row["name"], row["phase"]) == (name, phase)]
        return round(max(ends) - edited, 2) if ends else None

    return {
        "retcode": int(bool(failures) or not any(answers)),
        "test": test,
        "slot": number,
        "model": slots.chosen_model(number, row, pillar["selection"]),
        "names": [name, *_aliases(number, pillar)],
        "pillar": str(path),
        "seconds": round(ended - edited, 1),
        "first_token": until("answer"),
        "in_place": until("move"),
        "phases": found,
        "failures": outcome.as_data(failures),
    }


def _aliases(number: int, pillar: Mapping[str, Any]) -> list[str]:
    return sorted(name for name, row in pillar["aliases"].items() if row.get("slot") == number)


def text(answer: Mapping[str, Any]) -> str:
    """Return the answer of a rotation for people."""
    rows = [
        (host, row["name"], row["phase"], f"{row['seconds']:.2f}")
        for host, found in answer["phases"].items()
        for row in found
    ]
    parts = [table(["host", "what", "phase", "seconds"], rows)]
    parts += [f"FAILED on {one['host']}: {one['state']}: {one['reason']}" for one in answer["failures"]]
    return "\n\n".join(part for part in [*parts, _end(answer)] if part)


def _end(answer: Mapping[str, Any]) -> str:
    """Return the last line of the text: how it came out."""
    names, model, path = ", ".join(answer["names"]), answer["model"] or "empty", answer["pillar"]
    if answer["retcode"]:
        return f"{path} names the new model; the same command again carries on from here."
    if answer["test"]:
        return f"{names}: would be {model}; nothing is in the way. {path} was not written, and nothing was pulled."
    first, place = answer["first_token"], answer["in_place"]
    took = f"first token {first} s, in its place {place} s after the edit of" if first is not None else "named in"
    return f"{names}: {model}; {took} {path}, {answer['seconds']} s in all."
