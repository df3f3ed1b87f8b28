"""States of Ollama on this host: its release, its instances' readiness, the host's tuning."""

from __future__ import annotations

from typing import Any

from aiplatform import gate, instances, tuning
from aiplatform.errors import PlatformError
from aiplatform.states import converge, foresees, holds


def installed(name: str) -> dict[str, Any]:
    """The release that pillar ``ollama`` pins is unpacked below its root, its archive checked by its hash.

    name
        The version, for the reader.

    .. code-block:: yaml

        ollama-release:
          ollama.installed:
            - name: 0.17.4
    """
    return converge(
        name,
        plan=lambda: {} if __salt__["ollama_release.is_installed"]() else {name: {"old": "absent", "new": "installed"}},
        apply=lambda: __salt__["ollama_release.install"](),
        test=__opts__["test"],
    )


def port_is_free(name: str) -> dict[str, Any]:
    """Nobody has an instance's port but the host's own Ollama, which has it already or leaves it in this run.

    Changes nothing; says who.

    name
        The instance.

    .. code-block:: yaml

        ollama-node1-port:
          ollama.port_is_free:
            - name: node1
            - failhard: true
    """

    def refuse() -> None:
        found = __salt__["ollama.port_holders_of"](name)
        if found:
            raise PlatformError(
                f"The port of instance {name} is taken, and nothing was changed",
                where=f"ollama.instances.{name}.port",
                expected="a port that nobody else listens on",
                actual=f"held by {'; '.join(found)}",
                hint="name another port in pillar, or stop who holds it (systemctl disable --now <unit>, docker stop)",
            )

    return holds(name, refuse, __opts__["test"])


def in_use(name: str, instances: dict[str, dict[str, str]], timeout: float = 120) -> dict[str, Any]:
    """A version that is unpacked is the one in use, and every instance runs and answers with it.

    Instances are restarted one after the other. Where one does not answer with this version, the host returns to the
    version before, which is restarted and awaited, and the state fails and says so.

    name
        The version.

    instances
        ``unit`` and ``url`` of each, by name. One that is not installed yet is left to the states that install it.

    timeout
        Seconds that an instance may take to answer.

    .. code-block:: yaml

        ollama-in-use:
          ollama.in_use:
            - name: 0.17.4
            - instances:
                node1: {unit: ollama.service, url: "http://127.0.0.1:11434"}
    """
    units = [row["unit"] for row in instances.values()]
    return converge(
        name,
        plan=lambda: __salt__["ollama_release.differences"](name, units),
        apply=lambda: __salt__["ollama_release.use"](name, instances, timeout),
        test=__opts__["test"],
    )


def ready(
    name: str, url: str, version: str, timeout: float = 120, log_command: str = "", unit: str = ""
) -> dict[str, Any]:
    """An instance answers, with this version. Changes nothing; waits for it.

    A dry run that foresees no change waits, too.

    name
        The instance, for the reader.

    url
        Its base URL.

    version
        What it has to answer; empty: any.

    timeout
        Seconds to wait.

    log_command
        What shows its log on the host, for the error; empty: the journal of a native instance.

    unit
        The systemd unit that has to be the one who answers; empty: whoever does.

    .. code-block:: yaml

        ollama-node1-ready:
          ollama.ready:
            - name: node1
            - url: http://127.0.0.1:11434
            - version: 0.17.4
            - unit: ollama.service
    """
    rows = globals().get("__running__", {})  # Salt gives it to the states of a run
    if __opts__["test"] and foresees(rows):
        return converge(name, dict, dict, True) | {"comment": f"A real run waits for {url}"}
    return converge(
        name,
        plan=lambda: gate.passed(name, url, version, timeout, log_command=log_command, unit=unit) or {},
        apply=dict,
        test=False,
    )


def up_to_date(name: str, environment: dict[str, str]) -> dict[str, Any]:
    """What runs as a unit has the settings of its files. Changes nothing: the service that watches this is restarted.

    Files tell only a run that wrote them; where that run ended before its restart, this tells the next one.

    name
        The unit.

    environment
        Its settings.

    .. code-block:: yaml

        ollama-node1-running:
          ollama.up_to_date:
            - name: ollama.service
            - environment: {OLLAMA_NUM_PARALLEL: "2"}
    """
    pid = int(__salt__["service.show"](name).get("MainPID", 0))
    return converge(name, plan=lambda: instances.outdated(pid, environment), apply=dict, test=__opts__["test"])


def no_other_instances(name: str, units: list[str]) -> dict[str, Any]:
    """Instances that pillar has no more are stopped and their units removed; their models stay in the store.

    units
        The units of the instances that there should be.

    .. code-block:: yaml

        ollama-retired:
          ollama.no_other_instances:
            - units: [ollama.service, ollama-node0.service]
    """
    return converge(
        name,
        plan=lambda: {unit: {"old": "present", "new": "absent"} for unit in instances.retired(units)},
        apply=lambda: [__salt__["ollama.retire"](unit) for unit in instances.retired(units)],
        test=__opts__["test"],
    )


def host_tuned(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Kernel settings are in force; those that this host has not got or does not let itself be told are skipped.

    settings
        As pillar ``ollama:tuning``.

    .. code-block:: yaml

        ollama-tuning:
          ollama.host_tuned:
            - settings: {sysctl: {vm.swappiness: 1}, transparent_hugepages: madvise, cpu_governor: performance}
    """
    outcome = tuning.compare(tuning.files(settings))
    ret = converge(name, outcome.changes, lambda: tuning.apply(outcome), __opts__["test"])
    return ret | {"comment": "; ".join(part for part in (ret["comment"], outcome.notes()) if part)}
