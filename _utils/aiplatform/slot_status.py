"""What a person wants to know of each slot, put together from the table, the runners and the benchmark's figures."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aiplatform import numa
from aiplatform.ollama import normalise
from aiplatform.slots import Resident

PROC = Path("/proc")


def row(resident: Resident) -> dict[str, Any]:
    """Return a resident as plain data: name, slot, kind, instance, model, load options and aliases."""
    plain = {key: getattr(resident, key) for key in ("name", "slot", "kind", "instance", "model", "options")}
    return {**plain, "aliases": [alias.name for alias in resident.aliases]}


def facts(
    resident: Resident,
    digest: str | None,
    runner: Mapping[str, Any] | None,
    pids: Mapping[str, int],
    pillar: Mapping[str, Any],
) -> dict[str, Any]:
    """Return how a resident is: ``loaded``, ``context``, ``size`` and the like; None for what is not known.

    digest
        Of its weights.
    runner
        The row of ``/api/ps`` that serves it.
    pids
        The runners of its instance: the digest of their weights, and their process.

    ``size`` is in bytes, ``local_share`` (0 to 1) says how much of the runner's memory is on the instance's node,
    ``since`` (UTC) when it was loaded, ``tokens_per_second`` what the benchmark measured last.
    """
    pid = pids.get(digest or "") if runner else None
    node = pillar["ollama"]["instances"][resident.instance]["numa_node"]
    return {
        "digest": digest,
        "node": node,
        "loaded": bool(runner),
        "context": runner.get("context_length") if runner else None,
        "size": runner.get("size") if runner else None,
        "pid": pid,
        "local_share": share(pid, node) if pid else None,
        "since": since(pid) if pid else None,
        "tokens_per_second": measured(resident.model, pillar["selection"]),
    }


def pids(server: int, proc: Path = PROC) -> dict[str, int]:
    """Return ``{digest of the weights: pid}`` of the model runners of an instance's main process."""
    found = numa.runners(server, proc) if server else {}
    return {Path(path).name.removeprefix("sha256-"): pid for pid, path in found.items()}


def share(pid: int, node: int | None) -> float | None:
    """Return how much (0 to 1) of a process's memory is on a node; None where that cannot be told."""
    try:
        held = numa.residency(pid, node)["local_share"]
    except numa.NumaError:  # the process has ended
        return None
    return round(float(held), 3) if held is not None else None


def since(pid: int, proc: Path = PROC) -> str | None:
    """Return when a process began, such as ``2026-05-01 10:00:00 UTC``; None where there is none."""
    try:
        # The name in brackets may hold blanks; field 22 is the start, in ticks since the host's.
        ticks = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        boot = re.search(r"^btime (\d+)", (proc / "stat").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    if boot is None:
        return None
    began = int(boot.group(1)) + int(ticks) / os.sysconf("SC_CLK_TCK")
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(began))


def measured(model: str, selection: Mapping[str, Any]) -> float | None:
    """Return the tokens per second that the benchmark measured last of a model; None where it did not."""
    rows = {normalise(name): values for name, values in selection.get("all_metrics", {}).items()}
    value = rows.get(normalise(model), {}).get("avg_tok_per_sec")
    return float(value) if value is not None else None


def as_text(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the headers and the rows of a table for people, of rows as ``facts`` and ``row`` give them."""
    headers = ["slot", "model", "digest", "aliases", "instance", "node", "state", "local", "context"]
    headers += ["GiB", "tokens/s", "since"]
    return headers, [_line(one) for one in rows]


def _line(one: Mapping[str, Any]) -> tuple[Any, ...]:
    local, size, node = one.get("local_share"), one.get("size"), one.get("node")
    return (
        one["name"],
        one["model"],
        str(one.get("digest") or "")[:12],
        ",".join(one.get("aliases", [])),
        one["instance"],
        "" if node is None else node,
        "loaded" if one["loaded"] else "NOT LOADED",
        "" if local is None else f"{local:.0%}",
        one["context"] or "",
        f"{size / 2**30:.1f}" if size else "",
        one.get("tokens_per_second") or "",
        one.get("since") or "",
    )
