"""The slots of this host: which model each holds, under which names, and whether it is loaded."""

from __future__ import annotations

import logging
import time
from typing import Any

from aiplatform import instances, ollama, slots, wait
from aiplatform.errors import PlatformError
from aiplatform.states import diff

log = logging.getLogger(__name__)

PROGRESS = "ai_platform/models/progress"
PROGRESS_SECONDS = 2.0
PULL_ATTEMPTS = 3
UNLOAD_SECONDS = 30.0


def client(instance: str) -> ollama.Client:
    """Return a client of one of this host's instances (for other modules, not for the command line).

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.client node1
    """
    return ollama.Client(instances.base_url(__pillar__, instance))


def threads() -> dict[str, int]:
    """Return each instance's number of threads, by its NUMA plan.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.threads
    """
    return {name: binding["num_thread"] for name, binding in __salt__["numa.plan"]().items()}


def table() -> list[dict[str, Any]]:
    """Return what is to be resident: name, slot, kind, instance, model, load options and aliases of each.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.table
    """
    return [
        {
            "name": resident.name,
            "slot": resident.slot,
            "kind": resident.kind,
            "instance": resident.instance,
            "model": resident.model,
            "options": resident.options,
            "aliases": [alias.name for alias in resident.aliases],
        }
        for resident in _table().residents
    ]


def status() -> list[dict[str, Any]]:
    """Return the table with what is the case: ``loaded``, ``digest`` of the weights, ``context`` and ``size`` (bytes).

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.status
    """
    runners = {name: _loaded(name) for name in __pillar__["ollama"]["instances"]}
    manifests = _manifests()
    rows = []
    for row in table():
        names = [row["name"], *row["aliases"]]
        digests = {manifests.get(ollama.normalise(name)) for name in names}
        runner = next((one for one in runners[row["instance"]] if one["digest"] in digests), {})
        weights = _weights(row["model"]) if ollama.normalise(row["model"]) in manifests else None
        rows.append(
            {
                **row,
                "digest": weights,
                "loaded": bool(runner),
                "context": runner.get("context_length"),
                "size": runner.get("size"),
            }
        )
    return rows


# -- the store ----------------------------------------------------------------------------------------------------


def installed() -> list[dict[str, Any]]:
    """Return the store's models: name, size in bytes, digest of the weights, and whether they answer prompts.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.installed
    """
    api = client(_first())
    rows = []
    for tag in api.tags():
        show = api.show(tag["name"])
        rows.append(
            {
                "name": tag["name"],
                "size": tag["size"],
                "weights_digest": ollama.weights_digest(show),
                "answers": "completion" in show.get("capabilities", ["completion"]),
            }
        )
    return rows


def missing(models: list[str]) -> list[str]:
    """Return which of these models are not in the store; all of them where no instance answers.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.missing '[llama3.1:8b]'
    """
    try:
        there = _manifests()
    except ollama.InstanceDown:
        return list(models)
    return [name for name in models if ollama.normalise(name) not in there]


def pull(model: str) -> bool:
    """Fetch a model, telling the master how far it is; a pull that broke off before carries on.

    CLI Example:

    .. code-block:: bash

        salt -t 86400 ai_server model_slots.pull llama3.1:8b
    """
    if ":" not in model.rpartition("/")[2]:
        raise PlatformError("A name without a tag", expected=f"a name such as {model}:latest", actual=model)
    insecure = model.split("/", 1)[0] in __pillar__["models"]["insecure_registries"]
    source = f"http://{model}" if insecure else model
    api = client(_first())
    for attempt in range(1, PULL_ATTEMPTS + 1):
        try:
            _follow(model, api.pull(source, insecure=insecure))
        except ollama.ModelNotFound:
            raise
        except ollama.OllamaError as err:
            if attempt == PULL_ATTEMPTS:
                raise
            log.warning("Pull of %s broke off (attempt %d of %d): %s", model, attempt, PULL_ATTEMPTS, err)
        else:
            return True
    return False


