"""The platform's containers on this host, by Docker's own Python library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import docker.errors
import requests

from aiplatform import containers, docker_engine, port_holders, wait
from aiplatform.errors import NotFoundError, PlatformError

LOG_LINES = 20
TIMEOUT = 120
RUN_SECONDS = 30


def image(formula: str) -> str:
    """Return the full name of a formula's image, out of its ``image``, ``version`` and ``digest`` in pillar.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.image keycloak
    """
    wanted = __pillar__[formula]
    registry = __pillar__["containers"]["registry"]
    return containers.reference(registry, wanted["image"], wanted["version"], wanted["digest"])


def folder(name: str) -> str:
    """Return the host's folder with a container's files, the secret ones among them.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.folder keycloak
    """
    return f"{__pillar__['containers']['folder']}/{name}"


def answers() -> bool:
    """Return whether Docker answers on this host.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.answers
    """
    if not Path(docker_engine.SOCKET).exists():
        return False
    try:
        return bool(_engine().ping())
    except PlatformError:
        return False


def inspect(name: str) -> dict[str, Any] | None:
    """Return a container as Docker shows it, or None where there is none.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.inspect keycloak
    """
    engine = _engine()
    try:
        return dict(engine.inspect_container(name))
    except docker.errors.NotFound:
        return None


def specification(name: str, **wanted: Any) -> dict[str, Any]:
    """Return a container's specification by parts; for the arguments see the state ``platform_container.running``.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.specification web image=example.com/web:1 user=1000:1000 memory_mib=128
    """
    image = __salt__["platform_image.pinned"](wanted["image"])
    return containers.specification(__pillar__["containers"], name, **(wanted | {"image": image}))


def create(name: str, parts: dict[str, Any], files: str | None = None) -> bool:
    """Make a container and start it, in place of one of that name.

    The new one is made before the old one is touched, so that what the engine refuses changes nothing.

    parts
        As ``specification`` returns them; the first pull of an image may pin it (``platform_image.pins``).
    files
        The folder with the container's files.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.create web parts='{...}' files=/etc/ai-platform/web
    """
    __salt__["platform_image.pull"](parts["image"])
    parts = parts | {"image": __salt__["platform_image.pinned"](parts["image"])}
    engine, new = _engine(), f"{name}-new"
    remove(new)
    try:
        engine.create_container_from_config(containers.engine_config(name, parts, digests(parts, files)), new)
    except docker.errors.APIError as err:
        raise PlatformError(
            "Docker refuses the container; the old one stays", where=name, actual=err.explanation
        ) from err
    remove(name, parts["stop"])
    engine.rename(new, name)
    return start(name)


def start(name: str) -> bool:
    """Start a container that has stopped.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.start keycloak
    """
    try:
        _engine().start(name)
    except docker.errors.APIError as err:
        raise PlatformError("The container does not start", where=name, actual=err.explanation) from err
    return True


def restart(name: str) -> bool:
    """Stop a container and start it again.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.restart keycloak
    """
    _engine().stop(name)
    return start(name)


def remove(name: str, stop_timeout: int = 10) -> bool:
    """Stop and remove a container with its nameless volumes; returns whether there was one.

    stop_timeout
        Seconds that it may take to stop by itself; None: as it was made with.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.remove keycloak
    """
    engine = _engine()
    try:
        engine.stop(name, timeout=stop_timeout)
        engine.remove_container(name, v=True, force=True)
    except docker.errors.NotFound:
        return False
    return True


def logs(name: str, lines: int = LOG_LINES) -> str:
    """Return a container's last log lines.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.logs keycloak 50
    """
    try:
        return _engine().logs(name, tail=lines).decode(errors="replace")
    except docker.errors.APIError as err:
        raise NotFoundError("There are no logs", where=name, actual=err.explanation) from err


def wait_well(name: str, timeout: float = TIMEOUT, files: str | None = None, ask: bool = False) -> bool:
    """Wait until a container is well: it runs, and its own health check is content.

    name, timeout
        Which one, and for how many seconds.
    files
        The folder with its files: no value of them is shown in the error, which ends with the last log lines.
    ask
        Make its check while it starts; an engine before version 25 first makes it after a whole interval.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.wait_well keycloak 60
    """
    seen: dict[str, Any] = {}
    before = containers.restarts(inspect(name))

    def decided() -> bool:
        now = seen["now"] = inspect(name)
        return containers.well(now) or bool(containers.failed(now, before)) or (ask and _content(now))

    try:
        wait.until(decided, timeout, 0.5, f"container {name}")
        reason = containers.failed(seen["now"], before)
    except PlatformError:
        reason = f"it is not well after {timeout:g} s (health: {containers.health(seen['now'])})"
    if not reason:
        return True
    told = containers.redact(logs(name) if seen["now"] else "", containers.read_files(files).values())
    raise PlatformError(
        f"Container {name} does not come up: {reason}", hint=f"docker logs {name}", actual=f"its last lines:\n{told}"
    )


def _content(inspected: dict[str, Any] | None) -> bool:
    """Whether the check of a container that starts is content now."""
    if inspected is None or inspected["State"]["Status"] != "running" or containers.health(inspected) != "starting":
        return False
    kind, *test = inspected["Config"]["Healthcheck"]["Test"]
    try:
        argv = test if kind == "CMD" else ["/bin/sh", "-c", *test]
        return bool(execute(inspected["Id"], argv)["retcode"] == 0)
    except PlatformError:
        # It has just ended; the next look at it tells.
        return False


def digests(parts: dict[str, Any], files: str | None = None) -> dict[str, str]:
    """Return the hashes by which a change of a container is noticed.

    parts
        As ``specification`` returns them.
    files
        The folder with the container's files.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.digests parts='{...}' files=/etc/ai-platform/web
    """
    return containers.part_digests(parts, containers.read_files(files))


def network(name: str) -> dict[str, Any] | None:
    """Return a network as Docker shows it, or None where there is none.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.network ai-platform
    """
    try:
        return dict(_engine().inspect_network(name))
    except docker.errors.NotFound:
        return None


def create_network(name: str, bridge: str, subnet: str | None = None) -> bool:
    """Make a network of this host's containers.

    bridge
        The name of its interface on the host.
    subnet
        Its addresses; None: Docker chooses.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.create_network ai-platform br-platform
    """
    engine = _engine()
    try:
        engine.create_network(name, **containers.network_arguments(name, bridge, subnet))
    except docker.errors.APIError as err:
        # Phases that run side by side on one host may each find none, and one is first.
        there = network(name)
        if there is None or containers.network_difference(there, bridge, subnet):
            raise PlatformError("Docker refuses the network", where=name, actual=err.explanation) from err
    return True


def publishers(port: int, address: str) -> list[str]:
    """Return the names of the containers that keep another one from publishing a TCP port on an address of this host.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.publishers 11434 127.0.0.1
    """

    def taken(entry: dict[str, Any]) -> bool:
        published = entry["Type"] == "tcp" and entry.get("PublicPort") == port
        return published and port_holders.meet(entry.get("IP", address), address)

    return sorted(
        row["Names"][0].lstrip("/") for row in _engine().containers() if any(taken(entry) for entry in row["Ports"])
    )


def labelled(label: str) -> dict[str, str]:
    """Return the containers that carry a label, stopped ones too: ``{name: value of the label}``.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.labelled ai-platform.ollama
    """
    rows = _engine().containers(all=True, filters={"label": label})
    return {row["Names"][0].lstrip("/"): row["Labels"][label] for row in rows}


def execute(name: str, argv: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command in a container, without a shell; returns its exit code and what it printed.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.execute ollama '[ollama, list]'
    """
    engine = _engine()
    try:
        made = engine.exec_create(name, argv, environment=environment)
        printed = engine.exec_start(made["Id"])
        return {
            "retcode": engine.exec_inspect(made["Id"])["ExitCode"],
            "output": printed.decode(errors="replace"),
        }
    except docker.errors.APIError as err:
        raise PlatformError("The command cannot be run in the container", where=name, actual=err.explanation) from err


