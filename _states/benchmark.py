"""Models measured on this host."""

from __future__ import annotations

from typing import Any

from aiplatform.ollama import InstanceDown
from aiplatform.states import converge


def measured(name: str) -> dict[str, Any]:
    """Measure every model of the store that has not been measured as it is now.

    Pillar ``benchmark`` says what is measured and how; its keys ``models`` and ``fresh`` narrow and repeat a run.

    .. code-block:: yaml

        models-measured:
          benchmark.measured:
            - name: models
    """
    figures: dict[str, Any] = {}
    state = converge(
        name,
        plan=_unmeasured,
        apply=lambda: figures.update(__salt__["benchmark.measure"]()),
        test=__opts__["test"],
    )
    return state | {"changes": figures} if figures else state


def _unmeasured() -> dict[str, Any]:
    later = dict.fromkeys(_to_be_pulled(), "to be measured once it is pulled")
    try:
        found = __salt__["benchmark.plan"]()["measure"]
    except InstanceDown:
        if not __opts__["test"]:
            raise
        found = {}
    return {**{model: f"to be measured on {instance}" for model, instance in found.items()}, **later}


def _to_be_pulled() -> list[str]:
    """Return what a dry run must add: models that the run proper will have pulled by now."""
    return __salt__["model_slots.missing"](__salt__["benchmark.wanted_models"]()) if __opts__["test"] else []
