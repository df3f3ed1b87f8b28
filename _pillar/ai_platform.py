"""The platform's settings: defaults under the operator's pillar, checked, with what follows from them.

Configured on the master (and on a masterless host) as ``ext_pillar: [{ai_platform: {formulas: <state tree>}}]``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from aiplatform import containers, instances, ollama_container, origins, schema, services, settings, single, slot_rules
from aiplatform.errors import PlatformError

DERIVED = frozenset({"selection", "roles", "address", "compiled", "services", "origins"})
# The settings whose lines a host tells when it refuses its slot table.
SLOT_TABLE = ("slots", "aliases", "models", "ollama")


def ext_pillar(minion_id: str, pillar: dict[str, Any], formulas: str) -> dict[str, Any]:
    """Return the effective settings of one minion.

    minion_id
        The minion's id; its roles and address come from ``platform:hosts``.
    pillar
        What the operator's pillar files say, run-time overrides included.
    formulas
        The state tree whose ``*/defaults.yaml`` and ``*/schema.yaml`` count.

    Adds ``selection`` (the benchmark's choice of models), ``roles`` and ``address`` of this minion, ``compiled``
    (the master's time, in seconds since 1970), ``origins`` (the files and lines of the slot table's settings), and
    fills in the table of services. Where anything is wrong the answer is ``_errors`` alone: Salt then runs no state.
    """
    tree, roots = Path(formulas), __opts__["pillar_roots"].get("base", [])
    _forget(pillar)
    try:
        merged = settings.effective(pillar, tree)
        merged["selection"] = settings.selection(roots)
        if __opts__.get("__role") == "minion":  # it compiles its own pillar: there is no master
            single.host(merged, minion_id)
        defaults = settings.defaults(tree)
        problems = single.instance(merged, pillar) or schema.problems(merged, tree, written=pillar)
        if problems := problems or containers.problems(pillar, defaults):
            return _refused(problems, roots, merged)
        single.slots(merged, pillar)
        # Where the benchmark's choice does not go together with pillar, the models phase says it, and only that.
        problems = slot_rules.problems(merged | {"selection": {}}) or ollama_container.problems(merged, defaults)
        if problems := problems or instances.problems(merged):
            return _refused(problems, roots, merged)
        merged["services"] = services.expand(merged)
        if problems := services.problems(merged):
            return _refused(problems, roots, merged)
    except PlatformError as err:
        return {"_errors": [str(err)]}
    host = merged["platform"]["hosts"].get(minion_id, {})
    merged |= {"roles": host.get("roles", []), "address": host.get("address"), "compiled": int(time.time())}
    merged["origins"] = origins.lines(roots, merged, SLOT_TABLE)
    # Salt merges what is returned into what it has: entries that the operator removed must go there too.
    pillar.clear()
    return merged


def _refused(problems: list[schema.Problem], roots: list[str], merged: dict[str, Any]) -> dict[str, Any]:
    """Return the problems as the only content of the pillar, each with its file and line as far as they are known."""
    lines = origins.lines(roots, merged)
    return {"_errors": [str(origins.located(problem, lines)) for problem in problems]}


def _forget(pillar: dict[str, Any]) -> None:
    """Take out what an earlier compilation in this process has added.

    Salt begins with the pillar that the options carry, as they do in a masterless state run. Whatever the operator
    writes has replaced its part of that by now.
    """
    before = __opts__.get("pillar") or {}
    for key in DERIVED & pillar.keys():
        if pillar[key] == before.get(key):
            del pillar[key]