def run(image: str, argv: list[str], environment: dict[str, str], network: str) -> dict[str, Any]:
    """Run a command in a container of its own in a network, and remove it; returns its exit code and what it printed.

    image
        One that is on the host.
    argv, environment
        What its entrypoint is given; it may take ``RUN_SECONDS``.
    network
        The name of a network of Docker.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.run ollama/ollama:0.17.4 '[list]' '{OLLAMA_HOST: ollama:11434}' ai-platform
    """
    engine = _engine()
    settings = engine.create_host_config(network_mode=network, cap_drop=["ALL"])
    try:
        made = engine.create_container(image, argv, environment=environment, host_config=settings)
        try:
            engine.start(made["Id"])
            code = engine.wait(made["Id"], timeout=RUN_SECONDS)["StatusCode"]
            printed = engine.logs(made["Id"]).decode(errors="replace")
        finally:
            engine.remove_container(made["Id"], force=True, v=True)
    except (docker.errors.APIError, requests.RequestException) as err:
        raise PlatformError("The command cannot be run in a container of its own", where=image, actual=err) from err
    return {"retcode": code, "output": printed}


def runtimes() -> list[str]:
    """Return the runtimes that the engine has, such as ``runc`` and ``nvidia``.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.runtimes
    """
    return sorted(_engine().info().get("Runtimes") or {})


def stop(name: str) -> bool:
    """Stop a container and leave it there.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_container.stop ollama
    """
    try:
        _engine().stop(name)
    except docker.errors.NotFound as err:
        raise NotFoundError("There is no such container", where=name, actual=err.explanation) from err
    return True


def _engine() -> Any:
    return docker_engine.client(__context__)
