"""This host's NUMA nodes, the plan for Ollama's instances on them, and where their memory really is."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aiplatform import cgroups
from aiplatform import numa as planner
from aiplatform.errors import NotFoundError

MIB = 2**20
# Services inherit the CPUs that process 1 may use, so a cpuset of the host or container counts for them too.
INIT = 1


def topology() -> dict[str, Any]:
    """Return the host's NUMA nodes, and what limits them.

    A node has its usable CPUs, the first CPU of each core, and memory in bytes. Beside the nodes are the CPUs that are
    offline, and what the control groups of all services allow (CPUs, bytes of memory; None: no limit).

    CLI Example:

    .. code-block:: bash

        salt ai_server numa.topology
    """
    host = _host()
    return {
        "numa": host.numa,
        "nodes": {number: asdict(node) for number, node in host.nodes.items()},
        "offline": list(host.offline),
        "limits": asdict(host.limits),
    }


def plan(instances: dict[str, Any] | None = None, sizes: dict[str, int] | None = None) -> dict[str, dict[str, Any]]:
    """Return what each Ollama instance gets: CPUs, threads, arguments for numactl, the node's memory, warnings.

    instances
        As pillar ``ollama:instances``, which is the default.

    sizes
        Bytes that the slots of an instance need; refused where the node's memory is smaller.

    CLI Example:

    .. code-block:: bash

        salt ai_server numa.plan
        salt ai_server numa.plan sizes='{"node1": 96000000000}'
    """
    ollama = __pillar__["ollama"]
    reserve = ollama["memory_reserve_mib"] * MIB
    bindings = planner.plan(_host(), instances or ollama["instances"], sizes, reserve)
    return {name: asdict(binding) for name, binding in bindings.items()}


def residency(instance: str = "", pid: int = 0) -> list[dict[str, Any]]:
    """Return for each model runner the bytes of model it holds on each node, and the share on its own node.

    instance
        One of ``ollama:instances``; all its runners.

    pid
        Instead of an instance: one process.

    CLI Example:

    .. code-block:: bash

        salt ai_server numa.residency node1
        salt ai_server numa.residency pid=4711
    """
    if pid:
        return [planner.residency(pid, None)]
    known = __pillar__["ollama"]["instances"]
    if instance not in known:
        raise NotFoundError("No such instance", where="ollama:instances", expected=sorted(known), actual=instance)
    server = int(__salt__["service.show"](known[instance]["unit"]).get("MainPID", 0))
    found = planner.runners(server) if server else {}
    node = known[instance]["numa_node"]
    return [planner.residency(runner, node) | {"weights": weights} for runner, weights in sorted(found.items())]


def remote(instance: str) -> list[dict[str, Any]]:
    """Return those rows of ``residency`` whose share on their own node is below pillar ``ollama:local_share``.

    Such a model is slow. Unload it, ``evict`` its weights and load it again; if that is no help, its node is full.

    CLI Example:

    .. code-block:: bash

        salt ai_server numa.remote node1
    """
    least = __pillar__["ollama"]["local_share"]
    return [row for row in residency(instance) if row["local_share"] is not None and row["local_share"] < least]


def evict(path: str) -> dict[str, Any]:
    """Drop weights from the page cache, so that who reads them next has them in its own node's memory.

    path
        The file, as ``residency`` names it. What a process has mapped stays: unload the model first.

    CLI Example:

    .. code-block:: bash

        salt ai_server numa.evict /mnt/ai_data/ollama_models/blobs/sha256-...
    """
    return {"bytes": planner.evict(Path(path))}


def _host() -> planner.Topology:
    return replace(planner.topology(allowed=os.sched_getaffinity(INIT)), limits=cgroups.limits(INIT))
