"""Models measured on this host."""

from __future__ import annotations

from typing import Any

from aiplatform import settle
from aiplatform.ollama import InstanceDown, normalise
from aiplatform.states import converge


def measured(name: str) -> dict[str, Any]:
    """Measure every model of the store that has not been measured as it is now.

    Pillar ``benchmark`` says what is measured and how; its keys ``models`` and ``fresh`` narrow and repeat a run, and
    ``pull_if_better`` fetches recommended models where slots are not filled well.

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


def chosen(name: str) -> dict[str, Any]:
    """Write the selection and the report that follow from what was measured: on a server that has no master.

    .. code-block:: yaml

        models-chosen:
          benchmark.chosen:
            - name: models
    """
    return converge(
        name,
        plan=lambda: settle.LATER if _unmeasured() else __salt__["benchmark.choose"](test=True)["changes"],
        apply=lambda: __salt__["benchmark.choose"](),
        test=__opts__["test"],
    )


def _unmeasured() -> dict[str, Any]:
    # In the run proper these have been pulled by now. One that was measured, or left out, brings the weights it had.
    chosen = __pillar__["selection"]
    known = {normalise(name) for key in ("all_metrics", "excluded") for name in chosen.get(key, {})}
    pulls = __salt__["benchmark.to_be_pulled"]() if __opts__["test"] else []
    later = [model for model in pulls if normalise(model) not in known]
    try:
        found = __salt__["benchmark.plan"]()
    except InstanceDown:
        if not __opts__["test"]:
            raise
        found = {"measure": {}, "recommended": {}, "memory": []}
    changes = {model: f"to be measured on {instance}" for model, instance in found["measure"].items()}
    changes |= {model: f"to be fetched and measured: {why}" for model, why in found["recommended"].items()}
    changes |= {f"memory of {name}": "to be measured" for name in found["memory"]}
    return changes | dict.fromkeys(later, "to be measured once it is pulled")
