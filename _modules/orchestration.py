"""The steps of a deploy, as the orchestration renders them on the master."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import salt.key

from aiplatform import deploy, tables
from aiplatform import phases as graph


def steps(phases: list[str] | None = None, limit: list[str] | None = None) -> list[dict[str, Any]]:
    """Take the lock of deploys and return the steps as ``id``, ``function`` and ``arguments`` of Salt states.

    The lock stays with this process until it ends: one deploy at a time, whichever command started it.

    phases
        The phases to run; all where it is empty.
    limit
        The minion ids to run on; all where it is empty.

    CLI Example:

    .. code-block:: bash

        salt-run salt.cmd orchestration.steps phases='[vault]'
    """
    tables.hush()
    deploy.Lock(Path(__opts__["cachedir"])).take("state.orchestrate orch.deploy")
    path = graph.find(__opts__["file_roots"]["base"])
    rows = graph.load(path, first=not __pillar__.get("selection"))
    planned = graph.plan(rows, __pillar__["platform"]["hosts"], phases or [], limit or [])
    deploy.demand_keys(planned, salt.key.Key(__opts__).list_keys()["minions"])
    return [deploy.salt_state(step) for step in planned]
