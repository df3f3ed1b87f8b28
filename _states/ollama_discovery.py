"""States of Ollama's records in service discovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiplatform.states import converge


def record_absent(name: str, daemon: str) -> dict[str, Any]:
    """A record is gone, and the service that told of it has read its folder again, where it runs.

    name
        The record's file.

    daemon
        The service.

    .. code-block:: yaml

        ollama-node0-consul:
          ollama_discovery.record_absent:
            - name: /etc/consul.d/ollama-node0.json
            - daemon: consul
    """

    def remove() -> None:
        Path(name).unlink()
        if __salt__["service.status"](daemon):
            __salt__["service.reload"](daemon)

    return converge(
        name,
        plan=lambda: {"record": {"old": "present", "new": None}} if Path(name).is_file() else {},
        apply=remove,
        test=__opts__["test"],
    )
