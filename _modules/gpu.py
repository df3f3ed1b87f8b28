"""The GPUs of this host."""

from __future__ import annotations

from aiplatform import gpu


def found() -> list[str]:
    """Return the vendors, of nvidia and amd, whose driver is loaded.

    CLI Example:

    .. code-block:: bash

        salt ai_server gpu.found
    """
    return gpu.found()


def in_containers() -> list[str]:
    """Return the vendors whose devices Docker hands to a container here.

    CLI Example:

    .. code-block:: bash

        salt ai_server gpu.in_containers
    """
    return gpu.in_containers()


def used() -> bool:
    """Return whether the native instances of Ollama reach GPU devices, by pillar ``ollama:gpu`` and the driver.

    CLI Example:

    .. code-block:: bash

        salt ai_server gpu.used
    """
    return gpu.used(__pillar__["ollama"]["gpu"])
