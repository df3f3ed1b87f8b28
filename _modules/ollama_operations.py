"""Everyday operations on an Ollama of this host, native or in Docker alike; offered as ``ollama``, beside its client.

``instance`` is one of pillar ``ollama:instances``, or in mode ``container`` one of ``ollama:run``; left out, the first.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

from aiplatform import calling, hostcheck, instances, ollama_container, ollama_places, port_holders, wait
from aiplatform import ollama as api
from aiplatform.errors import PlatformError
from aiplatform.ollama_places import Place

__virtualname__ = "ollama"

STORE = ("blobs", "manifests")
START_SECONDS = 120


def __virtual__() -> str:  # noqa: N807 (the loader asks for it by this name)
    return __virtualname__


def places() -> list[dict[str, Any]]:
    """Return what Ollama this host runs: names, URLs for the host and for containers, and as what each runs.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.places
    """
    return [vars(place) for place in ollama_places.every(__pillar__)]


def port_holders_of(instance: str = "") -> list[str]:
    """Return, in words, who keeps a native instance from its port: processes, units, containers; empty if nobody.

    The host's own native instances are nobody, nor are containers of a profile: they go in the same run.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.port_holders_of node1
    """
    place = ollama_places.place(__pillar__, instance)
    units = {row["unit"] for row in __pillar__["ollama"]["instances"].values()}
    own = units.union(instances.retired(units))
    found = [holder for holder in port_holders.holders(place.port, place.address) if holder.unit not in own]
    publishers, leaving = [], {}
    if __salt__["platform_container.answers"]():
        publishers = __salt__["platform_container.publishers"](place.port, place.address)
        leaving = __salt__["platform_container.labelled"](ollama_container.LABEL)
    return port_holders.strangers(found, publishers, leaving)


def env_text() -> str:
    """Return the env file of this host: ``OLLAMA_BASE_URL`` and ``OLLAMA_HOST_BASE_URL`` of its first Ollama.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.env_text
    """
    return ollama_places.env_text(ollama_places.place(__pillar__))


def run(
    model: str,
    prompt: str,
    instance: str = "",
    num_predict: int = 256,
    temperature: float | None = None,
    deadline: float = 300.0,
) -> str:
    """Return a model's answer to one prompt, as text.

    model, prompt, instance
        Who is asked what.
    num_predict, deadline
        How many tokens the answer has at most, and how many seconds it may take, up to three tries included.
    temperature
        How freely words are drawn, in place of the model's own; at 0 the same question has the same answer.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.run llama3.2:3b 'Why is the sky blue?' temperature=0
    """
    client = api.Client(_place(instance).url)
    limits = api.Limits(connect=3.0, read=deadline, total=deadline)
    options = {"num_predict": num_predict} | ({} if temperature is None else {"temperature": temperature})
    with calling.counted(client, __pillar__["ollama"].get("metrics_file")) as caller:
        return caller.generate(model, str(prompt), limits=limits, deadline=deadline, options=options).text


def start(instance: str = "", timeout: float = START_SECONDS) -> bool:
    """Start an Ollama that was stopped, and wait until it answers; a profile's models that are not there are pulled.

    timeout
        Seconds to wait for it; a pull has the profile's own ``pull_timeout``.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.start local
    """
    place = _place(instance)
    _start(place, timeout)
    if place.container:
        for model in __salt__["ollama_container.missing"](place.name):
            __salt__["ollama_container.pull"](place.name, model)
    return True


def stop(instance: str = "", model: str = "") -> bool:
    """Unload one model; or stop the whole Ollama, which then stays stopped until it is started or its state applied.

    Where slots are watched (``models:watch``), both are undone by the watch: there, it is a restart.

    model
        The model to unload; left out, Ollama itself is stopped.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.stop local
        salt-call ollama.stop local llama3.2:3b
    """
    place = _place(instance)
    if model:
        with api.Client(place.url) as client:
            client.unload(model)
        return True
    if place.container:
        return bool(__salt__["platform_container.stop"](place.container))
    if not __salt__["service.stop"](place.unit):
        raise PlatformError("The unit does not stop", where=place.unit, hint=place.status_command)
    return True


def remove(instance: str = "") -> bool:
    """Remove an Ollama and leave its models: the container but not its volume; the unit but not the store.

    The state ``ollama`` makes it again, unless pillar has it no more.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.remove local
    """
    place = _place(instance)
    if place.container:
        return bool(__salt__["platform_container.remove"](place.container))
    return bool(__salt__["ollama.retire"](place.unit))


def wipe(instance: str = "", confirm: str = "") -> dict[str, Any]:
    """Delete all models of a store: Ollama is stopped, its store emptied, and Ollama started again.

    Native instances share one store, so all of them are stopped; where one does not stop, nothing is deleted. Models
    that pillar names come back with the next run of the state.

    confirm
        The name of the volume, or the folder of the store; the refusal says which, and what would be lost.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.wipe local confirm=ollama_data
    """
    place, lost = ollama_places.place(__pillar__, instance), disk_use(instance)
    wanted = place.volume or lost["folder"]
    what = f"{len(lost['models'])} models, {lost['bytes'] / 2**30:.2f} GiB, of {wanted}"
    ollama_places.demand_confirmation(confirm, wanted, what)
    sharing = [place] if place.container else ollama_places.every(__pillar__)
    names = [each.name for each in sharing if _is_up(each)]
    try:
        for name in names:
            stop(name)
        for name in STORE:
            folder = Path(lost["folder"]) / name
            for entry in folder.iterdir() if folder.is_dir() else []:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    finally:
        _start_all(names)
    return {"deleted": lost["models"], "bytes": lost["bytes"] - disk_use(instance)["bytes"]}


def logs(instance: str = "", lines: int = 100) -> str:
    """Return the end of an Ollama's log.

    lines
        How many lines.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.logs local 50
    """
    place = _place(instance)
    if place.container:
        return str(__salt__["platform_container.logs"](place.container, lines))
    argv = ["journalctl", "--no-pager", "--output=cat", f"--unit={place.unit}", f"--lines={int(lines)}"]
    return str(__salt__["cmd.run_stdout"](argv, python_shell=False))


def disk_use(instance: str = "") -> dict[str, Any]:
    """Return what the models of a store take on disk, and what is left there, in bytes.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.disk_use local
    """
    folder = Path(store(instance))
    root = folder / "manifests"
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    return {
        "folder": str(folder),
        "bytes": hostcheck.stored(folder),
        "free": shutil.disk_usage(folder).free,
        "models": [_model_name(path.relative_to(root)) for path in files],
    }


def store(instance: str = "") -> str:
    """Return the folder of this host in which an Ollama keeps its models.

    CLI Example:

    .. code-block:: bash

        salt-call ollama.store local
    """
    place = ollama_places.place(__pillar__, instance)
    if place.volume:
        return f"{__salt__['platform_volume.folder'](place.volume)}/models"
    return str(__salt__["ollama.models_dir"]())


def _is_up(place: Place) -> bool:
    """Whether there is something to stop; a volume outlives its container."""
    if place.container:
        return __salt__["platform_container.inspect"](place.container) is not None
    return bool(__salt__["service.status"](place.unit))


def _start(place: Place, timeout: float = START_SECONDS) -> None:
    if place.container:
        __salt__["platform_container.start"](place.container)
        __salt__["platform_container.wait_well"](place.container, timeout)
        return
    __salt__["service.start"](place.unit)
    with api.Client(place.url) as client:
        wait.until(client.health, timeout, what=f"Ollama at {place.url}")


def _start_all(names: list[str]) -> None:
    """Start each of them, also where another one does not start; that is said in the end. Nothing is pulled."""
    failed = {}
    for name in names:
        try:
            _start(_place(name))
        except CommandExecutionError as err:
            failed[name] = str(err)
    if failed:
        raise PlatformError(
            "What was stopped does not start again",
            where=", ".join(failed),
            actual="; ".join(failed.values()),
            hint=f"salt-call ollama.doctor {next(iter(failed))}; salt-call ollama.start {next(iter(failed))}",
        )


def _model_name(path: Path) -> str:
    """Return the name of the model whose manifest lies at ``host/namespace/model/tag``."""
    *head, tag = path.parts
    return api.normalise(f"{'/'.join(head)}:{tag}")


def _place(instance: str) -> Place:
    place = ollama_places.place(__pillar__, instance)
    if place.container and __salt__["platform_container.inspect"](place.container) is None:
        raise PlatformError(
            f"There is no container {place.container}", where=place.name, hint="salt-call state.apply ollama"
        )
    return place
