"""The Docker engine of this host, by Docker's own library."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import docker
import docker.errors

from aiplatform.errors import PlatformError

SOCKET = "/var/run/docker.sock"
# Seconds that the engine may take for one request.
TIMEOUT = 120
_KEPT = "platform_container.engine"


def client(memory: MutableMapping[str, Any]) -> Any:
    """Return a client of the engine; one for the run, since it asks the engine's version first.

    memory
        What lasts for the run (Salt's ``__context__``).

    Raises ``PlatformError`` where the engine does not answer.
    """
    if _KEPT not in memory:
        try:
            memory[_KEPT] = docker.APIClient(base_url=f"unix://{SOCKET}", version="auto", timeout=TIMEOUT)
        except docker.errors.DockerException as err:
            raise PlatformError(
                "Docker does not answer", where=SOCKET, actual=str(err), hint="salt-call state.apply docker"
            ) from err
    return memory[_KEPT]
