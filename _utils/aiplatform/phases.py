"""The graph of a deploy: which phase needs which, and the steps of a run in an order Salt can take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from aiplatform import settings
from aiplatform.errors import PlatformError
from aiplatform.schema import one_of

STATE, RUNNER = "state", "runner"
# The step before all phases: every minion answers and has this tree's Python modules.
MINIONS = "minions"


@dataclass(frozen=True)
class Phase:
    """One row of the graph; ``steps`` are pairs of kind (state, runner) and name.

    ``always`` says that it runs even where a dry run has found nothing to do.
    """

    name: str
    about: str
    roles: tuple[str, ...]
    needs: tuple[str, ...]
    steps: tuple[tuple[str, str], ...]
    always: bool = False


@dataclass(frozen=True)
class Step:
    """One state of the orchestration, on ``hosts`` or, a runner, on the master."""

    id: str
    phase: str
    kind: str
    name: str
    hosts: tuple[str, ...]
    require: tuple[str, ...] = field(default=())


def find(file_roots: Sequence[str]) -> Path:
    """Return the path of the graph, ``orch/phases.yaml`` in the first state tree that has it."""
    for root in file_roots:
        if (path := Path(root) / "orch" / "phases.yaml").is_file():
            return path
    raise PlatformError("The graph of phases is not there", where=", ".join(file_roots), expected="orch/phases.yaml")


def load(path: Path, first: bool = False) -> dict[str, Phase]:
    """Return the graph in ``path``, in an order in which every phase follows what it needs.

    first
        The benchmark has not chosen yet: what a row names as ``first_after`` is needed too.

    Raises ``PlatformError`` where a phase needs an unknown one, or itself by a detour.
    """
    rows = settings.read_yaml(path)
    phases = {name: _phase(name, row, first) for name, row in rows.items()}
    for phase in phases.values():
        check_names(phase.needs, phases, f"{path}: {phase.name}.needs")
    try:
        order = TopologicalSorter({phase.name: phase.needs for phase in phases.values()}).static_order()
        return {name: phases[name] for name in order}
    except CycleError as err:
        raise PlatformError(
            "The graph of phases has a cycle", where=str(path), actual=" -> ".join(err.args[1])
        ) from err


def _phase(name: str, row: Mapping[str, Any], first: bool) -> Phase:
    steps = tuple((kind, str(target)) for step in row["steps"] for kind, target in step.items())
    needs = (*row["needs"], *(row.get("first_after", []) if first else []))
    return Phase(name, row["about"], tuple(row["roles"]), needs, steps, bool(row.get("always")))


def check_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse names that are not known; the error names the nearest one.

    Raises ``PlatformError`` with every unknown name.
    """
    known = list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        wanted = "; ".join(one_of(name, known) for name in unknown)
        raise PlatformError("Unknown name", where=where, expected=wanted, actual=", ".join(map(str, unknown)))


def with_dependents(phases: Mapping[str, Phase], names: Iterable[str]) -> set[str]:
    """Return these phases and all that need one of them, by whatever detour.

    phases
        The graph, in its order.
    """
    found = set(names)
    for phase in phases.values():
        if found.intersection(phase.needs):
            found.add(phase.name)
    return found


def plan(
    phases: Mapping[str, Phase],
    hosts: Mapping[str, Mapping[str, Any]],
    only: Sequence[str] = (),
    limit: Sequence[str] = (),
) -> list[Step]:
    """Return the steps of a run.

    phases
        The graph.
    hosts
        ``platform:hosts``: minion id to its ``roles``.
    only
        The phases to run; all where it is empty. What was needed by way of a phase left out is still waited for.
    limit
        The hosts to run on; all where it is empty. A phase without a host left, its runners included, is left out.
    """
    check_names(only, phases, "phases")
    check_names(limit, hosts, "limit")
    chosen = [phase for phase in phases.values() if not only or phase.name in only]
    found: dict[str, list[Step]] = {}
    for phase in chosen:
        targets = _targets(phase, hosts, limit)
        if targets:
            before = [found[name][-1].id for name in sorted(_nearest(phase.name, phases, found))]
            found[phase.name] = _chain(phase, targets, before)
    steps = [step for chain in found.values() for step in chain]
    every = tuple(name for name in hosts if any(name in step.hosts for step in steps))
    first = Step(MINIONS, MINIONS, MINIONS, MINIONS, every)
    return [first, *(replace(step, require=step.require or (MINIONS,)) for step in steps)] if steps else []


def _targets(phase: Phase, hosts: Mapping[str, Mapping[str, Any]], limit: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        name for name, host in hosts.items() if set(host["roles"]) & set(phase.roles) and (not limit or name in limit)
    )


def _nearest(name: str, phases: Mapping[str, Phase], running: Iterable[str]) -> set[str]:
    """Return the phases of this run that ``name`` needs, looking through those that are left out."""
    direct = phases[name].needs
    kept = {need for need in direct if need in running}
    return kept.union(*(_nearest(need, phases, running) for need in direct if need not in kept))


def _chain(phase: Phase, targets: tuple[str, ...], before: list[str]) -> list[Step]:
    steps: list[Step] = []
    for number, (kind, name) in enumerate(phase.steps, start=1):
        step_id = phase.name if number == 1 else f"{phase.name} {name}"
        require = tuple(before) if number == 1 else (steps[-1].id,)
        steps.append(Step(step_id, phase.name, kind, name, targets, require))
    return steps
