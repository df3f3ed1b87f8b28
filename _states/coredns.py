"""States of the site's name server: its zone's file, and that it answers."""

from __future__ import annotations

from typing import Any

from aiplatform import wait
from aiplatform.errors import PlatformError, WaitTimeoutError
from aiplatform.states import converge, foresees


def zone_current(name: str) -> dict[str, Any]:
    """The zone's file has the names of the table of services, and every other record that it had.

    The serial goes up with a change, and only then.

    name
        The file's path, for the reader.

    .. code-block:: yaml

        coredns-zone:
          coredns.zone_current:
            - name: /docker_mounts/coredns/example.com.db
    """
    return converge(
        name, plan=__salt__["coredns.zone_changes"], apply=__salt__["coredns.write_zone"], test=__opts__["test"]
    )


def answers(name: str, timeout: float = 60) -> dict[str, Any]:
    """The name server answers as its zone's file says, by UDP and by TCP. Changes nothing; waits for it.

    A dry run that foresees no change waits, too.

    name
        Its address, for the reader.

    timeout
        Seconds to wait.

    .. code-block:: yaml

        coredns-answers:
          coredns.answers:
            - name: 192.0.2.53
    """
    rows = globals().get("__running__", {})  # Salt gives it to the states of a run
    if __opts__["test"] and foresees(rows):
        return converge(name, dict, dict, True) | {"comment": "A real run waits for its answers"}
    return converge(name, plan=lambda: _await(name, timeout), apply=dict, test=False)


def _await(name: str, timeout: float) -> dict[str, Any]:
    try:
        wait.until(lambda: not __salt__["coredns.wrong"](), timeout, 0.5, "the name server")
    except WaitTimeoutError as err:
        raise PlatformError(
            "The name server does not answer as its zone's file says",
            where=name,
            expected="the names of the table of services, by UDP and TCP",
            actual=__salt__["coredns.wrong"](),
            hint="docker logs coredns",
        ) from err
    return {}