def _follow(model: str, events: Any) -> None:
    told = 0.0
    for event in events:
        if time.monotonic() - told >= PROGRESS_SECONDS or event["status"] == "success":
            told = time.monotonic()
            data = {"model": model, **{key: event.get(key) for key in ("status", "completed", "total")}}
            log.info("Pull: %s", data)
            if __opts__.get("file_client") != "local":
                __salt__["event.send"](PROGRESS, data)


# -- an instance's residents --------------------------------------------------------------------------------------


def differences(instance: str) -> dict[str, Any]:
    """Return how the instance's names and loaded models differ from the table, as changes of a state.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.differences node1
    """
    residents = _table().on(instance)
    try:
        manifests = _manifests()
        runners = _loaded(instance)
    except ollama.InstanceDown:
        manifests, runners = {}, []
    changes: dict[str, Any] = {}
    for resident in residents:
        stale = {
            alias.name: found for alias in resident.names if (found := _alias_difference(resident, alias, manifests))
        }
        changes |= stale
        digests = {manifests.get(ollama.normalise(alias.name)) for alias in resident.names if alias.name not in stale}
        if resident.name in stale or not _runs(resident, digests, runners):
            changes[f"{resident.name} on {instance}"] = {"old": "not loaded", "new": f"{resident.model} loaded"}
    for runner in _stale(runners, manifests):
        changes.setdefault(f"{runner['name']} on {instance}", {"old": "loaded with what it was", "new": "unloaded"})
    return changes


def converge(instance: str) -> None:
    """Make the instance's names and loaded models those of the table.

    In this order no name is ever unresolved: each slot's own name moves to the new model and loads it, then the aliases
    move, then what no name stands for any longer is unloaded.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.converge node1
    """
    api = client(instance)
    residents = _table().on(instance)
    manifests = _manifests()
    for resident in residents:
        _create(api, resident, slots.Alias(resident.name, resident.system), manifests)
        _load(api, resident)
    for resident in residents:
        for alias in resident.aliases:
            _create(api, resident, alias, manifests)
    _release(api, instance)
    left = differences(instance)
    if left:
        raise PlatformError(
            "The slots are not as wanted", where=f"instance {instance}", expected="no difference", actual=left
        )


def unload_all(instance: str) -> None:
    """Unload everything that an instance has loaded.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.unload_all node1
    """
    api = client(instance)
    for runner in api.ps():
        api.unload(runner["name"])
    if api.ps():
        _unload_unnamed(api, keep=set())
    wait.until(lambda: not api.ps(), UNLOAD_SECONDS, what=f"instance {instance} to unload all models")


def warm_up(instance: str) -> None:
    """Restart the warm-up unit of an instance, where there is one.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.warm_up node1
    """
    unit = slots.warmup_unit(__pillar__["ollama"]["instances"][instance]["unit"])
    if __salt__["service.available"](unit):
        __salt__["service.restart"](unit)


def warmup_settings(instance: str) -> dict[str, Any]:
    """Return the content of the warm-up's settings file.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.warmup_settings node1
    """
    settings = __pillar__["models"]
    return {
        "url": instances.base_url(__pillar__, instance),
        "wait_seconds": settings["warmup_wait"],
        "load_seconds": settings["load_timeout"],
        "models": [
            {
                "name": resident.name,
                "holds": resident.model,
                "num_ctx": resident.num_ctx,
                "aliases": [alias.name for alias in resident.aliases],
            }
            for resident in _table().on(instance)
        ],
    }


def warmup_seconds(instance: str) -> float:
    """Return how long the warm-up may take: the wait for its instance and the loads, one after the other.

    CLI Example:

    .. code-block:: bash

        salt ai_server model_slots.warmup_seconds node1
    """
    settings = __pillar__["models"]
    places = [slot for slot in __pillar__["slots"].values() if slot["instance"] == instance]
    own = [row for row in __pillar__["aliases"].values() if row.get("model") and row.get("instance") == instance]
    return settings["warmup_wait"] + (len(places) + len(own)) * settings["load_timeout"]


# -- how it is done -----------------------------------------------------------------------------------------------


def _table() -> slots.Table:
    return slots.resolve(__pillar__, threads())


def _first() -> str:
    """Return the instance that is asked about the store, which all instances share."""
    return min(__pillar__["ollama"]["instances"])


