"""A deploy looks first: one dry run a host finds the phases in which nothing is to be done.

Each job has its price before its first comparison: a process, its loaders and its pillar, on the minion and the master.
Where an earlier deploy went well, one dry run of all phases takes the place of those that would change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiplatform import outcome, phases
from aiplatform.phases import RUNNER, STATE, Phase, Step

# What the lines of progress call it.
NAME = "dry run"
# What a host is asked by.
FUNCTION = "dry_run.phases"


def sort(names: Sequence[str], answer: Any) -> dict[str, Any]:
    """Return the answer of a dry run of states as ``dry_run.phases`` tells it.

    names
        The states that were run. What is to be done in a state that several may include is so in each of them.
    answer
        What ``state.sls`` returned.
    """
    if not isinstance(answer, Mapping):
        return {"reason": "; ".join(map(str, answer)) if isinstance(answer, list) else str(answer)}
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found[name] = {"states": 0, "to_do": [], "seconds": 0.0, "notices": []}
    for state in outcome.states_of(answer):
        own = str(state.get("__sls__", ""))
        owners = [name for name in names if f"{own}.".startswith(f"{name}.")] or list(names)
        first = found[owners[0]]
        first["states"] += 1
        first["seconds"] += float(state.get("duration") or 0) / 1000
        first["notices"] += outcome.notices_of({"": state})
        if state.get("result") is not True or state.get("changes"):
            for name in owners:
                found[name]["to_do"].append(str(state.get("__id__", state.get("name"))))
    return {"phases": found}


def wanted(steps: Iterable[Step], graph: Mapping[str, Phase]) -> dict[str, list[str]]:
    """Return which states each host is asked for a dry run of: those of the phases that do not always run."""
    found: dict[str, list[str]] = {}
    for step in steps:
        if step.kind == STATE and not graph[step.phase].always:
            for host in step.hosts:
                found.setdefault(host, []).append(step.name)
    return found


def idle(
    steps: Iterable[Step],
    graph: Mapping[str, Phase],
    answers: Mapping[str, Any],
    runners: Mapping[str, bool],
) -> list[outcome.Row]:
    """Return a row for each step and host of the phases in which nothing is to be done.

    steps, graph
        Those of the deploy.
    answers
        What ``dry_run.phases`` returned, by host.
    runners
        Of each runner function, whether its dry run found nothing to do.

    A phase is to be run where something is to be done on one of its hosts, and where it needs one that is.
    """
    steps = [step for step in steps if step.phase in graph]  # not the first, which only asks whether all answer
    rows = {step.id: list(_rows(step, answers, runners)) for step in steps}
    busy = {step.phase for step in steps if graph[step.phase].always or not all(rows[step.id])}
    running = phases.with_dependents(graph, busy)
    return [row for step in steps if step.phase not in running for row in rows[step.id] if row]


def _rows(step: Step, answers: Mapping[str, Any], runners: Mapping[str, bool]) -> Iterable[outcome.Row | None]:
    if step.kind == RUNNER:
        yield outcome.Row(step.phase, step.id, "master", outcome.OK) if runners.get(step.name) else None
        return
    for host in step.hosts:
        answer = answers.get(host)
        seen = answer.get("phases", {}).get(step.name) if isinstance(answer, Mapping) else None
        if seen and seen["states"] and not seen["to_do"]:
            yield outcome.Row(step.phase, step.id, host, outcome.OK, [], round(seen["seconds"], 1))
        else:
            yield None


def line(answer: Any) -> str:
    """Return the answer of one host in words, with what an operator wants to know."""
    if not isinstance(answer, Mapping) or "phases" not in answer:
        reason = answer.get("reason") if isinstance(answer, Mapping) else answer
        return f"every phase is run: {reason or 'no answer'}"
    found = answer["phases"]
    busy = [name for name, seen in found.items() if seen["to_do"]]
    notices = dict.fromkeys(f"\n    NOTE: {text}" for seen in found.values() for text in seen["notices"])
    told = f"to do in {', '.join(busy)}" if busy else "nothing to do"
    return f"{sum(seen['states'] for seen in found.values())} states, {told}{''.join(notices)}"
