"""States of Ollama in Docker: its port, its models, profiles that are no more."""

from __future__ import annotations

from typing import Any

from aiplatform.errors import PlatformError
from aiplatform.states import converge, holds


def port_is_free(name: str) -> dict[str, Any]:
    """Nobody has a profile's port but its own container, or one that leaves it in this run. Changes nothing; says who.

    name
        The profile.

    .. code-block:: yaml

        ollama-local-port:
          ollama_container.port_is_free:
            - name: local
            - failhard: true
    """

    def refuse() -> None:
        found = __salt__["ollama_container.port_holders_of"](name)
        if found:
            port = __salt__["ollama_container.profiles"]()[name]["port"]
            raise PlatformError(
                f"Port {port} of profile {name} is taken, and nothing was changed",
                where=f"ollama.profiles.{name}.port",
                expected="a port that nobody listens on",
                actual=f"held by {'; '.join(found)}",
                hint="name another port in pillar, or stop who holds it (systemctl disable --now <unit>, docker stop)",
            )

    return holds(name, refuse, __opts__["test"])


def gpu_is_there(name: str) -> dict[str, Any]:
    """A profile that demands a GPU is on a host that has one with its driver and toolkit. Changes nothing.

    name
        The profile.

    .. code-block:: yaml

        ollama-prod-gpu:
          ollama_container.gpu_is_there:
            - name: prod
            - failhard: true
    """
    return holds(name, lambda: __salt__["ollama_container.demand_gpu"](name), __opts__["test"])


def models_present(name: str) -> dict[str, Any]:
    """The models that pillar names for a profile are in its store; one that cannot be pulled in time fails the state.

    name
        The profile.

    .. code-block:: yaml

        ollama-local-models:
          ollama_container.models_present:
            - name: local
    """
    return converge(
        name,
        plan=lambda: {model: {"old": None, "new": "pulled"} for model in __salt__["ollama_container.missing"](name)},
        apply=lambda: [
            __salt__["ollama_container.pull"](name, model) for model in __salt__["ollama_container.missing"](name)
        ],
        test=__opts__["test"],
    )


def no_others(name: str) -> dict[str, Any]:
    """Containers of profiles that this host does not run any more are gone. Their volumes, and the models, stay.

    So is one that has a port which another profile was given: its own state makes it anew, on its own new port. Where
    Ollama runs natively, all of them are.

    .. code-block:: yaml

        ollama-retired:
          ollama_container.no_others: []
    """
    return converge(
        name,
        plan=lambda: {key: {"old": "present", "new": None} for key in __salt__["ollama_container.others"]()},
        apply=lambda: [
            __salt__["platform_container.remove"](container) for container in __salt__["ollama_container.others"]()
        ],
        test=__opts__["test"],
    )
