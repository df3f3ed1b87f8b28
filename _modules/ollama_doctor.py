"""The doctor of an Ollama on this host, native or in Docker; offered as ``ollama.doctor``, beside the client."""

from __future__ import annotations

from typing import Any

from aiplatform import doctor as judge
from aiplatform import ollama_places
from aiplatform.examination import Examination

__virtualname__ = "ollama"


def __virtual__() -> str:  # noqa: N807 (the loader asks for it by this name)
    return __virtualname__


def doctor(instance: str = "", model: str = "", patience: float = 120.0, out: str = "text") -> dict[str, Any] | str:
    """Go through what usually goes wrong with an Ollama; say what was measured, and what to type next.

    Refused from the host, or from a container; slow download, memory, GPU, a model that does not load, slow generation,
    throughput near zero, duplicates. Asks one model for 16 tokens, changes nothing. The exit code is 1 where there is
    a finding.

    instance
        One of ``ollama:instances``, or of ``ollama:run`` in mode ``container``; left out, the first.
    model
        The model that is asked; left out, one that is loaded, else the smallest.
    patience
        Seconds that its answer may take.
    out
        ``text`` for people, ``json`` for data.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.doctor
        salt-call ollama.doctor local llama3.2:3b out=json
    """
    place = ollama_places.place(__pillar__, instance)
    found = Examination(place, __pillar__, __salt__, model, patience).run()
    failed = sum(not finding.ok for finding in found)
    __context__["retcode"] = int(bool(failed))
    if out == "text":
        return judge.text(place.name, found)
    return {"instance": place.name, "findings": failed, "entries": [vars(finding) for finding in found]}
