"""Models in their slots: pulled, named, loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aiplatform import rotation, wait, watch
from aiplatform.errors import PlatformError
from aiplatform.states import converge


def pulled(name: str, models: list[str] | None = None) -> dict[str, Any]:
    """Make sure that models are in the store.

    name
        Any text.
    models
        Names with tags; all that the slot table holds where it is left out.

    .. code-block:: yaml

        models-pulled:
          model_slots.pulled: []

    The slot table is refused here, where it cannot be, before anything is pulled. A model with a damaged file is pulled
    again.
    """
    return converge(
        name,
        plan=lambda: _to_pull(models),
        apply=lambda: __salt__["model_slots.pull_all"](list(_to_pull(models))),
        test=__opts__["test"],
    )


def served(name: str, warmup: str = "") -> dict[str, Any]:
    """Make an instance's slots and aliases those of the table, each slot loaded under the name that clients call.

    name
        The instance.
    warmup
        The settings file of its warm-up. Where that loads what is wanted, the warm-up that comes with a start of the
        instance is awaited, and relied on by a dry run.

    .. code-block:: yaml

        slots-of-node1:
          model_slots.served:
            - name: node1
            - warmup: /etc/ai-platform/warmup-node1.json

    Where it fails half-way, its changes are those that were made before.
    """
    phases: list[dict[str, Any]] = []
    planned: dict[str, Any] = {}

    def plan() -> dict[str, Any]:
        if later := _chosen_later():
            return later
        planned.update(_differences(name, warmup))
        return planned

    state = converge(name, plan, lambda: phases.extend(_serve(name)), __opts__["test"])
    if planned and state["result"] is False:
        return state | {"changes": __salt__["model_slots.made"](name, planned)}
    return state | {"comment": rotation.phase_text(phases)} if phases else state


def warmed(name: str, instance: str) -> dict[str, Any]:
    """The warm-up unit of an instance is enabled and has ended well since its instance started.

    name
        The unit. Where a state that this one watches changes, it runs again.

    .. code-block:: yaml

        warmup-of-node1:
          model_slots.warmed:
            - name: ollama-warmup.service
            - instance: node1
            - watch:
              - file: /usr/local/bin/ollama-warmup
    """
    return converge(
        name, plan=lambda: _cold(name, instance), apply=lambda: _warm(name, instance), test=__opts__["test"]
    )


def watched(name: str, interval: int = 5, enabled: bool = True) -> dict[str, Any]:
    """Have the minion tell the master of slots that are not loaded and instances that do not answer.

    name
        The beacon, ``slots_cold``.
    interval
        Seconds between two looks.
    enabled
        False takes the watch away.

    .. code-block:: yaml

        slots_cold:
          model_slots.watched:
            - interval: 5
    """
    # A state run unloads and loads on purpose.
    options = [{"interval": interval}, {"disable_during_state_run": True}]
    return watch.watched(name, options if enabled else None, __opts__, __salt__)


def mod_watch(name: str, instance: str, **_: Any) -> dict[str, Any]:
    """Run a warm-up again, because what it runs or reads has changed; Salt calls this where ``warmed`` watches.

    .. code-block:: yaml

        warmup-of-node1:
          model_slots.warmed:
            - watch: []
    """
    changes = {name: {"old": "as it was", "new": "run again"}}
    return converge(
        name, plan=lambda: changes, apply=lambda: __salt__["model_slots.warm_up"](instance), test=__opts__["test"]
    )


def _to_pull(models: list[str] | None) -> dict[str, Any]:
    """Return what is to be pulled as the changes of a state: what is missing, and of the slots what is damaged."""
    if models is not None:
        return {model: {"old": None, "new": "pulled"} for model in __salt__["model_slots.missing"](models)}
    wanted = list(dict.fromkeys(row["model"] for row in __salt__["model_slots.table"]()))
    if wanted and not (__opts__["test"] and all(map(_down, __pillar__["ollama"]["instances"]))):
        __salt__["model_slots.refuse"]()
    missing = __salt__["model_slots.missing"](wanted)
    damaged = __salt__["model_slots.damaged"]([model for model in wanted if model not in missing])
    return {model: {"old": damaged.get(model), "new": "pulled"} for model in [*missing, *damaged]}


def _chosen_later() -> dict[str, Any]:
    """Return what a dry run can say before the benchmark has chosen; empty once it has."""
    return {} if __pillar__["selection"] else {"slots": {"old": None, "new": "the benchmark's choice"}}


def _serve(instance: str) -> list[dict[str, Any]]:
    if not __pillar__["selection"]:
        raise PlatformError(
            "No model has been chosen for the slots",
            where="model_selection.json in the first pillar root of the master",
            expected="a selection, new or kept",
            actual="none",
            hint="run the benchmark phase, or salt-run benchmark.run",
        )
    phases: list[dict[str, Any]] = __salt__["model_slots.converge"](instance)
    return phases


def _differences(instance: str, warmup: str) -> dict[str, Any]:
    if warmup and _holds(warmup, __salt__["model_slots.warmup_settings"](instance)):
        unit = __salt__["ollama.warmup_unit"](instance)
        if __opts__["test"] and _down(instance) and __salt__["service.enabled"](unit):
            return {}
        _await_warmup(unit, instance)
    elif __opts__["test"] and _restarts(instance):
        return {instance: {"old": "loaded", "new": "loaded again: its warm-up is not the one wanted"}}
    return __salt__["model_slots.differences"](instance)


def _holds(path: str, wanted: dict[str, Any]) -> bool:
    """Return whether a warm-up's settings file has it load what is wanted; how long it waits does not count."""
    try:
        there = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(there, dict):
        return False
    return all(there.get(part) == json.loads(json.dumps(wanted.get(part))) for part in ("url", "models"))


def _down(instance: str) -> bool:
    return not __salt__["service.status"](__pillar__["ollama"]["instances"][instance]["unit"])


def _restarts(instance: str) -> bool:
    """Return whether this dry run has found that the instance's service would be started again."""
    unit = __pillar__["ollama"]["instances"][instance]["unit"]
    rows = globals().get("__running__", {}).items()  # Salt gives it to the states of a run
    # As a service of its own, or because another version comes into use.
    return any(
        row["result"] is None and (key.split("_|-")[::2] == ["service", unit] or unit in row["changes"])
        for key, row in rows
    )


def _await_warmup(unit: str, instance: str) -> None:
    """Wait for a warm-up that is at work, such as the one that the restart of its instance has started."""
    seconds = __salt__["model_slots.warmup_seconds"](instance)
    wait.until(lambda: __salt__["service.show"](unit).get("ActiveState") != "activating", seconds, 0.2, unit)


def _cold(unit: str, instance: str) -> dict[str, Any]:
    if not __salt__["service.available"](unit):
        return {unit: {"old": "absent", "new": "enabled and run"}}
    if not __salt__["service.enabled"](unit):
        return {unit: {"old": "disabled", "new": "enabled and run"}}
    if __opts__["test"] and _down(instance):
        return {}  # it starts with its instance
    # One at work is left to it, or restarted where its files have changed.
    state = __salt__["service.show"](unit).get("ActiveState")
    return {} if state in ("active", "activating") else {unit: {"old": state, "new": "run"}}


def _warm(unit: str, instance: str) -> None:
    __salt__["service.enable"](unit)
    __salt__["model_slots.warm_up"](instance)
