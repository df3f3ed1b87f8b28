"""Models in their slots: pulled, named, loaded."""

from __future__ import annotations

from typing import Any

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
    """
    return converge(
        name,
        plan=lambda: {
            model: {"old": None, "new": "pulled"} for model in __salt__["model_slots.missing"](_wanted(models))
        },
        apply=lambda: [
            __salt__["model_slots.pull"](model) for model in __salt__["model_slots.missing"](_wanted(models))
        ],
        test=__opts__["test"],
    )


def served(name: str, instance: str | None = None) -> dict[str, Any]:
    """Make an instance's slots and aliases those of the table, each slot loaded under the name that clients call.

    name
        The instance, where ``instance`` is left out.

    .. code-block:: yaml

        slots-of-node1:
          model_slots.served:
            - name: node1
    """
    place = instance or name
    return converge(
        name,
        plan=lambda: _chosen_later() or __salt__["model_slots.differences"](place),
        apply=lambda: _serve(place),
        test=__opts__["test"],
    )


def _wanted(models: list[str] | None) -> list[str]:
    if models is not None:
        return models
    return list(dict.fromkeys(row["model"] for row in __salt__["model_slots.table"]()))


def _chosen_later() -> dict[str, Any]:
    """Return what a dry run can say before the benchmark has chosen; empty once it has."""
    return {} if __pillar__["selection"] else {"slots": {"old": None, "new": "the benchmark's choice"}}


def _serve(instance: str) -> None:
    if not __pillar__["selection"]:
        raise PlatformError(
            "No model has been chosen for the slots",
            where="model_selection.json in the first pillar root of the master",
            expected="a selection, new or kept",
            actual="none",
            hint="run the benchmark phase, or salt-run benchmark.run",
        )
    __salt__["model_slots.converge"](instance)