def _manifests() -> dict[str, str]:
    """Return ``{normalised name: digest of its manifest}`` of the store."""
    return {ollama.normalise(tag["name"]): tag["digest"] for tag in client(_first()).tags()}


def _loaded(instance: str) -> list[dict[str, Any]]:
    """Return the runners of an instance; none where it does not answer."""
    try:
        return client(instance).ps()
    except ollama.InstanceDown:
        return []


def _weights(model: str) -> str:
    return client(_first()).digest(model)


def _alias_difference(
    resident: slots.Resident, alias: slots.Alias, manifests: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Return ``{what: {old, new}}`` where an alias is not as wanted; empty where it is."""
    api = client(_first())
    there = ollama.normalise(alias.name) in manifests
    current = api.show(alias.name) if there else {}
    if ollama.normalise(resident.model) not in manifests:
        return {"model": {"old": _holds(current), "new": resident.model}}
    base = api.show(resident.model)
    if not there:
        return {"model": {"old": None, "new": resident.model}}
    found = diff(slots.described(current), slots.wanted_show(base, resident.options, alias.system))
    if ollama.weights_digest(current) != ollama.weights_digest(base):
        found["model"] = {"old": _holds(current), "new": resident.model}
    return found


def _holds(show: dict[str, Any]) -> str | None:
    """Return the model that an alias was made of, else its weights."""
    if not show:
        return None
    return show.get("details", {}).get("parent_model") or f"sha256:{ollama.weights_digest(show)[:12]}"


def _runs(resident: slots.Resident, digests: set[str | None], runners: list[dict[str, Any]]) -> bool:
    """Return whether a runner stands for one of these manifests, with the resident's context."""
    return any(row["digest"] in digests and row.get("context_length") == resident.num_ctx for row in runners)


def _stale(runners: list[dict[str, Any]], manifests: dict[str, str]) -> list[dict[str, Any]]:
    """Return the runners that were loaded under one of our names, which has since become another model."""
    known = set(manifests.values())
    ours = __pillar__["aliases"]
    return [row for row in runners if row["digest"] not in known and slots.is_own_name(row["name"], ours)]


def _create(api: ollama.Client, resident: slots.Resident, alias: slots.Alias, manifests: dict[str, str]) -> None:
    if not _alias_difference(resident, alias, manifests):
        return
    fields: dict[str, Any] = {"from": resident.model, "parameters": resident.options}
    if alias.system is not None:
        fields["system"] = alias.system
    for _ in api.create(alias.name, **fields):
        pass


def _load(api: ollama.Client, resident: slots.Resident) -> None:
    """Load a resident under its own name, and pin it."""
    manifests = _manifests()
    names = [alias.name for alias in resident.names]
    digests = {manifests.get(ollama.normalise(name)) for name in names}
    if _runs(resident, digests, api.ps()):
        return
    seconds = __pillar__["models"]["load_timeout"]
    limits = ollama.Limits(read=seconds, total=seconds)
    api.load(resident.name, limits=limits)
    if not _runs(resident, digests, api.ps()):
        # The same weights are loaded under a name that has changed since: Ollama took that runner for good enough.
        api.unload(resident.name)
        api.load(resident.name, limits=limits)


def _release(api: ollama.Client, instance: str) -> None:
    """Unload what was loaded under a name of ours that now means another model."""
    manifests = _manifests()
    if _stale(api.ps(), manifests):
        _unload_unnamed(api, keep={_weights(resident.model) for resident in _table().on(instance)})
        what = f"instance {instance} to unload what no name stands for any longer"
        wait.until(lambda: not _stale(api.ps(), manifests), UNLOAD_SECONDS, what=what)


def _unload_unnamed(api: ollama.Client, keep: set[str]) -> None:
    """Ask for the unloading of all weights but those to keep, and those loaded under a name that still means them.

    Ollama lists a runner by the manifest that loaded it. Once a name has moved on, only other names of the same weights
    reach that runner; so every candidate is asked for, which costs nothing where it is not loaded.
    """
    named = {row["digest"] for row in api.ps()}
    for tag in api.tags():
        weights = api.digest(tag["name"])
        if tag["digest"] not in named and weights not in keep:
            keep = keep | {weights}
            api.unload(tag["name"])
